//! Convolution on tiles: the sums of two columns of tiles, both halves of each, stay in four registers
//! while the taps and the channels read go by.

use std::ops::Range;

use super::channels::{PaddedGate, PerChannel};
use super::rows::Rows;
use super::source::Values;
use super::weights::chunk_len;
use super::{Pair, SCRATCH, Tile, TileUnit, Vector, ZERO, load, padded, plane_products, store};
use crate::geometry::{Gather, Term};
use crate::kernels::{ConvBand, Sums};
use crate::layout::{HALF, TILE, Tiling, stored_tile};

/// Tiles of prepared rows that should be kept at a time: they share the second-level cache with the weights.
const PREPARED_TILES: usize = 256;

/// Tiles that are summed in single precision before the sums move on to double.
const TILES_PER_FLUSH: usize = 16;

/// Computes a band.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv<U: TileUnit, const PLANES: usize>(band: ConvBand<'_>) {
    let gather = band.gather;
    let (rows_at_once, kept) = rows_at_once::<PLANES>(gather, band.rows.clone());
    let input = Values::new(band.input, gather.from);
    let mut scratch = SCRATCH.take();
    let ring_len = Rows::<PLANES>::scratch_len(&input, gather.from, kept);
    scratch.resize(scratch.len().max(ring_len), Tile::ZERO);
    let written = Tiling::new(gather.to);
    let mut pass = Pass::<U, PLANES> {
        // SAFETY: passed on from the caller.
        unit: unsafe { U::new() },
        gather,
        read: Tiling::new(gather.from),
        written,
        rows: Rows::new(input, gather.from, kept, &mut scratch[..ring_len]),
        weights: band.weights,
        sums: [Tile::ZERO; 4],
        measure: Measure::new(band.sums, written),
        accumulate: band.accumulate,
    };
    let mut prepared = 0;
    let rows_written = band.rows.clone().step_by(rows_at_once);
    let row_len = written.row_tiles() * stored_tile(PLANES);
    for (first, output) in rows_written.zip(band.output.chunks_mut(rows_at_once * row_len)) {
        let rows = first..band.rows.end.min(first + rows_at_once);
        let read = gather.rows_read(rows.clone());
        for row in prepared.max(read.start)..read.end {
            // SAFETY: rows read lie inside the input.
            unsafe { pass.rows.prepare::<U>(row) };
        }
        prepared = prepared.max(read.end);
        // Block by block, so that the weights of one stay in the first-level cache from row to row.
        for block in 0..written.blocks {
            let start = (first - band.rows.start) * row_len;
            // SAFETY: the rows are prepared and `output` holds the rows written.
            unsafe { pass.block(block, rows.clone(), output, start) };
        }
    }
    pass.measure.finish();
    drop(pass);
    SCRATCH.set(scratch);
}

/// How many rows to write at a time, and how many of those read to keep for that.
fn rows_at_once<const PLANES: usize>(gather: &Gather, rows: Range<usize>) -> (usize, usize) {
    let row_tiles = Tiling::new(gather.from).row_tiles() * PLANES;
    let mut count = rows.len().max(1);
    loop {
        let parts = rows.clone().step_by(count).map(|first| gather.rows_read(first..rows.end.min(first + count)).len());
        let kept = parts.max().unwrap_or(0).max(1).next_power_of_two();
        if count == 1 || kept * row_tiles <= PREPARED_TILES {
            return (count, kept);
        }
        count = count.div_ceil(2);
    }
}

/// The matrix unit and what it works on.
struct Pass<'a, U, const PLANES: usize> {
    unit: U,
    gather: &'a Gather,
    /// How the input is cut into tiles.
    read: Tiling,
    /// How the output is.
    written: Tiling,
    rows: Rows<'a, PLANES>,
    weights: &'a [f32],
    /// Sums of two columns, `[column][half]`.
    sums: [Tile; 4],
    measure: Measure<'a>,
    accumulate: bool,
}

