//! Sixteen images or fewer, which lie side by side in memory of their own, and the steps that take them through the network.
//!
//! A step is cut into bands of rows, for the threads that have nothing else to do. How it is cut depends on the batch alone, never on
//! the number of threads, and with it so does the order of every sum.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::arena::{Arena, Buffer};
use crate::kernels::{ConvBand, Images, Moments, Normalize, NormalizeReduce, Pad, Pool, Sums};
use crate::layout::{GROUP, Layout, band_rows, groups};
use crate::pass::{BANDS, Pass, Weights, streams};
use crate::plan::{Backward, Forward, Plan, Reduce};
use crate::profile::StepTime;
use crate::program::Layer;
use resnet_graph::{NodeId, Shape, Work};

/// Layout of the logits and their gradient.
const HEAD: Layout = Layout::Interleaved;

/// Images of a batch that are stored side by side.
pub struct Group {
    /// Their activations and gradients.
    pub arena: Arena,
    /// How many there are.
    pub images: usize,
    /// Sums of the batch norm that the last stretch of layers ended at, `[band][channel][2]`.
    pub sums: Vec<f64>,
    /// Times of the steps.
    pub times: Vec<StepTime>,
}

impl Group {
    /// No images yet, with the memory that `plan` takes.
    pub fn new(plan: &Plan) -> Self {
        Self { arena: Arena::new(plan.arena_len), images: 0, sums: Vec::new(), times: Vec::new() }
    }

    /// Lays images `[images][channels][height][width]` out, up to [`GROUP`], past the caches or not.
    pub fn load_images(&mut self, plan: &Plan, weights: Weights<'_>, images: &[f32], streams: bool) {
        let conv = &weights.program.stem;
        self.images = images.len() / conv.input().len();
        if images.is_empty() {
            return;
        }
        let (_, [group]) = self.arena.borrow([], [plan.input]);
        weights.body().load_images(Images { images, conv, group, streams });
    }

    /// The logits of the last forward pass, `[images][classes]`.
    pub fn logits(&self, plan: &Plan, shape: Shape, logits: &mut [f32]) {
        HEAD.unpack_group(self.arena.read(plan.logits), shape, logits);
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, plan: &Plan, shape: Shape, gradient: &[f32]) {
        let (_, [group]) = self.arena.borrow([], [plan.logits_gradient]);
        HEAD.pack_group(gradient, shape, group);
    }

    /// Room for the sums of some bands, `[band][channel][2]`.
    pub fn new_sums(&mut self, len: usize) -> usize {
        let start = self.sums.len();
        self.sums.resize(start + len, 0.0);
        start
    }

    fn note(&mut self, work: Work, node: Option<NodeId>, time: Duration) {
        self.times.push(StepTime { work, node, time });
    }

