//! How an engine keeps and multiplies numbers.

use serde::{Deserialize, Serialize};

/// The precision of training and inference. Weights, statistics and sums are in single precision in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Errors of the size of single precision's, 2^-24, whatever an engine multiplies with.
    #[default]
    F32,
    /// Activations and their gradients with 16 bits of mantissa, products of that precision.
    Tf32,
    /// Activations and their gradients in bf16, 8 bits of mantissa.
    Bf16,
}

impl Precision {
    /// Every precision, most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// Name as on the command line and in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}
