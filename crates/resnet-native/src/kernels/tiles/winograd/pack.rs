//! Weights at the points, in the form that multiplies tiles.

use super::super::{Tile, TileUnit, Vector, planes, store_planes};
use super::{Window, is_narrow};
use crate::kernels::Pack;
use crate::kernels::winograd::transform::{Filter, Transform};
use crate::kernels::winograd::{KERNEL, POINTS, WINDOW, taps as filter_taps};
use crate::layout::gather::Gather;
use crate::layout::tiles::{HALF, TILE, Tiling};

/// Words of the packed weights.
pub fn packed_len(gather: &Gather, planes: usize) -> usize {
    POINTS * Tiling::new(gather.to).chunks() * chunk_len(gather, planes)
}

/// Words of the weights that write one chunk of channels at a point: `[kernel row][block][plane]` tiles.
pub fn chunk_len(gather: &Gather, planes: usize) -> usize {
    KERNEL * Tiling::new(gather.from).blocks * planes * TILE
}

/// Packs `[out][in][row][column]` as `[point][chunk]` of [`chunk_len`] words.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn pack<U: TileUnit, const PLANES: usize>(weights: Pack<'_>) {
    let Pack { gather, weights, packed } = weights;
    let (blocks, chunks) = (Tiling::new(gather.from).blocks, Tiling::new(gather.to).chunks());
    let point_len = chunks * chunk_len(gather, PLANES);
    for tile in 0..chunks * KERNEL * blocks {
        let (chunk, row, block) = (tile / blocks / KERNEL, tile / blocks % KERNEL, tile % blocks);
        let halves = [2 * block, 2 * block + 1].map(|from| taps(gather, weights, (from, chunk), row));
        for at in (0..TILE).step_by(U::Vector::LANES) {
            let to = packed.as_mut_ptr().wrapping_add(tile * PLANES * TILE + at);
            // SAFETY: passed on from the caller; there is a tile for each plane of every point.
            unsafe {
                let halves: [Window<U::Vector>; 2] = [points(&halves[0], at), points(&halves[1], at)];
                for point in 0..POINTS {
                    let to = to.wrapping_add(point * point_len);
                    if is_narrow(gather.from.channels) {
                        store_paired::<U::Vector, PLANES>(halves[0][point], to);
                    } else {
                        store_planes::<U, PLANES>((halves[0][point], halves[1][point]), to);
                    }
                }
            }
        }
    }
}

/// The taps of a row of the kernel, `[16 read][16 written]` each, for two chunks; zeros where a channel does not exist.
fn taps(gather: &Gather, weights: &[f32], (from, to): (usize, usize), row: usize) -> [Tile; KERNEL] {
    let mut tiles = [Tile::ZERO; KERNEL];
    let (read, written) = (gather.from.channels, gather.to.channels);
    for from in from * HALF..read.min((from + 1) * HALF) {
        for to in to * HALF..written.min((to + 1) * HALF) {
            let taps = filter_taps(gather, weights, [from, to], row);
            for (tile, tap) in tiles.iter_mut().zip(taps) {
                tile.0[from % HALF * HALF + to % HALF] = tap;
            }
        }
    }
    tiles
}

/// Part of a row's taps at the points.
///
/// # Safety
/// The machine has the vector's instructions.
#[inline(always)]
unsafe fn points<V: Vector>(taps: &[Tile; KERNEL], at: usize) -> Window<V> {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut window = [V::splat(0.0); WINDOW];
        for tap in 0..KERNEL {
            window[tap] = V::load(taps[tap].as_ptr().add(at));
        }
        Filter::apply(window)
    }
}

/// Stores the planes of values in both halves of tiles, two by two as the input's meet them.
///
/// # Safety
/// `to` is valid for a vector in each tile.
#[inline(always)]
unsafe fn store_paired<V: Vector, const PLANES: usize>(values: V, to: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe {
        let planes = planes::<V, PLANES>(values);
        V::zip_high(planes[0], planes[0]).store(to);
        V::zip_high(planes[1], planes[1]).store(to.add(TILE));
        if PLANES == 3 {
            V::zip_high(planes[0], planes[2]).store(to.add(2 * TILE));
        }
    }
}
