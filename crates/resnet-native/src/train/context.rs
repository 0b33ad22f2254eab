//! What all parts of a batch share while they are taken through the network.

use crate::kernels::{Gate, KernelSet, Kernels, Reduction, Source};
use crate::layout::{Layout, lane_groups};
use crate::memory::Buffer;
use crate::threads::Team;
use crate::train::norm_values::NormValues;
use crate::train::plan::{Plan, Read, Rectifier, Reduce};
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

/// A pass over a batch, as far as all micro_batches share it.
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
    /// In the forward batch, the running statistics: pivots of the moments.
    pub running: Option<&'a [f32]>,
}

impl<'a> BatchContext<'a> {
    /// What a convolution reads from its [places](Read::places) in a group of `images`.
    pub fn source<'b>(&self, read: Read<Buffer>, [first, second]: [&'b [f32]; 2], images: usize) -> Source<'b>
    where
        'a: 'b,
    {
        match read {
            Read::Stored(_) => Source::Stored(first),
            Read::Normalized { norm, .. } => {
                Source::Normalized { input: first, affine: self.norms[norm].affine(), images }
            }
            Read::NormGradient { norm, .. } => {
                let factors = self.norms[norm].factors.each_ref().map(Vec::as_slice);
                Source::NormGradient { gradient: first, input: second, factors, images }
            }
        }
    }

    /// What becomes of the gradient of a batch norm's output, from its [places](Reduce::places) in the rows of a band.
    pub fn reduction<'b>(
        &self,
        reduce: Reduce<Buffer>,
        [input, rectified]: [&'b [f32]; 2],
        sums: &'b mut [f64],
    ) -> Reduction<'b>
    where
        'a: 'b,
    {
        let values = &self.norms[reduce.norm];
        let gate = match reduce.mask {
            Rectifier::None => Gate::Open,
            Rectifier::OfInput => Gate::Input(values.affine()),
            Rectifier::OfSum(_) => Gate::Output(rectified),
        };
        Reduction { gate, input, mean: &values.mean, inv_std: &values.inv_std, sums }
    }
}

/// Whether a tensor of all images is written with non-temporal stores. A layer is computed for all of them before the next one reads it, so
/// only what the second-level caches hold is found there again.
pub fn non_temporal(layout: Layout, shape: Shape, images: usize) -> bool {
    lane_groups(images) * layout.lane_group_len(shape) * size_of::<f32>() > CACHED_BYTES
}
