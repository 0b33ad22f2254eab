//! The algorithms of inference on one image, laid out as [`Pixels`](crate::infer::Pixels): in single precision
//! generic over a vector type, in planes of bf16 over what multiplies tiles.

mod load;
mod number;
mod pool;
pub mod single;
pub mod tiles;

pub use load::load;
pub use number::{Planes, Single};
pub use pool::pool;
