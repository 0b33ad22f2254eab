//! Inference: a network whose batch norms are folded into its convolutions, run image by image.
//!
//! Training lays 16 images side by side (see `layout`); here vectors and tiles hold *pixels*
//! ([`Pixels`]), so that one image costs what one image costs. Threads take images from a common queue, each through
//! all layers at once, in memory that is small enough for a second-level cache. Nothing is summed over images, so
//! neither their number nor that of threads shows in the result.

mod fold;
mod plan;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fuse::Fused;
use crate::kernels::{PixelAvgPool, PixelConv, PixelKernels, PixelLoad};
use crate::memory::Arena;
use crate::profile::StepTime;
use crate::state::State;
use crate::threads::Team;
use plan::{Layer, Op, Plan};
use resnet_graph::Work;

/// A network ready to infer.
pub struct Inference {
    plan: Plan,
    kernels: &'static dyn PixelKernels,
    /// Weights and biases.
    packed: Arena,
    /// The version of the state that `packed` was made from.
    folded_from: Option<[u64; 2]>,
    workers: Vec<Worker>,
    times: Vec<StepTime>,
}

impl Inference {
    /// A network whose weights are still to be [folded](Self::fold), for so many threads.
    pub fn new(fused: &Fused, kernels: &'static dyn PixelKernels, threads: usize) -> Self {
        let plan = Plan::new(fused, kernels.format());
        Self {
            kernels,
            packed: Arena::new(plan.packed_len),
            folded_from: None,
            workers: (0..threads).map(|_| Worker::new(&plan)).collect(),
            times: Vec::new(),
            plan,
        }
    }

    /// Takes weights and statistics over, unless that is done already.
    pub fn fold(&mut self, team: &Team, fused: &Fused, state: &State) {
        let version = Some(state.version());
        if self.folded_from != version {
            fold::fold(team, &self.plan, fused, (state.parameters(), state.statistics()), self.packed.all());
            self.folded_from = version;
        }
    }

    /// What the last layer gives, `[images][channels][height][width]`, for images of that layout, one at least.
    pub fn run(&mut self, team: &Team, images: &[f32], results: &mut [f32]) {
        let (plan, kernels, packed) = (&self.plan, self.kernels, self.packed.as_slice());
        let shape = plan.image.shape();
        let jobs = images.chunks_exact(shape.len()).zip(results.chunks_exact_mut(plan.output_shape.len()));
        let jobs = Mutex::new(jobs);
        self.workers.iter_mut().for_each(Worker::restart_times);
        let busy = self.workers.len().min(images.len() / shape.len());
        team.for_each(self.workers[..busy].iter_mut(), |worker| {
            let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some((image, result)) = next() {
                worker.run(plan, kernels, packed, image, result);
            }
        });
        self.collect_times();
    }

    /// Bytes of activations.
    pub fn arena_bytes(&self) -> usize {
        self.workers.len() * self.plan.arena_len * size_of::<f32>()
    }

    /// How long threads spent on each layer of the last [`run`](Self::run), added up.
    pub fn times(&self) -> &[StepTime] {
        &self.times
    }

    fn collect_times(&mut self) {
        let nodes = std::iter::once(None).chain(self.plan.layers.iter().map(|layer| Some(layer.node)));
        let time = |step: usize| self.workers.iter().map(|worker| worker.times[step]).sum();
        let steps = nodes.enumerate().map(|(step, node)| StepTime {
            work: if node.is_some() { Work::Forward } else { Work::Load },
            node,
            time: time(step),
        });
        self.times = steps.collect();
    }
}

/// What one thread works in.
struct Worker {
    /// An image's values.
    arena: Arena,
    /// Of the loading and of each layer.
    times: Vec<Duration>,
}

impl Worker {
    fn new(plan: &Plan) -> Self {
        Self { arena: Arena::new(plan.arena_len), times: vec![Duration::ZERO; plan.layers.len() + 1] }
    }

    fn restart_times(&mut self) {
        self.times.fill(Duration::ZERO);
    }

    /// Takes one image through all layers.
    fn run(&mut self, plan: &Plan, kernels: &dyn PixelKernels, packed: &[f32], image: &[f32], result: &mut [f32]) {
        let mut start = Instant::now();
        let (_, [output]) = self.arena.borrow([], [plan.input]);
        kernels.load(PixelLoad { pixels: &plan.image, image, output });
        for (step, layer) in plan.layers.iter().enumerate() {
            start = self.note(step, start);
            self.layer(plan, kernels, packed, layer);
        }
        self.note(plan.layers.len(), start);
        plan.output_storage.unload(self.arena.read(plan.output), result);
    }

    /// Adds the time since `start` to a step's; returns the time now.
    fn note(&mut self, step: usize, start: Instant) -> Instant {
        let now = Instant::now();
        self.times[step] += now - start;
        now
    }

    fn layer(&mut self, plan: &Plan, kernels: &dyn PixelKernels, packed: &[f32], layer: &Layer) {
        match layer.op {
            Op::Conv { conv, residual, relu } => {
                let conv = &plan.convs[conv];
                let reads = [layer.input, residual.unwrap_or(layer.input)];
                let ([input, added], [output]) = self.arena.borrow(reads, [layer.output]);
                kernels.conv(PixelConv {
                    windows: &conv.windows,
                    input,
                    weights: &packed[conv.packed.clone()],
                    bias: &packed[conv.bias.clone()],
                    residual: residual.map(|_| added),
                    output,
                    relu,
                });
            }
            Op::AvgPool(pixels) => {
                let ([input], [output]) = self.arena.borrow([layer.input], [layer.output]);
                kernels.avg_pool(PixelAvgPool { pixels: &pixels, input, output });
            }
            Op::Linear(linear) => {
                let ([input], [output]) = self.arena.borrow([layer.input], [layer.output]);
                fully_connected(&packed[plan.linears[linear].packed.clone()], input, output);
            }
        }
    }
}

/// `output = weights * input + bias`, of `[bias, weights by input][output]`; what fills the input up is zero and
/// has no weights.
fn fully_connected(packed: &[f32], input: &[f32], output: &mut [f32]) {
    let mut rows = packed.chunks_exact(output.len());
    output.copy_from_slice(rows.next().expect("a bias"));
    for (value, weights) in input.iter().zip(rows) {
        output.iter_mut().zip(weights).for_each(|(total, weight)| *total += value * weight);
    }
}
