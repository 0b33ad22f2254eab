//! The kernels of inference: what each is given, and the checks that they rely on. They work on one
//! image at a time, laid out as [`Pixels`].

use super::Isa;
use crate::layout::{Format, NARROW_BLOCK, Pixels, Windows};

/// A convolution of one image into some blocks of channels: `output = relu(conv(input) + bias +
/// residual)`.
pub struct PixelConv<'a> {
    /// What is read and written.
    pub windows: &'a Windows,
    /// All blocks of the image.
    pub input: &'a [f32],
    /// Packed weights of the blocks written.
    pub weights: &'a [f32],
    /// One value for each channel of the blocks.
    pub bias: &'a [f32],
    /// What is added: the blocks written, laid out as the output.
    pub residual: Option<&'a [f32]>,
    /// The blocks written; their border is zero and stays so.
    pub output: &'a mut [f32],
    /// Whether ReLU follows.
    pub relu: bool,
}

/// An image to lay out.
pub struct PixelLoad<'a> {
    /// Layout of the result.
    pub pixels: &'a Pixels,
    /// `[channel][height][width]`.
    pub image: &'a [f32],
    /// Where it goes; its border is left as it is, which is zero.
    pub output: &'a mut [f32],
}

/// Global average pooling of one image.
pub struct PixelAvgPool<'a> {
    /// Layout of the image.
    pub pixels: &'a Pixels,
    /// The image.
    pub input: &'a [f32],
    /// The mean of each channel, those that fill up the last block included.
    pub output: &'a mut [f32],
}

/// The kernels of inference for one instruction set and format.
pub trait PixelKernels: Send + Sync {
    /// Which instruction set.
    fn isa(&self) -> Isa;
    /// How values are kept.
    fn format(&self) -> Format;
    /// Lays an image out.
    fn load(&self, band: PixelLoad<'_>);
    /// Convolution, shortcut and ReLU.
    fn conv(&self, band: PixelConv<'_>);
    /// Global average pooling.
    fn avg_pool(&self, band: PixelAvgPool<'_>);
}

impl PixelLoad<'_> {
    /// Panics unless lengths and layouts are those of `format`.
    pub(super) fn check(&self, format: Format) {
        assert_eq!(self.pixels.format, format);
        assert_eq!(self.image.len(), self.pixels.shape.len());
        assert_eq!(self.output.len(), self.pixels.image_len());
    }
}

impl PixelConv<'_> {
    /// Panics unless lengths and layouts are those of `format`.
    pub(super) fn check(&self, format: Format) {
        let Windows { from, to, .. } = self.windows;
        assert!(from.format == format && to.format == format);
        assert_eq!(self.input.len(), from.image_len());
        let blocks = self.output.len() / to.block_len();
        assert_eq!(self.output.len(), blocks * to.block_len());
        assert_eq!(self.weights.len(), blocks * self.windows.packed_len);
        assert_eq!(self.bias.len(), blocks * to.block);
        assert!(self.residual.is_none_or(|residual| residual.len() == self.output.len()));
    }
}

impl PixelAvgPool<'_> {
    /// Panics unless lengths and layouts are those of `format`.
    pub(super) fn check(&self, format: Format) {
        assert_eq!(self.pixels.format, format);
        assert!(self.pixels.block >= NARROW_BLOCK, "blocks are whole vectors");
        assert_eq!(self.input.len(), self.pixels.image_len());
        assert_eq!(self.output.len(), self.pixels.blocks() * self.pixels.block);
    }
}
