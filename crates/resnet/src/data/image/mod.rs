//! An image: its pixels, from a file ([`decode`]), and the scaling of a part of it ([`resample`]).

mod decode;
mod resample;

use resnet_graph::Shape;

use crate::{Error, Result};

pub(super) use decode::read_file;
pub use resample::Span;
pub(super) use resample::resample;

/// An image at its own size: pixels `[channels, height, width]`, one channel (grey) or three (red,
/// green, blue) where it comes from a file.
///
/// One value can hold image after image: its memory is taken once ([`reshape`](Image::reshape)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    shape: Shape,
    pixels: Vec<u8>,
}

impl Default for Image {
    /// No pixels yet.
    fn default() -> Self {
        Self { shape: Shape::new(0, 0, 0), pixels: Vec::new() }
    }
}

impl Image {
    /// An image of `shape`.
    ///
    /// # Errors
    /// When `pixels` are not those of one image, or there is none.
    pub fn new(shape: Shape, pixels: Vec<u8>) -> Result<Self> {
        if shape.is_empty() || shape.len() != pixels.len() {
            return Err(Error::Config(format!("{} bytes of pixels do not make a {shape} image", pixels.len())));
        }
        Ok(Self { shape, pixels })
    }

    /// Its extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its pixels, `[channels, height, width]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Makes it an image of `shape` and gives its pixels to be written; what they hold now means
    /// nothing.
    pub fn reshape(&mut self, shape: Shape) -> &mut [u8] {
        self.shape = shape;
        self.pixels.resize(shape.len(), 0);
        &mut self.pixels
    }
}
