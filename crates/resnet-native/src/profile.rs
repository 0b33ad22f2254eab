//! How long each step of a pass took.

use std::time::Duration;

use crate::graph::NodeId;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Laying the images out.
    Load,
    /// Packing changed weights for the convolutions.
    Pack,
    /// Forward pass of a layer.
    Forward,
    /// Loss and its gradient by the logits.
    Loss,
    /// Gradient of a layer by its input.
    Backward,
    /// Gradient of a convolution by its weights.
    BackwardWeights,
    /// Step of the optimizer.
    Update,
}

/// One step of a pass.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// What it did.
    pub work: Work,
    /// The last graph node of the layer, where it belongs to one.
    pub node: Option<NodeId>,
    /// How long threads spent on it, added up.
    pub time: Duration,
}
