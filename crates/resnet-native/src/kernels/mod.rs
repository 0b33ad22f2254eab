//! The arithmetic, once for each instruction set.
//!
//! `train` and `infer` say what a kernel is given. The algorithms are generic over a `vector` type
//! and, for bf16, over a unit that multiplies tiles: `lanes` and `tiles` for training, `pixels` for
//! inference, `winograd` the mathematics of which both make use. `isa` holds those types, a file an
//! instruction set, and chooses the blocking that fits the registers. [`select()`] is the one place
//! that picks.
//!
//! A kernel works on one *band*: consecutive rows of one lane group of images, or blocks of one
//! image.

mod infer;
mod instruction_set;
mod isa;
mod lanes;
mod macros;
mod pixels;
mod select;
mod tiles;
mod train;
mod vector;
mod winograd;

pub use infer::{PixelAvgPool, PixelConv, PixelKernels, PixelLoad};
pub use instruction_set::{Isa, choose};
pub use select::{fastest_precision, select, select_inference, select_pixels};
pub use train::{
    AvgPool, ConvBand, ConvOperands, Epilogue, Images, KernelSet, Kernels, NormReduction, NormValues, Normalize,
    NormalizeReduce, Operand, Pack, PadShortcut, ReluMask, Schedule, WeightGradientBand,
};
