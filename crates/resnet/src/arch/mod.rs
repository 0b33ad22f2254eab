//! What a network is: plain data, built from a name or a config, and the layers it lowers to.

mod init;
mod lower;
mod names;
mod overrides;
mod summary;

pub use init::initial_state;
pub use overrides::Overrides;
pub use resnet_graph::{Branch, Graph, Node, NodeId, Op, Role, Shape, TensorSpec, TensorTable};
pub use summary::{LayerSummary, Summary};

use serde::{Deserialize, Serialize};

/// How a block's input reaches its output (section 3.3 and table 3 of the paper).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shortcut {
    /// Zero padding where dimensions change, subsampled by the block's stride; no parameters.
    A,
    /// Projection (1x1 convolution, batch norm) where dimensions change, identity elsewhere.
    B,
    /// Projection everywhere.
    C,
}

/// How the weights of a projection shortcut start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectionInit {
    /// He normal, like every other convolution.
    #[default]
    He,
    /// `1/N` in every weight, N input channels: the projection starts as the mean of its inputs.
    Average,
}

/// What a block is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Block {
    /// Two 3x3 convolutions (figure 5, left).
    Basic,
}

/// The layers before the first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// One 3x3 convolution (section 4.2).
    Conv3x3 {
        /// Its feature maps.
        channels: usize,
    },
}

/// Blocks of one output size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Number of blocks.
    pub blocks: usize,
    /// Feature maps of each block's output.
    pub channels: usize,
    /// Stride of the first block.
    pub stride: usize,
}

/// A plain or residual network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Name it was built from (`resnet20`).
    pub name: String,
    /// Shape of an image.
    pub input: Shape,
    /// Layers before the first stage.
    pub stem: Stem,
    /// What each block is made of.
    pub block: Block,
    /// Shortcuts of a residual network; `None` for a plain one.
    pub shortcut: Option<Shortcut>,
    /// How projections start.
    #[serde(default)]
    pub projection_init: ProjectionInit,
    /// Number of classes.
    pub classes: usize,
    /// Groups of blocks, one for each output size.
    pub stages: Vec<Stage>,
}

#[cfg(test)]
mod tests;
