//! Option A shortcut and average pooling, which move or add whole groups of images.

use crate::kernels::{Pad, Pool};
use crate::layout::GROUP;

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
pub fn pad(group: Pad<'_>) {
    let len = group.narrow.channels * GROUP;
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = (kept * len, (pixel * group.wide.channels + group.first_channel()) * GROUP);
        group.output[to..][..len].copy_from_slice(&group.input[from..][..len]);
    }
}

/// The reverse of [`pad`]: what was dropped gets no gradient.
pub fn pad_backward(group: Pad<'_>) {
    let len = group.narrow.channels * GROUP;
    group.output.fill(0.0);
    for (kept, pixel) in group.kept_pixels() {
        let (from, to) = ((pixel * group.wide.channels + group.first_channel()) * GROUP, kept * len);
        group.output[to..][..len].copy_from_slice(&group.input[from..][..len]);
    }
}

/// Mean over pixels.
pub fn pool(group: Pool<'_>) {
    group.output.fill(0.0);
    for pixel in group.input.chunks_exact(group.output.len()) {
        group.output.iter_mut().zip(pixel).for_each(|(total, value)| *total += value);
    }
    let scale = group.output.len() as f32 / group.input.len() as f32;
    group.output.iter_mut().for_each(|total| *total *= scale);
}

/// Every pixel gets its share of the mean's gradient.
pub fn pool_backward(group: Pool<'_>) {
    let scale = group.input.len() as f32 / group.output.len() as f32;
    for pixel in group.output.chunks_exact_mut(group.input.len()) {
        pixel.iter_mut().zip(group.input).for_each(|(value, g)| *value = g * scale);
    }
}
