//! Forward, and the gradient with respect to the input: at each point, the sums of two quads of 32
//! channels, or of four of 16, stay in four registers while the rows of the kernel and the channels
//! read go by. Fewer would wait for one another.

use std::ops::Range;

use super::super::conv::{multiply_tiles, rows_at_once};
use super::super::operand::TileOperand;
use super::super::rows::row_steps;
use super::super::writer::{Place, Writer};
use super::super::{SCRATCH, Simd, Tile, TileUnit, Vector};
use super::pack::{chunk_len, packed_len};
use super::points::PointRows;
use super::{input_tiles, is_narrow, products};
use crate::kernels::ConvBand;
use crate::kernels::winograd::{POINTS, QUAD, transform};
use crate::layout::Layout;
use crate::layout::gather::Gather;
use crate::layout::tiles::{TILE, Tiling};

/// Tiles of prepared rows that should be kept at a time.
const PREPARED_TILES: usize = 768;

/// Sums that are worked on at once.
const SUMS: usize = 4;

/// Computes a band.
#[inline(always)]
pub fn conv<U: TileUnit, const PLANES: usize>(simd: Simd<U>, band: ConvBand<'_>) {
    band.check(Layout::Tiles { planes: PLANES }, packed_len(band.gather, PLANES));
    if is_narrow(band.gather.from.channels) {
        run::<U, PLANES, true>(simd, band);
    } else {
        run::<U, PLANES, false>(simd, band);
    }
}

/// Computes a band, whose lengths are checked.
#[inline(always)]
fn run<U: TileUnit, const PLANES: usize, const NARROW: bool>(simd: Simd<U>, band: ConvBand<'_>) {
    let (gather, all) = (band.gather, band.rows.clone());
    let written = Tiling::new(gather.to);
    let quads = gather.to.width.div_ceil(QUAD);
    let row_tiles = PointRows::<PLANES, NARROW>::row_tiles(gather, quads);
    let (rows_at_once, kept) = rows_at_once(gather, all.clone(), row_tiles, PREPARED_TILES);
    let rows_len = PointRows::<PLANES, NARROW>::scratch_len(gather, quads, kept);
    let sums_len = POINTS * rows_at_once * quads * written.chunks().min(2);
    let mut scratch = SCRATCH.take();
    scratch.resize(scratch.len().max(rows_len + sums_len), Tile::ZERO);
    let (rows, sums) = scratch[..rows_len + sums_len].split_at_mut(rows_len);
    let mut kernel = Kernel::<U, PLANES, NARROW> {
        simd,
        unit: U::new(simd),
        gather,
        quads,
        inputs: PointRows::new(TileOperand::new(band.input, band.images, gather.from), gather, quads, kept, rows),
        weights: band.weights,
        written,
        sums,
        start: all.start,
        writer: Writer::new(band),
    };
    for (read, rows) in row_steps(all, rows_at_once, |rows| gather.rows_read(rows)) {
        for row in read {
            // SAFETY: rows read lie inside the input.
            unsafe { kernel.inputs.prepare(simd, row) };
        }
        for block in 0..written.blocks {
            // SAFETY: the rows are prepared and lie inside the band.
            unsafe {
                kernel.multiply(block, rows.clone());
                kernel.write(block, rows.clone());
            }
        }
    }
    let Kernel { writer, .. } = kernel;
    writer.finish(simd.vector());
    SCRATCH.set(scratch);
}

/// The matrix unit and what it works on.
struct Kernel<'a, U, const PLANES: usize, const NARROW: bool> {
    simd: Simd<U>,
    unit: U,
    gather: &'a Gather,
    quads: usize,
    inputs: PointRows<'a, PLANES, NARROW>,
    weights: &'a [f32],
    /// How the output is cut into tiles.
    written: Tiling,
    /// Sums of a block's chunks, `[row][quad][point][chunk]`; then, at the first four points, its
    /// pixels.
    sums: &'a mut [Tile],
    writer: Writer<'a, PLANES>,
    /// The band's first row.
    start: usize,
}

