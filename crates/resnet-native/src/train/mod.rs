//! Training: a network's layers over lane groups of images, forward and backward.

pub mod bands;
pub mod batch;
pub mod context;
pub mod lane_group;
pub mod loss;
pub mod micro_batch;
pub mod norm_values;
pub mod optimizer;
pub mod plan;
pub mod program;

use std::time::Instant;

use resnet_graph::{Outcome, Part, Targets, Update, Work};

use crate::error::Result;
use crate::fuse::Fused;
use crate::kernels::KernelSet;
use crate::memory::Arena;
use crate::profile::StepTime;
use crate::state::State;
use crate::threads::Team;
use batch::{Executor, pack_all};
use context::Context;
use loss::softmax_cross_entropy;
use optimizer::Optimizer;
use program::Program;

/// What training takes of a session besides the network's state: made when it is first needed.
pub struct Training {
    program: Program,
    kernels: KernelSet,
    /// Weights packed for the convolutions, both ways.
    packed: Arena,
    /// The version of the parameters that `packed` was made from.
    packed_from: Option<u64>,
    /// For batches of up to a number of images.
    executor: Option<Executor>,
}

impl Training {
    /// Lays a network out.
    ///
    /// # Errors
    /// When it does not end in a fully connected layer.
    pub fn new(fused: &Fused, kernels: KernelSet) -> Result<Self> {
        let program = Program::new(fused, kernels)?;
        let packed = Arena::new(program.packed_len);
        Ok(Self { program, kernels, packed, packed_from: None, executor: None })
    }

    /// Bytes of activations and gradients.
    pub fn arena_bytes(&self) -> usize {
        self.executor.as_ref().map_or(0, Executor::arena_bytes)
    }

    /// How long each step of the last pass took.
    pub fn times(&self) -> &[StepTime] {
        self.executor.as_ref().map_or(&[], Executor::times)
    }

    /// Forward and backward pass over as many images as targets, with softmax cross-entropy; the gradients
    /// of the mean loss replace `gradients` or are added, as `part` says.
    pub fn forward_backward(
        &mut self,
        team: &Team,
        state: &mut State,
        (images, targets): (&[f32], &Targets),
        (label_smoothing, part): (f32, Part),
        gradients: &mut [f32],
    ) -> Outcome {
        let start = Instant::now();
        self.pack(team, state);
        let (parameters, statistics) = state.parameters_and_statistics_mut();
        let (program, packed) = (&self.program, self.packed.as_slice());
        let context = Context { team, program, kernels: self.kernels, parameters, packed };
        let executor = executor_for(&mut self.executor, context, targets.len());
        executor.restart_times();
        executor.note(Work::Pack, start);
        executor.load_images(context, images);
        executor.forward(context, statistics);
        let start = Instant::now();
        let shape = program.shapes[program.layers[program.layers.len() - 1].output()];
        let mut logits = vec![0.0; targets.len() * shape.len()];
        executor.logits(shape, &mut logits);
        let outcome = softmax_cross_entropy(&mut logits, targets, label_smoothing);
        logits.iter_mut().for_each(|gradient| *gradient *= part.share);
        executor.load_logits_gradient(shape, &logits);
        executor.note(Work::Loss, start);
        let accumulated = if part.first { Vec::new() } else { gradients.to_vec() };
        executor.backward(context, gradients);
        gradients.iter_mut().zip(accumulated).for_each(|(gradient, before)| *gradient += before);
        outcome
    }

    /// Takes a step of the optimizer.
    pub fn apply(&mut self, team: &Team, state: &mut State, optimizer: &mut Optimizer, step: (&Update, &[f32])) {
        let start = Instant::now();
        let (update, gradients) = step;
        optimizer.apply(team, update, state.parameters_mut(), gradients);
        if let Some(executor) = &mut self.executor {
            executor.note(Work::Update, start);
        }
    }

    /// Packs the weights, unless that is done already.
    fn pack(&mut self, team: &Team, state: &State) {
        let version = Some(state.parameters_version());
        if self.packed_from != version {
            pack_all(team, &self.program, self.kernels, state.parameters(), self.packed.all());
            self.packed_from = version;
        }
    }
}

/// The executor in `slot`, made anew when there is none or it is too small.
fn executor_for<'a>(slot: &'a mut Option<Executor>, context: Context<'_>, images: usize) -> &'a mut Executor {
    let fits = slot.take().filter(|executor| executor.capacity() >= images);
    slot.insert(fits.unwrap_or_else(|| Executor::new(context, images)))
}
