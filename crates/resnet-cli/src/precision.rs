//! In which precision: the flag that every command that runs a network shares.

use clap::ValueEnum;
use resnet::engine::{self, Precision};

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
/// When the engine cannot run here as its environment asks.
pub fn check_speed(engine: &str, precision: Precision) -> anyhow::Result<()> {
    if let Some(note) = engine::named(engine)?.precision_note(precision)? {
        eprintln!("note: {note}");
    }
    Ok(())
}
