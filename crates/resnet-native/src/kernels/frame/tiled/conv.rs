//! Convolution on tiles: the sums of two columns of tiles, both halves of each, stay in four registers
//! while the taps and the channels read go by.

use super::weights::chunk_len;
use super::{Tile, TileUnit, Vector, ZERO, load, padded, plane_products, store};
use crate::geometry::Term;
use crate::kernels::{ConvBand, Moments};
use crate::layout::{HALF, TILE, Tiling};

/// Tiles that are summed in single precision before the sums move on to double.
const TILES_PER_FLUSH: usize = 16;

/// Computes a band.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv<U: TileUnit, const PLANES: usize>(band: ConvBand<'_>) {
    let gather = band.gather;
    let (read, written) = (Tiling::new(gather.from), Tiling::new(gather.to));
    let chunk_len = chunk_len(gather, PLANES);
    let mut pass = Pass::<U, PLANES> {
        // SAFETY: passed on from the caller.
        unit: unsafe { U::new() },
        input: band.input.as_ptr(),
        read,
        sums: [Tile::ZERO; 4],
        accumulate: band.accumulate,
    };
    let mut moments = band.moments.map(|moments| BatchMoments::new(moments, written));
    // Block by block, so that the weights of one stay in the first-level cache from row to row.
    for block in 0..written.blocks {
        let chunks = if written.pixels == 2 { [0, 0] } else { [2 * block, 2 * block + 1] };
        // SAFETY: packed weights hold every chunk.
        let weights = chunks.map(|chunk| unsafe { band.weights.as_ptr().add(chunk * chunk_len) });
        for (row, terms) in gather.terms[band.rows.clone()].iter().enumerate() {
            for (run, terms) in gather.tiles.columns.iter().zip(terms) {
                for first in (0..run.count).step_by(2) {
                    let columns = 2.min(run.count - first);
                    let from = (first * run.from_step) as isize;
                    // SAFETY: columns lie inside rows, taps inside the input.
                    unsafe {
                        if columns == 2 {
                            pass.multiply::<true>(terms, [from, from + run.from_step as isize], weights);
                        } else {
                            pass.multiply::<false>(terms, [from; 2], weights);
                        }
                        for which in 0..columns {
                            let column = run.start + (first + which) * run.step;
                            let halves = if (column + 1) * written.pixels > gather.to.width { 1 } else { 2 };
                            let tile = (row * written.columns + column) * written.blocks + block;
                            pass.store(which, halves, band.output.as_mut_ptr().add(tile * PLANES * TILE));
                            if let Some(moments) = &mut moments {
                                moments.add::<U::Vector>(pass.halves(which), chunks, halves);
                            }
                        }
                    }
                }
            }
            if let Some(moments) = &mut moments {
                moments.end_row(block);
            }
        }
        if let Some(moments) = &mut moments {
            moments.flush(block);
        }
    }
    if let Some(moments) = moments {
        moments.finish();
    }
}

/// The matrix unit and what it works on.
struct Pass<U, const PLANES: usize> {
    unit: U,
    input: *const f32,
    /// How the input is cut into tiles.
    read: Tiling,
    /// Sums of two columns, `[column][half]`.
    sums: [Tile; 4],
    accumulate: bool,
}

impl<U: TileUnit, const PLANES: usize> Pass<U, PLANES> {
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
                let row = self.input.add(term.row * PLANES * TILE);
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

/// The moments of a band's output, added up block by block.
struct BatchMoments<'a> {
    moments: Moments<'a>,
    tiling: Tiling,
    pivot: Vec<f32>,
    /// Of the current block.
    sums: BlockSums,
    /// `[block][half][of y - pivot, of its square][channel]`.
    totals: Vec<f64>,
    /// Tiles since the sums moved on.
    tiles: usize,
}

impl<'a> BatchMoments<'a> {
    fn new(moments: Moments<'a>, tiling: Tiling) -> Self {
        let totals = vec![0.0; 4 * HALF * tiling.blocks];
        Self { pivot: padded(moments.pivot), moments, tiling, sums: BlockSums([0.0; 4 * HALF]), totals, tiles: 0 }
    }

    /// Adds a tile of the current block's chunks.
    ///
    /// # Safety
    /// `values` are tiles of floats.
    #[inline(always)]
    unsafe fn add<V: Vector>(&mut self, values: [*const f32; 2], chunks: [usize; 2], halves: usize) {
        for (half, chunk) in chunks.into_iter().enumerate().take(halves) {
            let pivot = self.pivot[chunk * HALF..].as_ptr();
            // SAFETY: passed on from the caller; the pivots are filled up to whole chunks.
            unsafe { self.sums.add::<V>(half, values[half], pivot, self.moments.images) };
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
        let totals = &mut self.totals[block * 4 * HALF..][..4 * HALF];
        for (sum, total) in self.sums.0.iter_mut().zip(totals) {
            *total += f64::from(std::mem::take(sum));
        }
    }

    /// Gives the sums out as `[channel][sum, square]`; both halves belong to the same channels where a tile
    /// holds two pixels.
    fn finish(self) {
        let of = |chunk: usize, which: usize, lane: usize| self.totals[(chunk * 2 + which) * HALF + lane];
        for (channel, sums) in self.moments.sums.chunks_exact_mut(2).enumerate() {
            let (chunk, lane) = (channel / HALF, channel % HALF);
            for (which, sum) in sums.iter_mut().enumerate() {
                *sum = of(chunk, which, lane) + if self.tiling.pixels == 2 { of(chunk + 1, which, lane) } else { 0.0 };
            }
        }
    }
}

/// Sums over images and pixels of a block's channels: `[half][of y - pivot, of its square][channel]`.
#[repr(align(64))]
struct BlockSums([f32; 4 * HALF]);

impl BlockSums {
    /// Adds half a tile's images, four at a time: a single sum would wait for itself.
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
