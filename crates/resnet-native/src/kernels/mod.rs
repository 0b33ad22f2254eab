//! The arithmetic, once for each instruction set.
//!
//! `frame` holds the algorithms, generic over a vector type and, for bf16, over a unit that multiplies
//! tiles; `portable`, `avx2`, `avx512` and `amx` hold those types and choose the blocking that fits the
//! registers. [`select`] is the one place that picks. A kernel works on one *band*: consecutive rows of one
//! group of images (see `layout`); cutting a tensor into bands and running them on threads is the plan's.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod band;
mod frame;
mod pixels;
mod portable;

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::marker::PhantomData;
use std::str::FromStr;

use resnet_graph::Precision;

use crate::error::{Error, Result};
use crate::geometry::{Conv2d, Gather};
use crate::infer::Format;
use crate::layout::Layout;

pub use band::{
    Affine, ConvBand, ConvWeightsBand, Gate, Images, Moments, Normalize, NormalizeReduce, PackWeights, Pad, Pool,
    Reduction, Source, Sums,
};
pub use pixels::{PixelConv, PixelKernels, PixelLoad, PixelPool};

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, for any machine.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
    /// AMX in bf16, with AVX-512 around it.
    Amx,
}

/// The precision in which this machine trains fastest, to the same accuracy: bf16 where there is AMX.
pub fn fastest_precision() -> Precision {
    match choose(None) {
        Ok(Isa::Amx) => Precision::Bf16,
        _ => Precision::F32,
    }
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// Name as in `RESNET_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The instruction sets this machine has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Its kernels for the head; to be given out only where the machine has it.
    fn head_kernels(self) -> &'static dyn Kernels {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &avx2::F32,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Amx => &avx512::F32,
            _ => &portable::F32,
        }
    }

    /// Its kernels for the convolutional part, likewise.
    fn kernels(self, precision: Precision) -> &'static dyn Kernels {
        match (self, precision) {
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Precision::Tf32) => &avx2::Tf32,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Precision::Bf16) => &avx2::Bf16,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, Precision::Tf32) => &avx512::Tf32,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, Precision::Bf16) => &avx512::Bf16,
            #[cfg(target_arch = "x86_64")]
            (Self::Amx, Precision::F32) => &amx::F32,
            #[cfg(target_arch = "x86_64")]
            (Self::Amx, Precision::Tf32) => &amx::Tf32,
            #[cfg(target_arch = "x86_64")]
            (Self::Amx, Precision::Bf16) => &amx::Bf16,
            (_, Precision::F32) => self.head_kernels(),
            (_, Precision::Tf32) => &portable::Tf32,
            (_, Precision::Bf16) => &portable::Bf16,
        }
    }
}

/// The kernels of inference for `precision` on the instruction set that [`choose`] gives: with a matrix unit, single
/// precision is three planes of bf16.
///
/// # Errors
/// As [`choose`].
pub fn select_inference(isa: Option<Isa>, precision: Precision) -> Result<&'static dyn PixelKernels> {
    let isa = choose(isa)?;
    let format = match (precision, isa) {
        (Precision::Bf16, _) => Format::Planes(1),
        (Precision::Tf32, _) => Format::Planes(2),
        (Precision::F32, Isa::Amx) => Format::Planes(3),
        (Precision::F32, _) => Format::Single,
    };
    select_pixels(Some(isa), format)
}

/// The kernels of inference for `format` on the instruction set that [`choose`] gives.
///
/// # Errors
/// As [`choose`].
pub fn select_pixels(isa: Option<Isa>, format: Format) -> Result<&'static dyn PixelKernels> {
    let isa = choose(isa)?;
    macro_rules! planes {
        ($module:ident) => {
            match format {
                Format::Planes(1) => &$module::PlanePixels::<1>,
                Format::Planes(2) => &$module::PlanePixels::<2>,
                _ => &$module::PlanePixels::<3>,
            }
        };
    }
    Ok(match (isa, format) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Format::Single) => &avx2::SinglePixels,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => planes!(avx2),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Amx, Format::Single) => &avx512::SinglePixels,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, _) => planes!(avx512),
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx, _) => planes!(amx),
        (_, Format::Single) => &portable::SinglePixels,
        _ => planes!(portable),
    })
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|isa| isa.name()).collect();
            Error::Isa(format!("unknown instruction set '{name}': expected one of {}", names.join(", ")))
        })
    }
}

