//! From a network to its layers, with the module names torchvision gives them.

use super::{Block, Graph, Network, NodeId, Shortcut, Stage, Stem};
use crate::{Error, Result};

impl Network {
    /// The layers of this network.
    ///
    /// # Errors
    /// When an extent is zero or a shortcut cannot be built.
    pub fn graph(&self) -> Result<Graph> {
        self.validate()?;
        let mut graph = Graph::new(self.input);
        let mut x = match self.stem {
            Stem::Conv3x3 { channels } => {
                let conv = graph.conv("conv1", Graph::INPUT, channels, 3, 1);
                let norm = graph.batch_norm("bn1", conv);
                graph.relu("relu", norm)
            }
        };
        for (index, stage) in self.stages.iter().enumerate() {
            for block in 0..stage.blocks {
                let stride = if block == 0 { stage.stride } else { 1 };
                let name = format!("layer{}.{block}", index + 1);
                x = match self.block {
                    Block::Basic => self.basic_block(&mut graph, &name, x, stage, stride),
                };
            }
        }
        let pooled = graph.global_avg_pool("avgpool", x);
        graph.linear("fc", pooled, self.classes);
        Ok(graph)
    }

    /// Two 3x3 convolutions and the shortcut around them (equation 1).
    fn basic_block(&self, graph: &mut Graph, name: &str, input: NodeId, stage: &Stage, stride: usize) -> NodeId {
        let conv1 = graph.conv(&format!("{name}.conv1"), input, stage.channels, 3, stride);
        let bn1 = graph.batch_norm(&format!("{name}.bn1"), conv1);
        let relu1 = graph.relu(&format!("{name}.relu1"), bn1);
        let conv2 = graph.conv(&format!("{name}.conv2"), relu1, stage.channels, 3, 1);
        let bn2 = graph.batch_norm(&format!("{name}.bn2"), conv2);
        let sum = match self.shortcut {
            None => bn2,
            Some(kind) => {
                let shortcut = shortcut(graph, name, kind, input, stage.channels, stride);
                graph.add(&format!("{name}.add"), bn2, shortcut)
            }
        };
        graph.relu(&format!("{name}.relu2"), sum)
    }

    fn validate(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::Config(format!("network '{}': {message}", self.name)));
        if self.input.is_empty() || self.classes == 0 || self.stages.is_empty() {
            return invalid("input extents, classes and stages must not be zero".into());
        }
        let Stem::Conv3x3 { channels: mut from } = self.stem;
        if from == 0 {
            return invalid("stem.channels must not be zero".into());
        }
        for (index, stage) in self.stages.iter().enumerate() {
            if stage.blocks == 0 || stage.channels == 0 || !(1..=2).contains(&stage.stride) {
                return invalid(format!("stages[{index}]: blocks and channels from 1, stride 1 or 2, found {stage:?}"));
            }
            if self.shortcut == Some(Shortcut::A) && stage.channels < from {
                return invalid(format!(
                    "stages[{index}]: shortcut a pads channels and cannot go from {from} to {}",
                    stage.channels
                ));
            }
            from = stage.channels;
        }
        Ok(())
    }
}

/// The path around a block: what `kind` says, or the input itself.
fn shortcut(graph: &mut Graph, block: &str, kind: Shortcut, input: NodeId, channels: usize, stride: usize) -> NodeId {
    let changes = stride != 1 || graph.nodes()[input].output.channels != channels;
    match kind {
        Shortcut::A if changes => {
            let padded = graph.pad_shortcut(&format!("{block}.downsample"), input, channels, stride);
            graph.on_shortcut(padded)
        }
        Shortcut::B if changes => projection(graph, block, input, channels, stride),
        Shortcut::C => projection(graph, block, input, channels, stride),
        Shortcut::A | Shortcut::B => input,
    }
}

fn projection(graph: &mut Graph, block: &str, input: NodeId, channels: usize, stride: usize) -> NodeId {
    let conv = graph.conv(&format!("{block}.downsample.0"), input, channels, 1, stride);
    let norm = graph.batch_norm(&format!("{block}.downsample.1"), conv);
    [conv, norm].map(|node| graph.on_shortcut(node))[1]
}
