//! The rows that a convolution reads, in planes: where they are stored, or computed and kept for as
//! long as they are needed.

use std::ops::Range;

use super::operand::TileOperand;
use super::{Simd, Tile, TileUnit};
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

/// Rows of an operand.
pub struct Rows<'a, const PLANES: usize> {
    operand: TileOperand<'a>,
    tiling: Tiling,
    /// Where the rows are: row `y` in place `y & places`.
    first: *const f32,
    places: usize,
    /// Room for the rows kept; none where they are read as they are stored.
    ring: &'a mut [Tile],
}

impl<'a, const PLANES: usize> Rows<'a, PLANES> {
    /// Tiles of scratch that it takes to keep some rows.
    pub fn scratch_len(operand: &TileOperand<'_>, shape: Shape, kept: usize) -> usize {
        let ring = kept.next_power_of_two() * Tiling::new(shape).row_tiles() * PLANES;
        if operand.direct::<PLANES>().is_some() { 0 } else { ring }
    }

    /// Rows of an operand, none prepared yet; `ring` has the [length](Self::scratch_len) for those
    /// kept.
    pub fn new(operand: TileOperand<'a>, shape: Shape, kept: usize, ring: &'a mut [Tile]) -> Self {
        let (first, places) = match operand.direct::<PLANES>() {
            Some(stored) => (stored, usize::MAX),
            // A power of two, for a division would cost as much as the tiles that wait for its
            // result.
            None => (ring.as_ptr().cast(), kept.next_power_of_two() - 1),
        };
        Self { operand, tiling: Tiling::new(shape), first, places, ring }
    }

    /// The first tile of a row that is stored or prepared.
    #[inline(always)]
    pub fn row(&self, y: usize) -> *const f32 {
        self.first.wrapping_add((y & self.places) * self.tiling.row_tiles() * PLANES * TILE)
    }

    /// Prepares a row, in place of the one that is as many rows before it as there are places.
    ///
    /// # Safety
    /// The row lies inside the operand, which is of the shape given.
    #[inline(always)]
    pub unsafe fn prepare<U: TileUnit>(&mut self, simd: Simd<U>, y: usize) {
        if self.ring.is_empty() {
            return;
        }
        let tiles = self.tiling.row_tiles();
        let used = self.operand.images * HALF;
        for index in 0..tiles {
            let first = ((y & self.places) * tiles + index) * PLANES;
            let planes = &mut self.ring[first..first + PLANES];
            let to = planes.as_mut_ptr().cast();
            // SAFETY: the tile is one of the caller's row, and `to` is one for each plane.
            unsafe { self.operand.copy::<U, PLANES, false>(simd, (y, index), to) };
            for plane in planes {
                plane.0[used..].fill(0.0);
                if self.tiling.halves(index / self.tiling.blocks) == 1 {
                    plane.clear_second_half();
                }
            }
        }
    }
}