/// The instruction set to run on: `isa`, or the best the machine has; the variable `RESNET_ISA` overrules
/// both.
///
/// # Errors
/// When the instruction set asked for does not exist or the machine lacks it.
pub fn choose(isa: Option<Isa>) -> Result<Isa> {
    let forced = std::env::var("RESNET_ISA").ok().filter(|name| !name.is_empty());
    let wanted = match forced {
        Some(name) => Some(name.parse().map_err(|error| Error::Isa(format!("RESNET_ISA: {error}")))?),
        None => isa,
    };
    match wanted {
        Some(isa) if !isa.is_available() => Err(Error::Isa(format!("this machine has no {}", isa.name()))),
        Some(isa) => Ok(isa),
        None => Ok(Isa::available().last().unwrap_or(Isa::Portable)),
    }
}

/// The kernels for `precision` on the instruction set that [`choose`] gives.
///
/// # Errors
/// As [`choose`].
pub fn select(isa: Option<Isa>, precision: Precision) -> Result<KernelSet> {
    let isa = choose(isa)?;
    Ok(KernelSet { body: isa.kernels(precision), head: isa.head_kernels() })
}

/// The kernels of a network: those of its convolutional part, and those of its head, which is always in
/// single precision.
#[derive(Clone, Copy)]
pub struct KernelSet {
    /// Up to the pooling.
    pub body: &'static dyn Kernels,
    /// From the pooling on.
    pub head: &'static dyn Kernels,
}

impl KernelSet {
    /// Those that work on `layout`.
    pub fn of(self, layout: Layout) -> &'static dyn Kernels {
        if layout == self.body.layout() { self.body } else { self.head }
    }
}

