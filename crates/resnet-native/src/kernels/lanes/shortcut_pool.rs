//! Option A shortcut and average pooling, which move or add whole groups of images.

use crate::kernels::{AvgPool, PadShortcut};
use crate::layout::LANE_GROUP;

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
pub fn pad_shortcut(group: PadShortcut<'_>) {
    let len = group.narrow.channels * LANE_GROUP;
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = (kept * len, (pixel * group.wide.channels + group.first_channel()) * LANE_GROUP);
        group.output[to..][..len].copy_from_slice(&group.input[from..][..len]);
    }
}

/// The reverse of [`pad_shortcut`]: what was dropped gets no gradient.
pub fn pad_shortcut_backward(group: PadShortcut<'_>) {
    let len = group.narrow.channels * LANE_GROUP;
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = ((pixel * group.wide.channels + group.first_channel()) * LANE_GROUP, kept * len);
        group.output[to..][..len].copy_from_slice(&group.input[from..][..len]);
    }
}

/// Mean over pixels.
pub fn avg_pool(group: AvgPool<'_>) {
    group.output.fill(0.0);
    for pixel in group.input.chunks_exact(group.output.len()) {
        group.output.iter_mut().zip(pixel).for_each(|(total, value)| *total += value);
    }
    let scale = group.output.len() as f32 / group.input.len() as f32;
    group.output.iter_mut().for_each(|total| *total *= scale);
}

/// Every pixel gets its share of the mean's gradient.
pub fn avg_pool_backward(group: AvgPool<'_>) {
    let scale = group.input.len() as f32 / group.output.len() as f32;
    for pixel in group.output.chunks_exact_mut(group.input.len()) {
        pixel.iter_mut().zip(group.input).for_each(|(value, g)| *value = g * scale);
    }
}
