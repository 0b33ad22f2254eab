//! Convolution on tiles: the sums of two columns of tiles, both halves of each, stay in four registers
//! while the taps and the channels read go by.

use super::{Tile, TileUnit, Vector, padded};
use crate::geometry::{Run, Tap, TileTap};
use crate::kernels::ConvBand;
use crate::kernels::frame::tiled::weights::chunk_len;
use crate::layout::{GROUP, HALF, TILE, Tiling};

/// Ways that a 7x7 kernel's rows and columns of tiles can meet.
const MAX_TERMS: usize = 64;

/// Tiles that are summed in single precision before the sums move on to double.
const TILES_PER_FLUSH: usize = 16;

/// A tile read for the first column of a run, and the weights it meets for each half of the tile written;
/// in words.
#[derive(Clone, Copy, Default)]
struct Term {
    input: usize,
    weights: [Option<usize>; 2],
}

/// Computes a band.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv<U: TileUnit>(band: ConvBand<'_>) {
    let gather = band.gather;
    let (read, written) = (Tiling::new(gather.from), Tiling::new(gather.to));
    let chunk_len = chunk_len(gather);
    let mut pass = Pass::<U> {
        // SAFETY: passed on from the caller.
        unit: unsafe { U::new() },
        input: band.input.as_ptr(),
        blocks: read.blocks,
        sums: [Tile::ZERO; 4],
        accumulate: band.accumulate,
    };
    let mut moments = band.moments.map(|moments| {
        (
            padded(moments.pivot),
            vec![BlockSums::default(); written.blocks],
            vec![0.0f64; 4 * HALF * written.blocks],
            moments,
        )
    });
    let mut unflushed = 0;
    for (index, row) in band.rows.clone().enumerate() {
        for run in &gather.tiles.columns {
            let mut terms = [Term::default(); MAX_TERMS];
            let count = list_terms(&gather.rows[row], run, (read, gather.tiles.weights.len()), &mut terms);
            for block in 0..written.blocks {
                let chunks = if written.pixels == 2 { [0, 0] } else { [2 * block, 2 * block + 1] };
                // SAFETY: packed weights hold every chunk; columns lie inside rows, taps inside the input.
                unsafe {
                    let weights = chunks.map(|chunk| band.weights.as_ptr().add(chunk * chunk_len));
                    for first in (0..run.count).step_by(2) {
                        let columns = 2.min(run.count - first);
                        let input = first * run.from_step * read.blocks * TILE;
                        let step = run.from_step * read.blocks * TILE;
                        if columns == 2 {
                            pass.multiply::<true>(&terms[..count], input, step, weights);
                        } else {
                            pass.multiply::<false>(&terms[..count], input, step, weights);
                        }
                        for which in 0..columns {
                            let column = run.start + (first + which) * run.step;
                            let tile = (index * written.columns + column) * written.blocks + block;
                            let output = band.output.as_mut_ptr().add(tile * TILE);
                            pass.store(which, output);
                            if let Some((pivot, sums, _, moments)) = &mut moments {
                                let halves = if (column + 1) * written.pixels > gather.to.width { 1 } else { 2 };
                                let pivots = chunks.map(|chunk| pivot.as_ptr().add(chunk * HALF));
                                sums[block].add::<U::Vector>(pass.halves(which), pivots, moments.images, halves);
                            }
                        }
                    }
                }
            }
        }
        unflushed += written.columns;
        if let Some((_, sums, totals, _)) = &mut moments
            && (unflushed >= TILES_PER_FLUSH || index + 1 == band.rows.len())
        {
            unflushed = 0;
            for (sums, totals) in sums.iter_mut().zip(totals.chunks_exact_mut(4 * HALF)) {
                sums.flush(totals);
            }
        }
    }
    if let Some((_, _, totals, moments)) = moments {
        fold_halves(&totals, written, moments.sums);
    }
}

/// Lists the tiles that a row and a run read; returns how many there are.
#[inline(always)]
fn list_terms(rows: &[Tap], run: &Run<TileTap>, (read, ways): (Tiling, usize), terms: &mut [Term; MAX_TERMS]) -> usize {
    let mut count = 0;
    for row in rows {
        for tap in &run.taps {
            terms[count] = Term {
                input: (row.from * read.columns + tap.from) * read.blocks * TILE,
                weights: tap.weights.map(|way| Some((row.kernel * ways + way?) * read.blocks * TILE)),
            };
            count += 1;
        }
    }
    count
}

