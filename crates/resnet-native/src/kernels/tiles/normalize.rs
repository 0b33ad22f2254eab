//! Batch norm's passes over tiles, with the shortcut and the ReLU taken along.

use super::channels::{PaddedAffine, PaddedReluMask, PartReluMask, PerChannel};
use super::{Pair, Simd, TileUnit, Vector, load, store};
use crate::kernels::{NormReduction, Normalize, NormalizeReduce};
use crate::layout::Layout;
use crate::layout::tiles::{HALF, TILE, Tiling, stored_tile};

/// `output = relu(scale * input + shift + residual)`.
#[inline(always)]
pub fn normalize<U: TileUnit, const PLANES: usize>(simd: Simd<U>, band: Normalize<'_>) {
    band.check(Layout::Tiles { planes: PLANES });
    let vector = simd.vector();
    let tiling = Tiling::new(band.shape);
    let affine = PaddedAffine::new(band.norm, tiling);
    for (index, tile) in (0..band.input.len()).step_by(stored_tile(PLANES)).enumerate() {
        let (block, halves) = (index % tiling.blocks, tiling.halves(index / tiling.blocks % tiling.columns));
        for part in (0..HALF).step_by(U::Vector::LANES) {
            let [scale, shift]: [Pair<U::Vector>; 2] = affine.load(vector, block, part);
            // SAFETY: the tile lies inside the input, and all tensors are of its length, whole rows
            // of tiles.
            unsafe {
                for at in (part..band.images * HALF).step_by(HALF) {
                    let (low, high) = load::<U::Vector, PLANES>(vector, band.input.as_ptr().add(tile), at);
                    let mut value = (low.mul_add(scale.0, shift.0), high.mul_add(scale.1, shift.1));
                    if let Some(residual) = band.residual {
                        let (low, high) = load::<U::Vector, PLANES>(vector, residual.as_ptr().add(tile), at);
                        value = (value.0.add(low), value.1.add(high));
                    }
                    if band.relu {
                        value = (value.0.relu(), value.1.relu());
                    }
                    if halves == 1 {
                        value.1 = vector.zero();
                    }
                    store::<U, PLANES>(simd, value, band.output.as_mut_ptr().add(tile), at);
                }
                for at in (band.images * HALF + part..TILE).step_by(HALF) {
                    let nothing = (vector.zero(), vector.zero());
                    store::<U, PLANES>(simd, nothing, band.output.as_mut_ptr().add(tile), at);
                }
            }
        }
    }
}

/// Tiles of a block summed in single precision before the sums move on to double.
const TILES_PER_FLUSH: usize = 16;

/// Masks a gradient by the ReLU and sums it, alone and times the normalised input.
#[inline(always)]
pub fn normalize_reduce<U: TileUnit, const PLANES: usize>(simd: Simd<U>, band: NormalizeReduce<'_>) {
    band.check(Layout::Tiles { planes: PLANES });
    let vector = simd.vector();
    let tiling = Tiling::new(band.shape);
    let NormReduction { norm, input, .. } = band.reduction;
    let (mean, inv_std) = (PerChannel::new(&norm.mean, tiling), PerChannel::new(&norm.inv_std, tiling));
    let (mask, gradient) = (PaddedReluMask::new(band.reduction, tiling), band.gradient.as_mut_ptr());
    let totals = band.sums;
    let columns = input.len() / stored_tile(PLANES) / tiling.blocks;
    totals.fill(0.0);
    for first in (0..columns).step_by(TILES_PER_FLUSH) {
        for block in 0..tiling.blocks {
            for part in (0..HALF).step_by(U::Vector::LANES) {
                let values = [mean.load(vector, block, part), inv_std.load(vector, block, part)];
                let mask = mask.load(vector, block, part);
                let mut sums = [[vector.zero(); 2]; 2];
                for column in first..columns.min(first + TILES_PER_FLUSH) {
                    let tile = (column * tiling.blocks + block) * stored_tile(PLANES);
                    // SAFETY: the tile lies inside the input, and all tensors are of its length.
                    unsafe {
                        let tensors = (gradient.add(tile), input.as_ptr().add(tile));
                        reduce::<U, PLANES>(simd, tensors, (tile, part), values, mask, &mut sums);
                    }
                }
                for (half, sums) in sums.iter().enumerate() {
                    let channel = block * 2 * HALF + if tiling.pixels == 2 { 0 } else { half * HALF } + part;
                    move_on(sums, totals, channel);
                }
            }
        }
    }
}

/// Masks part of a tile and adds it to `[half][of g, of g * normalised]`.
///
/// # Safety
/// `gradient` and `input` are tiles, the first the one at `tile`, and `part` lies inside them.
#[inline(always)]
unsafe fn reduce<U: TileUnit, const PLANES: usize>(
    simd: Simd<U>,
    (gradient, input): (*mut f32, *const f32),
    (tile, part): (usize, usize),
    [mean, inv_std]: [Pair<U::Vector>; 2],
    mask: PartReluMask<U::Vector>,
    sums: &mut [[U::Vector; 2]; 2],
) {
    let vector = simd.vector();
    for at in (part..TILE).step_by(HALF) {
        // SAFETY: the caller's tiles, of which `at` goes through the rows of a half.
        unsafe {
            let y = load::<U::Vector, PLANES>(vector, input, at);
            let (low, high) = mask.mask::<PLANES>(vector, load::<U::Vector, PLANES>(vector, gradient, at), y, tile, at);
            store::<U, PLANES>(simd, (low, high), gradient, at);
            sums[0][0] = sums[0][0].add(low);
            sums[0][1] = low.mul_add(y.0.sub(mean.0).mul(inv_std.0), sums[0][1]);
            sums[1][0] = sums[1][0].add(high);
            sums[1][1] = high.mul_add(y.1.sub(mean.1).mul(inv_std.1), sums[1][1]);
        }
    }
}

/// Adds vectors of sums to `[channel][2]` from `channel` on; channels that do not exist are
/// dropped.
#[inline(always)]
fn move_on<V: Vector>(sums: &[V; 2], totals: &mut [f64], channel: usize) {
    for (which, sum) in sums.iter().enumerate() {
        let mut lanes = [0.0f32; HALF];
        // SAFETY: a vector has at most as many lanes as half a tile.
        unsafe { sum.store(lanes.as_mut_ptr()) };
        let existing = totals.get_mut(2 * channel..).unwrap_or_default();
        for (total, lane) in existing.chunks_exact_mut(2).zip(&lanes[..V::LANES]) {
            total[which] += f64::from(*lane);
        }
    }
}
