//! What a network is, to any engine: the words that a training loop and an engine share.
//!
//! A [`Graph`] is a network as layers in topological order. Its [`TensorTable`] names the tensors of its
//! state and says where each lies in flat parameters, gradients and running statistics. An [`Update`] is
//! one step of an optimizer over those parameters; [`Targets`] are what a batch should be classified as,
//! an [`Outcome`] what a pass over it found. All of it is plain data: nothing here computes.

mod graph;
mod precision;
mod shape;
mod step;
mod tensors;
mod update;

pub use graph::{Branch, Graph, Node, NodeId, Op};
pub use precision::Precision;
pub use shape::Shape;
pub use step::{Outcome, Part, Targets, Work};
pub use tensors::{Role, TensorSpec, TensorTable};
pub use update::{ParamGroup, Rule, Update};