/// Turns `[block][half][sum or square][channel]` into `[channel][sum, square]`; both halves belong to the
/// same channels where a tile holds two pixels.
fn fold_halves(totals: &[f64], tiling: Tiling, sums: &mut [f64]) {
    let of = |chunk: usize, which: usize, channel: usize| totals[(chunk * 2 + which) * HALF + channel];
    for (channel, sums) in sums.chunks_exact_mut(2).enumerate() {
        let (chunk, lane) = (channel / HALF, channel % HALF);
        for (which, sum) in sums.iter_mut().enumerate() {
            *sum = of(chunk, which, lane) + if tiling.pixels == 2 { of(chunk + 1, which, lane) } else { 0.0 };
        }
    }
}

/// The matrix unit and what it works on.
struct Pass<U> {
    unit: U,
    input: *const f32,
    /// Blocks of channels read.
    blocks: usize,
    /// Sums of two columns, `[column][half]`.
    sums: [Tile; 4],
    accumulate: bool,
}

impl<U: TileUnit> Pass<U> {
    /// Sums up one column of tiles, or two that lie `step` words apart in the input.
    ///
    /// # Safety
    /// The terms, moved by `input` and `step`, lie inside the input and the weights.
    #[inline(always)]
    unsafe fn multiply<const PAIR: bool>(
        &mut self,
        terms: &[Term],
        input: usize,
        step: usize,
        weights: [*const f32; 2],
    ) {
        let unit = &mut self.unit;
        // SAFETY: passed on from the caller.
        unsafe {
            unit.zero::<0>();
            unit.zero::<1>();
            if PAIR {
                unit.zero::<2>();
                unit.zero::<3>();
            }
            for term in terms {
                for block in 0..self.blocks {
                    let from = self.input.add(term.input + input + block * TILE);
                    unit.load::<4>(from);
                    if PAIR {
                        unit.load::<5>(from.add(step));
                    }
                    if let Some(at) = term.weights[0] {
                        unit.load::<6>(weights[0].add(at + block * TILE));
                        unit.dot::<0, 4, 6>();
                        if PAIR {
                            unit.dot::<2, 5, 6>();
                        }
                    }
                    if let Some(at) = term.weights[1] {
                        unit.load::<7>(weights[1].add(at + block * TILE));
                        unit.dot::<1, 4, 7>();
                        if PAIR {
                            unit.dot::<3, 5, 7>();
                        }
                    }
                }
            }
            unit.store::<0>(self.sums[0].as_mut_ptr());
            unit.store::<1>(self.sums[1].as_mut_ptr());
            if PAIR {
                unit.store::<2>(self.sums[2].as_mut_ptr());
                unit.store::<3>(self.sums[3].as_mut_ptr());
            }
        }
    }

    fn halves(&self, column: usize) -> [*const f32; 2] {
        [0, 1].map(|half| self.sums[2 * column + half].as_ptr())
    }

    /// Rounds the sums of a column to its tile.
    ///
    /// # Safety
    /// `output` is a tile.
    #[inline(always)]
    unsafe fn store(&self, column: usize, output: *mut f32) {
        let [low, high] = self.halves(column);
        for at in (0..TILE).step_by(U::Vector::LANES) {
            // SAFETY: inside the tiles.
            unsafe {
                let (mut low, mut high) = (U::Vector::load(low.add(at)), U::Vector::load(high.add(at)));
                if self.accumulate {
                    let before = U::Vector::load(output.add(at)).widen();
                    (low, high) = (low.add(before.0), high.add(before.1));
                }
                U::narrow(low, high).store(output.add(at));
            }
        }
    }
}

/// Sums over images and pixels of a block's channels: `[half][of y - pivot, of its square][channel]`.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct BlockSums([f32; 4 * HALF]);

impl Default for BlockSums {
    fn default() -> Self {
        Self([0.0; 4 * HALF])
    }
}

impl BlockSums {
    /// # Safety
    /// `values` are tiles of floats and `pivots` one value a channel.
    #[inline(always)]
    unsafe fn add<V: Vector>(
        &mut self,
        values: [*const f32; 2],
        pivots: [*const f32; 2],
        images: usize,
        halves: usize,
    ) {
        for part in (0..HALF).step_by(V::LANES) {
            for half in 0..halves {
                // SAFETY: inside the tiles, the pivots and the sums.
                unsafe {
                    let sums = self.0.as_mut_ptr().add(2 * half * HALF + part);
                    let pivot = V::load(pivots[half].add(part));
                    let (mut sum, mut square) = (V::load(sums), V::load(sums.add(HALF)));
                    for image in 0..images.min(GROUP) {
                        let centred = V::load(values[half].add(image * HALF + part)).sub(pivot);
                        sum = sum.add(centred);
                        square = centred.mul_add(centred, square);
                    }
                    sum.store(sums);
                    square.store(sums.add(HALF));
                }
            }
        }
    }

    fn flush(&mut self, totals: &mut [f64]) {
        for (sum, total) in self.0.iter_mut().zip(totals) {
            *total += f64::from(std::mem::take(sum));
        }
    }
}
