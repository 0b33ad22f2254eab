//! Weights at the points, in the form that multiplies tiles.

use super::super::{Simd, Tile, TileUnit, Vector, planes, store_planes};
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

/// Words of the weights that write one chunk of channels at a point: `[kernel row][block][plane]`
/// tiles.
pub fn chunk_len(gather: &Gather, planes: usize) -> usize {
    KERNEL * Tiling::new(gather.from).blocks * planes * TILE
}

/// Packs `[out][in][row][column]` as `[point][chunk]` of [`chunk_len`] words.
#[inline(always)]
pub fn pack<U: TileUnit, const PLANES: usize>(simd: Simd<U>, weights: Pack<'_>) {
    weights.check(packed_len(weights.gather, PLANES));
    let vector = simd.vector();
    let Pack { gather, weights, packed } = weights;
    let (blocks, chunks) = (Tiling::new(gather.from).blocks, Tiling::new(gather.to).chunks());
    let point_len = chunks * chunk_len(gather, PLANES);
    for tile in 0..chunks * KERNEL * blocks {
        let (chunk, row, block) = (tile / blocks / KERNEL, tile / blocks % KERNEL, tile % blocks);
        let halves = [2 * block, 2 * block + 1].map(|from| taps(gather, weights, (from, chunk), row));
        for at in (0..TILE).step_by(U::Vector::LANES) {
            let to = packed.as_mut_ptr().wrapping_add(tile * PLANES * TILE + at);
            let halves = [points(vector, &halves[0], at), points(vector, &halves[1], at)];
            for point in 0..POINTS {
                let to = to.wrapping_add(point * point_len);
                // SAFETY: there is a tile for each plane of every point.
                unsafe {
                    if is_narrow(gather.from.channels) {
                        store_paired::<_, PLANES>(halves[0][point], to);
                    } else {
                        store_planes::<U, PLANES>(simd, (halves[0][point], halves[1][point]), to);
                    }
                }
            }
        }
    }
}

/// The taps of a row of the kernel, `[16 read][16 written]` each, for two chunks; zeros where a
/// channel does not exist.
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

/// Part of a row's taps at the points, from word `at` of their tiles on.
#[inline(always)]
fn points<V: Vector>(simd: Simd<V>, taps: &[Tile; KERNEL], at: usize) -> Window<V> {
    assert!(at <= TILE - V::LANES);
    let mut window = [simd.zero(); WINDOW];
    for tap in 0..KERNEL {
        // SAFETY: a vector's lanes from `at` on lie inside the tile.
        window[tap] = unsafe { simd.load(taps[tap].as_ptr().add(at)) };
    }
    Filter::apply(simd, window)
}

/// Stores the planes of values in both halves of tiles, two by two as the input's meet them.
///
/// # Safety
/// `to` is valid for a vector in each tile.
#[inline(always)]
unsafe fn store_paired<V: Vector, const PLANES: usize>(values: V, to: *mut f32) {
    let planes = planes::<V, PLANES>(values);
    // SAFETY: the caller gives room in each tile.
    unsafe {
        V::zip_high(planes[0], planes[0]).store(to);
        V::zip_high(planes[1], planes[1]).store(to.add(TILE));
        if PLANES == 3 {
            V::zip_high(planes[0], planes[2]).store(to.add(2 * TILE));
        }
    }
}
