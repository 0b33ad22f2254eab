//! Global average pooling, which adds whole lane groups of pixels.

use crate::kernels::AvgPool;

/// The mean over pixels of each channel.
pub fn avg_pool(group: AvgPool<'_>) {
    group.output.fill(0.0);
    for pixel in group.input.chunks_exact(group.output.len()) {
        group.output.iter_mut().zip(pixel).for_each(|(total, value)| *total += value);
    }
    let scale = group.output.len() as f32 / group.input.len() as f32;
    group.output.iter_mut().for_each(|total| *total *= scale);
}

/// The gradient of what [`avg_pool`] reads: every pixel gets its share of the mean's.
pub fn avg_pool_backward(group: AvgPool<'_>) {
    let scale = group.input.len() as f32 / group.output.len() as f32;
    for pixel in group.output.chunks_exact_mut(group.input.len()) {
        pixel.iter_mut().zip(group.input).for_each(|(value, g)| *value = g * scale);
    }
}