    /// Runs a forward step.
    pub fn forward_step(&mut self, pass: Pass<'_>, step: &Forward) {
        let start = Instant::now();
        let (program, body) = (pass.weights.program, pass.weights.body());
        match step.layer {
            Layer::Conv { conv, .. } => self.conv(pass, conv, step),
            Layer::Norm { norm, relu, .. } => self.normalize(pass, norm, relu, step),
            Layer::Pad { stride, input, output } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let ([input, _], [output]) = self.arena.borrow(step.input.places(), [step.output]);
                body.pad(Pad { narrow, wide, stride, input, output });
            }
            Layer::Pool { input, .. } => {
                let shape = program.shapes[input];
                let ([input, _], [output]) = self.arena.borrow(step.input.places(), [step.output]);
                body.pool(Pool { shape, input, output });
            }
        }
        self.note(Work::Forward, Some(step.layer.output()), start.elapsed());
    }

    /// Runs a backward step, other than a convolution's.
    pub fn backward_step(&mut self, pass: Pass<'_>, (node, step): (NodeId, Backward)) {
        let start = Instant::now();
        let (program, body) = (pass.weights.program, pass.weights.body());
        match step {
            Backward::Conv(_) => unreachable!("convolutions take all groups at once"),
            Backward::Norm { reduce, gradient } => self.normalize_reduce(pass, reduce, gradient),
            Backward::Pad { stride, input, output, output_gradient, input_gradient } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let ([input], [output]) = self.arena.borrow([output_gradient], [input_gradient]);
                body.pad_backward(Pad { narrow, wide, stride, input, output });
            }
            Backward::Pool { input, output_gradient, input_gradient } => {
                let shape = program.shapes[input];
                let ([input], [output]) = self.arena.borrow([output_gradient], [input_gradient]);
                body.pool_backward(Pool { shape, input, output });
            }
        }
        self.note(Work::BackwardInput, Some(node), start.elapsed());
    }

    fn conv(&mut self, pass: Pass<'_>, conv: usize, step: &Forward) {
        let weights = pass.weights;
        let layer = &weights.program.convs[conv];
        let kernels = weights.kernels.of(layer.layout);
        let bands = Bands::new(layer.conv.output(), layer.layout, pass.images);
        let pivot = layer
            .norm
            .zip(pass.running)
            .map(|(norm, running)| &running[weights.program.norms[norm].running_mean.clone()]);
        let (channels, images) = (layer.conv.outputs, self.images);
        let first_sum = self.new_sums(bands.count * 2 * channels);
        let (places, [output]) = self.arena.borrow(step.input.places(), [step.output]);
        let input = pass.source(step.input, places, images);
        let jobs = output.chunks_mut(bands.len).zip(self.sums[first_sum..].chunks_mut(2 * channels));
        weights.team.for_each(jobs.enumerate(), |(index, (output, sums))| {
            kernels.conv(ConvBand {
                gather: &layer.forward,
                rows: bands.rows(index),
                input,
                weights: &weights.packed[layer.packed_forward.clone()],
                output: &mut *output,
                accumulate: false,
                streams: layer.bias.is_none() && streams(layer.layout, layer.conv.output(), pass.images),
                sums: pivot.map_or(Sums::None, |pivot| Sums::Moments(Moments { pivot, sums, images })),
            });
            if let Some(bias) = &layer.bias {
                add_bias(&weights.parameters[bias.clone()], output);
            }
        });
        if pivot.is_none() {
            self.sums.truncate(first_sum);
        }
    }

    fn normalize(&mut self, pass: Pass<'_>, norm: usize, relu: bool, step: &Forward) {
        let (body, values) = (pass.weights.body(), &pass.norms[norm]);
        let shape = pass.weights.program.norms[norm].shape;
        let (bands, images) = (Bands::new(shape, body.layout(), pass.images), self.images);
        let [input, _] = step.input.places();
        let reads = [input, step.residual.unwrap_or(input)];
        let ([input, residual], [output]) = self.arena.borrow(reads, [step.output]);
        let jobs = output.chunks_mut(bands.len).zip(input.chunks(bands.len));
        pass.weights.team.for_each(jobs.zip(residual.chunks(bands.len)), |((output, input), residual)| {
            body.normalize(Normalize {
                shape,
                input,
                residual: step.residual.is_some().then_some(residual),
                output,
                scale: &values.scale,
                shift: &values.shift,
                relu,
                images,
            });
        });
    }

    fn normalize_reduce(&mut self, pass: Pass<'_>, reduce: Reduce<Buffer>, gradient: Buffer) {
        let body = pass.weights.body();
        let shape = pass.weights.program.norms[reduce.norm].shape;
        let bands = Bands::new(shape, body.layout(), pass.images);
        let first_sum = self.new_sums(bands.count * 2 * shape.channels);
        let (places, [gradient]) = self.arena.borrow(reduce.places(), [gradient]);
        let [input, rectified] = places.map(|place| place.chunks(bands.len));
        let sums = self.sums[first_sum..].chunks_mut(2 * shape.channels);
        let jobs = gradient.chunks_mut(bands.len).zip(input).zip(rectified).zip(sums);
        pass.weights.team.for_each(jobs, |(((gradient, input), rectified), sums)| {
            let reduction = pass.reduction(reduce, [input, rectified], sums);
            body.normalize_reduce(NormalizeReduce { shape, gradient, reduction });
        });
    }
}

/// A group's tensor cut into bands of rows.
struct Bands {
    height: usize,
    count: usize,
    /// Words of a band.
    len: usize,
}

impl Bands {
    /// Bands of a tensor in a batch of `images`.
    fn new(shape: Shape, layout: Layout, images: usize) -> Self {
        let height = band_rows(shape.height, groups(images), BANDS);
        Self { height, count: shape.height / height, len: height * layout.row_len(shape) }
    }

    fn rows(&self, index: usize) -> Range<usize> {
        index * self.height..(index + 1) * self.height
    }
}

fn add_bias(bias: &[f32], output: &mut [f32]) {
    for (lanes, bias) in output.chunks_exact_mut(GROUP).zip(bias) {
        lanes.iter_mut().for_each(|value| *value += bias);
    }
}
