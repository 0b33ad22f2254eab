//! In which precision: the flag that every command that runs a network shares.

use clap::ValueEnum;
use resnet::engine::{Isa, Native, Precision};

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// single precision throughout
    F32,
    /// activations as sums of two numbers in bf16: 16 bits of mantissa
    Tf32,
    /// activations in bf16; sums, weights, statistics and the head in single precision
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Tf32 => Self::Tf32,
            PrecisionArg::Bf16 => Self::Bf16,
        }
    }
}

/// Says so where a precision is slow on this machine.
///
/// # Errors
/// When `RESNET_ISA` names no instruction set of this machine.
pub fn check_speed(precision: Precision) -> anyhow::Result<()> {
    let isa = Native::isa()?;
    if precision != Precision::F32 && isa != Isa::Amx {
        eprintln!("note: {} needs AMX to be fast; on {} --precision f32 is faster", precision.name(), isa.name());
    }
    Ok(())
}
