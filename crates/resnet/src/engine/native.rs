//! The CPU engine behind the [`Engine`] trait.

use std::collections::HashMap;

use resnet_native::{Isa, Memory, Optimizer, Session};

use super::{Batch, Engine, Loss, OptimizerState, OptimizerView, Options, Outcome, Part, PartTime, Precision, Update};
use crate::arch::{Graph, TensorSpec, TensorTable};
use crate::{Result, StateDict, StateMismatch, TensorView};

/// The CPU engine of this project.
pub struct Native {
    session: Session,
    graph: Graph,
}

impl Native {
    /// An engine for `graph` with the weights of `state`.
    ///
    /// # Errors
    /// When the graph has a form the engine cannot run, the state does not fit or threads cannot be
    /// started.
    pub fn new(graph: Graph, state: &StateDict, options: Options) -> Result<Self> {
        let Options { threads, precision } = options;
        let session = Session::new(&graph, resnet_native::Options { threads, isa: None, precision })?;
        let mut engine = Self { session, graph };
        engine.load_state(state)?;
        Ok(engine)
    }

    /// The precision in which this machine trains fastest, to the same accuracy.
    pub(super) fn fastest_precision() -> Precision {
        resnet_native::fastest_precision()
    }

    /// Says so where a precision is slow on this machine.
    pub(super) fn precision_note(precision: Precision) -> Result<Option<String>> {
        let isa = resnet_native::kernels::choose(None)?;
        let slow = precision != Precision::F32 && isa != Isa::Amx;
        let (precision, isa) = (precision.name(), isa.name());
        Ok(slow.then(|| format!("{precision} needs AMX to be fast; on {isa} --precision f32 is faster")))
    }

    /// Flat values cut into one tensor for each parameter, named with `suffix`.
    fn name_parameters<'a>(
        &'a self,
        flat: &'a [f32],
        suffix: &'a str,
    ) -> impl Iterator<Item = (String, TensorView<'a>)> {
        let named = move |spec: &'a TensorSpec| {
            (format!("{}.{suffix}", spec.name), super::view(&spec.shape, &flat[spec.range.clone()]))
        };
        self.session.tensors().parameters().map(named)
    }

    /// The reverse of [`name_parameters`](Self::name_parameters).
    fn flatten_parameters(&self, suffix: &str, tensors: &StateDict) -> Result<Vec<f32>, StateMismatch> {
        let mut flat = Vec::new();
        let mut mismatch = StateMismatch::default();
        for spec in self.session.tensors().parameters() {
            let name = format!("{}.{suffix}", spec.name);
            match tensors.get(&name) {
                Some(tensor) if tensor.shape() == spec.shape => flat.extend_from_slice(tensor.data()),
                Some(tensor) => mismatch.reshaped.push((name, spec.shape.clone(), tensor.shape().to_vec())),
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

    fn threads(&self) -> usize {
        self.session.threads()
    }

    fn tensors(&self) -> &TensorTable {
        self.session.tensors()
    }

    fn forward_backward(&mut self, batch: &Batch, loss: &Loss, part: Part) -> Result<Outcome> {
        Ok(self.session.forward_backward(&batch.images, &batch.targets, loss.label_smoothing, part)?)
    }

    fn gradients(&mut self) -> &mut [f32] {
        self.session.gradients()
    }

    fn parameters(&self) -> &[f32] {
        self.session.parameters()
    }

    fn apply(&mut self, update: &Update) -> Result<()> {
        Ok(self.session.apply(update)?)
    }

    fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>> {
        Ok(self.session.infer(images)?)
    }

    fn values(&self, tensor: &TensorSpec) -> &[f32] {
        self.session.values(tensor)
    }

    fn load_state(&mut self, state: &StateDict) -> Result<()> {
        state.check(&self.graph)?;
        for index in 0..self.session.tensors().len() {
            if let Some(tensor) = state.get(&self.session.tensors()[index].name) {
                self.session.set_values(index, tensor.data());
            }
        }
        Ok(())
    }

    fn optimizer_view(&self) -> OptimizerView<'_> {
        let optimizer = self.session.optimizer();
        let tensors = match &optimizer.memory {
            Memory::Empty => Vec::new(),
            Memory::Momentum(velocity) => self.name_parameters(velocity, MOMENTUM).collect(),
            Memory::Moments { mean, square } => {
                self.name_parameters(mean, MEAN).chain(self.name_parameters(square, SQUARE)).collect()
            }
        };
        OptimizerView { step: optimizer.step, tensors }
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

    fn profile(&self) -> Vec<PartTime> {
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

    fn arena_bytes(&self) -> Option<usize> {
        Some(self.session.arena_bytes())
    }

    fn peak(&mut self) -> Option<f64> {
        Some(self.session.peak())
    }
}
