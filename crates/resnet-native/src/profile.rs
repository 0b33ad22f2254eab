//! How long each step of a pass took.

use std::time::Duration;

use resnet_graph::{NodeId, Work};

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
