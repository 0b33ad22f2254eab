//! A network on this machine: weights, statistics, optimizer and threads.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::infer::Inference;
use crate::kernels::{Isa, KernelSet, PixelKernels, select, select_inference};
use crate::memory::Arena;
use crate::profile::StepTime;
use crate::threads::Team;
use crate::train::batch::{Executor, pack_all};
use crate::train::context::Context;
use crate::train::loss::softmax_cross_entropy;
use crate::train::optimizer::Optimizer;
use crate::train::program::Program;
use resnet_graph::{Graph, Outcome, Part, Precision, Shape, Targets, TensorSpec, TensorTable, Update, Work};

/// How a session runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads; 0 for one a core. The results are the same for any number.
    pub threads: usize,
    /// Instruction set; the best of the machine by default. `RESNET_ISA` overrules it.
    pub isa: Option<Isa>,
    /// Precision of training and inference.
    pub precision: Precision,
}

/// A network that runs: forward, backward, update.
pub struct Session {
    program: Program,
    kernels: KernelSet,
    precision: Precision,
    team: Team,
    input: Shape,
    logits: Shape,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    statistics: Vec<f32>,
    optimizer: Optimizer,
    packed: Arena,
    /// Whether `packed` holds the current parameters.
    packed_is_current: bool,
    training: Option<Executor>,
    inference: Option<Inference>,
    /// Whether `inference` holds the current parameters and statistics.
    inference_is_current: bool,
    inference_kernels: &'static dyn PixelKernels,
    /// Whether the last pass was for training.
    trained_last: bool,
}

