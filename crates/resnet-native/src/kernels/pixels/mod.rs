//! The algorithms of inference on one image, laid out as [`Pixels`](crate::layout::Pixels): in
//! single precision generic over a vector type, in planes of bf16 over what multiplies tiles.
//!
//! Functions that touch a vector are `#[inline(always)]`, so that they are compiled inside the
//! `#[target_feature]` function that calls them; closures are not, so none of them touches a
//! vector. A kernel checks the lengths of its band, which its pointers rely on.

#![expect(clippy::needless_range_loop, reason = "loops over registers read better, and unroll, by index")]

mod avg_pool;
mod load;
mod number;
pub mod single;
pub mod tiles;

pub use avg_pool::avg_pool;
pub use load::load;
pub use number::{Planes, Single};