impl<U: TileUnit, const PLANES: usize, const NARROW: bool> Kernel<'_, U, PLANES, NARROW> {
    /// Sums up a block of channels of some rows at all points.
    ///
    /// # Safety
    /// What they read is prepared.
    #[inline(always)]
    unsafe fn multiply(&mut self, block: usize, rows: Range<usize>) {
        let chunk_len = chunk_len(self.gather, PLANES);
        for point in 0..POINTS {
            let chunk = point * self.written.chunks() + block * self.halves();
            let weights = self.weights.as_ptr().wrapping_add(chunk * chunk_len);
            // Row by row, what some quads read stays in the first-level cache.
            for quad in (0..self.quads).step_by(SUMS / self.halves()) {
                for (slot, row) in rows.clone().enumerate() {
                    let at = At { slot, row, point, quad };
                    // SAFETY: the caller's rows are prepared, and there are weights for each chunk
                    // at each point.
                    unsafe {
                        match (self.halves(), self.quads - quad) {
                            (1, _) => self.multiply_four(at, weights),
                            (_, 1) => self.multiply_two::<false>(at, [weights, weights.add(chunk_len)]),
                            _ => self.multiply_two::<true>(at, [weights, weights.add(chunk_len)]),
                        }
                    }
                }
            }
        }
    }

    /// Chunks of channels that are summed up together.
    fn halves(&self) -> usize {
        self.written.chunks().min(2)
    }

    /// Where the sums of a quad at a point go.
    #[inline(always)]
    fn sum(&mut self, slot: usize, quad: usize, point: usize) -> *mut f32 {
        let index = ((slot * self.quads + quad) * POINTS + point) * self.halves();
        self.sums.as_mut_ptr().wrapping_add(index).cast()
    }

    /// Sums up two chunks of channels of a quad, or of two.
    ///
    /// # Safety
    /// What they read is prepared.
    #[inline(always)]
    unsafe fn multiply_two<const PAIR: bool>(&mut self, at: At, weights: [*const f32; 2]) {
        let blocks = Tiling::new(self.gather.from).blocks;
        let quads = [at.quad, if PAIR { at.quad + 1 } else { at.quad }];
        let sums = quads.map(|quad| self.sum(at.slot, quad, at.point));
        let unit = &mut self.unit;
        // SAFETY: the caller's rows are prepared for every quad, and there is room for the sums of
        // each.
        unsafe {
            unit.zero::<0>();
            unit.zero::<1>();
            if PAIR {
                unit.zero::<2>();
                unit.zero::<3>();
            }
            for tap in &self.gather.rows[at.row] {
                let tiles = quads.map(|quad| self.inputs.quad(tap.from, at.point, quad));
                for block in 0..blocks {
                    let tiles = tiles.map(|tile| tile.add(block * input_tiles(PLANES, NARROW) * TILE));
                    let weights = weights.map(|tile| Some(tile.add((tap.kernel * blocks + block) * PLANES * TILE)));
                    multiply_tiles::<U, PAIR>(unit, products(PLANES, NARROW), tiles, weights);
                }
            }
            unit.store::<0>(sums[0]);
            unit.store::<1>(sums[0].add(TILE));
            if PAIR {
                unit.store::<2>(sums[1]);
                unit.store::<3>(sums[1].add(TILE));
            }
        }
    }

    /// Sums up one chunk of channels of four quads; past the last quad, that one again.
    ///
    /// # Safety
    /// What they read is prepared.
    #[inline(always)]
    unsafe fn multiply_four(&mut self, at: At, weights: *const f32) {
        let blocks = Tiling::new(self.gather.from).blocks;
        let quads = [0, 1, 2, 3].map(|further| (at.quad + further).min(self.quads - 1));
        let sums = quads.map(|quad| self.sum(at.slot, quad, at.point));
        let unit = &mut self.unit;
        // SAFETY: the caller's rows are prepared for every quad, and there is room for the sums of
        // each.
        unsafe {
            unit.zero::<0>();
            unit.zero::<1>();
            unit.zero::<2>();
            unit.zero::<3>();
            for tap in &self.gather.rows[at.row] {
                let tiles = quads.map(|quad| self.inputs.quad(tap.from, at.point, quad));
                for block in 0..blocks {
                    let tiles = tiles.map(|tile| tile.add(block * input_tiles(PLANES, NARROW) * TILE));
                    let weights = weights.add((tap.kernel * blocks + block) * PLANES * TILE);
                    for &(read, weight) in products(PLANES, NARROW) {
                        unit.load::<6>(weights.add(weight * TILE));
                        unit.load::<4>(tiles[0].add(read * TILE));
                        unit.dot::<0, 4, 6>();
                        unit.load::<5>(tiles[1].add(read * TILE));
                        unit.dot::<1, 5, 6>();
                        unit.load::<4>(tiles[2].add(read * TILE));
                        unit.dot::<2, 4, 6>();
                        unit.load::<5>(tiles[3].add(read * TILE));
                        unit.dot::<3, 5, 6>();
                    }
                }
            }
            unit.store::<0>(sums[0]);
            unit.store::<1>(sums[1]);
            unit.store::<2>(sums[2]);
            unit.store::<3>(sums[3]);
        }
    }

    /// Writes the pixels of a block of channels of some rows.
    ///
    /// # Safety
    /// They are summed up and lie inside the band.
    #[inline(always)]
    unsafe fn write(&mut self, block: usize, rows: Range<usize>) {
        let halves = self.halves();
        let (width, pixels) = (self.gather.to.width, self.written.pixels);
        for (slot, row) in (rows.start - self.start..rows.end - self.start).enumerate() {
            for first in (0..width).step_by(QUAD) {
                let sums = self.sum(slot, first / QUAD, 0);
                // SAFETY: a quad's sums are a tile for each half at each point, and the caller's
                // rows are in the band.
                unsafe {
                    for half in 0..halves {
                        output(self.simd.vector(), sums.add(half * TILE), halves * TILE);
                    }
                    for x in (first..width.min(first + QUAD)).step_by(pixels) {
                        // Of 16 channels the halves of a tile are two pixels, of more they are two
                        // chunks.
                        let low = sums.add((x - first) * halves * TILE);
                        let place = Place { row, column: x / pixels, block };
                        self.writer.write(self.simd, place, [low, low.add(TILE)]);
                    }
                }
            }
            self.writer.end_row(block);
        }
        self.writer.end_block(block);
    }
}

/// What is summed up: the row's place in the sums, the row, the point and the first quad.
#[derive(Clone, Copy)]
struct At {
    slot: usize,
    row: usize,
    point: usize,
    quad: usize,
}

/// Makes a quad's pixels of its sums at the points, which are `step` words apart, in place.
///
/// # Safety
/// At each point there is a tile.
#[inline(always)]
unsafe fn output<V: Vector>(simd: Simd<V>, sums: *mut f32, step: usize) {
    for at in (0..TILE).step_by(V::LANES) {
        // SAFETY: the caller's tiles, of which `at` is a vector.
        unsafe {
            let sums = sums.add(at);
            let mut points = [simd.zero(); POINTS];
            for point in 0..POINTS {
                points[point] = simd.load(sums.add(point * step));
            }
            let pixels = transform::output(simd, points);
            for x in 0..QUAD {
                pixels[x].store(sums.add(x * step));
            }
        }
    }
}