impl Session {
    /// A session for `graph` with all state at zero.
    ///
    /// # Errors
    /// When the graph has a form the engine cannot run, the instruction set is not there or threads
    /// cannot be started.
    pub fn new(graph: &Graph, options: Options) -> Result<Self> {
        let kernels = select(options.isa, options.precision)?;
        let program = Program::new(graph, kernels)?;
        let team = Team::new(options.threads)
            .map_err(|error| Error::Threads { threads: options.threads, reason: error.to_string() })?;
        Ok(Self {
            kernels,
            precision: options.precision,
            team,
            input: graph.input_shape(),
            logits: graph.output_shape(),
            parameters: vec![0.0; program.tensors.parameter_len()],
            gradients: vec![0.0; program.tensors.parameter_len()],
            statistics: vec![0.0; program.tensors.statistics_len()],
            optimizer: Optimizer::default(),
            packed: Arena::new(program.packed_len),
            packed_is_current: false,
            training: None,
            inference: None,
            inference_is_current: false,
            inference_kernels: select_inference(options.isa, options.precision)?,
            trained_last: false,
            program,
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.body.isa()
    }

    /// The precision in use.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Bytes of activations and gradients allocated so far.
    pub fn arena_bytes(&self) -> usize {
        let training = self.training.as_ref().map_or(0, Executor::arena_bytes);
        training + self.inference.as_ref().map_or(0, Inference::arena_bytes)
    }

    /// All tensors of the state.
    pub fn tensors(&self) -> &TensorTable {
        &self.program.tensors
    }

    /// Values of one of [`tensors`](Self::tensors).
    pub fn values(&self, tensor: &TensorSpec) -> &[f32] {
        let flat = if tensor.role.is_parameter() { &self.parameters } else { &self.statistics };
        &flat[tensor.range.clone()]
    }

    /// Replaces the values of the tensor at `index` in [`tensors`](Self::tensors).
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn set_values(&mut self, index: usize, values: &[f32]) {
        let tensor = &self.program.tensors[index];
        let flat = if tensor.role.is_parameter() { &mut self.parameters } else { &mut self.statistics };
        flat[tensor.range.clone()].copy_from_slice(values);
        self.packed_is_current = false;
        self.inference_is_current = false;
    }

    /// All parameters, flat, in the order of [`tensors`](Self::tensors).
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// All gradients, flat: the parameters in graph order.
    pub fn gradients(&mut self) -> &mut [f32] {
        &mut self.gradients
    }

    /// The optimizer's step count and memory.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The optimizer's step count and memory, to replace.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// Forward and backward pass over images `[images, channels, height, width]` with softmax
    /// cross-entropy; leaves the gradients of the mean loss, as `part` says, and moves the running
    /// statistics on.
    ///
    /// # Errors
    /// When there is no image, the pixels are not those of as many images as targets, or a target is of
    /// other classes.
    pub fn forward_backward(
        &mut self,
        images: &[f32],
        targets: &Targets,
        label_smoothing: f32,
        part: Part,
    ) -> Result<Outcome> {
        let count = self.count_images(images)?;
        self.check_targets(count, targets)?;
        let accumulated = if part.first { Vec::new() } else { self.gradients.clone() };
        let start = Instant::now();
        self.pack();
        self.trained_last = true;
        self.inference_is_current = false;
        let context = Context {
            team: &self.team,
            program: &self.program,
            kernels: self.kernels,
            parameters: &self.parameters,
            packed: self.packed.as_slice(),
        };
        let executor = executor_for(&mut self.training, context, count);
        executor.restart_times();
        executor.note(Work::Pack, start);
        executor.load_images(context, images);
        executor.forward(context, &mut self.statistics);
        let start = Instant::now();
        let mut logits = vec![0.0; count * self.logits.channels];
        executor.logits(self.logits, &mut logits);
        let outcome = softmax_cross_entropy(&mut logits, targets, label_smoothing);
        logits.iter_mut().for_each(|gradient| *gradient *= part.share);
        executor.load_logits_gradient(self.logits, &logits);
        executor.note(Work::Loss, start);
        executor.backward(context, &mut self.gradients);
        self.gradients.iter_mut().zip(accumulated).for_each(|(gradient, before)| *gradient += before);
        Ok(outcome)
    }

    fn check_targets(&self, images: usize, targets: &Targets) -> Result<()> {
        let classes = self.logits.len();
        if images != targets.len() {
            let kind = if targets.labels().is_some() { "labels" } else { "targets" };
            return Err(Error::Batch(format!("{images} images but {} {kind}", targets.len())));
        }
        match targets {
            Targets::Labels(labels) => match labels.iter().find(|&&label| label as usize >= classes) {
                Some(label) => Err(Error::Batch(format!("label {label} in a network of {classes} classes"))),
                None => Ok(()),
            },
            Targets::Soft { classes: found, shares } if *found != classes || shares.len() != images * classes => {
                Err(Error::Batch(format!("targets of {found} classes for a network of {classes}")))
            }
            Targets::Soft { .. } => Ok(()),
        }
    }

    /// How long each step of the last pass over a batch took: of [`forward_backward`](Self::forward_backward)
    /// and the [`apply`](Self::apply) after it, or of [`infer`](Self::infer), whichever came last.
    pub fn profile(&self) -> &[StepTime] {
        if self.trained_last {
            self.training.as_ref().map_or(&[], Executor::times)
        } else {
            self.inference.as_ref().map_or(&[], Inference::times)
        }
    }

    /// Multiply-adds a second that the kernels halo on all threads with nothing to load or store.
    pub fn peak(&self) -> f64 {
        const ROUND: usize = 1 << 10;
        const SECONDS: f64 = 0.05;
        let body = self.kernels.body;
        let mut rates = vec![0.0; self.threads()];
        self.team.for_each(rates.iter_mut(), |rate| {
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed().as_secs_f64() < SECONDS {
                done += body.peak(ROUND);
            }
            *rate = done as f64 / start.elapsed().as_secs_f64();
        });
        rates.iter().sum()
    }

    /// Changes the parameters by the gradients.
    ///
    /// # Errors
    /// When the groups of `update` do not [cover](Update::covers) the parameters; nothing is changed then.
    pub fn apply(&mut self, update: &Update) -> Result<()> {
        let parameters = self.parameters.len();
        if !update.covers(parameters) {
            let message = format!("the update's groups do not cover all {parameters} parameters once and in order");
            return Err(Error::Update(message));
        }
        let start = Instant::now();
        self.optimizer.apply(&self.team, update, &mut self.parameters, &self.gradients);
        if let Some(executor) = &mut self.training {
            executor.note(Work::Update, start);
        }
        self.packed_is_current = false;
        self.inference_is_current = false;
        Ok(())
    }

    /// Logits `[images, classes]` of images `[images, channels, height, width]`, with the running
    /// statistics.
    ///
    /// # Errors
    /// When the pixels are not those of a whole number of images.
    pub fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>> {
        let count = self.count_images(images)?;
        self.trained_last = false;
        let (program, kernels, team) = (&self.program, self.inference_kernels, &self.team);
        let inference = self.inference.get_or_insert_with(|| Inference::new(program, kernels, team.threads()));
        if !std::mem::replace(&mut self.inference_is_current, true) {
            inference.fold(team, program, &self.parameters, &self.statistics);
        }
        let mut logits = vec![0.0; count * self.logits.channels];
        inference.run(team, images, &mut logits);
        Ok(logits)
    }

    fn count_images(&self, images: &[f32]) -> Result<usize> {
        let len = self.input.len();
        if images.is_empty() || !images.len().is_multiple_of(len) {
            let found = images.len();
            return Err(Error::Batch(format!(
                "expected images of {} ({len} values each), found {found} values",
                self.input
            )));
        }
        Ok(images.len() / len)
    }

    fn pack(&mut self) {
        if !self.packed_is_current {
            pack_all(&self.team, &self.program, self.kernels, &self.parameters, self.packed.all());
            self.packed_is_current = true;
        }
    }
}

/// The executor in `slot`, made anew when there is none or it is too small.
fn executor_for<'a>(slot: &'a mut Option<Executor>, context: Context<'_>, images: usize) -> &'a mut Executor {
    let fits = slot.take().filter(|executor| executor.capacity() >= images);
    slot.insert(fits.unwrap_or_else(|| Executor::new(context, images)))
}
