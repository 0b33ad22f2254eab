//! Runs a plan: takes the micro-batches of a batch through its steps side by side, and brings them together where a
//! batch norm needs the statistics of all images, or a weight its whole gradient.
//!
//! What micro-batches hand over is added in their order, so the result depends neither on the number of threads nor
//! on their timing.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::fuse::Layer;
use crate::kernels::{KernelSet, NormValues, Pack};
use crate::layout::LANE_GROUP;
use crate::profile::StepTime;
use crate::threads::Team;
use crate::train::context::{BatchContext, Context, non_temporal};
use crate::train::micro_batch::MicroBatch;
use crate::train::plan::{Backward, Forward, Plan};
use crate::train::program::Program;
use resnet_graph::{Graph, Shape, Work};

/// Outputs of a weight gradient that a thread puts in order at a time.
const OUTPUTS: usize = 16;

/// A plan and the memory it runs in.
pub struct Executor {
    plan: Plan,
    /// Most images of a batch.
    capacity: usize,
    /// Images of a full micro-batch.
    micro_batch_images: usize,
    micro_batches: Vec<MicroBatch>,
    norms: Vec<NormValues>,
    /// The sum of the micro-batches' weight gradients, in the kernels' order.
    summed: Vec<f32>,
    times: Vec<StepTime>,
}

