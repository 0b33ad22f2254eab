//! Convolution on tiles: the sums of two columns of tiles, both halves of each, stay in four
//! registers while the taps and the channels read go by.

use std::ops::Range;

use super::operand::TileOperand;
use super::pack::{chunk_len, packed_len};
use super::rows::{Rows, row_steps};
use super::writer::{Place, Writer};
use super::{SCRATCH, Simd, Tile, TileUnit, ZERO, plane_products, winograd};
use crate::kernels::ConvBand;
use crate::layout::Layout;
use crate::layout::gather::{Gather, TileTerm};
use crate::layout::tiles::{TILE, Tiling};

/// Tiles of prepared rows that should be kept at a time: they share the second-level cache with the
/// weights.
const PREPARED_TILES: usize = 256;

/// Computes a band.
#[inline(always)]
pub fn conv<U: TileUnit, const PLANES: usize>(simd: Simd<U>, band: ConvBand<'_>) {
    band.check(Layout::Tiles { planes: PLANES }, packed_len(band.gather, PLANES));
    let (gather, all) = (band.gather, band.rows.clone());
    if winograd::fits(&gather.conv, PLANES) {
        return winograd::conv::<U, PLANES>(simd, band);
    }
    let row_tiles = Tiling::new(gather.from).row_tiles() * PLANES;
    let (rows_at_once, kept) = rows_at_once(gather, all.clone(), row_tiles, PREPARED_TILES);
    let input = TileOperand::new(band.input, band.images, gather.from);
    let mut scratch = SCRATCH.take();
    let ring_len = Rows::<PLANES>::scratch_len(&input, gather.from, kept);
    scratch.resize(scratch.len().max(ring_len), Tile::ZERO);
    let written = Tiling::new(gather.to);
    let mut kernel = Kernel::<U, PLANES> {
        simd,
        unit: U::new(simd),
        gather,
        read: Tiling::new(gather.from),
        written,
        rows: Rows::new(input, gather.from, kept, &mut scratch[..ring_len]),
        weights: band.weights,
        sums: [Tile::ZERO; 4],
        start: all.start,
        writer: Writer::new(band),
    };
    for (read, rows) in row_steps(all, rows_at_once, |rows| gather.rows_read(rows)) {
        for row in read {
            // SAFETY: rows read lie inside the input.
            unsafe { kernel.rows.prepare(simd, row) };
        }
        // Block by block, so that the weights of one stay in the first-level cache from row to row.
        for block in 0..written.blocks {
            // SAFETY: the rows are prepared and lie inside the band.
            unsafe { kernel.block(block, rows.clone()) };
        }
    }
    let Kernel { writer, .. } = kernel;
    writer.finish(simd.vector());
    SCRATCH.set(scratch);
}

/// How many rows to write at a time, and how many of those read to keep for that: `most` tiles if
/// it can be.
pub fn rows_at_once(gather: &Gather, rows: Range<usize>, row_tiles: usize, most: usize) -> (usize, usize) {
    let mut count = rows.len().max(1);
    loop {
        let parts = rows.clone().step_by(count).map(|first| gather.rows_read(first..rows.end.min(first + count)).len());
        let kept = parts.max().unwrap_or(0).max(1).next_power_of_two();
        if count == 1 || kept * row_tiles <= most {
            return (count, kept);
        }
        count = count.div_ceil(2);
    }
}

/// The matrix unit and what it works on.
struct Kernel<'a, U, const PLANES: usize> {
    simd: Simd<U>,
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
    writer: Writer<'a, PLANES>,
    /// The band's first row.
    start: usize,
}

impl<U: TileUnit, const PLANES: usize> Kernel<'_, U, PLANES> {
    /// Computes a block of channels of some rows.
    ///
    /// # Safety
    /// What they read is prepared and they lie inside the band.
    #[inline(always)]
    unsafe fn block(&mut self, block: usize, rows: Range<usize>) {
        let gather = self.gather;
        let chunks = if self.written.pixels == 2 { [0, 0] } else { [2 * block, 2 * block + 1] };
        let chunk_len = chunk_len(gather, PLANES);
        let weights = chunks.map(|chunk| self.weights.as_ptr().wrapping_add(chunk * chunk_len));
        for (row, terms) in (rows.start - self.start..).zip(&gather.terms[rows]) {
            for (run, terms) in gather.tiles.columns.iter().zip(terms) {
                for first in (0..run.count).step_by(2) {
                    let columns = 2.min(run.count - first);
                    let from = (first * run.from_step) as isize;
                    // SAFETY: the rows that terms name are the caller's, columns lie inside rows,
                    // and there are packed weights for each term and block.
                    unsafe {
                        if columns == 2 {
                            self.multiply::<true>(terms, [from, from + run.from_step as isize], weights);
                        } else {
                            self.multiply::<false>(terms, [from; 2], weights);
                        }
                        for which in 0..columns {
                            let place = Place { row, column: run.start + (first + which) * run.step, block };
                            let halves = [0, 1].map(|half| self.sums[2 * which + half].as_ptr());
                            self.writer.write(self.simd, place, halves);
                        }
                    }
                }
            }
            self.writer.end_row(block);
        }
        self.writer.end_block(block);
    }

    /// Sums up one column of tiles, or two.
    ///
    /// # Safety
    /// The terms' rows lie inside the input and their weights inside the packed ones.
    #[inline(always)]
    unsafe fn multiply<const PAIR: bool>(&mut self, terms: &[TileTerm], columns: [isize; 2], weights: [*const f32; 2]) {
        let blocks = self.read.blocks;
        let unit = &mut self.unit;
        // SAFETY: the caller's rows and weights; columns outside the row are read from a tile of
        // zeros.
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
                    multiply_tiles::<U, PAIR>(unit, plane_products(PLANES), tiles, weights);
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
}

/// Adds `products`, of tiles read and of weights, of up to two columns for up to two halves of what
/// is written: to registers 0 and 1 for the first column, to 2 and 3 for the second.
///
/// # Safety
/// All point to as many tiles as the products name.
#[inline(always)]
pub unsafe fn multiply_tiles<U: TileUnit, const PAIR: bool>(
    unit: &mut U,
    products: &[(usize, usize)],
    [first, second]: [*const f32; 2],
    weights: [Option<*const f32>; 2],
) {
    for (index, &(read, weight)) in products.iter().enumerate() {
        let changes = |of: fn(&(usize, usize)) -> usize| index == 0 || of(&products[index - 1]) != of(&products[index]);
        // SAFETY: the caller's tiles, as many from each pointer on as the products name.
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
