//! The CPU engine: a network of layers, compiled once into a plan over one arena, and run.

mod error;
pub mod graph;

pub use error::{Error, Result};
pub use graph::{Graph, Node, Op, Shape};
