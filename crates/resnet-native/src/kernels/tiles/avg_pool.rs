//! Global average pooling on tiles, a pixel at a time.

use super::pixel::{Channels, Pixel};
use super::{Simd, TileUnit};
use crate::kernels::AvgPool;
use crate::layout::tiles::Tiling;
use crate::layout::{LANE_GROUP, Layout};

/// The mean over pixels of each channel, in single precision: `[channel][image]`.
#[inline(always)]
pub fn avg_pool<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: AvgPool<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = Channels::new(tiling.chunks());
    let mut totals = Channels::new(tiling.chunks());
    for pixel in 0..pixels {
        Pixel::<PLANES>::new(tiling, pixel).read(simd.vector(), group.input, &mut values, 0);
        totals.values.iter_mut().zip(&values.values).for_each(|(total, value)| *total += value);
    }
    for (image, totals) in totals.values.chunks_exact(totals.count).enumerate() {
        for (channel, total) in totals.iter().enumerate().take(group.shape.channels) {
            group.output[channel * LANE_GROUP + image] = total / pixels as f32;
        }
    }
}

/// The gradient of what [`avg_pool`] reads: every pixel gets its share of the mean's.
#[inline(always)]
pub fn avg_pool_backward<U: TileUnit, const PLANES: usize>(simd: Simd<U>, group: AvgPool<'_>) {
    group.check(Layout::Tiles { planes: PLANES });
    let tiling = Tiling::new(group.shape);
    let pixels = group.shape.height * group.shape.width;
    let mut values = Channels::new(tiling.chunks());
    for (image, values) in values.values.chunks_exact_mut(values.count).enumerate() {
        for (channel, value) in values.iter_mut().enumerate().take(group.shape.channels) {
            *value = group.input[channel * LANE_GROUP + image] / pixels as f32;
        }
    }
    group.output.fill(0.0);
    for pixel in 0..pixels {
        Pixel::<PLANES>::new(tiling, pixel).write(simd, group.output, &values, 0);
    }
}
