//! The algorithms of inference on one image, laid out as [`Pixels`](crate::layout::Pixels): in single
//! precision generic over a vector type, in planes of bf16 over what multiplies tiles.
//!
//! Every function here is `#[inline(always)]` so that it is compiled inside the `#[target_feature]` function
//! that calls it (closures are not, so none of them touches a vector), and is unsafe for one reason: the
//! caller has checked the lengths of the band and runs it on a machine that has the vector's instructions.

#![expect(clippy::needless_range_loop, reason = "loops over registers read better, and unroll, by index")]

mod avg_pool;
mod load;
mod number;
pub mod single;
pub mod tiles;

pub use avg_pool::avg_pool;
pub use load::load;
pub use number::{Planes, Single};
