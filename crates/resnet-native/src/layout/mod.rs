//! How activations lie in memory.
//!
//! For training ([`Layout`]) the images of a batch are interleaved, 16 to a *lane group*: `lanes` keeps
//! single precision, [`tiles`] what a matrix unit multiplies. For inference ([`Pixels`]) vectors and tiles
//! hold the pixels of one image. [`gather`] and `windows` list what each pixel written by a convolution
//! reads in them; [`numbers`] says how values shorter than single precision are kept.
//!
//! Memory is counted in 32-bit words, a float or two values in bf16. What belongs to no image, no
//! channel and no pixel (in a last, partial lane group or tile) is kept at zero wherever a sum is taken.

pub mod gather;
mod lanes;
pub mod numbers;
mod pixels;
pub mod tiles;
mod windows;

use resnet_graph::Shape;

pub use lanes::{LANE_GROUP, lane_groups, lane_mask};
pub use pixels::{Format, Halo, NARROW_BLOCK, Pixels, TILE_ROWS};
pub use tiles::MAX_PLANES;
pub(crate) use windows::PixelTile;
pub use windows::Windows;

use tiles::{Tiling, stored_tile};

/// One of the ways to store activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Single precision, images innermost: see `lanes`.
    Lanes,
    /// Tiles, in bf16, in 24 bits or in single precision: see [`tiles`].
    Tiles {
        /// Numbers in bf16 as whose sum a value is multiplied, at most `MAX_PLANES`.
        planes: usize,
    },
}

impl Layout {
    /// Words that a row of pixels of a group takes.
    pub fn row_len(self, shape: Shape) -> usize {
        match self {
            Self::Lanes => shape.width * shape.channels * LANE_GROUP,
            Self::Tiles { planes } => Tiling::new(shape).row_tiles() * stored_tile(planes),
        }
    }

    /// Words that a group takes.
    pub fn lane_group_len(self, shape: Shape) -> usize {
        shape.height * self.row_len(shape)
    }

    /// Stores up to 16 images `[image][C][H][W]` as one group.
    pub fn pack_images(self, images: &[f32], shape: Shape, group: &mut [f32]) {
        match self {
            Self::Lanes => lanes::interleave(images, shape, group),
            Self::Tiles { planes } => tiles::tile(images, shape, planes, group),
        }
    }

    /// The reverse of [`pack_images`](Self::pack_images), for as many images as `images` has room for.
    pub fn unpack_images(self, group: &[f32], shape: Shape, images: &mut [f32]) {
        for (lane, image) in images.chunks_exact_mut(shape.len()).enumerate() {
            for (at, value) in image.iter_mut().enumerate() {
                let (channel, pixel) = (at / (shape.height * shape.width), at % (shape.height * shape.width));
                *value = match self {
                    Self::Lanes => group[(pixel * shape.channels + channel) * LANE_GROUP + lane],
                    Self::Tiles { planes } => {
                        let (tile, word, half) = Tiling::new(shape).place(pixel, channel, lane);
                        tiles::stored_value(&group[tile * stored_tile(planes)..], planes, word, half)
                    }
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tiles::{TILE, stored_value};
    use super::*;

    #[test]
    fn packing_and_unpacking_a_partial_group_gives_the_images_back() {
        let tiled = (1..=3).flat_map(|planes| [3, 45].map(|channels| (Layout::Tiles { planes }, channels)));
        for (layout, channels) in tiled.chain([(Layout::Lanes, 3)]) {
            let shape = Shape::new(channels, 3, 5);
            let images: Vec<f32> = (0..7 * shape.len()).map(|i| (i % 251) as f32).collect();
            let mut group = vec![f32::NAN; layout.lane_group_len(shape)];
            layout.pack_images(&images, shape, &mut group);
            let mut back = vec![0.0; images.len()];
            layout.unpack_images(&group, shape, &mut back);
            assert_eq!(back, images);
            let total: f32 = match layout {
                Layout::Lanes => group.iter().sum(),
                Layout::Tiles { planes } => {
                    let values = |tile| (0..2 * TILE).map(move |at| stored_value(tile, planes, at / 2, at % 2));
                    group.chunks_exact(stored_tile(planes)).flat_map(values).sum()
                }
            };
            assert_eq!(total, images.iter().sum(), "what belongs to no image is zero");
        }
    }
}
