//! How activations lie in memory: the images of a batch interleaved, 16 to a group.
//!
//! A tensor of shape `[C, H, W]` for `N` images is stored as `[N / 16][H][W][C][16 images]`. One pixel of
//! one channel is then a contiguous run of 16 floats (one AVX-512 register, two of AVX2), so that every
//! kernel is "vector times broadcast weight" or "vector times vector" with no shuffles, for any number
//! of channels, any stride and any border. The lanes of a last, partial group that belong to no image
//! are kept at zero wherever a sum over images is taken.

use crate::graph::Shape;

/// Images stored side by side.
pub const GROUP: usize = 16;

/// Number of groups that hold `images`.
pub const fn groups(images: usize) -> usize {
    images.div_ceil(GROUP)
}

/// Values a group takes in this layout.
pub const fn group_len(shape: Shape) -> usize {
    shape.len() * GROUP
}

/// Images of group `group` in a batch of `images`.
pub fn images_in_group(images: usize, group: usize) -> usize {
    (images - group * GROUP).min(GROUP)
}

/// One for each lane that holds an image, zero for the others.
pub fn lane_mask(images: usize) -> [f32; GROUP] {
    std::array::from_fn(|lane| if lane < images { 1.0 } else { 0.0 })
}

/// Interleaves up to 16 images `[image][C][H][W]` into one group `[H][W][C][16]`.
pub fn pack_group(images: &[f32], shape: Shape, group: &mut [f32]) {
    let (channels, pixels) = (shape.channels, shape.height * shape.width);
    let count = images.len() / shape.len();
    for (pixel, lanes) in group.chunks_exact_mut(channels * GROUP).enumerate() {
        for (channel, lanes) in lanes.chunks_exact_mut(GROUP).enumerate() {
            let at = channel * pixels + pixel;
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value = if lane < count { images[lane * shape.len() + at] } else { 0.0 };
            }
        }
    }
}

/// The reverse of [`pack_group`], for as many images as `images` has room for.
pub fn unpack_group(group: &[f32], shape: Shape, images: &mut [f32]) {
    let (channels, pixels) = (shape.channels, shape.height * shape.width);
    for (lane, image) in images.chunks_exact_mut(shape.len()).enumerate() {
        for (channel, plane) in image.chunks_exact_mut(pixels).enumerate() {
            for (pixel, value) in plane.iter_mut().enumerate() {
                *value = group[(pixel * channels + channel) * GROUP + lane];
            }
        }
    }
}

/// Height of the bands of rows that an operation is cut into: the tallest that divides the height
/// and gives about `bands` bands over all groups. It depends on the batch alone, never on the number
/// of threads, and with it so does the order of every sum.
pub fn band_rows(height: usize, groups: usize, bands: usize) -> usize {
    let wanted = bands.div_ceil(groups.max(1)).clamp(1, height);
    (1..=height).rev().find(|rows| height.is_multiple_of(*rows) && height / rows >= wanted).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_and_unpacking_a_partial_group_gives_the_images_back() {
        let shape = Shape::new(3, 5, 4);
        let images: Vec<f32> = (0..7 * shape.len()).map(|i| i as f32).collect();
        let mut group = vec![f32::NAN; group_len(shape)];
        pack_group(&images, shape, &mut group);
        let mut back = vec![0.0; images.len()];
        unpack_group(&group, shape, &mut back);
        assert_eq!(back, images);
        assert!(group.chunks_exact(GROUP).all(|lanes| lanes[7..].iter().all(|&v| v == 0.0)));
    }

    #[test]
    fn bands_cover_the_height_evenly() {
        assert_eq!(band_rows(32, 8, 32), 8);
        assert_eq!(band_rows(8, 8, 32), 2);
        assert_eq!(band_rows(7, 1, 4), 1);
        assert_eq!(band_rows(1, 8, 32), 1);
        assert_eq!(band_rows(32, 64, 32), 32);
    }
}
