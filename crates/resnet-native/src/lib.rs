//! The CPU engine: a network of layers, compiled once into a plan over one arena, and run.
//!
//! A [`Graph`] says what to run. A [`Session`] lowers it to fused layers (`program`), lays them out for
//! a batch size (`plan`, `arena`, `layout`) and runs them on its threads (`execute`, `shard`, `group`, `team`) with the
//! kernels of the best instruction set the machine has (`kernels`). It knows tensors and layers, nothing of files,
//! recipes or command lines.

mod arena;
mod error;
mod execute;
pub mod geometry;
mod group;
pub mod infer;
pub mod kernels;
mod layout;
mod loss;
mod optimizer;
mod pass;
mod plan;
mod profile;
mod program;
mod session;
mod shard;
mod statistics;
mod team;

pub use error::{Error, Result};
pub use kernels::{Isa, fastest_precision};
pub use layout::{GROUP, Layout};
pub use loss::softmax_cross_entropy;
pub use optimizer::{Memory, Optimizer};
pub use profile::StepTime;
pub use session::{Options, Session};
