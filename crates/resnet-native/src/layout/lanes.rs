//! Single precision, images innermost.
//!
//! A tensor of shape `[C, H, W]` for `N` images is stored as `[N / 16][H][W][C][16 images]`. One pixel of
//! one channel is then a contiguous run of 16 floats (one AVX-512 register, two of AVX2), so that every
//! kernel is "vector times broadcast weight" or "vector times vector" with no shuffles, for any number of
//! channels, any stride and any border.

use resnet_graph::Shape;

/// Images of a lane group: stored side by side.
pub const LANE_GROUP: usize = 16;

/// Number of lane groups that hold `images`.
pub const fn lane_groups(images: usize) -> usize {
    images.div_ceil(LANE_GROUP)
}

/// One for each lane that holds an image, zero for the others.
pub fn lane_mask(images: usize) -> [f32; LANE_GROUP] {
    std::array::from_fn(|lane| if lane < images { 1.0 } else { 0.0 })
}

/// Stores up to 16 images `[image][C][H][W]` as one lane group.
pub fn interleave(images: &[f32], shape: Shape, group: &mut [f32]) {
    let (channels, pixels) = (shape.channels, shape.height * shape.width);
    let count = images.len() / shape.len();
    for (pixel, lanes) in group.chunks_exact_mut(channels * LANE_GROUP).enumerate() {
        for (channel, lanes) in lanes.chunks_exact_mut(LANE_GROUP).enumerate() {
            let at = channel * pixels + pixel;
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value = if lane < count { images[lane * shape.len() + at] } else { 0.0 };
            }
        }
    }
}
