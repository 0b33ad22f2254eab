//! What runs a network: one trait, the engines behind it, and the peers that engines average with.

mod choice;
mod native;
mod peers;

pub use choice::{ENGINES, EngineChoice, Options, default_name, fastest_precision, named, open};
pub use native::Native;
pub use peers::{Alone, Peers};
pub use resnet_graph::{Outcome, ParamGroup, Part, Precision, Rule, Targets, Update, Work};

pub use crate::data::Batch;

use crate::arch::{TensorSpec, TensorTable};
use crate::{Result, StateDict, StateView, TensorView};

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

impl OptimizerState {
    /// The same, borrowed.
    pub fn view(&self) -> OptimizerView<'_> {
        OptimizerView { step: self.step, tensors: self.tensors.view() }
    }
}

/// An [`OptimizerState`] that lies elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerView<'a> {
    /// Steps taken.
    pub step: u64,
    /// The tensors of [`OptimizerState::tensors`].
    pub tensors: StateView<'a>,
}

/// How long a pass spent on one part of its work.
#[derive(Clone, Debug)]
pub struct PartTime {
    /// What was done.
    pub work: Work,
    /// The layer, by the name of its last module in PyTorch; empty where it is none's.
    pub layer: String,
    /// Seconds that all threads together spent.
    pub thread_seconds: f64,
    /// Multiply-adds of a convolution for one image.
    pub multiply_adds: u64,
}

/// Runs one network. Above this trait nothing knows which engine it is.
///
/// A step is one [`forward_backward`](Engine::forward_backward) or several whose gradients accumulate,
/// [`Peers::average`] over [`gradients`](Engine::gradients), and [`apply`](Engine::apply).
pub trait Engine: Send {
    /// Name, instruction set, precision and threads, for logs.
    fn describe(&self) -> String;

    /// Threads it runs on.
    fn threads(&self) -> usize;

    /// The network's tensors, and where each lies in [`parameters`](Engine::parameters) and
    /// [`gradients`](Engine::gradients).
    fn tensors(&self) -> &TensorTable;

    /// Forward and backward pass: the gradients of the mean loss replace the last ones or are added to
    /// them, as `part` says, and the running statistics of batch norm move on.
    ///
    /// # Errors
    /// When the batch does not fit the network (size, target out of range), or the network does not end
    /// in a linear layer.
    fn forward_backward(&mut self, batch: &Batch, loss: &Loss, part: Part) -> Result<Outcome>;

    /// All gradients, flat, in the order of [`tensors`](Engine::tensors).
    fn gradients(&mut self) -> &mut [f32];

    /// All parameters, flat, in the order of [`tensors`](Engine::tensors).
    fn parameters(&self) -> &[f32];

    /// Changes the parameters by the gradients.
    ///
    /// # Errors
    /// When the groups of `update` do not [cover](Update::covers) the parameters; nothing is changed then.
    fn apply(&mut self, update: &Update) -> Result<()>;

    /// What the last layer gives for preprocessed images `[images, channels, height, width]`, with the
    /// running statistics: logits `[images, classes]` or, of a [cut](crate::arch::Graph::until) network,
    /// values `[images, channels, height, width]`. Any number of images.
    ///
    /// # Errors
    /// When `images` is not a whole number of images.
    fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>>;

    /// The values of one of the [`tensors`](Engine::tensors).
    fn values(&self, tensor: &TensorSpec) -> &[f32];

    /// Parameters and running statistics, where they lie.
    fn state_view(&self) -> StateView<'_> {
        self.tensors().iter().map(|spec| (spec.name.clone(), view(&spec.shape, self.values(spec)))).collect()
    }

    /// A copy of parameters and running statistics.
    fn state(&self) -> StateDict {
        self.state_view().into()
    }

    /// Replaces parameters and running statistics.
    ///
    /// # Errors
    /// When the tensors are not exactly the network's; nothing is changed then.
    fn load_state(&mut self, state: &StateDict) -> Result<()>;

    /// What the optimizer remembers, where it lies; empty before the first step.
    fn optimizer_view(&self) -> OptimizerView<'_>;

    /// A copy of what the optimizer remembers.
    fn optimizer_state(&self) -> OptimizerState {
        let OptimizerView { step, tensors } = self.optimizer_view();
        OptimizerState { step, tensors: tensors.into() }
    }

    /// Replaces what the optimizer remembers.
    ///
    /// # Errors
    /// When a tensor does not belong to a parameter or has another shape; nothing is changed then.
    fn load_optimizer_state(&mut self, state: &OptimizerState) -> Result<()>;

    /// How long each part of the last pass took, in the order in which they began; empty where the
    /// engine does not measure it.
    fn profile(&self) -> Vec<PartTime> {
        Vec::new()
    }

    /// Bytes of its activations and their gradients, where it knows.
    fn arena_bytes(&self) -> Option<usize> {
        None
    }

    /// Multiply-adds a second that its kernels reach with nothing to load or store, where it can tell.
    fn peak(&mut self) -> Option<f64> {
        None
    }
}

/// # Panics
/// When an engine has not as many values as a tensor's shape: a mistake of the engine.
fn view<'a>(shape: &'a [usize], values: &'a [f32]) -> TensorView<'a> {
    TensorView::new(shape, values).expect("a tensor has as many values as its shape")
}
