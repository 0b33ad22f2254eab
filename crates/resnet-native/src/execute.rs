//! Runs a plan: takes the shards of a batch through its steps side by side, and brings them together where a
//! batch norm needs the statistics of all images, or a weight its whole gradient.
//!
//! What shards hand over is added in their order, so the result depends neither on the number of threads nor
//! on their timing.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::kernels::{KernelSet, PackWeights};
use crate::layout::{GROUP, HALF};
use crate::pass::{Pass, Weights, streams};
use crate::plan::{Backward, Forward, Plan};
use crate::profile::StepTime;
use crate::program::{Layer, Program};
use crate::shard::Shard;
use crate::statistics::NormValues;
use crate::team::Team;
use resnet_graph::{Shape, Work};

/// A plan and the memory it runs in.
pub struct Executor {
    plan: Plan,
    /// Most images of a batch.
    capacity: usize,
    /// Images of a full shard.
    shard_images: usize,
    shards: Vec<Shard>,
    norms: Vec<NormValues>,
    /// The sum of the shards' gradients by some weights, in the kernels' order.
    summed: Vec<f32>,
    times: Vec<StepTime>,
}

impl Executor {
    /// Plans for batches of up to `capacity` images and allocates what that takes.
    pub fn new(weights: Weights<'_>, capacity: usize) -> Self {
        let program = weights.program;
        let shard_images = Shard::capacity(weights.body().layout());
        let plan = Plan::new(program);
        Self {
            capacity,
            shard_images,
            shards: (0..capacity.div_ceil(shard_images)).map(|_| Shard::new(&plan, weights.body().layout())).collect(),
            norms: program.norms.iter().map(|norm| NormValues::new(norm.shape.channels)).collect(),
            summed: Vec::new(),
            times: Vec::new(),
            plan,
        }
    }

    /// Most images of a batch.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of the arenas.
    pub fn arena_bytes(&self) -> usize {
        self.shards.len() * (self.shard_images / GROUP) * self.plan.arena_len * size_of::<f32>()
    }

    /// How long the steps took since the last [`restart_times`](Self::restart_times): the time that threads
    /// spent on them, added up over the shards.
    pub fn times(&self) -> &[StepTime] {
        &self.times
    }

    /// Forgets the times so far.
    pub fn restart_times(&mut self) {
        self.times.clear();
    }

    /// Notes a step outside the plan that began at `start` and ends now.
    pub fn note(&mut self, work: Work, start: Instant) {
        self.times.push(StepTime { work, node: None, time: start.elapsed() });
    }

    /// Lays images `[images][channels][height][width]` out.
    pub fn load_images(&mut self, weights: Weights<'_>, pixels: &[f32]) {
        let (layout, stem) = (weights.body().layout(), &weights.program.stem);
        let len = self.shard_images * stem.input().len();
        let streams = streams(layout, layout.image_shape(stem), pixels.len() / stem.input().len());
        let (plan, shards) = (&self.plan, &mut self.shards);
        weights.team.for_each(shards.iter_mut().enumerate(), |(index, shard)| {
            let first = pixels.len().min(index * len);
            let last = pixels.len().min(first + len);
            shard.load_images(plan, weights, &pixels[first..last], streams);
        });
    }

