//! The CPU engine behind the [`Engine`] trait.

use std::collections::HashMap;

use resnet_native::graph::Role;
use resnet_native::{Memory, Optimizer, Options, Session};

use super::{Batch, Engine, Isa, Loss, OptimizerState, Outcome, Precision, Update, Work};
use crate::arch::{Graph, Network};
use crate::{Result, StateDict, StateMismatch, Tensor};

/// How the CPU engine runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeOptions {
    /// Threads; 0 for one a core. The results are the same for any number.
    pub threads: usize,
    /// Precision of training and inference.
    pub precision: Precision,
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

/// The CPU engine of this project.
pub struct Native {
    session: Session,
    graph: Graph,
}

impl Native {
    /// The instruction set that engines of this process run on: the best of the machine, or the one that the
    /// variable `RESNET_ISA` names.
    ///
    /// # Errors
    /// When that one does not exist or the machine lacks it.
    pub fn isa() -> Result<Isa> {
        Ok(resnet_native::kernels::choose(None)?)
    }

    /// An engine for `network` with the weights of `state`.
    ///
    /// # Errors
    /// When the network cannot be built, the state does not fit or threads cannot be started.
    pub fn new(network: &Network, state: &StateDict, options: NativeOptions) -> Result<Self> {
        let graph = network.graph()?;
        let session =
            Session::new(&graph, Options { threads: options.threads, isa: None, precision: options.precision })?;
        let mut engine = Self { session, graph };
        engine.load_state(state)?;
        Ok(engine)
    }

    /// Threads it runs on.
    pub fn threads(&self) -> usize {
        self.session.threads()
    }

    /// Bytes of its activations and their gradients.
    pub fn arena_bytes(&self) -> usize {
        self.session.arena_bytes()
    }

    /// Multiply-adds a second that its kernels reach with nothing to load or store.
    pub fn peak(&self) -> f64 {
        self.session.peak()
    }

    /// How long each part of the last pass took, in the order in which they began.
    pub fn profile(&self) -> Vec<PartTime> {
        let mut parts: Vec<PartTime> = Vec::new();
        let mut places = HashMap::new();
        for step in self.session.profile() {
            let place = *places.entry((step.work, step.node)).or_insert_with(|| {
                let node = step.node.map(|id| &self.graph.nodes()[id]);
                parts.push(PartTime {
                    work: step.work,
                    layer: node.map_or_else(String::new, |node| node.name.clone()),
                    thread_seconds: 0.0,
                    multiply_adds: node.map_or(0, |node| self.graph.multiply_adds_of(node)),
                });
                parts.len() - 1
            });
            parts[place].thread_seconds += step.time.as_secs_f64();
        }
        parts
    }

    /// Flat values cut into one tensor for each parameter, named with `suffix`.
    fn name_parameters(&self, flat: &[f32], suffix: &str, tensors: &mut StateDict) {
        for placed in self.session.tensors().iter().filter(|placed| placed.spec.role == Role::Parameter) {
            let tensor = Tensor::new(placed.spec.shape.clone(), flat[placed.range.clone()].to_vec());
            let tensor = tensor.expect("a placed tensor has as many values as its shape");
            tensors.insert(format!("{}.{suffix}", placed.spec.name), tensor);
        }
    }

    /// The reverse of [`name_parameters`](Self::name_parameters).
    fn flatten_parameters(&self, suffix: &str, tensors: &StateDict) -> Result<Vec<f32>, StateMismatch> {
        let mut flat = Vec::new();
        let mut mismatch = StateMismatch::default();
        for placed in self.session.tensors().iter().filter(|placed| placed.spec.role == Role::Parameter) {
            let name = format!("{}.{suffix}", placed.spec.name);
            match tensors.get(&name) {
                Some(tensor) if tensor.shape() == placed.spec.shape => flat.extend_from_slice(tensor.data()),
                Some(tensor) => mismatch.reshaped.push((name, placed.spec.shape.clone(), tensor.shape().to_vec())),
                None => mismatch.missing.push(name),
            }
        }
        if mismatch == StateMismatch::default() { Ok(flat) } else { Err(mismatch) }
    }
}

const MOMENTUM: &str = "momentum_buffer";
const MEAN: &str = "exp_avg";
const SQUARE: &str = "exp_avg_sq";

impl Engine for Native {
    fn describe(&self) -> String {
        let threads = self.session.threads();
        let plural = if threads == 1 { "" } else { "s" };
        let (isa, precision) = (self.session.isa().name(), self.session.precision().name());
        format!("native CPU engine, {isa} {precision}, {threads} thread{plural}")
    }

    fn forward_backward(&mut self, batch: &Batch, loss: &Loss) -> Result<Outcome> {
        Ok(self.session.forward_backward(&batch.images, &batch.labels, loss.label_smoothing)?)
    }

    fn gradients(&mut self) -> &mut [f32] {
        self.session.gradients()
    }

    fn apply(&mut self, update: &Update) {
        self.session.apply(update);
    }

    fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>> {
        Ok(self.session.infer(images)?)
    }

    fn state(&self) -> StateDict {
        let tensor = |placed| {
            let values: &[f32] = self.session.values(placed);
            Tensor::new(placed.spec.shape.clone(), values.to_vec()).expect("as many values as the shape holds")
        };
        self.session.tensors().iter().map(|placed| (placed.spec.name.clone(), tensor(placed))).collect()
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        state.check(&self.graph)?;
        for index in 0..self.session.tensors().len() {
            if let Some(tensor) = state.get(&self.session.tensors()[index].spec.name) {
                self.session.set_values(index, tensor.data());
            }
        }
        Ok(())
    }

    fn optimizer_state(&self) -> OptimizerState {
        let optimizer = self.session.optimizer();
        let mut tensors = StateDict::new();
        match &optimizer.memory {
            Memory::Empty => {}
            Memory::Momentum(velocity) => self.name_parameters(velocity, MOMENTUM, &mut tensors),
            Memory::Moments { mean, square } => {
                self.name_parameters(mean, MEAN, &mut tensors);
                self.name_parameters(square, SQUARE, &mut tensors);
            }
        }
        OptimizerState { step: optimizer.step, tensors }
    }

    fn load_optimizer_state(&mut self, state: &OptimizerState) -> Result<()> {
        let has = |suffix: &str| state.tensors.iter().any(|(name, _)| name.ends_with(suffix));
        let memory = if state.tensors.is_empty() {
            Memory::Empty
        } else if has(MOMENTUM) {
            Memory::Momentum(self.flatten_parameters(MOMENTUM, &state.tensors)?)
        } else {
            let mean = self.flatten_parameters(MEAN, &state.tensors)?;
            Memory::Moments { mean, square: self.flatten_parameters(SQUARE, &state.tensors)? }
        };
        *self.session.optimizer_mut() = Optimizer { step: state.step, memory };
        Ok(())
    }
}