impl Executor {
    /// Plans for batches of up to `capacity` images and allocates what that takes.
    pub fn new(context: Context<'_>, capacity: usize) -> Self {
        let program = context.program;
        let micro_batch_images = MicroBatch::capacity(context.body());
        let plan = Plan::new(program);
        Self {
            capacity,
            micro_batch_images,
            micro_batches: (0..capacity.div_ceil(micro_batch_images))
                .map(|_| MicroBatch::new(&plan, context.body()))
                .collect(),
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
        self.micro_batches.len() * (self.micro_batch_images / LANE_GROUP) * self.plan.arena_len * size_of::<f32>()
    }

    /// How long the steps took since the last [`restart_times`](Self::restart_times): the time that threads
    /// spent on them, added up over the micro-batches.
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
    pub fn load_images(&mut self, context: Context<'_>, pixels: &[f32]) {
        let (layout, stem) = (context.body().layout(), &context.program.stem);
        let len = self.micro_batch_images * stem.input().len();
        let non_temporal =
            non_temporal(layout, context.program.shapes[Graph::INPUT], pixels.len() / stem.input().len());
        let (plan, micro_batches) = (&self.plan, &mut self.micro_batches);
        context.team.for_each(micro_batches.iter_mut().enumerate(), |(index, micro_batch)| {
            let first = pixels.len().min(index * len);
            let last = pixels.len().min(first + len);
            micro_batch.load_images(plan, context, &pixels[first..last], non_temporal);
        });
    }

    /// The logits of the last forward pass, `[images][classes]`.
    pub fn logits(&self, shape: Shape, logits: &mut [f32]) {
        for (micro_batch, logits) in
            self.micro_batches.iter().zip(logits.chunks_mut(self.micro_batch_images * shape.len()))
        {
            micro_batch.logits(&self.plan, shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, shape: Shape, gradient: &[f32]) {
        for (micro_batch, gradient) in
            self.micro_batches.iter_mut().zip(gradient.chunks(self.micro_batch_images * shape.len()))
        {
            micro_batch.load_logits_gradient(&self.plan, shape, gradient);
        }
    }

    /// Runs the forward pass on the images loaded and moves the `running` statistics on.
    pub fn forward(&mut self, context: Context<'_>, running: &mut [f32]) {
        let program = context.program;
        let mut first = 0;
        while first < self.plan.forward.len() {
            // A segment ends with the convolution whose moments the next batch norm needs.
            let ends =
                |step: &Forward| matches!(step.layer, Layer::Conv { conv, .. } if program.convs[conv].norm.is_some());
            let stop = self.plan.forward[first..].iter().position(ends);
            let segment = first..stop.map_or(self.plan.forward.len(), |length| first + length + 1);
            self.on_micro_batches(context, Some(&*running), |micro_batch, batch| {
                micro_batch.forward(batch, segment.clone())
            });
            first = segment.end;
            if stop.is_some() {
                self.finish_moments(context, self.plan.forward[first - 1].layer, running);
            }
        }
        self.collect_times();
    }

    /// Runs the backward pass from the gradient of the logits; `gradients` is flat like the parameters.
    pub fn backward(&mut self, context: Context<'_>, gradients: &mut [f32]) {
        for segment in backward_segments(&self.plan) {
            self.on_micro_batches(context, None, |micro_batch, batch| micro_batch.backward(batch, segment.clone()));
            for step in segment {
                let (_, step) = self.plan.backward[step];
                if let Backward::Conv(step) = step {
                    self.finish_weights(context, step.conv, gradients);
                }
                if let Some(norm) = step.reduced_norm() {
                    self.finish_norm(context, norm, gradients);
                }
            }
        }
        self.collect_times();
    }

    /// Runs `work` on every micro-batch that has images.
    fn on_micro_batches(
        &mut self,
        context: Context<'_>,
        running: Option<&[f32]>,
        work: impl Fn(&mut MicroBatch, BatchContext<'_>) + Sync,
    ) {
        let images = self.images();
        let batch = BatchContext { context, plan: &self.plan, images, norms: &self.norms, running };
        let micro_batches = self.micro_batches.iter_mut().filter(|micro_batch| micro_batch.images() > 0);
        context.team.for_each(micro_batches, |micro_batch| work(micro_batch, batch));
    }

    fn images(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::images).sum()
    }

    /// The micro-batches' sums of a batch norm, `[channel][2]`.
    fn sums(&self, channels: usize) -> Vec<f64> {
        let mut totals = vec![0.0; 2 * channels];
        let micro_batches = self.micro_batches.iter().filter(|micro_batch| micro_batch.images() > 0);
        for row in micro_batches.flat_map(MicroBatch::sums).flat_map(|sums| sums.chunks_exact(2 * channels)) {
            totals.iter_mut().zip(row).for_each(|(total, value)| *total += value);
        }
        totals
    }

    /// Turns the moments of a convolution's output into the values of its batch norm.
    fn finish_moments(&mut self, context: Context<'_>, layer: Layer, running: &mut [f32]) {
        let Layer::Conv { conv, .. } = layer else { return };
        let conv = &context.program.convs[conv];
        if let Some(index) = conv.norm {
            let norm = &context.program.norms[index];
            let count = self.images() * norm.shape.height * norm.shape.width;
            let sums = self.sums(norm.shape.channels);
            self.norms[index].use_batch(norm, context.parameters, &sums, count, running);
        }
    }

    /// Turns the sums of a batch norm's gradient into the gradients of its parameters, and what that of its input
    /// is worked out with.
    fn finish_norm(&mut self, context: Context<'_>, norm: usize, gradients: &mut [f32]) {
        let layer = &context.program.norms[norm];
        let sums = self.sums(layer.shape.channels);
        for (channel, sums) in sums.chunks_exact(2).enumerate() {
            gradients[layer.bias.start + channel] = sums[0] as f32;
            gradients[layer.weight.start + channel] = sums[1] as f32;
        }
        let count = self.images() * layer.shape.height * layer.shape.width;
        self.norms[norm].use_gradient(&context.parameters[layer.weight.clone()], &sums, count);
    }

    /// Adds up the micro-batches' gradients with respect to a convolution's weights and bias.
    fn finish_weights(&mut self, context: Context<'_>, conv: usize, gradients: &mut [f32]) {
        let layer = &context.program.convs[conv];
        let (kernels, conv) = (context.kernels.of(layer.layout), &layer.conv);
        let micro_batches: Vec<_> = self.micro_batches.iter().filter(|micro_batch| micro_batch.images() > 0).collect();
        let len = kernels.gradient_len(conv);
        self.summed.resize(self.summed.len().max(len), 0.0);
        let summed = &mut self.summed[..len];
        let partials: Vec<_> =
            micro_batches.iter().flat_map(|micro_batch| micro_batch.partials().chunks_exact(len)).collect();
        add_partials(context.team, &partials, summed);
        let gradient = gradients[layer.weight.clone()].chunks_mut(OUTPUTS * conv.inputs * conv.taps());
        context.team.for_each(gradient.enumerate(), |(chunk, gradient)| {
            kernels.unpack_gradient(conv, summed, chunk * OUTPUTS, gradient);
        });
        if let Some(bias) = &layer.bias {
            let gradient = &mut gradients[bias.clone()];
            gradient.fill(0.0);
            for micro_batch in micro_batches {
                gradient.iter_mut().zip(micro_batch.bias_gradient()).for_each(|(total, part)| *total += part);
            }
        }
    }

    /// Adds up the micro-batches' times of the steps since the last batch.
    fn collect_times(&mut self) {
        let mut all: Vec<Vec<StepTime>> = self.micro_batches.iter_mut().map(MicroBatch::take_times).collect();
        let mut first = all.swap_remove(0);
        for (index, step) in first.iter_mut().enumerate() {
            step.time += all.iter().filter_map(|times| times.get(index)).map(|step| step.time).sum::<Duration>();
        }
        self.times.extend(first);
    }
}

/// Cuts the backward steps after the sums of a batch norm, which all micro-batches make together, and before a
/// second convolution, whose gradient would take the place of the first's.
fn backward_segments(plan: &Plan) -> Vec<Range<usize>> {
    let mut segments = Vec::new();
    let (mut first, mut has_conv) = (0, false);
    for (index, (_, step)) in plan.backward.iter().enumerate() {
        let is_conv = matches!(step, Backward::Conv(_));
        if is_conv && has_conv {
            segments.push(first..index);
            (first, has_conv) = (index, false);
        }
        has_conv |= is_conv;
        if step.reduced_norm().is_some() {
            segments.push(first..index + 1);
            (first, has_conv) = (index + 1, false);
        }
    }
    segments.push(first..plan.backward.len());
    segments
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
        kernels.of(conv.layout).pack(Pack { gather, weights, packed });
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
