//! Batch norm's passes over memory, with the shortcut and the ReLU taken along.

use super::Vector;
use crate::kernels::{Affine, Gate, Normalize, NormalizeReduce, Reduction};
use crate::layout::{LANE_GROUP, lane_mask};

/// `output = relu(scale * input + shift + residual)`.
///
/// # Safety
/// See the [module](super).
#[inline(always)]
pub unsafe fn normalize<V: Vector>(band: Normalize<'_>) {
    let channels = band.scale.len();
    let mask = lane_mask(band.images);
    let pixels = band.input.len() / (channels * LANE_GROUP);
    for pixel in 0..pixels {
        for channel in 0..channels {
            for part in (0..LANE_GROUP).step_by(V::LANES) {
                let at = (pixel * channels + channel) * LANE_GROUP + part;
                // SAFETY: `at` lies inside all slices, which are of one length.
                unsafe {
                    let scale = V::splat(*band.scale.get_unchecked(channel));
                    let shift = V::splat(*band.shift.get_unchecked(channel));
                    let mut value = V::load(band.input.as_ptr().add(at)).mul_add(scale, shift);
                    if let Some(residual) = band.residual {
                        value = value.add(V::load(residual.as_ptr().add(at)));
                    }
                    if band.relu {
                        value = value.relu();
                    }
                    value.mul(V::load(mask.as_ptr().add(part))).store(band.output.as_mut_ptr().add(at));
                }
            }
        }
    }
}

/// `scale * input + shift` of a channel.
///
/// # Safety
/// The channel exists.
#[inline(always)]
pub unsafe fn apply<V: Vector>(affine: Affine<'_>, input: V, channel: usize) -> V {
    // SAFETY: passed on from the caller.
    unsafe {
        let shift = V::splat(*affine.shift.get_unchecked(channel));
        input.mul_add(V::splat(*affine.scale.get_unchecked(channel)), shift)
    }
}

/// Channels summed side by side, in sums that stay in the first-level cache.
const CHANNELS: usize = 64;

/// Pixels between two moves of the sums to double precision.
const PIXELS: usize = 64;

/// Masks the gradient with respect to the ReLU and sums it, alone and times the normalised input.
///
/// # Safety
/// See the [module](super).
#[inline(always)]
pub unsafe fn normalize_reduce<V: Vector>(band: NormalizeReduce<'_>) {
    let Reduction { gate, input, mean, inv_std, sums: totals } = band.reduction;
    let channels = mean.len();
    let pixels = input.len() / (channels * LANE_GROUP);
    let gradient = band.gradient.as_mut_ptr();
    totals.fill(0.0);
    for first in (0..channels).step_by(CHANNELS) {
        let count = CHANNELS.min(channels - first);
        for start in (0..pixels).step_by(PIXELS) {
            // SAFETY: `at` lies inside all slices, which are of one length.
            unsafe {
                let mut sums = [[V::splat(0.0); 2]; CHANNELS];
                for pixel in start..pixels.min(start + PIXELS) {
                    for (c, sums) in sums.iter_mut().enumerate().take(count) {
                        let mean = V::splat(*mean.get_unchecked(first + c));
                        let inv_std = V::splat(*inv_std.get_unchecked(first + c));
                        for part in (0..LANE_GROUP).step_by(V::LANES) {
                            let at = (pixel * channels + first + c) * LANE_GROUP + part;
                            let input = V::load(input.as_ptr().add(at));
                            let g = masked(gate, V::load(gradient.add(at)), input, at, first + c);
                            g.store(gradient.add(at));
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
}

/// Part of a gradient, masked by the ReLU; `at` is its place, `input` what the batch norm read there.
///
/// # Safety
/// The place lies inside what the gate holds, and the channel exists.
#[inline(always)]
pub unsafe fn masked<V: Vector>(gate: Gate<'_>, g: V, input: V, at: usize, channel: usize) -> V {
    // SAFETY: passed on from the caller.
    unsafe {
        match gate {
            Gate::Open => g,
            Gate::Output(rectified) => g.where_positive(V::load(rectified.as_ptr().add(at))),
            Gate::Input(affine) => g.where_positive(apply(affine, input, channel)),
        }
    }
}
