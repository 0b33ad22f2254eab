//! Convolution in planes of bf16: the sums of three tiles, both halves of each, stay in six
//! registers while the windows read go by. A value is the sum of its planes, so a product is one of
//! every two planes, of which those too small to count are left out.
//!
//! While the matrix unit works on three tiles, the vector units round and write the three before
//! them, some rows between any two products: the machine does not look far enough ahead to do so by
//! itself.

use std::mem::MaybeUninit;

use super::number::{Number, Planes};
use crate::kernels::PixelConv;
use crate::kernels::tiles::{Tile, TileUnit, plane_products};
use crate::kernels::vector::{Simd, Vector};
use crate::layout::tiles::{HALF, TILE};
use crate::layout::{Format, PixelTile, TILE_ROWS, Windows};

/// Tiles that are summed up together.
const TOGETHER: usize = 3;

/// Rows that are written at a time: about as much work with three planes as with one.
const fn rows_at_a_time(planes: usize) -> usize {
    if planes == 1 { 4 } else { 1 }
}

/// Their sums, two halves each.
type Sums = MaybeUninit<[Tile; 2 * TOGETHER]>;

/// Computes some blocks.
#[inline(always)]
pub fn conv<U: TileUnit, const PLANES: usize>(simd: Simd<U>, band: PixelConv<'_>) {
    match (band.residual.is_some(), band.relu) {
        (false, false) => run::<U, PLANES, false, false>(simd, band),
        (false, true) => run::<U, PLANES, false, true>(simd, band),
        (true, false) => run::<U, PLANES, true, false>(simd, band),
        (true, true) => run::<U, PLANES, true, true>(simd, band),
    }
}

/// Computes some blocks, with a `RESIDUAL` or not and with `RELU` or not.
#[inline(always)]
fn run<U: TileUnit, const PLANES: usize, const RESIDUAL: bool, const RELU: bool>(simd: Simd<U>, band: PixelConv<'_>) {
    band.check(Format::Planes(PLANES));
    let (windows, to) = (band.windows, &band.windows.to);
    let mut sums: [Sums; 2] = [const { MaybeUninit::uninit() }; 2];
    let [mut now, mut last] = sums.each_mut().map(|sums| sums.as_mut_ptr().cast::<f32>());
    let mut kernel = Kernel::<U, PLANES> {
        simd,
        unit: U::new(simd),
        windows,
        input: band.input.as_ptr(),
        plane_len: windows.from.plane_len(),
        row_bytes: windows.row_step() * size_of::<f32>(),
    };
    let mut writer = Writer::<RESIDUAL, RELU>::idle();
    for block in 0..band.output.len() / to.block_len() {
        // SAFETY: the band's slices hold all its blocks, and the tiles and windows of `Windows` lie
        // inside the layouts; sums are written before they are read.
        unsafe {
            let weights = band.weights.as_ptr().add(block * windows.packed_len);
            for tiles in windows.tiles.chunks(TOGETHER) {
                match *tiles {
                    [a, b, c] => kernel.multiply([a.from, b.from, c.from], weights, now, &mut writer),
                    [a, b] => kernel.multiply([a.from, b.from], weights, now, &mut writer),
                    [a] => kernel.multiply([a.from], weights, now, &mut writer),
                    _ => unreachable!("chunks hold up to three tiles"),
                }
                writer.write::<U, PLANES>(simd, TOGETHER * TILE_ROWS);
                writer = Writer {
                    tiles,
                    sums: now,
                    next: 0,
                    bias: band.bias.as_ptr().add(block * to.block),
                    // A second bias follows the first where the halves are channels.
                    bias_step: to.block - HALF,
                    residual: band.residual.unwrap_or(band.output).as_ptr().add(block * to.block_len()),
                    output: band.output.as_mut_ptr().add(block * to.block_len()),
                    plane_len: to.plane_len(),
                };
                (now, last) = (last, now);
            }
        }
    }
    // SAFETY: what is left are the tiles that were summed last.
    unsafe { writer.write::<U, PLANES>(simd, TOGETHER * TILE_ROWS) };
}

