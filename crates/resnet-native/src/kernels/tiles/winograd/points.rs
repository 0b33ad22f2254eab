//! Rows of what a convolution reads, at the points.

use super::super::operand::TileOperand;
use super::super::{Simd, Tile, TileUnit, Vector, ZERO, planes, store_planes};
use super::{Window, input_tiles};
use crate::kernels::winograd::transform::{Input, Transform};
use crate::kernels::winograd::{POINTS, Row, WINDOW};
use crate::layout::MAX_PLANES;
use crate::layout::gather::Gather;
use crate::layout::tiles::{HALF, TILE, Tiling, stored_tile};

/// Rows of an operand at the points, kept for as long as they are needed.
pub struct PointRows<'a, const PLANES: usize, const NARROW: bool> {
    operand: TileOperand<'a>,
    tiling: Tiling,
    row: Row,
    quads: usize,
    /// Row `y` is in place `y & places`.
    places: usize,
    /// `[place][point][quad][block][tile]`.
    ring: &'a mut [Tile],
    /// A row in single precision: `[pixel][chunk]`.
    single: &'a mut [Tile],
}

impl<'a, const PLANES: usize, const NARROW: bool> PointRows<'a, PLANES, NARROW> {
    /// Tiles that a row takes.
    pub fn row_tiles(gather: &Gather, quads: usize) -> usize {
        POINTS * quads * Tiling::new(gather.from).blocks * input_tiles(PLANES, NARROW)
    }

    /// Tiles of scratch that it takes to keep some rows.
    pub fn scratch_len(gather: &Gather, quads: usize, kept: usize) -> usize {
        kept * Self::row_tiles(gather, quads) + 2 * Tiling::new(gather.from).row_tiles()
    }

    /// Rows of an operand, none prepared yet; `kept` is a power of two and `scratch` has the
    /// [length](Self::scratch_len) for as many.
    pub fn new(operand: TileOperand<'a>, gather: &Gather, quads: usize, kept: usize, scratch: &'a mut [Tile]) -> Self {
        let tiling = Tiling::new(gather.from);
        let (ring, single) = scratch.split_at_mut(kept * Self::row_tiles(gather, quads));
        let row = Row::read(gather, tiling.chunks() * TILE);
        Self { operand, tiling, row, quads, places: kept - 1, ring, single }
    }

    /// Words from a quad to the next.
    fn quad_len(&self) -> usize {
        self.tiling.blocks * input_tiles(PLANES, NARROW) * TILE
    }

    /// The first tile of a quad of a row that is prepared.
    #[inline(always)]
    pub fn quad(&self, y: usize, point: usize, quad: usize) -> *const f32 {
        self.ring.as_ptr().cast::<f32>().wrapping_add(self.place(y, point, quad))
    }

    /// Words of the ring before that tile.
    #[inline(always)]
    fn place(&self, y: usize, point: usize, quad: usize) -> usize {
        (((y & self.places) * POINTS + point) * self.quads + quad) * self.quad_len()
    }

    /// Prepares a row, in place of the one that is as many rows before it as there are places.
    ///
    /// # Safety
    /// The row lies inside the operand.
    #[inline(always)]
    pub unsafe fn prepare<U: TileUnit>(&mut self, simd: Simd<U>, y: usize) {
        // SAFETY: the caller's row exists.
        let pixels = unsafe { self.pixels(simd, y) };
        let vector = simd.vector();
        let point_len = self.quads * self.quad_len();
        for quad in 0..self.quads {
            for block in 0..self.tiling.blocks {
                let place = self.place(y, 0, quad) + block * input_tiles(PLANES, NARROW) * TILE;
                let to = self.ring.as_mut_ptr().cast::<f32>().wrapping_add(place);
                let windows = [2 * block, 2 * block + 1]
                    .map(|chunk| self.row.window(quad, pixels.wrapping_add(chunk * TILE), ZERO[0].as_ptr()));
                for at in (0..TILE).step_by(U::Vector::LANES) {
                    // SAFETY: windows are made of whole tiles, and the ring has tiles for every
                    // point.
                    unsafe {
                        if NARROW {
                            store_narrow::<_, PLANES>(points(vector, windows[0], at), to.add(at), point_len);
                        } else {
                            let points = [points(vector, windows[0], at), points(vector, windows[1], at)];
                            for point in 0..POINTS {
                                let to = to.add(point * point_len + at);
                                store_planes::<U, PLANES>(simd, (points[0][point], points[1][point]), to);
                            }
                        }
                    }
                }
            }
        }
    }

    /// A row in single precision, `[pixel][chunk]` tiles.
    ///
    /// # Safety
    /// As for [`prepare`](Self::prepare).
    #[inline(always)]
    unsafe fn pixels<U: TileUnit>(&mut self, simd: Simd<U>, y: usize) -> *const f32 {
        let tiles = self.tiling.row_tiles();
        if let Some(stored) = self.operand.stored().filter(|_| PLANES == MAX_PLANES) {
            return stored.wrapping_add(y * tiles * stored_tile(PLANES));
        }
        for (tile, halves) in self.single.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: the tile is one of the caller's row, of which both halves have room.
            unsafe { self.operand.copy::<U, PLANES, true>(simd, (y, tile), halves.as_mut_ptr().cast()) };
            halves.iter_mut().for_each(|half| half.0[self.operand.images * HALF..].fill(0.0));
        }
        self.single.as_ptr().cast()
    }
}

/// Part of a window at the points.
///
/// # Safety
/// The window is made of tiles, and a vector's lanes from `at` on lie inside them.
#[inline(always)]
unsafe fn points<V: Vector>(simd: Simd<V>, window: [*const f32; WINDOW], at: usize) -> Window<V> {
    let mut pixels = [simd.zero(); WINDOW];
    for x in 0..WINDOW {
        // SAFETY: the caller's window is made of tiles.
        pixels[x] = unsafe { simd.load(window[x].add(at)) };
    }
    Input::apply(simd, pixels)
}

/// Splits values at the points into planes, two to a tile.
///
/// # Safety
/// `to` is valid for a vector in each tile of every point.
#[inline(always)]
unsafe fn store_narrow<V: Vector, const PLANES: usize>(points: Window<V>, to: *mut f32, point_len: usize) {
    for point in 0..POINTS {
        let planes = planes::<V, PLANES>(points[point]);
        // SAFETY: the caller gives room in each tile of the point, which are one for two planes and
        // two for three.
        unsafe {
            let to = to.add(point * point_len);
            V::zip_high(planes[0], planes[1]).store(to);
            if PLANES == 3 {
                V::zip_high(planes[2], planes[0]).store(to.add(TILE));
            }
        }
    }
}
