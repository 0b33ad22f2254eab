//! Rows of what a convolution reads, at the points.

use std::marker::PhantomData;

use super::super::operand::{Part, Steps, Values, Visitor};
use super::super::{Tile, TileUnit, Vector, ZERO, planes, store_planes};
use super::{Window, input_tiles};
use crate::kernels::winograd::transform::{Input, Transform};
use crate::kernels::winograd::{POINTS, Row, WINDOW};
use crate::layout::gather::Gather;
use crate::layout::tiles::{HALF, TILE, Tiling, stored_tile};
use crate::layout::{LANE_GROUP, MAX_PLANES};

/// Rows of a group, kept for as long as they are needed.
pub struct PointRows<'a, const PLANES: usize, const NARROW: bool> {
    values: Values<'a>,
    tiling: Tiling,
    row: Row,
    quads: usize,
    /// Row `y` is in place `y & places`.
    places: usize,
    /// `[place][point][quad][block][tile]`.
    ring: &'a mut [Tile],
    /// A row worked out in single precision: `[pixel][chunk]`.
    worked_out: &'a mut [Tile],
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

    /// Rows of some values, none prepared yet; `kept` is a power of two and `scratch` has the [length](Self::scratch_len) for
    /// as many.
    pub fn new(values: Values<'a>, gather: &Gather, quads: usize, kept: usize, scratch: &'a mut [Tile]) -> Self {
        let tiling = Tiling::new(gather.from);
        let (ring, worked_out) = scratch.split_at_mut(kept * Self::row_tiles(gather, quads));
        let row = Row::read(gather, tiling.chunks() * TILE);
        Self { values, tiling, row, quads, places: kept - 1, ring, worked_out }
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
    /// The row lies inside the source, and the machine has the unit's instructions.
    #[inline(always)]
    pub unsafe fn prepare<U: TileUnit>(&mut self, y: usize) {
        // SAFETY: passed on from the caller.
        let pixels = unsafe { self.pixels::<U>(y) };
        let point_len = self.quads * self.quad_len();
        for quad in 0..self.quads {
            for block in 0..self.tiling.blocks {
                let place = self.place(y, 0, quad) + block * input_tiles(PLANES, NARROW) * TILE;
                let to = self.ring.as_mut_ptr().cast::<f32>().wrapping_add(place);
                let windows = [2 * block, 2 * block + 1]
                    .map(|chunk| self.row.window(quad, pixels.wrapping_add(chunk * TILE), ZERO[0].as_ptr()));
                for at in (0..TILE).step_by(U::Vector::LANES) {
                    // SAFETY: windows are made of whole tiles, and the ring has tiles for every point.
                    unsafe {
                        if NARROW {
                            store_narrow::<U::Vector, PLANES>(points(windows[0], at), to.add(at), point_len);
                        } else {
                            let points: [Window<U::Vector>; 2] = [points(windows[0], at), points(windows[1], at)];
                            for point in 0..POINTS {
                                let to = to.add(point * point_len + at);
                                store_planes::<U, PLANES>((points[0][point], points[1][point]), to);
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
    unsafe fn pixels<U: TileUnit>(&mut self, y: usize) -> *const f32 {
        let tiles = self.tiling.row_tiles();
        if let Some(stored) = self.values.stored().filter(|_| PLANES == MAX_PLANES) {
            return stored.wrapping_add(y * tiles * stored_tile(PLANES));
        }
        let to = self.worked_out.as_mut_ptr().cast::<f32>();
        for tile in 0..tiles {
            for channel in (0..HALF).step_by(U::Vector::LANES) {
                let to = to.wrapping_add(2 * tile * TILE + channel);
                let copy =
                    Copy::<U> { tensors: self.values.tensors(), images: self.values.images, to, unit: PhantomData };
                // SAFETY: the tile lies inside the source, and there is room for a row of them.
                unsafe { self.values.visit::<U::Vector, PLANES>(Part { row: y, tile, channel }, copy) };
            }
        }
        to
    }
}

/// Works out part of a tile, in single precision.
struct Copy<U> {
    tensors: [*const f32; 2],
    images: usize,
    to: *mut f32,
    unit: PhantomData<U>,
}

impl<U: TileUnit, const PLANES: usize> Visitor<U::Vector, PLANES> for Copy<U> {
    #[inline(always)]
    unsafe fn visit<S: Steps<U::Vector>>(self, tile: usize, at: usize, steps: S) {
        let [first, second] = self.tensors.map(|tensor| tensor.wrapping_add(tile));
        for image in 0..LANE_GROUP {
            let to = self.to.wrapping_add(image * HALF);
            // SAFETY: passed on from the caller; `to` has room for both halves.
            unsafe {
                let zero = U::Vector::splat(0.0);
                let value = if image < self.images {
                    steps.image::<PLANES>(first, second, at + image * HALF)
                } else {
                    (zero, zero)
                };
                value.0.store(to);
                value.1.store(to.add(TILE));
            }
        }
    }
}

/// Part of a window at the points.
///
/// # Safety
/// The window is made of tiles, and the machine has the vector's instructions.
#[inline(always)]
unsafe fn points<V: Vector>(window: [*const f32; WINDOW], at: usize) -> Window<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut pixels = [V::splat(0.0); WINDOW];
        for x in 0..WINDOW {
            pixels[x] = V::load(window[x].add(at));
        }
        Input::apply(pixels)
    }
}

/// Splits values at the points into planes, two to a tile.
///
/// # Safety
/// `to` is valid for a vector in each tile of every point.
#[inline(always)]
unsafe fn store_narrow<V: Vector, const PLANES: usize>(points: Window<V>, to: *mut f32, point_len: usize) {
    for point in 0..POINTS {
        // SAFETY: passed on from the caller.
        unsafe {
            let (planes, to) = (planes::<V, PLANES>(points[point]), to.add(point * point_len));
            V::zip_high(planes[0], planes[1]).store(to);
            if PLANES == 3 {
                V::zip_high(planes[2], planes[0]).store(to.add(TILE));
            }
        }
    }
}
