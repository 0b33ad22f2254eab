//! The algorithms of training on [lane groups](crate::layout::Layout::Lanes), generic over a vector
//! type.
//!
//! Functions that touch a vector are `#[inline(always)]`, so that they are compiled inside the
//! `#[target_feature]` function that calls them; closures are not, so none of them touches a
//! vector. A kernel checks the lengths of its band, which its pointers rely on.

#![expect(clippy::needless_range_loop, reason = "loops over registers read better, and unroll, by index")]

mod avg_pool;
mod conv;
mod epilogue;
mod normalize;
mod pack;
mod pad_shortcut;
mod peak;
mod rows;
mod weight_gradient;
mod winograd;

use super::train::Schedule;
use super::vector::{Simd, Vector};

pub use avg_pool::{avg_pool, avg_pool_backward};
pub use conv::conv;
pub use normalize::{normalize, normalize_reduce};
pub use pack::{gradient_len, pack, packed_len, unpack_gradient};
pub use pad_shortcut::{pad_shortcut, pad_shortcut_backward};
pub use peak::peak;
pub use weight_gradient::weight_gradient;

/// A band of fewer pixels spends a noticeable share of its time on summing the lanes of accumulators.
pub const SCHEDULE: Schedule = Schedule { lane_groups: 1, band_pixels: 64, cuts_outputs: true };
