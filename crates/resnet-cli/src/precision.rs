//! In which precision: the flag that every command that runs a network shares.

use clap::ValueEnum;
use resnet::engine::Precision;

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// single precision throughout
    F32,
    /// activations in bf16; sums, weights, statistics and the head in single precision
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Bf16 => Self::Bf16,
        }
    }
}
