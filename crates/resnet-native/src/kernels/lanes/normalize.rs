//! Batch norm's passes over memory, with the shortcut and the ReLU taken along.

use super::{Simd, Vector};
use crate::kernels::{NormReduction, NormValues, Normalize, NormalizeReduce, ReluMask};
use crate::layout::{LANE_GROUP, Layout, lane_mask};

/// `output = relu(scale * input + shift + residual)`.
#[inline(always)]
pub fn normalize<V: Vector>(simd: Simd<V>, band: Normalize<'_>) {
    band.check(Layout::Lanes);
    let (scale, shift) = (&band.norm.scale, &band.norm.shift);
    let channels = scale.len();
    let mask = lane_mask(band.images);
    let pixels = band.input.len() / (channels * LANE_GROUP);
    for pixel in 0..pixels {
        for (channel, (&scale, &shift)) in scale.iter().zip(shift).enumerate() {
            let (scale, shift) = (simd.splat(scale), simd.splat(shift));
            for part in (0..LANE_GROUP).step_by(V::LANES) {
                let at = (pixel * channels + channel) * LANE_GROUP + part;
                // SAFETY: the pixel lies inside the input, and all tensors are of its length.
                unsafe {
                    let mut value = simd.load(band.input.as_ptr().add(at)).mul_add(scale, shift);
                    if let Some(residual) = band.residual {
                        value = value.add(simd.load(residual.as_ptr().add(at)));
                    }
                    if band.relu {
                        value = value.relu();
                    }
                    value.mul(simd.load(mask.as_ptr().add(part))).store(band.output.as_mut_ptr().add(at));
                }
            }
        }
    }
}

/// Channels summed side by side, in sums that stay in the first-level cache.
const CHANNELS: usize = 64;

/// Pixels between two moves of the sums to double precision.
const PIXELS: usize = 64;

/// Masks a gradient by the ReLU and sums it, alone and times the normalised input.
#[inline(always)]
pub fn normalize_reduce<V: Vector>(simd: Simd<V>, band: NormalizeReduce<'_>) {
    band.check(Layout::Lanes);
    let NormReduction { norm, input, .. } = band.reduction;
    let (mean, inv_std, totals) = (&norm.mean, &norm.inv_std, band.sums);
    let channels = mean.len();
    let pixels = input.len() / (channels * LANE_GROUP);
    let gradient = band.gradient.as_mut_ptr();
    totals.fill(0.0);
    for first in (0..channels).step_by(CHANNELS) {
        let count = CHANNELS.min(channels - first);
        for start in (0..pixels).step_by(PIXELS) {
            let mut sums = [[simd.zero(); 2]; CHANNELS];
            for pixel in start..pixels.min(start + PIXELS) {
                let values = mean[first..].iter().zip(&inv_std[first..]);
                for (c, (sums, (&mean, &inv_std))) in sums.iter_mut().zip(values).enumerate().take(count) {
                    let (mean, inv_std) = (simd.splat(mean), simd.splat(inv_std));
                    for part in (0..LANE_GROUP).step_by(V::LANES) {
                        let at = (pixel * channels + first + c) * LANE_GROUP + part;
                        // SAFETY: the pixel lies inside the input, and all tensors are of its
                        // length.
                        let (input, g) = unsafe {
                            let input = simd.load(input.as_ptr().add(at));
                            let g = band.reduction.masked(simd, simd.load(gradient.add(at)), input, at, first + c);
                            g.store(gradient.add(at));
                            (input, g)
                        };
                        let normalized = input.sub(mean).mul(inv_std);
                        sums[0] = sums[0].add(g);
                        sums[1] = g.mul_add(normalized, sums[1]);
                    }
                }
            }
            for (sums, total) in sums.iter().zip(totals[2 * first..].chunks_exact_mut(2)).take(count) {
                total[0] += f64::from(sums[0].sum());
                total[1] += f64::from(sums[1].sum());
            }
        }
    }
}

impl NormReduction<&[f32], &NormValues> {
    /// Part of a gradient, masked by the ReLU; `at` is its place, `input` what the batch norm read
    /// there.
    ///
    /// # Safety
    /// A vector's lanes from `at` on lie inside the tensors, and the channel exists.
    #[inline(always)]
    pub(super) unsafe fn masked<V: Vector>(self, simd: Simd<V>, g: V, input: V, at: usize, channel: usize) -> V {
        match self.mask {
            ReluMask::None => g,
            // SAFETY: the caller's place lies inside the ReLU's output.
            ReluMask::Output(output) => g.where_positive(unsafe { simd.load(output.as_ptr().add(at)) }),
            ReluMask::Input => {
                let NormValues { scale, shift, .. } = self.norm;
                // SAFETY: the caller's channel exists.
                let (scale, shift) = unsafe { (*scale.get_unchecked(channel), *shift.get_unchecked(channel)) };
                g.where_positive(input.mul_add(simd.splat(scale), simd.splat(shift)))
            }
        }
    }
}
