//! The arithmetic, once for each instruction set.
//!
//! `frame` holds the algorithms, generic over a vector type; `portable`, `avx2` and `avx512` hold a
//! vector type each and choose the blocking that fits its registers. [`select`] is the one place that
//! picks. A kernel works on one *band*: consecutive rows of one group of images (see
//! `layout`); cutting a tensor into bands and running them on threads is the plan's.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod frame;
mod portable;

use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::geometry::{Conv2d, Gather};
use crate::layout::GROUP;

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, for any machine.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Name as in `RESNET_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The instruction sets this machine has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.kernels().is_some())
    }

    /// Its kernels, where the machine has it.
    fn kernels(self) -> Option<&'static dyn Kernels> {
        match self {
            Self::Portable => Some(&portable::Portable),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => Some(&avx2::Avx2),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if is_x86_feature_detected!("avx512f") => Some(&avx512::Avx512),
            _ => None,
        }
    }
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

/// The kernels of `isa`, or of the best the machine has; the variable `RESNET_ISA` overrules both.
///
/// # Errors
/// When the instruction set asked for does not exist or the machine lacks it.
pub fn select(isa: Option<Isa>) -> Result<&'static dyn Kernels> {
    let forced = std::env::var("RESNET_ISA").ok().filter(|name| !name.is_empty());
    let wanted = match forced {
        Some(name) => Some(name.parse().map_err(|error| Error::Isa(format!("RESNET_ISA: {error}")))?),
        None => isa,
    };
    match wanted {
        Some(isa) => isa.kernels().ok_or_else(|| Error::Isa(format!("this machine has no {}", isa.name()))),
        None => Ok(Isa::available().last().and_then(Isa::kernels).unwrap_or(&portable::Portable)),
    }
}

/// A convolution, or its gradient by its input, over a band of the rows written.
pub struct ConvBand<'a> {
    /// What each pixel reads.
    pub gather: &'a Gather,
    /// Rows of the whole output that `output` holds.
    pub rows: Range<usize>,
    /// Group read: `[from_height][from_width][in_channels][16]`.
    pub input: &'a [f32],
    /// Feature maps read.
    pub in_channels: usize,
    /// From [`pack_weights`], with this instruction set's [`Kernels::block`].
    pub weights: &'a [f32],
    /// Rows written: `[rows][width][out_channels][16]`.
    pub output: &'a mut [f32],
    /// Feature maps written.
    pub out_channels: usize,
    /// Add to what `output` holds, instead of replacing it.
    pub accumulate: bool,
    /// Sums over the band for batch norm.
    pub moments: Option<Moments<'a>>,
}

/// First and second moment of each channel of a convolution's output about a pivot near the mean, which
/// keeps `E[(y - pivot)^2] - E[y - pivot]^2` from cancelling.
pub struct Moments<'a> {
    /// One value a channel.
    pub pivot: &'a [f32],
    /// Replaced by `[channel][sum of y - pivot, sum of (y - pivot)^2]`.
    pub sums: &'a mut [f64],
    /// Images in the group; further lanes do not count.
    pub images: usize,
}

/// The gradient of a convolution by its weights, over a band of rows of the output's gradient.
pub struct ConvWeightsBand<'a> {
    /// The convolution.
    pub conv: &'a Conv2d,
    /// Rows of the output's gradient to sum over.
    pub rows: Range<usize>,
    /// Group `[height][width][in_channels][16]`.
    pub input: &'a [f32],
    /// Feature maps of the input.
    pub in_channels: usize,
    /// Group `[out_height][out_width][out_channels][16]`.
    pub output_gradient: &'a [f32],
    /// Feature maps of the output.
    pub out_channels: usize,
    /// Feature maps of the output to work on.
    pub outputs: Range<usize>,
    /// Replaced: `[outputs][in_channels][kernel][kernel]`.
    pub gradient: &'a mut [f32],
}

/// `output = relu(scale * input + shift + residual)` over pixels `[pixel][channel][16]`.
pub struct Normalize<'a> {
    /// What the convolution gave.
    pub input: &'a [f32],
    /// Added before the rectifier.
    pub residual: Option<&'a [f32]>,
    /// Where the result goes; lanes without an image become zero.
    pub output: &'a mut [f32],
    /// One value a channel.
    pub scale: &'a [f32],
    /// One value a channel.
    pub shift: &'a [f32],
    /// Whether to rectify.
    pub relu: bool,
    /// Images in the group.
    pub images: usize,
}

/// First half of the gradient of [`Normalize`]: masks `gradient` by the rectifier and sums it.
pub struct NormalizeReduce<'a> {
    /// Gradient of the output; becomes that of what the rectifier saw.
    pub gradient: &'a mut [f32],
    /// The output, where a rectifier made it.
    pub rectified: Option<&'a [f32]>,
    /// What the convolution gave.
    pub input: &'a [f32],
    /// One value a channel.
    pub mean: &'a [f32],
    /// One value a channel.
    pub inv_std: &'a [f32],
    /// Replaced by `[channel][sum of g, sum of g * (input - mean) * inv_std]`.
    pub sums: &'a mut [f64],
}

/// Second half: `output = a * gradient + b * input + c`, the gradient of what the convolution gave.
pub struct NormalizeBackward<'a> {
    /// From [`NormalizeReduce`].
    pub gradient: &'a [f32],
    /// What the convolution gave.
    pub input: &'a [f32],
    /// Where the result goes; lanes without an image become zero.
    pub output: &'a mut [f32],
    /// One value a channel.
    pub a: &'a [f32],
    /// One value a channel.
    pub b: &'a [f32],
    /// One value a channel.
    pub c: &'a [f32],
    /// Images in the group.
    pub images: usize,
}

/// The kernels of one instruction set.
pub trait Kernels: Send + Sync {
    /// Which one.
    fn isa(&self) -> Isa;
    /// Output channels that packed weights keep side by side.
    fn block(&self) -> usize;
    /// Convolution, and its gradient by the input.
    fn conv(&self, band: ConvBand<'_>);
    /// Gradient of a convolution by its weights.
    fn conv_weights(&self, band: ConvWeightsBand<'_>);
    /// Batch norm with known statistics, shortcut and rectifier.
    fn normalize(&self, band: Normalize<'_>);
    /// First pass of its gradient.
    fn normalize_reduce(&self, band: NormalizeReduce<'_>);
    /// Second pass of its gradient.
    fn normalize_backward(&self, band: NormalizeBackward<'_>);
}

/// Which way a convolution's weights are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From input channels to output channels.
    Forward,
    /// From the output's gradient to the input's: channels exchanged.
    Backward,
}

/// Length of packed weights that write `written` channels.
pub fn packed_len(written: usize, read: usize, kernel: usize, block: usize) -> usize {
    written.next_multiple_of(block) * read * kernel * kernel
}

/// Packs `[out][in][tap]` as `[written / block][tap][read][block]`; channels past the last are zero.
pub fn pack_weights(
    weights: &[f32],
    (outputs, inputs, taps): (usize, usize, usize),
    direction: Direction,
    block: usize,
    packed: &mut [f32],
) {
    let (written, read) = match direction {
        Direction::Forward => (outputs, inputs),
        Direction::Backward => (inputs, outputs),
    };
    for (at, lanes) in packed.chunks_exact_mut(block).enumerate() {
        let (from, tap, first) = (at % read, at / read % taps, at / read / taps * block);
        for (to, value) in (first..).zip(lanes) {
            let (output, input) = match direction {
                Direction::Forward => (to, from),
                Direction::Backward => (from, to),
            };
            *value = if to < written { weights[(output * inputs + input) * taps + tap] } else { 0.0 };
        }
    }
}

/// Makes this thread treat denormal numbers as zero: arithmetic on them costs two hundred times as much,
/// and gradients run through them on their way to zero.
pub fn flush_denormals() {
    #[cfg(target_arch = "x86_64")]
    {
        const FLUSH_TO_ZERO: u32 = 1 << 15;
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let mut control = 0u32;
        // SAFETY: SSE is part of x86-64; only the two denormal bits of the thread's control word change.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack));
            control |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
            std::arch::asm!("ldmxcsr [{}]", in(reg) &control, options(nostack));
        }
    }
}

impl ConvBand<'_> {
    /// Checks the lengths that the kernels rely on.
    fn check(&self, block: usize) {
        let gather = self.gather;
        assert!(self.rows.end <= gather.rows.len() && gather.kernel * gather.kernel <= frame::MAX_TAPS);
        assert_eq!(self.output.len(), self.rows.len() * gather.width * self.out_channels * GROUP);
        assert_eq!(self.weights.len(), packed_len(self.out_channels, self.in_channels, gather.kernel, block));
        let last_row = gather.rows[self.rows.clone()].iter().flatten().map(|tap| tap.from + 1).max().unwrap_or(0);
        assert!(self.input.len() >= last_row * gather.from_width * self.in_channels * GROUP);
        if let Some(moments) = &self.moments {
            assert!(moments.pivot.len() == self.out_channels && moments.sums.len() == 2 * self.out_channels);
        }
    }
}

impl ConvWeightsBand<'_> {
    fn check(&self) {
        let (vertical, horizontal) = (self.conv.vertical, self.conv.horizontal);
        assert!(self.rows.end <= vertical.output && self.outputs.end <= self.out_channels);
        assert_eq!(self.input.len(), vertical.input * horizontal.input * self.in_channels * GROUP);
        assert_eq!(self.output_gradient.len(), vertical.output * horizontal.output * self.out_channels * GROUP);
        let taps = vertical.kernel * horizontal.kernel;
        assert_eq!(self.gradient.len(), self.outputs.len() * self.in_channels * taps);
    }
}

/// Checks that slices of pixels are of one length, a whole number of pixels of `channels`.
fn check_pixels(channels: usize, slices: &[&[f32]]) {
    let len = slices[0].len();
    assert!(len.is_multiple_of(channels * GROUP) && slices.iter().all(|slice| slice.len() == len));
}

impl Normalize<'_> {
    fn check(&self) {
        check_pixels(self.scale.len(), &[self.input, self.output, self.residual.unwrap_or(self.input)]);
        assert_eq!(self.scale.len(), self.shift.len());
    }
}

impl NormalizeReduce<'_> {
    fn check(&self) {
        check_pixels(self.mean.len(), &[self.input, self.gradient, self.rectified.unwrap_or(self.input)]);
        assert!(self.inv_std.len() == self.mean.len() && self.sums.len() == 2 * self.mean.len());
    }
}

impl NormalizeBackward<'_> {
    fn check(&self) {
        check_pixels(self.a.len(), &[self.input, self.gradient, self.output]);
        assert!(self.b.len() == self.a.len() && self.c.len() == self.a.len());
    }
}

/// Implements [`Kernels`] for one instruction set: its vector type, and the blocking of the two
/// convolution kernels (accumulators must fit the registers).
macro_rules! implement_kernels {
    (
        $name:ident, $isa:expr, $vector:ty, $(#[$feature:meta])?
        conv: $block:literal channels x $pixels:literal pixels,
        weights: $outputs:literal outputs x $inputs:literal inputs x 3 columns
    ) => {
        impl $crate::kernels::Kernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn block(&self) -> usize {
                $block
            }

            implement_kernels!(@kernel conv, ConvBand, ($block), [$(#[$feature])?] conv::<$vector, $block, $pixels>);
            implement_kernels!(@kernel conv_weights, ConvWeightsBand, (), [$(#[$feature])?]
                conv_weights::<$vector, $outputs, $inputs>);
            implement_kernels!(@kernel normalize, Normalize, (), [$(#[$feature])?] normalize::<$vector>);
            implement_kernels!(@kernel normalize_reduce, NormalizeReduce, (), [$(#[$feature])?]
                normalize_reduce::<$vector>);
            implement_kernels!(@kernel normalize_backward, NormalizeBackward, (), [$(#[$feature])?]
                normalize_backward::<$vector>);
        }
    };
    (@kernel $method:ident, $band:ident, ($($block:literal)?), [$(#[$feature:meta])?] $($frame:tt)+) => {
        fn $method(&self, band: $crate::kernels::$band<'_>) {
            $(#[$feature])?
            unsafe fn run(band: $crate::kernels::$band<'_>) {
                // SAFETY: passed on from the caller.
                unsafe { $crate::kernels::frame::$($frame)+(band) }
            }
            band.check($($block)?);
            // SAFETY: lengths are checked, and `Isa::kernels` gives this type out only where the machine
            // has its instructions.
            unsafe { run(band) }
        }
    };
}
use implement_kernels;
