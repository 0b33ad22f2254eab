//! Deep residual learning (He, Zhang, Ren, Sun: arXiv:1512.03385), end to end.
//!
//! A network is data ([`arch::Network`]); an [`engine::Engine`] runs it. Data flows one way: [`data`] makes
//! batches, an [`engine`] learns from them, [`train`] is the loop around it, which measures with [`eval`],
//! and [`report`] draws what came of it. A [`StateDict`] is the only thing that crosses between engines,
//! [`weights`] and other frameworks; a [`model::Model`] is what training leaves.

pub mod arch;
mod classes;
pub mod data;
pub mod engine;
mod error;
pub mod eval;
pub mod files;
pub mod model;
pub mod report;
mod state;
pub mod train;
pub mod weights;

pub use classes::{ClassMismatch, same_classes};
pub use error::{Error, Result};
pub use state::{StateDict, StateMismatch, StateView, Tensor, TensorView};

/// The README's example is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
