//! Memory that is allocated once and lent out in parts.

mod arena;
mod scratch;

pub use arena::{ALIGN_FLOATS, Arena, Buffer};
pub use scratch::Scratch;