/// The matrix unit and what it works on.
struct Kernel<'a, U, const PLANES: usize> {
    simd: Simd<U>,
    unit: U,
    windows: &'a Windows,
    input: *const f32,
    /// Words of a plane read.
    plane_len: usize,
    /// From row to row of a tile read.
    row_bytes: usize,
}

impl<U: TileUnit, const PLANES: usize> Kernel<'_, U, PLANES> {
    /// Sums up tiles, and has others written meanwhile.
    ///
    /// # Safety
    /// `from` are words of tiles of the windows, `weights` a block's, and `sums` has room for two
    /// tiles each.
    #[inline(always)]
    unsafe fn multiply<const TILES: usize, const RESIDUAL: bool, const RELU: bool>(
        &mut self,
        from: [isize; TILES],
        mut weights: *const f32,
        sums: *mut f32,
        writer: &mut Writer<'_, RESIDUAL, RELU>,
    ) {
        let steps = self.windows.reads.len() * plane_products(PLANES).len();
        let rows = (TOGETHER * TILE_ROWS).div_ceil(steps);
        self.unit.zero::<0>();
        self.unit.zero::<1>();
        self.unit.zero::<2>();
        self.unit.zero::<3>();
        self.unit.zero::<4>();
        self.unit.zero::<5>();
        // SAFETY: the caller's tiles, weights and sums; a block's weights have a tile for each half
        // and plane.
        unsafe {
            for window in &self.windows.reads {
                let input = self.input.wrapping_offset(window.from);
                let second = weights.wrapping_add(if window.halves[0] { PLANES * TILE } else { 0 });
                for &(plane, of_weights) in plane_products(PLANES) {
                    let input = input.wrapping_add(plane * self.plane_len);
                    if window.halves[0] {
                        self.unit.load::<7>(weights.add(of_weights * TILE));
                        self.dot_first(from, input);
                    }
                    if window.halves[1] {
                        self.unit.load::<7>(second.add(of_weights * TILE));
                        self.dot_second(from, input, window.halves[0]);
                    }
                    writer.write::<U, PLANES>(self.simd, rows);
                }
                weights = second.wrapping_add(if window.halves[1] { PLANES * TILE } else { 0 });
            }
            self.unit.store::<0>(sums);
            self.unit.store::<1>(sums.add(TILE));
            if TILES > 1 {
                self.unit.store::<2>(sums.add(2 * TILE));
                self.unit.store::<3>(sums.add(3 * TILE));
            }
            if TILES > 2 {
                self.unit.store::<4>(sums.add(4 * TILE));
                self.unit.store::<5>(sums.add(5 * TILE));
            }
        }
    }

    /// Adds the products of windows of all tiles by weights to the sums of the first half.
    ///
    /// # Safety
    /// As for [`multiply`](Self::multiply).
    #[inline(always)]
    unsafe fn dot_first<const TILES: usize>(&mut self, from: [isize; TILES], input: *const f32) {
        // SAFETY: at each of the caller's places the plane has 16 rows, `row_bytes` apart.
        unsafe {
            self.unit.load_rows::<6>(input.offset(from[0]), self.row_bytes);
            self.unit.dot::<0, 6, 7>();
            if TILES > 1 {
                self.unit.load_rows::<6>(input.offset(from[1]), self.row_bytes);
                self.unit.dot::<2, 6, 7>();
            }
            if TILES > 2 {
                self.unit.load_rows::<6>(input.offset(from[2]), self.row_bytes);
                self.unit.dot::<4, 6, 7>();
            }
        }
    }

    /// Adds the products of windows of all tiles by weights to the sums of the second half, from
    /// the last tile to the first: after the first half the last one's window is `loaded`.
    ///
    /// # Safety
    /// As for [`multiply`](Self::multiply).
    #[inline(always)]
    unsafe fn dot_second<const TILES: usize>(&mut self, from: [isize; TILES], input: *const f32, loaded: bool) {
        // SAFETY: at each of the caller's places the plane has 16 rows, `row_bytes` apart.
        unsafe {
            if !loaded {
                self.unit.load_rows::<6>(input.offset(from[TILES - 1]), self.row_bytes);
            }
            if TILES > 2 {
                self.unit.dot::<5, 6, 7>();
                self.unit.load_rows::<6>(input.offset(from[1]), self.row_bytes);
            }
            if TILES > 1 {
                self.unit.dot::<3, 6, 7>();
                self.unit.load_rows::<6>(input.offset(from[0]), self.row_bytes);
            }
            self.unit.dot::<1, 6, 7>();
        }
    }
}

