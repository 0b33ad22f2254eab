//! The kernels of inference: what each is given, and the checks that they rely on. They work on one image at a time,
//! laid out as [`Pixels`].

use super::Isa;
use crate::infer::{Format, NARROW_BLOCK, Pixels, Walk};

/// A convolution of one image into some blocks of channels: `output = relu(conv(input) + bias + residual)`.
pub struct PixelConv<'a> {
    /// What is read and written.
    pub walk: &'a Walk,
    /// All blocks of the image.
    pub input: &'a [f32],
    /// Packed weights of the blocks written.
    pub weights: &'a [f32],
    /// One value for each channel of the blocks.
    pub bias: &'a [f32],
    /// The same blocks of what is added, laid out as the output.
    pub residual: Option<&'a [f32]>,
    /// The blocks written; their border is zero and stays so.
    pub output: &'a mut [f32],
    /// Whether to rectify.
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
pub struct PixelPool<'a> {
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
    /// Convolution, shortcut and rectifier.
    fn conv(&self, band: PixelConv<'_>);
    /// Global average pooling.
    fn pool(&self, band: PixelPool<'_>);
}

impl PixelLoad<'_> {
    pub(super) fn check(&self, kernels: &dyn PixelKernels) {
        assert_eq!(self.pixels.format, kernels.format());
        assert_eq!(self.image.len(), self.pixels.shape.len());
        assert_eq!(self.output.len(), self.pixels.image_len());
    }
}

impl PixelConv<'_> {
    pub(super) fn check(&self, kernels: &dyn PixelKernels) {
        let Walk { from, to, .. } = self.walk;
        assert!(from.format == kernels.format() && to.format == kernels.format());
        assert_eq!(self.input.len(), from.image_len());
        let blocks = self.output.len() / to.block_len();
        assert_eq!(self.output.len(), blocks * to.block_len());
        assert_eq!(self.weights.len(), blocks * self.walk.packed_len);
        assert_eq!(self.bias.len(), blocks * to.block);
        assert!(self.residual.is_none_or(|residual| residual.len() == self.output.len()));
    }
}

impl PixelPool<'_> {
    pub(super) fn check(&self, kernels: &dyn PixelKernels) {
        assert_eq!(self.pixels.format, kernels.format());
        assert!(self.pixels.block >= NARROW_BLOCK, "blocks are whole vectors");
        assert_eq!(self.input.len(), self.pixels.image_len());
        assert_eq!(self.output.len(), self.pixels.blocks() * self.pixels.block);
    }
}

/// Implements one method of [`PixelKernels`]: checks the band and runs the algorithm, compiled for the instruction
/// set and generic over the planes where there are some.
macro_rules! pixel_kernel {
    ($method:ident, $band:ident, [$(#[$feature:meta])?] [$($planes:ident)?] $($algorithm:tt)+) => {
        fn $method(&self, band: $crate::kernels::$band<'_>) {
            $(#[$feature])?
            unsafe fn run<$(const $planes: usize)?>(band: $crate::kernels::$band<'_>) {
                // SAFETY: passed on from the caller.
                unsafe { $crate::kernels::frame::pixels::$($algorithm)+(band) }
            }
            band.check(self);
            // SAFETY: lengths are checked, and `select_pixels` gives this type out only where the machine has its
            // instructions.
            unsafe { run$(::<$planes>)?(band) }
        }
    };
}
pub(super) use pixel_kernel;

/// Implements [`PixelKernels`] in single precision for one instruction set: its vector type, and the blocking of the
/// convolution (accumulators must fit the registers).
macro_rules! implement_single_pixels {
    (
        $name:ident, $isa:expr, $vector:ty, $(#[$feature:meta])?
        conv: $vectors:literal vectors x $pixels:literal pixels or 1 x $more:literal
    ) => {
        impl $crate::kernels::PixelKernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn format(&self) -> $crate::infer::Format {
                $crate::infer::Format::Single
            }

            $crate::kernels::pixels::pixel_kernel!(load, PixelLoad, [$(#[$feature])?] []
                load::<$crate::kernels::frame::pixels::Single<$vector>>);
            $crate::kernels::pixels::pixel_kernel!(conv, PixelConv, [$(#[$feature])?] []
                single::conv::<$vector, $vectors, $pixels, $more>);
            $crate::kernels::pixels::pixel_kernel!(pool, PixelPool, [$(#[$feature])?] []
                pool::<$crate::kernels::frame::pixels::Single<$vector>>);
        }
    };
}
pub(super) use implement_single_pixels;

/// Implements [`PixelKernels`] in planes of bf16 for one instruction set: what multiplies its tiles.
macro_rules! implement_plane_pixels {
    ($name:ident, $isa:expr, $unit:ty, $(#[$feature:meta])?) => {
        impl<const PLANES: usize> $crate::kernels::PixelKernels for $name<PLANES> {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn format(&self) -> $crate::infer::Format {
                $crate::infer::Format::Planes(PLANES)
            }

            $crate::kernels::pixels::pixel_kernel!(load, PixelLoad, [$(#[$feature])?] [PLANES]
                load::<$crate::kernels::frame::pixels::Planes<$unit, PLANES>>);
            $crate::kernels::pixels::pixel_kernel!(conv, PixelConv, [$(#[$feature])?] [PLANES]
                tiles::conv::<$unit, PLANES>);
            $crate::kernels::pixels::pixel_kernel!(pool, PixelPool, [$(#[$feature])?] [PLANES]
                pool::<$crate::kernels::frame::pixels::Planes<$unit, PLANES>>);
        }
    };
}
pub(super) use implement_plane_pixels;
