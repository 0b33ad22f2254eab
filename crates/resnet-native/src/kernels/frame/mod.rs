//! The algorithms, generic over a vector type; instantiated once for each instruction set.
//!
//! Every function here is `#[inline(always)]` so that it is compiled inside the `#[target_feature]`
//! function that calls it, and is unsafe for one reason: the caller has checked the lengths of the band
//! and runs it on a machine that has the vector's instructions.

#![expect(clippy::needless_range_loop, reason = "loops over registers read better, and unroll, by index")]

mod conv;
mod conv_weights;
mod normalize;

pub use conv::{MAX_TAPS, conv};
pub use conv_weights::conv_weights;
pub use normalize::{normalize, normalize_backward, normalize_reduce};

/// A register of floats; a group of images is a whole number of them.
///
/// # Safety
/// Every method needs a machine that has the vector's instructions; `load` and `store` need a pointer
/// valid for [`LANES`](Vector::LANES) floats, of any alignment.
pub trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `max(self, 0)`; NaN stays NaN.
    unsafe fn relu(self) -> Self;
    /// `self` in the lanes where `gate > 0`, else zero.
    unsafe fn where_positive(self, gate: Self) -> Self;
    /// Sum of all lanes.
    unsafe fn sum(self) -> f32;
}