/// The kernels of one instruction set for one precision. Activations lie in its [`layout`](Kernels::layout).
pub trait Kernels: Send + Sync {
    /// Which instruction set.
    fn isa(&self) -> Isa;
    /// How activations lie in memory.
    fn layout(&self) -> Layout;
    /// Words that the weights of a convolution take, packed for [`conv`](Kernels::conv).
    fn packed_len(&self, gather: &Gather) -> usize;
    /// Puts weights in the order and the form in which convolutions read them.
    fn pack_weights(&self, weights: PackWeights<'_>);
    /// Convolution, and its gradient by the input.
    fn conv(&self, band: ConvBand<'_>);
    /// Multiplies and adds as fast as it can, with nothing to load or store; returns how many multiply-adds
    /// that were. What convolutions are measured against.
    fn spin(&self, rounds: usize) -> u64;
    /// Gradient of a convolution by its weights.
    fn conv_weights(&self, band: ConvWeightsBand<'_>);
    /// Words of such a gradient.
    fn gradient_len(&self, conv: &Conv2d) -> usize;
    /// Puts a whole such gradient in the order of the weights, for the outputs from `first` on that
    /// `gradient` has room for.
    fn unpack_gradient(&self, conv: &Conv2d, summed: &[f32], first: usize, gradient: &mut [f32]);
    /// Stores the images of a group as the first convolution reads them.
    fn load_images(&self, images: Images<'_>);
    /// Batch norm with known statistics, shortcut and rectifier.
    fn normalize(&self, band: Normalize<'_>);
    /// The pass over its gradient; convolutions work out the rest on load.
    fn normalize_reduce(&self, band: NormalizeReduce<'_>);
    /// Option A shortcut.
    fn pad(&self, group: Pad<'_>);
    /// Its gradient.
    fn pad_backward(&self, group: Pad<'_>);
    /// Global average pooling, to single precision `[channel][image]`.
    fn pool(&self, group: Pool<'_>);
    /// Its gradient.
    fn pool_backward(&self, group: Pool<'_>);
}

/// Makes this thread treat denormal numbers as zero, until what it returns is dropped: arithmetic on them costs two
/// hundred times as much, and gradients run through them on their way to zero.
pub fn flush_denormals() -> FlushedDenormals {
    #[cfg(target_arch = "x86_64")]
    {
        const FLUSH_TO_ZERO: u32 = 1 << 15;
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let mut control = 0u32;
        // SAFETY: SSE is part of x86-64; this only reads the thread's control word.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack)) };
        set_control(control | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
        FlushedDenormals { control, thread: PhantomData }
    }
    #[cfg(not(target_arch = "x86_64"))]
    FlushedDenormals { thread: PhantomData }
}

/// Given by [`flush_denormals`]; dropped, it sets the thread back to what it did before.
#[must_use]
pub struct FlushedDenormals {
    /// The control word before.
    #[cfg(target_arch = "x86_64")]
    control: u32,
    /// Keeps this on its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for FlushedDenormals {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        set_control(self.control);
    }
}

#[cfg(target_arch = "x86_64")]
fn set_control(control: u32) {
    // SAFETY: SSE is part of x86-64; but for the two denormal bits the word is the one the thread had.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &control, options(nostack)) };
}

/// Implements one method of [`Kernels`]: checks the band, where there is one, and runs the algorithm, compiled
/// for the instruction set.
macro_rules! kernel {
    (spin, [$(#[$feature:meta])?] $($algorithm:tt)+) => {
        fn spin(&self, rounds: usize) -> u64 {
            $(#[$feature])?
            unsafe fn run(rounds: usize) -> u64 {
                // SAFETY: passed on from the caller.
                unsafe { $crate::kernels::frame::$($algorithm)+(rounds) }
            }
            // SAFETY: `Isa::kernels` gives this type out only where the machine has its instructions.
            unsafe { run(rounds) }
        }
    };
    ($method:ident, $band:ident, [$(#[$feature:meta])?] $($algorithm:tt)+) => {
        fn $method(&self, band: $crate::kernels::$band<'_>) {
            $(#[$feature])?
            unsafe fn run(band: $crate::kernels::$band<'_>) {
                // SAFETY: passed on from the caller.
                unsafe { $crate::kernels::frame::$($algorithm)+(band) }
            }
            band.check(self);
            // SAFETY: lengths are checked, and `Isa::kernels` gives this type out only where the machine
            // has its instructions.
            unsafe { run(band) }
        }
    };
}
use kernel;

/// Implements [`Kernels`] in single precision for one instruction set: its vector type, and the blocking of
/// the two convolution kernels (accumulators must fit the registers).
macro_rules! implement_kernels {
    (
        $name:ident, $isa:expr, $vector:ty, $(#[$feature:meta])?
        conv: $block:literal channels x $pixels:literal pixels, or x $quads:literal at a point,
        weights: $outputs:literal outputs x $inputs:literal inputs x 3 columns, or $many:literal x $few:literal at a point
    ) => {
        impl $crate::kernels::Kernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn layout(&self) -> $crate::layout::Layout {
                $crate::layout::Layout::Interleaved
            }

            fn packed_len(&self, gather: &$crate::geometry::Gather) -> usize {
                $crate::kernels::frame::packed_len(gather, $block)
            }

            fn pack_weights(&self, weights: $crate::kernels::PackWeights<'_>) {
                weights.check(self);
                $crate::kernels::frame::pack_weights(weights, $block);
            }

            fn gradient_len(&self, conv: &$crate::geometry::Conv2d) -> usize {
                $crate::kernels::frame::gradient_len(conv)
            }

            fn unpack_gradient(
                &self, conv: &$crate::geometry::Conv2d, summed: &[f32], first: usize, gradient: &mut [f32],
            ) {
                $crate::kernels::frame::unpack_gradient(conv, summed, first, gradient);
            }

            fn load_images(&self, images: $crate::kernels::Images<'_>) {
                self.layout().pack_group(images.images, images.conv.input(), images.group);
            }

            fn pad(&self, group: $crate::kernels::Pad<'_>) {
                $crate::kernels::frame::pad(group);
            }

            fn pad_backward(&self, group: $crate::kernels::Pad<'_>) {
                $crate::kernels::frame::pad_backward(group);
            }

            fn pool(&self, group: $crate::kernels::Pool<'_>) {
                $crate::kernels::frame::pool(group);
            }

            fn pool_backward(&self, group: $crate::kernels::Pool<'_>) {
                $crate::kernels::frame::pool_backward(group);
            }

            $crate::kernels::kernel!(spin, [$(#[$feature])?] spin::<$vector, $block>);
            $crate::kernels::kernel!(conv, ConvBand, [$(#[$feature])?] conv::<$vector, $block, $pixels, $quads>);
            $crate::kernels::kernel!(conv_weights, ConvWeightsBand, [$(#[$feature])?]
                conv_weights::<$vector, $outputs, $inputs, $many, $few>);
            $crate::kernels::kernel!(normalize, Normalize, [$(#[$feature])?] normalize::<$vector>);
            $crate::kernels::kernel!(normalize_reduce, NormalizeReduce, [$(#[$feature])?]
                normalize_reduce::<$vector>);
        }
    };
}
use implement_kernels;

/// Implements [`Kernels`] on tiles for one instruction set: what multiplies them, and how many planes they have.
macro_rules! implement_tiled_kernels {
    ($name:ident, $isa:expr, $unit:ty, planes: $planes:literal, $(#[$feature:meta])?) => {
        impl $crate::kernels::Kernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn layout(&self) -> $crate::layout::Layout {
                $crate::layout::Layout::Tiled { planes: $planes }
            }

            fn packed_len(&self, gather: &$crate::geometry::Gather) -> usize {
                $crate::kernels::frame::tiled::packed_len(gather, $planes)
            }

            fn gradient_len(&self, conv: &$crate::geometry::Conv2d) -> usize {
                $crate::kernels::frame::tiled::gradient_len(conv)
            }

            fn unpack_gradient(
                &self, conv: &$crate::geometry::Conv2d, summed: &[f32], first: usize, gradient: &mut [f32],
            ) {
                $crate::kernels::frame::tiled::unpack_gradient(conv, summed, first, gradient);
            }

            $crate::kernels::kernel!(spin, [$(#[$feature])?] tiled::spin::<$unit, $planes>);
            $crate::kernels::kernel!(pack_weights, PackWeights, [$(#[$feature])?] tiled::pack_weights::<$unit, $planes>);
            $crate::kernels::kernel!(load_images, Images, [$(#[$feature])?] tiled::load_images::<$unit, $planes>);
            $crate::kernels::kernel!(conv, ConvBand, [$(#[$feature])?] tiled::conv::<$unit, $planes>);
            $crate::kernels::kernel!(conv_weights, ConvWeightsBand, [$(#[$feature])?] tiled::conv_weights::<$unit, $planes>);
            $crate::kernels::kernel!(normalize, Normalize, [$(#[$feature])?] tiled::normalize::<$unit, $planes>);
            $crate::kernels::kernel!(normalize_reduce, NormalizeReduce, [$(#[$feature])?]
                tiled::normalize_reduce::<$unit, $planes>);
            $crate::kernels::kernel!(pad, Pad, [$(#[$feature])?] tiled::pad::<$unit, $planes>);
            $crate::kernels::kernel!(pad_backward, Pad, [$(#[$feature])?] tiled::pad_backward::<$unit, $planes>);
            $crate::kernels::kernel!(pool, Pool, [$(#[$feature])?] tiled::pool::<$unit, $planes>);
            $crate::kernels::kernel!(pool_backward, Pool, [$(#[$feature])?] tiled::pool_backward::<$unit, $planes>);
        }
    };
}
use implement_tiled_kernels;