/// Adds bias and residual to sums, applies ReLU, rounds and writes them.
struct Writer<'a, const RESIDUAL: bool, const RELU: bool> {
    tiles: &'a [PixelTile],
    sums: *const f32,
    /// Row to go on with.
    next: usize,
    bias: *const f32,
    /// Floats from the first half's bias to the second's.
    bias_step: usize,
    residual: *const f32,
    output: *mut f32,
    /// Words of a plane written.
    plane_len: usize,
}

impl<const RESIDUAL: bool, const RELU: bool> Writer<'_, RESIDUAL, RELU> {
    /// One that has nothing to write.
    fn idle() -> Self {
        let (none, output) = (std::ptr::null(), std::ptr::null_mut());
        Self { tiles: &[], sums: none, next: 0, bias: none, bias_step: 0, residual: none, output, plane_len: 0 }
    }

    /// Writes the next `count` rows, or all that are left.
    ///
    /// # Safety
    /// The pointers are to what belongs to the tiles.
    #[inline(always)]
    unsafe fn write<U: TileUnit, const PLANES: usize>(&mut self, simd: Simd<U>, count: usize) {
        let rows = const { rows_at_a_time(PLANES) };
        let all = (1u16 << rows) - 1;
        for _ in (0..count).step_by(rows) {
            let Some(tile) = self.tiles.get(self.next / TILE_ROWS) else { return };
            let first = self.next % TILE_ROWS;
            let whole = tile.valid.iter().all(|valid| valid >> first & all == all);
            // SAFETY: the caller's pointers belong to the tiles.
            unsafe {
                if whole {
                    self.rows::<U, PLANES, true>(simd, tile, first);
                } else {
                    self.rows::<U, PLANES, false>(simd, tile, first);
                }
            }
            self.next += rows;
        }
    }

    /// Writes some rows of the tile it is at. What is no pixel becomes zero: it lies in the border,
    /// or where a later tile is written.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    #[inline(always)]
    unsafe fn rows<U: TileUnit, const PLANES: usize, const WHOLE: bool>(
        &self,
        simd: Simd<U>,
        tile: &PixelTile,
        first: usize,
    ) {
        let vector = simd.vector();
        for part in (0..HALF).step_by(U::Vector::LANES) {
            // SAFETY: the caller's pointers belong to the tile, of which each half has 16 channels
            // and a part is a vector.
            unsafe {
                let bias = self.bias.add(part);
                let biases = [vector.load(bias), vector.load(bias.add(self.bias_step))];
                let sums = self.sums.add((self.next / TILE_ROWS * 2 * TILE_ROWS + first) * HALF + part);
                for row in 0..const { rows_at_a_time(PLANES) } {
                    let at = 2 * (tile.to + (first + row) * HALF) + part;
                    let mut values = biases;
                    for half in 0..2 {
                        let mut value = values[half].add(vector.load(sums.add(half * TILE + row * HALF)));
                        if RESIDUAL {
                            let at = at + half * HALF;
                            value = value.add(Planes::<U, PLANES>::load(vector, self.residual, at, self.plane_len));
                        }
                        if RELU {
                            value = value.relu();
                        }
                        if !WHOLE {
                            let exists = tile.valid[half] >> (first + row) & 1;
                            value = value.where_positive(vector.splat(exists.into()));
                        }
                        values[half] = value;
                    }
                    Planes::<U, PLANES>::store_halves(simd, values, self.output, at, self.plane_len);
                }
            }
        }
    }
}
