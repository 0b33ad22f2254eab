//! The CPU engine: a network of layers, compiled once into a plan over one arena, and run.
//!
//! A [`Graph`](resnet_graph::Graph) says what to run. A [`Session`] fuses its layers, lays them out for
//! training or for inference and runs them on its threads with the kernels of the best instruction set the
//! machine has. It knows tensors and layers, nothing of files, recipes or command lines.
//!
//! The rooms, each standing on those before it: `threads` and `memory`; [`geometry`] and [`layout`];
//! [`kernels`]; `fuse`; `train` and `infer`; the session.

mod error;
mod fuse;
pub mod geometry;
mod infer;
pub mod kernels;
pub mod layout;
mod memory;
mod profile;
mod session;
mod state;
mod threads;
mod train;

pub use error::{Error, Result};
pub use kernels::{Isa, fastest_precision};
pub use profile::StepTime;
pub use session::{Options, Session};
pub use train::loss::softmax_cross_entropy;
pub use train::optimizer::{Memory, Optimizer};