impl<U: TileUnit, const PLANES: usize> Pass<'_, U, PLANES> {
    /// Computes a block of channels of some rows; `start` is the place of `output` in the band.
    ///
    /// # Safety
    /// What they read is prepared and `output` holds them.
    #[inline(always)]
    unsafe fn block(&mut self, block: usize, rows: Range<usize>, output: &mut [f32], start: usize) {
        let (gather, written) = (self.gather, self.written);
        let chunks = if written.pixels == 2 { [0, 0] } else { [2 * block, 2 * block + 1] };
        let chunk_len = chunk_len(gather, PLANES);
        let weights = chunks.map(|chunk| self.weights.as_ptr().wrapping_add(chunk * chunk_len));
        for (row, terms) in gather.terms[rows].iter().enumerate() {
            for (run, terms) in gather.tiles.columns.iter().zip(terms) {
                for first in (0..run.count).step_by(2) {
                    let columns = 2.min(run.count - first);
                    let from = (first * run.from_step) as isize;
                    // SAFETY: passed on from the caller; columns lie inside rows, taps inside the input.
                    unsafe {
                        if columns == 2 {
                            self.multiply::<true>(terms, [from, from + run.from_step as isize], weights);
                        } else {
                            self.multiply::<false>(terms, [from; 2], weights);
                        }
                        for which in 0..columns {
                            let column = run.start + (first + which) * run.step;
                            let halves = written.halves(column);
                            let tile = (row * written.columns + column) * written.blocks + block;
                            let at = tile * stored_tile(PLANES);
                            let output = output.as_mut_ptr().add(at);
                            match &self.measure.factors {
                                Factors::Nothing => self.store(which, halves, output),
                                Factors::Moments { .. } => {
                                    self.store(which, halves, output);
                                    self.measure.add::<U::Vector>(self.halves(which), chunks, halves);
                                }
                                Factors::Gradient { .. } => {
                                    self.store_gradient(which, halves, output, (block, start + at));
                                }
                            }
                        }
                    }
                }
            }
            self.measure.end_row(block);
        }
        self.measure.flush(block);
    }

    /// Sums up one column of tiles, or two.
    ///
    /// # Safety
    /// The terms' rows lie inside the input and their weights inside the packed ones.
    #[inline(always)]
    unsafe fn multiply<const PAIR: bool>(&mut self, terms: &[Term], columns: [isize; 2], weights: [*const f32; 2]) {
        let blocks = self.read.blocks;
        let unit = &mut self.unit;
        // SAFETY: passed on from the caller; columns outside the row are read from a tile of zeros.
        unsafe {
            unit.zero::<0>();
            unit.zero::<1>();
            if PAIR {
                unit.zero::<2>();
                unit.zero::<3>();
            }
            for term in terms {
                let row = self.rows.row(term.row);
                let tiles = columns.map(|column| tile_at::<PLANES>(row, term.column + column, self.read));
                let weights = [0, 1].map(|half| term.weights[half].map(|at| weights[half].add(at * PLANES * TILE)));
                for block in 0..blocks {
                    let tiles = tiles.map(|(tile, step)| tile.add(block * step));
                    let weights = weights.map(|tile| Some(tile?.add(block * PLANES * TILE)));
                    multiply_tiles::<U, PAIR, PLANES>(unit, tiles, weights);
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

    /// Rounds the sums of a column to its tile; a half without a pixel becomes zero.
    ///
    /// # Safety
    /// `output` is a tile.
    #[inline(always)]
    unsafe fn store(&self, column: usize, halves: usize, output: *mut f32) {
        let [low, high] = self.halves(column);
        let high = if halves == 2 { high } else { ZERO[0].as_ptr() };
        for at in (0..TILE).step_by(U::Vector::LANES) {
            // SAFETY: inside the tiles.
            unsafe {
                let (mut low, mut high) = (U::Vector::load(low.add(at)), U::Vector::load(high.add(at)));
                if self.accumulate {
                    let before = load::<U::Vector, PLANES>(output.add(at));
                    (low, high) = (low.add(before.0), high.add(before.1));
                }
                store::<U, PLANES>((low, high), output.add(at));
            }
        }
    }

    /// Masks the sums of a column by the rectifier, rounds them to its tile and sums them for a batch norm's gradient;
    /// `at` is the tile's place in the band.
    ///
    /// # Safety
    /// `output` is a tile of the block.
    #[inline(always)]
    unsafe fn store_gradient(&mut self, column: usize, halves: usize, output: *mut f32, (block, at): (usize, usize)) {
        let [low, high] = self.halves(column);
        let high = if halves == 2 { high } else { ZERO[0].as_ptr() };
        let Measure { factors: Factors::Gradient { mean, gate, input }, block: totals, .. } = &mut self.measure else {
            return;
        };
        for part in (0..HALF).step_by(U::Vector::LANES) {
            // SAFETY: inside the tiles.
            unsafe {
                let mean: Pair<U::Vector> = mean.load(block, part);
                let gate = gate.load(block, part);
                let mut sums = [U::Vector::splat(0.0); 4];
                for image in (part..TILE).step_by(HALF) {
                    let mut g = (U::Vector::load(low.add(image)), U::Vector::load(high.add(image)));
                    if self.accumulate {
                        let before = load::<U::Vector, PLANES>(output.add(image));
                        g = (g.0.add(before.0), g.1.add(before.1));
                    }
                    let y = load::<U::Vector, PLANES>(input.add(at + image));
                    let g = gate.mask::<PLANES>(g, y, at + image);
                    store::<U, PLANES>(g, output.add(image));
                    sums[0] = sums[0].add(g.0);
                    sums[1] = g.0.mul_add(y.0.sub(mean.0), sums[1]);
                    sums[2] = sums[2].add(g.1);
                    sums[3] = g.1.mul_add(y.1.sub(mean.1), sums[3]);
                }
                for which in 0..4 {
                    let total = totals.0.as_mut_ptr().add(which * HALF + part);
                    U::Vector::load(total).add(sums[which]).store(total);
                }
            }
        }
    }
}

/// Adds the products of up to two columns' tiles and the weights for up to two halves of what is written.
///
/// # Safety
/// All point to tiles, with as many planes as there are.
#[inline(always)]
unsafe fn multiply_tiles<U: TileUnit, const PAIR: bool, const PLANES: usize>(
    unit: &mut U,
    [first, second]: [*const f32; 2],
    weights: [Option<*const f32>; 2],
) {
    let products = plane_products(PLANES);
    for (index, &(read, weight)) in products.iter().enumerate() {
        let changes = |of: fn(&(usize, usize)) -> usize| index == 0 || of(&products[index - 1]) != of(&products[index]);
        // SAFETY: passed on from the caller.
        unsafe {
            if changes(|product| product.0) {
                unit.load::<4>(first.add(read * TILE));
                if PAIR {
                    unit.load::<5>(second.add(read * TILE));
                }
            }
            if let Some(tile) = weights[0] {
                if changes(|product| product.1) {
                    unit.load::<6>(tile.add(weight * TILE));
                }
                unit.dot::<0, 4, 6>();
                if PAIR {
                    unit.dot::<2, 5, 6>();
                }
            }
            if let Some(tile) = weights[1] {
                if changes(|product| product.1) {
                    unit.load::<7>(tile.add(weight * TILE));
                }
                unit.dot::<1, 4, 7>();
                if PAIR {
                    unit.dot::<3, 5, 7>();
                }
            }
        }
    }
}

/// The first tile of a column, and the words from it to the next block's.
#[inline(always)]
fn tile_at<const PLANES: usize>(row: *const f32, column: isize, tiling: Tiling) -> (*const f32, usize) {
    if (column as usize) < tiling.columns {
        (row.wrapping_add(column as usize * tiling.blocks * PLANES * TILE), PLANES * TILE)
    } else {
        (ZERO[0].as_ptr(), 0)
    }
}

/// [`Sums`] over a band's output, added up block by block.
struct Measure<'a> {
    sums: Sums<'a>,
    factors: Factors<'a>,
    tiling: Tiling,
    /// Of the current block.
    block: BlockSums,
    /// `[block][half][2][channel]`.
    totals: Vec<f64>,
    /// Tiles since the sums moved on.
    tiles: usize,
}

/// What is summed.
enum Factors<'a> {
    Nothing,
    /// `y - pivot` and its square, over some images.
    Moments {
        pivot: Vec<f32>,
        images: usize,
    },
    /// `g`, masked, and `g * (input - mean)`.
    Gradient {
        mean: PerChannel,
        gate: PaddedGate<'a>,
        input: *const f32,
    },
}

impl<'a> Measure<'a> {
    fn new(sums: Sums<'a>, tiling: Tiling) -> Self {
        let factors = match &sums {
            Sums::None => Factors::Nothing,
            Sums::Moments(moments) => Factors::Moments { pivot: padded(moments.pivot), images: moments.images },
            Sums::Gradient(reduction) => Factors::Gradient {
                mean: PerChannel::new(reduction.mean, tiling),
                gate: PaddedGate::new(reduction.gate, tiling),
                input: reduction.input.as_ptr(),
            },
        };
        let totals = if let Factors::Nothing = factors { 0 } else { 4 * HALF * tiling.blocks };
        Self { sums, factors, tiling, block: BlockSums([0.0; 4 * HALF]), totals: vec![0.0; totals], tiles: 0 }
    }

    /// Adds the moments of a tile of the current block's chunks.
    ///
    /// # Safety
    /// `values` are tiles of floats.
    #[inline(always)]
    unsafe fn add<V: Vector>(&mut self, values: [*const f32; 2], chunks: [usize; 2], halves: usize) {
        let Factors::Moments { pivot, images } = &self.factors else { return };
        for (half, chunk) in chunks.into_iter().enumerate().take(halves) {
            let pivot = pivot[chunk * HALF..].as_ptr();
            // SAFETY: passed on from the caller; the pivots are filled up to whole chunks.
            unsafe { self.block.add::<V>(half, values[half], pivot, *images) };
        }
    }

    fn end_row(&mut self, block: usize) {
        self.tiles += self.tiling.columns;
        if self.tiles >= TILES_PER_FLUSH {
            self.flush(block);
        }
    }

    /// Moves the sums on to double precision.
    fn flush(&mut self, block: usize) {
        self.tiles = 0;
        let totals = self.totals.chunks_exact_mut(4 * HALF).nth(block).unwrap_or_default();
        for (sum, total) in self.block.0.iter_mut().zip(totals) {
            *total += f64::from(std::mem::take(sum));
        }
    }

    /// Gives the sums out as `[channel][2]`; both halves belong to the same channels where a tile
    /// holds two pixels.
    fn finish(&mut self) {
        let of = |chunk: usize, which: usize, lane: usize| self.totals[(chunk * 2 + which) * HALF + lane];
        for (channel, sums) in self.sums.totals().chunks_exact_mut(2).enumerate() {
            let (chunk, lane) = (channel / HALF, channel % HALF);
            for (which, sum) in sums.iter_mut().enumerate() {
                *sum = of(chunk, which, lane) + if self.tiling.pixels == 2 { of(chunk + 1, which, lane) } else { 0.0 };
            }
        }
        self.sums.finish();
    }
}

/// Sums over images and pixels of a block's channels: `[half][2][channel]`.
#[repr(align(64))]
struct BlockSums([f32; 4 * HALF]);

impl BlockSums {
    /// Adds the moments of half a tile's images, four at a time: a single sum would wait for itself.
    ///
    /// # Safety
    /// `values` is a tile of floats and `pivot` one value a channel.
    #[inline(always)]
    unsafe fn add<V: Vector>(&mut self, half: usize, values: *const f32, pivot: *const f32, images: usize) {
        for part in (0..HALF).step_by(V::LANES) {
            // SAFETY: inside the tile, the pivots and the sums.
            unsafe {
                let pivot = V::load(pivot.add(part));
                let mut sums = [[V::splat(0.0); 2]; 4];
                for first in (0..images).step_by(4) {
                    for which in 0..4 {
                        if first + which < images {
                            let centred = V::load(values.add((first + which) * HALF + part)).sub(pivot);
                            sums[which][0] = sums[which][0].add(centred);
                            sums[which][1] = centred.mul_add(centred, sums[which][1]);
                        }
                    }
                }
                for which in 0..2 {
                    let sum = sums[0][which].add(sums[1][which]).add(sums[2][which].add(sums[3][which]));
                    let total = self.0.as_mut_ptr().add((2 * half + which) * HALF + part);
                    V::load(total).add(sum).store(total);
                }
            }
        }
    }
}
