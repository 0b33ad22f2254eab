//! How the activations of one image lie in memory for inference: pixel after pixel, with a border of zeros.
//!
//! `[channels / block][plane][position][block]`. A *block* is 32 channels, or 16 where a layer has no more, or 4 or 8
//! for images of few colours. A *position* is a pixel or part of the border: rows follow one another at a
//! *pitch* that leaves zeros between them, which are the right border of one row and the left border of the next.
//! So a tap of a convolution is a fixed distance from the pixel that it is written to, wherever that is, and as many
//! pixels as fill a tile or a register lie side by side in any image.
//!
//! A value is a float, or the sum of one, two or three numbers in bf16 in planes of their own
//! ([`Format`]). Memory is counted in 32-bit words, a float or two values in bf16.

use super::numbers::widen;
use crate::memory::ALIGN_FLOATS;
use resnet_graph::Shape;

/// Channels side by side in a layer of many.
pub const WIDE_BLOCK: usize = 32;

/// The same in a layer of few.
pub const NARROW_BLOCK: usize = 16;

/// Rows of a tile: pixels that a kernel works on at a time.
pub const TILE_ROWS: usize = 16;

/// How inference keeps numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Single precision.
    Single,
    /// The sum of so many numbers in bf16, one to three: 8, 16 or 24 bits.
    Planes(usize),
}

impl Format {
    /// Numbers that make a value.
    pub const fn planes(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Planes(planes) => planes,
        }
    }

    /// Words that some values of a plane take.
    pub const fn words(self, values: usize) -> usize {
        match self {
            Self::Single => values,
            Self::Planes(_) => values / 2,
        }
    }
}

/// The most that the convolutions of a network ask of the pixels around a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halo {
    /// Zeros on each side.
    pub padding: usize,
    /// Step between output pixels.
    pub stride: usize,
}

/// Where the values of one image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Shape of the image.
    pub(crate) shape: Shape,
    /// How values are kept.
    pub(crate) format: Format,
    /// Channels side by side.
    pub(crate) block: usize,
    /// Positions from row to row.
    pub(crate) pitch: usize,
    /// Position of the first pixel.
    origin: usize,
    /// All positions: what a last, partial tile reads beyond the last pixel is there.
    positions: usize,
}

impl Pixels {
    /// Activations between layers.
    pub fn new(shape: Shape, format: Format, halo: Halo) -> Self {
        let block = if shape.channels <= NARROW_BLOCK { NARROW_BLOCK } else { WIDE_BLOCK };
        Self::with_block(shape, format, halo, block)
    }

    /// The images, whose pixels have few channels.
    pub fn of_image(shape: Shape, format: Format, halo: Halo) -> Self {
        match shape.channels {
            0..=4 => Self::with_block(shape, format, halo, 4),
            5..=8 => Self::with_block(shape, format, halo, 8),
            _ => Self::new(shape, format, halo),
        }
    }

    fn with_block(shape: Shape, format: Format, halo: Halo, block: usize) -> Self {
        // Rows begin at whole cache lines where a line holds two pixels.
        let align = if block == NARROW_BLOCK { 2 } else { 1 };
        let pitch = (shape.width + halo.padding).next_multiple_of(align);
        let origin = (halo.padding * (pitch + 1)).next_multiple_of(align);
        let beyond = 2 * TILE_ROWS * halo.stride + WIDE_BLOCK;
        let positions = origin + (shape.height + halo.padding) * pitch + beyond;
        let positions = positions.next_multiple_of(2 * ALIGN_FLOATS);
        Self { shape, format, block, pitch, origin, positions }
    }

    /// Shape of the image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How values are kept.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Channels side by side.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Blocks of channels.
    pub fn blocks(&self) -> usize {
        self.shape.channels.div_ceil(self.block)
    }

    /// Words of a pixel in one plane of one block.
    pub fn pixel_len(&self) -> usize {
        self.format.words(self.block)
    }

    /// Words of a plane of a block.
    pub fn plane_len(&self) -> usize {
        self.positions * self.pixel_len()
    }

    /// Words of a block, all its planes.
    pub fn block_len(&self) -> usize {
        self.format.planes() * self.plane_len()
    }

    /// Words of the image.
    pub fn image_len(&self) -> usize {
        self.blocks() * self.block_len()
    }

    /// First word of a pixel, from the start of its plane; coordinates may lie in the border.
    pub fn word(&self, y: isize, x: isize) -> isize {
        (self.origin as isize + y * self.pitch as isize + x) * self.pixel_len() as isize
    }

    /// First value of a pixel, from the start of its plane.
    pub fn value(&self, y: usize, x: usize) -> usize {
        (self.origin + y * self.pitch + x) * self.block
    }

    /// Takes the values of an image, `[channel][height][width]`, from its words.
    pub fn unload(&self, words: &[f32], values: &mut [f32]) {
        for (channel, plane) in values.chunks_exact_mut(self.shape.pixels()).enumerate() {
            let words = &words[channel / self.block * self.block_len()..][..self.block_len()];
            for (pixel, value) in plane.iter_mut().enumerate() {
                let at = self.value(pixel / self.shape.width, pixel % self.shape.width) + channel % self.block;
                *value = match self.format {
                    Format::Single => words[at],
                    // Smallest first, as kernels add planes.
                    Format::Planes(planes) => (0..planes)
                        .rev()
                        .map(|plane| widen(words[plane * self.plane_len() + at / 2])[at % 2])
                        .reduce(|sum, plane| sum + plane)
                        .unwrap_or(0.0),
                };
            }
        }
    }

    /// Channels of a block that exist.
    pub fn channels_of(&self, block: usize) -> usize {
        self.block.min(self.shape.channels - block * self.block)
    }
}
