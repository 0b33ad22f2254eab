//! The rows that a convolution reads, in planes: where they are stored, or worked out and kept for as long as
//! they are needed.

use std::ops::Range;

use super::operand::{Part, Steps, Values, Visitor};
use super::{Simd, Tile, TileUnit, Vector, store_planes};
use crate::layout::tiles::{HALF, TILE, Tiling};
use resnet_graph::Shape;

/// Steps of some rows: those to prepare, which no step before read, then those to work on.
pub fn row_steps(
    all: Range<usize>,
    rows_at_once: usize,
    rows_read: impl Fn(Range<usize>) -> Range<usize>,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut prepared = 0;
    all.clone().step_by(rows_at_once).map(move |first| {
        let rows = first..all.end.min(first + rows_at_once);
        let read = rows_read(rows.clone());
        let new = prepared.max(read.start)..read.end;
        prepared = prepared.max(read.end);
        (new, rows)
    })
}

/// Rows of a group.
pub struct Rows<'a, const PLANES: usize> {
    values: Values<'a>,
    tiling: Tiling,
    /// Where the rows are: row `y` in place `y & places`.
    first: *const f32,
    places: usize,
    /// Room for the rows kept; none where they are read as they are stored.
    ring: &'a mut [Tile],
}

impl<'a, const PLANES: usize> Rows<'a, PLANES> {
    /// Tiles of scratch that it takes to keep some rows.
    pub fn scratch_len(values: &Values<'_>, shape: Shape, kept: usize) -> usize {
        let ring = kept.next_power_of_two() * Tiling::new(shape).row_tiles() * PLANES;
        if values.direct::<PLANES>().is_some() { 0 } else { ring }
    }

    /// Rows of some values, none prepared yet; `ring` has the [length](Self::scratch_len) for those kept.
    pub fn new(values: Values<'a>, shape: Shape, kept: usize, ring: &'a mut [Tile]) -> Self {
        let (first, places) = match values.direct::<PLANES>() {
            Some(stored) => (stored, usize::MAX),
            // A power of two, for a division would cost as much as the tiles that wait for its result.
            None => (ring.as_ptr().cast(), kept.next_power_of_two() - 1),
        };
        Self { values, tiling: Tiling::new(shape), first, places, ring }
    }

    /// The first tile of a row that is stored or prepared.
    #[inline(always)]
    pub fn row(&self, y: usize) -> *const f32 {
        self.first.wrapping_add((y & self.places) * self.tiling.row_tiles() * PLANES * TILE)
    }

    /// Prepares a row, in place of the one that is as many rows before it as there are places.
    ///
    /// # Safety
    /// The row lies inside the source, which is of this shape.
    #[inline(always)]
    pub unsafe fn prepare<U: TileUnit>(&mut self, simd: Simd<U>, y: usize) {
        if self.ring.is_empty() {
            return;
        }
        let tiles = self.tiling.row_tiles();
        let used = self.values.images * HALF;
        for index in 0..tiles {
            let first = ((y & self.places) * tiles + index) * PLANES;
            let planes = &mut self.ring[first..first + PLANES];
            for channel in (0..HALF).step_by(U::Vector::LANES) {
                let to = planes.as_mut_ptr().cast::<f32>().wrapping_add(channel);
                let copy = Copy::<U> { tensors: self.values.tensors(), used, to, simd };
                // SAFETY: the tile is one of the caller's row, and `to` one for each plane.
                unsafe { self.values.visit::<_, PLANES>(simd.vector(), Part { row: y, tile: index, channel }, copy) };
            }
            for plane in planes {
                plane.0[used..].fill(0.0);
                if self.tiling.halves(index / self.tiling.blocks) == 1 {
                    plane.clear_second_half();
                }
            }
        }
    }
}

/// Splits part of a tile into its planes.
struct Copy<U> {
    tensors: [*const f32; 2],
    /// Words of the tile that belong to images.
    used: usize,
    to: *mut f32,
    simd: Simd<U>,
}

impl<U: TileUnit, const PLANES: usize> Visitor<U::Vector, PLANES> for Copy<U> {
    #[inline(always)]
    unsafe fn visit<S: Steps<U::Vector>>(self, tile: usize, at: usize, steps: S) {
        let [first, second] = self.tensors.map(|tensor| tensor.wrapping_add(tile));
        for image in (0..self.used).step_by(HALF) {
            // SAFETY: the caller's part exists, and `to` has room for every plane of it.
            unsafe {
                let value = steps.image::<PLANES>(first, second, at + image);
                store_planes::<U, PLANES>(self.simd, value, self.to.add(image));
            }
        }
    }
}