    /// The logits of the last forward pass, `[images][classes]`.
    pub fn logits(&self, shape: Shape, logits: &mut [f32]) {
        for (shard, logits) in self.shards.iter().zip(logits.chunks_mut(self.shard_images * shape.len())) {
            shard.logits(&self.plan, shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, shape: Shape, gradient: &[f32]) {
        for (shard, gradient) in self.shards.iter_mut().zip(gradient.chunks(self.shard_images * shape.len())) {
            shard.load_logits_gradient(&self.plan, shape, gradient);
        }
    }

    /// Runs the forward pass on the images loaded and moves the `running` statistics on.
    pub fn forward(&mut self, weights: Weights<'_>, running: &mut [f32]) {
        let program = weights.program;
        let mut first = 0;
        while first < self.plan.forward.len() {
            // A stretch ends with the convolution whose moments the next batch norm needs.
            let ends =
                |step: &Forward| matches!(step.layer, Layer::Conv { conv, .. } if program.convs[conv].norm.is_some());
            let stop = self.plan.forward[first..].iter().position(ends);
            let stretch = first..stop.map_or(self.plan.forward.len(), |length| first + length + 1);
            self.on_shards(weights, Some(&*running), |shard, pass| shard.forward(pass, stretch.clone()));
            first = stretch.end;
            if stop.is_some() {
                self.finish_moments(weights, self.plan.forward[first - 1].layer, running);
            }
        }
        self.collect_times();
    }

    /// Runs the backward pass from the gradient of the logits; `gradients` is flat like the parameters.
    pub fn backward(&mut self, weights: Weights<'_>, gradients: &mut [f32]) {
        for stretch in backward_stretches(&self.plan) {
            self.on_shards(weights, None, |shard, pass| shard.backward(pass, stretch.clone()));
            for step in stretch {
                let (_, step) = self.plan.backward[step];
                if let Backward::Conv(step) = step {
                    self.finish_weights(weights, step.conv, gradients);
                }
                if let Some(norm) = step.reduced_norm() {
                    self.finish_norm(weights, norm, gradients);
                }
            }
        }
        self.collect_times();
    }

    /// Runs `work` on every shard that has images.
    fn on_shards(&mut self, weights: Weights<'_>, running: Option<&[f32]>, work: impl Fn(&mut Shard, Pass<'_>) + Sync) {
        let images = self.images();
        let pass = Pass { weights, plan: &self.plan, images, norms: &self.norms, running };
        let shards = self.shards.iter_mut().filter(|shard| shard.images() > 0);
        weights.team.for_each(shards, |shard| work(shard, pass));
    }

    fn images(&self) -> usize {
        self.shards.iter().map(Shard::images).sum()
    }

    /// The shards' sums of a batch norm, `[channel][2]`.
    fn sums(&self, channels: usize) -> Vec<f64> {
        let mut totals = vec![0.0; 2 * channels];
        let shards = self.shards.iter().filter(|shard| shard.images() > 0);
        for row in shards.flat_map(Shard::sums).flat_map(|sums| sums.chunks_exact(2 * channels)) {
            totals.iter_mut().zip(row).for_each(|(total, value)| *total += value);
        }
        totals
    }

    /// Turns the moments of a convolution's output into the values of its batch norm.
    fn finish_moments(&mut self, weights: Weights<'_>, layer: Layer, running: &mut [f32]) {
        let Layer::Conv { conv, .. } = layer else { return };
        let conv = &weights.program.convs[conv];
        if let Some(index) = conv.norm {
            let norm = &weights.program.norms[index];
            let count = self.images() * norm.shape.height * norm.shape.width;
            let sums = self.sums(norm.shape.channels);
            self.norms[index].use_batch(norm, weights.parameters, &sums, count, running);
        }
    }

    /// Turns the sums of a batch norm's gradient into the gradients of its parameters, and what that of its input
    /// is worked out with.
    fn finish_norm(&mut self, weights: Weights<'_>, norm: usize, gradients: &mut [f32]) {
        let layer = &weights.program.norms[norm];
        let sums = self.sums(layer.shape.channels);
        for (channel, sums) in sums.chunks_exact(2).enumerate() {
            gradients[layer.bias.start + channel] = sums[0] as f32;
            gradients[layer.weight.start + channel] = sums[1] as f32;
        }
        let count = self.images() * layer.shape.height * layer.shape.width;
        self.norms[norm].use_gradient(&weights.parameters[layer.weight.clone()], &sums, count);
    }

    /// Adds up the shards' gradients by a convolution's weights and bias.
    fn finish_weights(&mut self, weights: Weights<'_>, conv: usize, gradients: &mut [f32]) {
        let layer = &weights.program.convs[conv];
        let (kernels, conv) = (weights.kernels.of(layer.layout), &layer.conv);
        let shards: Vec<_> = self.shards.iter().filter(|shard| shard.images() > 0).collect();
        let len = kernels.gradient_len(conv);
        self.summed.resize(self.summed.len().max(len), 0.0);
        let summed = &mut self.summed[..len];
        let partials: Vec<_> = shards.iter().flat_map(|shard| shard.partials().chunks_exact(len)).collect();
        add_partials(weights.team, &partials, summed);
        let gradient = gradients[layer.weight.clone()].chunks_mut(HALF * conv.inputs * conv.taps());
        weights.team.for_each(gradient.enumerate(), |(chunk, gradient)| {
            kernels.unpack_gradient(conv, summed, chunk * HALF, gradient);
        });
        if let Some(bias) = &layer.bias {
            let gradient = &mut gradients[bias.clone()];
            gradient.fill(0.0);
            for shard in shards {
                gradient.iter_mut().zip(shard.bias_gradient()).for_each(|(total, part)| *total += part);
            }
        }
    }

    /// Adds up the shards' times of the steps since the last pass.
    fn collect_times(&mut self) {
        let mut all: Vec<Vec<StepTime>> = self.shards.iter_mut().map(Shard::take_times).collect();
        let mut first = all.swap_remove(0);
        for (index, step) in first.iter_mut().enumerate() {
            step.time += all.iter().filter_map(|times| times.get(index)).map(|step| step.time).sum::<Duration>();
        }
        self.times.extend(first);
    }
}

/// Cuts the backward steps after the sums of a batch norm, which all shards make together, and before a
/// second convolution, whose gradient would take the place of the first's.
fn backward_stretches(plan: &Plan) -> Vec<Range<usize>> {
    let mut stretches = Vec::new();
    let (mut first, mut has_conv) = (0, false);
    for (index, (_, step)) in plan.backward.iter().enumerate() {
        let is_conv = matches!(step, Backward::Conv(_));
        if is_conv && has_conv {
            stretches.push(first..index);
            (first, has_conv) = (index, false);
        }
        has_conv |= is_conv;
        if step.reduced_norm().is_some() {
            stretches.push(first..index + 1);
            (first, has_conv) = (index + 1, false);
        }
    }
    stretches.push(first..plan.backward.len());
    stretches
}

/// Packs the weights of every convolution both ways.
pub fn pack_all(team: &Team, program: &Program, kernels: KernelSet, parameters: &[f32], packed: &mut [f32]) {
    let mut rest = packed;
    let mut jobs = Vec::with_capacity(2 * program.convs.len());
    for conv in &program.convs {
        let (forward, tail) = rest.split_at_mut(conv.packed_forward.len());
        let (backward, tail) = tail.split_at_mut(conv.packed_backward.len());
        rest = tail;
        jobs.push((conv, &conv.forward, forward));
        jobs.push((conv, &conv.backward, backward));
    }
    team.for_each(jobs.into_iter(), |(conv, gather, packed)| {
        let weights = &parameters[conv.weight.clone()];
        kernels.of(conv.layout).pack_weights(PackWeights { gather, weights, packed });
    });
}

/// Adds partial gradients in order.
fn add_partials(team: &Team, partials: &[&[f32]], gradient: &mut [f32]) {
    const CHUNK: usize = 1 << 12;
    team.for_each(gradient.chunks_mut(CHUNK).enumerate(), |(index, gradient)| {
        gradient.fill(0.0);
        for partial in partials {
            let part = &partial[index * CHUNK..][..gradient.len()];
            gradient.iter_mut().zip(part).for_each(|(total, value)| *total += value);
        }
    });
}
