//! What runs a network: one trait, and the engines behind it.

mod native;

pub use native::{Native, NativeOptions, PartTime};
pub use resnet_native::{Isa, Outcome, Precision, Update, Work};

use crate::{Result, StateDict};

/// Images and their classes, ready for a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Preprocessed pixels, `[images, channels, height, width]`.
    pub images: Vec<f32>,
    /// Class of each image.
    pub labels: Vec<u32>,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Softmax cross-entropy, averaged over the images of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Share of the target spread evenly over all classes (arXiv:1512.00567, section 7); 0 is plain
    /// cross-entropy.
    pub label_smoothing: f32,
}

/// What an optimizer remembers between steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Steps taken.
    pub step: u64,
    /// Per parameter `P`: `P.momentum_buffer` (SGD), `P.exp_avg` and `P.exp_avg_sq` (Adam).
    pub tensors: StateDict,
}

/// Runs one network. Above this trait nothing knows which engine it is.
///
/// A distributed run is `forward_backward`, an all-reduce over [`gradients`](Engine::gradients), and
/// `apply`.
pub trait Engine: Send {
    /// Name, instruction set, precision and threads, for logs.
    fn describe(&self) -> String;

    /// Forward and backward pass: the gradients of the mean loss replace the last ones, and the
    /// running statistics of batch norm move on.
    ///
    /// # Errors
    /// When the batch does not fit the network (size, label out of range).
    fn forward_backward(&mut self, batch: &Batch, loss: &Loss) -> Result<Outcome>;

    /// All gradients, flat, in the order of the network's parameters.
    fn gradients(&mut self) -> &mut [f32];

    /// Changes the parameters by the gradients.
    fn apply(&mut self, update: &Update);

    /// Logits `[images, classes]` of preprocessed images `[images, channels, height, width]`, with the
    /// running statistics. Any number of images.
    ///
    /// # Errors
    /// When `images` is not a whole number of images.
    fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>>;

    /// Parameters and running statistics.
    fn state(&self) -> StateDict;

    /// Replaces parameters and running statistics.
    ///
    /// # Errors
    /// When the tensors are not exactly the network's; nothing is changed then.
    fn load_state(&mut self, state: &StateDict) -> Result<()>;

    /// What the optimizer remembers; empty before the first step.
    fn optimizer_state(&self) -> OptimizerState;

    /// Replaces what the optimizer remembers.
    ///
    /// # Errors
    /// When a tensor does not belong to a parameter or has another shape; nothing is changed then.
    fn load_optimizer_state(&mut self, state: &OptimizerState) -> Result<()>;
}
