//! What a network costs: layers, shapes, parameters, multiply-adds.

use serde::Serialize;

use super::{Network, Node, Op, Shape};
use crate::Result;

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerSummary {
    /// Module name.
    pub name: String,
    /// What it is (`conv 3x3 /2`).
    pub kind: String,
    /// Output shape for one image.
    pub output: Shape,
    /// Learned values.
    pub parameters: usize,
    /// Multiply-adds for one image.
    pub multiply_adds: u64,
}

/// The whole table with its totals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The network's name.
    pub model: String,
    /// Shape of an image.
    pub input: Shape,
    /// One row a layer, in the order they run.
    pub layers: Vec<LayerSummary>,
    /// Learned values in all.
    pub parameters: usize,
    /// Multiply-adds for one image in all.
    pub multiply_adds: u64,
}

impl Summary {
    /// Takes the measure of a network.
    ///
    /// # Errors
    /// When the network cannot be built.
    pub fn of(network: &Network) -> Result<Self> {
        let graph = network.graph()?;
        let mut parameters = vec![0; graph.nodes().len()];
        graph.tensors().parameters().for_each(|tensor| parameters[tensor.node] += tensor.len());
        let layer = |(node, parameters): (&Node, usize)| LayerSummary {
            name: node.name.clone(),
            kind: kind(node.op),
            output: node.output,
            parameters,
            multiply_adds: graph.multiply_adds_of(node),
        };
        let layers: Vec<_> = graph.nodes().iter().zip(parameters).skip(1).map(layer).collect();
        Ok(Self {
            model: network.name.clone(),
            input: network.input,
            parameters: layers.iter().map(|l| l.parameters).sum(),
            multiply_adds: layers.iter().map(|l| l.multiply_adds).sum(),
            layers,
        })
    }
}

fn kind(op: Op) -> String {
    match op {
        Op::Input => "input".into(),
        Op::Conv { kernel, stride: 1, .. } => format!("conv {kernel}x{kernel}"),
        Op::Conv { kernel, stride, .. } => format!("conv {kernel}x{kernel} /{stride}"),
        Op::BatchNorm => "batch norm".into(),
        Op::Relu => "relu".into(),
        Op::Add => "add".into(),
        Op::MaxPool { kernel, stride, .. } => format!("max pool {kernel}x{kernel} /{stride}"),
        Op::PadShortcut { stride } => format!("zero-pad shortcut /{stride}"),
        Op::GlobalAvgPool => "global average pool".into(),
        Op::Linear => "linear".into(),
    }
}
