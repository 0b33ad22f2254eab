//! Memory that is allocated once and lent out in parts.

mod arena;
mod lifetimes;
mod scratch;

pub use arena::{ALIGN_FLOATS, Arena, Buffer};
pub use lifetimes::{Lifetime, place};
pub use scratch::Scratch;
