//! A network on this machine: its state, threads, and what training and inference make of it.

use std::time::Instant;

use resnet_graph::{Graph, Outcome, Part, Precision, Shape, Targets, TensorSpec, TensorTable, Update};

use crate::error::{Error, Result};
use crate::fuse::Fused;
use crate::infer::Inference;
use crate::kernels::{Isa, KernelSet, PixelKernels, select, select_inference};
use crate::profile::StepTime;
use crate::state::State;
use crate::threads::Team;
use crate::train::Training;
use crate::train::optimizer::Optimizer;

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
///
/// What training takes is made by the first step, what inference takes by the first inference: evaluating
/// allocates nothing of training.
pub struct Session {
    fused: Fused,
    input: Shape,
    kernels: KernelSet,
    inference_kernels: &'static dyn PixelKernels,
    precision: Precision,
    team: Team,
    state: State,
    optimizer: Optimizer,
    /// Empty until a gradient is asked for.
    gradients: Vec<f32>,
    training: Option<Training>,
    inference: Option<Inference>,
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
        let fused = Fused::new(graph)?;
        let team = Team::new(options.threads)
            .map_err(|error| Error::Threads { threads: options.threads, reason: error.to_string() })?;
        Ok(Self {
            input: graph.input_shape(),
            kernels: select(options.isa, options.precision)?,
            inference_kernels: select_inference(options.isa, options.precision)?,
            precision: options.precision,
            team,
            state: State::new(&fused.tensors),
            optimizer: Optimizer::default(),
            gradients: Vec::new(),
            training: None,
            inference: None,
            trained_last: false,
            fused,
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
        let training = self.training.as_ref().map_or(0, Training::arena_bytes);
        training + self.inference.as_ref().map_or(0, Inference::arena_bytes)
    }

    /// All tensors of the state.
    pub fn tensors(&self) -> &TensorTable {
        &self.fused.tensors
    }

    /// Values of one of [`tensors`](Self::tensors).
    pub fn values(&self, tensor: &TensorSpec) -> &[f32] {
        self.state.tensor(tensor)
    }

    /// Replaces the values of the tensor at `index` in [`tensors`](Self::tensors).
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn set_values(&mut self, index: usize, values: &[f32]) {
        self.state.tensor_mut(&self.fused.tensors[index]).copy_from_slice(values);
    }

    /// All parameters, flat, in the order of [`tensors`](Self::tensors).
    pub fn parameters(&self) -> &[f32] {
        self.state.parameters()
    }

    /// All gradients, flat, in the order of [`tensors`](Self::tensors); zero before the first step.
    pub fn gradients(&mut self) -> &mut [f32] {
        self.gradients.resize(self.fused.tensors.parameter_len(), 0.0);
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
    /// When the network does not end in a fully connected layer, there is no image, the pixels are not
    /// those of as many images as targets, or a target is of other classes.
    pub fn forward_backward(
        &mut self,
        images: &[f32],
        targets: &Targets,
        label_smoothing: f32,
        part: Part,
    ) -> Result<Outcome> {
        let training = match self.training.take() {
            Some(training) => training,
            None => Training::new(&self.fused, self.kernels)?,
        };
        let training = self.training.insert(training);
        let count = count_images(self.input, images)?;
        check_targets(count, targets, self.fused.shapes[self.fused.result()].len())?;
        self.trained_last = true;
        self.gradients.resize(self.fused.tensors.parameter_len(), 0.0);
        let (batch, how) = ((images, targets), (label_smoothing, part));
        Ok(training.forward_backward(&self.team, &mut self.state, batch, how, &mut self.gradients))
    }

    /// How long each step of the last pass over a batch took: of [`forward_backward`](Self::forward_backward)
    /// and the [`apply`](Self::apply) after it, or of [`infer`](Self::infer), whichever came last.
    pub fn profile(&self) -> &[StepTime] {
        if self.trained_last {
            self.training.as_ref().map_or(&[], Training::times)
        } else {
            self.inference.as_ref().map_or(&[], Inference::times)
        }
    }

    /// Multiply-adds a second that the kernels reach on all threads with nothing to load or store.
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
    /// When the groups of `update` do not [cover](Update::covers) the parameters, or there was no step to
    /// take gradients from; nothing is changed then.
    pub fn apply(&mut self, update: &Update) -> Result<()> {
        let parameters = self.fused.tensors.parameter_len();
        if !update.covers(parameters) {
            let message = format!("the update's groups do not cover all {parameters} parameters once and in order");
            return Err(Error::Update(message));
        }
        let Some(training) = &mut self.training else {
            return Err(Error::Update("there are no gradients to change parameters by".into()));
        };
        training.apply(&self.team, &mut self.state, &mut self.optimizer, (update, &self.gradients));
        Ok(())
    }

    /// What the last layer gives, `[images, channels, height, width]`, for images `[images, channels,
    /// height, width]` with the running statistics: logits `[images, classes]` of a whole network.
    ///
    /// # Errors
    /// When the pixels are not those of a whole number of images.
    pub fn infer(&mut self, images: &[f32]) -> Result<Vec<f32>> {
        let count = count_images(self.input, images)?;
        self.trained_last = false;
        let (fused, kernels, team) = (&self.fused, self.inference_kernels, &self.team);
        let inference = self.inference.get_or_insert_with(|| Inference::new(fused, kernels, team.threads()));
        inference.fold(team, fused, &self.state);
        let mut results = vec![0.0; count * fused.shapes[fused.result()].len()];
        inference.run(team, images, &mut results);
        Ok(results)
    }
}

fn count_images(input: Shape, images: &[f32]) -> Result<usize> {
    let (len, found) = (input.len(), images.len());
    if images.is_empty() || !found.is_multiple_of(len) {
        return Err(Error::Batch(format!("expected images of {input} ({len} values each), found {found} values")));
    }
    Ok(found / len)
}

fn check_targets(images: usize, targets: &Targets, classes: usize) -> Result<()> {
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
