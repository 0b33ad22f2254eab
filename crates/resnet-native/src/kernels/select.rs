//! The one table that says which kernels run on which instruction set.

use resnet_graph::Precision;

use super::infer::PixelKernels;
use super::isa::portable;
#[cfg(x86_code)]
use super::isa::{amx, avx2, avx512};
use super::train::{KernelSet, Kernels};
use super::{Isa, choose};
use crate::error::Result;
use crate::layout::Format;

/// The precision in which this machine trains fastest, to the same accuracy: bf16 where there is
/// AMX.
pub fn fastest_precision() -> Precision {
    match choose(None) {
        Ok(Isa::Amx) => Precision::Bf16,
        _ => Precision::F32,
    }
}

/// The kernels for `precision` on the instruction set that [`choose`] gives.
///
/// # Errors
/// As [`choose`].
pub fn select(isa: Option<Isa>, precision: Precision) -> Result<KernelSet> {
    let isa = choose(isa)?;
    Ok(KernelSet { body: body_kernels(isa, precision), head: head_kernels(isa) })
}

/// The kernels of inference for `precision` on the instruction set that [`choose`] gives: with a
/// matrix unit, single precision is three planes of bf16.
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
        #[cfg(x86_code)]
        (Isa::Avx2, Format::Single) => &avx2::SinglePixels,
        #[cfg(x86_code)]
        (Isa::Avx2, _) => planes!(avx2),
        #[cfg(x86_code)]
        (Isa::Avx512 | Isa::Amx, Format::Single) => &avx512::SinglePixels,
        #[cfg(x86_code)]
        (Isa::Avx512, _) => planes!(avx512),
        #[cfg(x86_code)]
        (Isa::Amx, _) => planes!(amx),
        (_, Format::Single) => &portable::SinglePixels,
        _ => planes!(portable),
    })
}

/// The kernels of an instruction set for the head; to be given out only where the machine has it.
fn head_kernels(isa: Isa) -> &'static dyn Kernels {
    match isa {
        #[cfg(x86_code)]
        Isa::Avx2 => &avx2::F32,
        #[cfg(x86_code)]
        Isa::Avx512 | Isa::Amx => &avx512::F32,
        _ => &portable::F32,
    }
}

/// The kernels of an instruction set for the convolutional part; to be given out only where the
/// machine has it.
fn body_kernels(isa: Isa, precision: Precision) -> &'static dyn Kernels {
    match (isa, precision) {
        #[cfg(x86_code)]
        (Isa::Avx2, Precision::Tf32) => &avx2::Tf32,
        #[cfg(x86_code)]
        (Isa::Avx2, Precision::Bf16) => &avx2::Bf16,
        #[cfg(x86_code)]
        (Isa::Avx512, Precision::Tf32) => &avx512::Tf32,
        #[cfg(x86_code)]
        (Isa::Avx512, Precision::Bf16) => &avx512::Bf16,
        #[cfg(x86_code)]
        (Isa::Amx, Precision::F32) => &amx::F32,
        #[cfg(x86_code)]
        (Isa::Amx, Precision::Tf32) => &amx::Tf32,
        #[cfg(x86_code)]
        (Isa::Amx, Precision::Bf16) => &amx::Bf16,
        (_, Precision::F32) => head_kernels(isa),
        (_, Precision::Tf32) => &portable::Tf32,
        (_, Precision::Bf16) => &portable::Bf16,
    }
}
