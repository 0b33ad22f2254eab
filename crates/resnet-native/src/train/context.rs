//! What all parts of a batch share while they are taken through the network.

use crate::kernels::{KernelSet, Kernels, NormReduction, NormValues, Operand};
use crate::layout::{Layout, lane_groups};
use crate::memory::Buffer;
use crate::threads::Team;
use crate::train::plan::Plan;
use crate::train::program::Program;
use resnet_graph::Shape;

/// Bytes of a tensor that may be in the caches when the next layer reads it.
const CACHED_BYTES: usize = 2 << 20;

/// What the steps need of the network, and the threads that take them.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The threads.
    pub team: &'a Team,
    /// The program.
    pub program: &'a Program,
    /// The kernels.
    pub kernels: KernelSet,
    /// Flat parameters.
    pub parameters: &'a [f32],
    /// Packed weights of all convolutions.
    pub packed: &'a [f32],
}

impl Context<'_> {
    /// The kernels of the convolutional part.
    pub fn body(&self) -> &'static dyn Kernels {
        self.kernels.body
    }
}

/// A pass over a batch, as far as all micro-batches share it.
#[derive(Clone, Copy)]
pub struct BatchContext<'a> {
    /// The network.
    pub context: Context<'a>,
    /// Its steps.
    pub plan: &'a Plan,
    /// Images of the batch.
    pub images: usize,
    /// Values of the batch norms, as far as they are known.
    pub norms: &'a [NormValues],
    /// In the forward pass, the running statistics: pivots of the moments.
    pub running: Option<&'a [f32]>,
}

impl<'a> BatchContext<'a> {
    /// An operand whose [tensors](Operand::tensors) are these.
    pub fn operand<'b>(
        &self,
        operand: Operand<Buffer, usize>,
        tensors: [&'b [f32]; 2],
    ) -> Operand<&'b [f32], &'b NormValues>
    where
        'a: 'b,
    {
        operand.of(tensors, |norm| &self.norms[norm])
    }

    /// A reduction whose [tensors](NormReduction::tensors) are these, in the rows of a band.
    pub fn reduction<'b>(
        &self,
        reduction: NormReduction<Buffer, usize>,
        tensors: [&'b [f32]; 2],
    ) -> NormReduction<&'b [f32], &'b NormValues>
    where
        'a: 'b,
    {
        reduction.of(tensors, |norm| &self.norms[norm])
    }
}

/// Whether a tensor of all images is written with non-temporal stores. A layer is computed for all of them before the next one reads it, so
/// only what the second-level caches hold is found there again.
pub fn non_temporal(layout: Layout, shape: Shape, images: usize) -> bool {
    lane_groups(images) * layout.lane_group_len(shape) * size_of::<f32>() > CACHED_BYTES
}
