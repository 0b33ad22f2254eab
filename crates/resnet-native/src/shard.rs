//! The part of a batch that one thread takes through a stretch of layers: one or two groups of images with
//! an arena of their own, small enough that what a layer writes is still in the cache when the next reads it.
//!
//! Where a stretch's layers need one group alone, a shard takes its groups through it one after the other.
//!
//! A shard's steps are cut into bands further, for the threads that have no shard. How a step is cut depends
//! on the batch alone, never on the number of threads, and with it so does the order of every sum.

use std::ops::Range;
use std::time::Instant;

use rayon::prelude::*;

use crate::arena::{Arena, Buffer};
use crate::graph::{NodeId, Shape};
use crate::kernels::{
    ConvBand, ConvWeightsBand, Gate, Images, KernelSet, Kernels, Moments, Normalize, NormalizeBackward,
    NormalizeReduce, Pad, Pool,
};
use crate::layout::{GROUP, Layout, band_rows, groups, images_in_group};
use crate::plan::{Backward, Forward, InputGradient, Plan, Rectifier};
use crate::profile::{StepTime, Work};
use crate::program::{ConvLayer, Layer, Program};
use crate::statistics::{Factors, NormValues};

/// Bands that a step is cut into over the whole batch, as near as the height allows: enough for many threads.
const BANDS: usize = 16;

/// Pixels that a band of a gradient by weights should have at least: below, summing the lanes of the
/// accumulators takes a noticeable share of the time.
const WEIGHT_BAND_PIXELS: usize = 64;

/// The same for tiles, whose sums are as long as all weights.
const TILED_WEIGHT_BAND_PIXELS: usize = 256;

/// Floats that the partial gradients of one convolution may take.
const MAX_PARTIAL_LEN: usize = 1 << 22;

/// Layout of the logits and their gradient.
const HEAD: Layout = Layout::Interleaved;

/// What the steps need of the network.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// The program.
    pub program: &'a Program,
    /// The kernels.
    pub kernels: KernelSet,
    /// Flat parameters.
    pub parameters: &'a [f32],
    /// Packed weights of all convolutions.
    pub packed: &'a [f32],
}

impl Weights<'_> {
    /// The kernels of the convolutional part.
    pub fn body(&self) -> &'static dyn Kernels {
        self.kernels.body
    }
}

/// A pass over a batch, as far as all shards share it.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The network.
    pub weights: Weights<'a>,
    /// Its steps.
    pub plan: &'a Plan,
    /// Images of the batch.
    pub images: usize,
    /// Values of the batch norms, as far as they are known.
    pub norms: &'a [NormValues],
    /// In the forward pass, the running statistics: pivots of the moments.
    pub running: Option<&'a [f32]>,
    /// Of the last batch norm whose gradient was summed.
    pub factors: &'a Factors,
}

impl Pass<'_> {
    /// The graph node whose gradient a backward step takes: backward steps are the layers in reverse.
    fn node(&self, index: usize) -> NodeId {
        let layers = &self.weights.program.layers;
        layers[layers.len() - 1 - index].output()
    }
}

/// Part of a backward step that needs nothing of other shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardPart {
    /// Gradient of a convolution by its weights.
    ConvWeights,
    /// Gradient of a convolution by its input.
    ConvInput,
    /// Sums for the gradient of a batch norm.
    NormReduce,
    /// The gradient of a batch norm.
    NormApply,
    /// All of another layer's.
    Whole,
}

/// Some images of a batch.
pub struct Shard {
    /// Memory of each group.
    arenas: Vec<Arena>,
    images: usize,
    /// Sums of the batch norm that the last stretch of layers ended at, `[band][channel][2]`.
    sums: Vec<f64>,
    /// Partial gradients by the weights of the last stretch's convolution, `[band][gradient]`.
    partials: Arena,
    partial_len: usize,
    bias_gradient: Vec<f32>,
    times: Vec<StepTime>,
}

impl Shard {
    /// Images of a full shard.
    pub fn capacity(layout: Layout) -> usize {
        GROUP * layout.weight_groups()
    }

    /// A shard with the memory that `plan` takes.
    pub fn new(plan: &Plan, layout: Layout) -> Self {
        Self {
            arenas: (0..layout.weight_groups()).map(|_| Arena::new(plan.arena_len)).collect(),
            images: 0,
            sums: Vec::new(),
            partials: Arena::new(0),
            partial_len: 0,
            bias_gradient: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Images it holds.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Sums of the batch norm that the last stretch of layers ended at, `[band][channel][2]`.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Partial gradients by the weights of the last stretch's convolution, one after the other.
    pub fn partials(&self) -> &[f32] {
        &self.partials.as_slice()[..self.partial_len]
    }

    /// Gradient by the bias of the last stretch's convolution.
    pub fn bias_gradient(&self) -> &[f32] {
        &self.bias_gradient
    }

    /// The times of the steps since the last call.
    pub fn take_times(&mut self) -> Vec<StepTime> {
        std::mem::take(&mut self.times)
    }

    fn note(&mut self, work: Work, node: Option<NodeId>, start: Instant) {
        self.times.push(StepTime { work, node, time: start.elapsed() });
    }

    /// Lays images `[images][channels][height][width]` out, no more than fit.
    pub fn load_images(&mut self, plan: &Plan, weights: Weights<'_>, pixels: &[f32]) {
        let (start, program) = (Instant::now(), weights.program);
        let image_len = program.stem.input().len();
        self.images = pixels.len() / image_len;
        let groups = self.arenas.par_iter_mut().zip(pixels.par_chunks(GROUP * image_len));
        groups.for_each(|(arena, images)| {
            let (_, [group]) = arena.borrow([], [plan.input]);
            weights.body().load_images(Images { images, conv: &program.stem, group });
        });
        self.note(Work::Load, None, start);
    }

    /// The logits `[images][classes]` of the last forward pass.
    pub fn logits(&self, plan: &Plan, shape: Shape, logits: &mut [f32]) {
        for (arena, logits) in self.arenas.iter().zip(logits.chunks_mut(GROUP * shape.len())) {
            HEAD.unpack_group(arena.read(plan.logits), shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, plan: &Plan, shape: Shape, gradient: &[f32]) {
        for (arena, gradient) in self.arenas.iter_mut().zip(gradient.chunks(GROUP * shape.len())) {
            let (_, [group]) = arena.borrow([], [plan.logits_gradient]);
            HEAD.pack_group(gradient, shape, group);
        }
    }

    /// Runs some forward steps.
    pub fn forward(&mut self, pass: Pass<'_>, steps: Range<usize>) {
        self.sums.clear();
        for group in 0..groups(self.images) {
            steps.clone().for_each(|index| self.forward_step(pass, index, group));
        }
    }

    /// Runs some parts of backward steps.
    pub fn backward(&mut self, pass: Pass<'_>, parts: &[(usize, BackwardPart)]) {
        self.sums.clear();
        let together = |part: &(usize, BackwardPart)| part.1 == BackwardPart::ConvWeights;
        for parts in parts.chunk_by(|a, b| !together(a) && !together(b)) {
            match (together(&parts[0]), pass.plan.backward[parts[0].0]) {
                (true, Backward::Conv { conv, input, output_gradient, .. }) => {
                    let start = Instant::now();
                    self.conv_weights(pass, conv, (input, output_gradient));
                    self.note(Work::BackwardWeights, Some(pass.node(parts[0].0)), start);
                }
                _ => {
                    for group in 0..groups(self.images) {
                        parts.iter().for_each(|&part| self.backward_part(pass, part, group));
                    }
                }
            }
        }
    }

    /// Room for the sums of some bands, `[band][channel][2]`.
    fn new_sums(&mut self, len: usize) -> usize {
        let start = self.sums.len();
        self.sums.resize(start + len, 0.0);
        start
    }

    fn forward_step(&mut self, pass: Pass<'_>, index: usize, group: usize) {
        let (start, step) = (Instant::now(), pass.plan.forward[index]);
        let (program, body) = (pass.weights.program, pass.weights.body());
        match step.layer {
            Layer::Conv { conv, .. } => self.conv(pass, conv, &step, group),
            Layer::Norm { norm, relu, .. } => self.normalize(pass, norm, relu, &step, group),
            Layer::Pad { stride, input, output } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let ([input], [output]) = self.arenas[group].borrow([step.input], [step.output]);
                body.pad(Pad { narrow, wide, stride, input, output });
            }
            Layer::Pool { input, .. } => {
                let shape = program.shapes[input];
                let ([input], [output]) = self.arenas[group].borrow([step.input], [step.output]);
                body.pool(Pool { shape, input, output });
            }
        }
        self.note(Work::Forward, Some(step.layer.output()), start);
    }

    fn backward_part(&mut self, pass: Pass<'_>, (index, part): (usize, BackwardPart), group: usize) {
        let start = Instant::now();
        let (program, body) = (pass.weights.program, pass.weights.body());
        match pass.plan.backward[index] {
            Backward::Conv { conv, output_gradient, input_gradient, .. } => {
                if let Some(target) = input_gradient {
                    self.conv_input(pass, conv, output_gradient, target, group);
                }
            }
            Backward::Norm { norm, input, rectifier, gradient, input_gradient } => {
                let buffers = NormBuffers { input, rectifier, gradient, input_gradient };
                match part {
                    BackwardPart::NormReduce => self.normalize_reduce(pass, norm, buffers, group),
                    _ => self.normalize_backward(pass, norm, buffers, group),
                }
            }
            Backward::Pad { stride, input, output, output_gradient, input_gradient } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let ([input], [output]) = self.arenas[group].borrow([output_gradient], [input_gradient]);
                body.pad_backward(Pad { narrow, wide, stride, input, output });
            }
            Backward::Pool { input, output_gradient, input_gradient } => {
                let shape = program.shapes[input];
                let ([input], [output]) = self.arenas[group].borrow([output_gradient], [input_gradient]);
                body.pool_backward(Pool { shape, input, output });
            }
        }
        self.note(Work::Backward, Some(pass.node(index)), start);
    }

    /// Images of a group.
    fn images_in(&self, group: usize) -> usize {
        images_in_group(self.images, group)
    }

    fn conv(&mut self, pass: Pass<'_>, conv: usize, step: &Forward, group: usize) {
        let weights = pass.weights;
        let layer = &weights.program.convs[conv];
        let kernels = weights.kernels.of(layer.layout);
        let bands = Bands::new(layer.conv.output(), layer.layout, pass.images);
        let pivot = layer
            .norm
            .zip(pass.running)
            .map(|(norm, running)| &running[weights.program.norms[norm].running_mean.clone()]);
        let (channels, images) = (layer.conv.outputs, self.images_in(group));
        let first_sum = self.new_sums(bands.count * 2 * channels);
        let ([input], [output]) = self.arenas[group].borrow([step.input], [step.output]);
        let jobs = output.par_chunks_mut(bands.len).zip(self.sums[first_sum..].par_chunks_mut(2 * channels));
        jobs.enumerate().for_each(|(index, (output, sums))| {
            kernels.conv(ConvBand {
                gather: &layer.forward,
                rows: bands.rows(index),
                input,
                weights: &weights.packed[layer.packed_forward.clone()],
                output: &mut *output,
                accumulate: false,
                moments: pivot.map(|pivot| Moments { pivot, sums, images }),
            });
            if let Some(bias) = &layer.bias {
                add_bias(&weights.parameters[bias.clone()], output);
            }
        });
        if pivot.is_none() {
            self.sums.truncate(first_sum);
        }
    }

    fn normalize(&mut self, pass: Pass<'_>, norm: usize, relu: bool, step: &Forward, group: usize) {
        let (body, values) = (pass.weights.body(), &pass.norms[norm]);
        let shape = pass.weights.program.norms[norm].shape;
        let (bands, images) = (Bands::new(shape, body.layout(), pass.images), self.images_in(group));
        let reads = [step.input, step.residual.unwrap_or(step.input)];
        let ([input, residual], [output]) = self.arenas[group].borrow(reads, [step.output]);
        let jobs = output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len));
        jobs.zip(residual.par_chunks(bands.len)).for_each(|((output, input), residual)| {
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

    fn normalize_reduce(&mut self, pass: Pass<'_>, norm: usize, buffers: NormBuffers, group: usize) {
        let (body, values) = (pass.weights.body(), &pass.norms[norm]);
        let shape = pass.weights.program.norms[norm].shape;
        let bands = Bands::new(shape, body.layout(), pass.images);
        let first_sum = self.new_sums(bands.count * 2 * shape.channels);
        let sum = if let Rectifier::OfSum(sum) = buffers.rectifier { sum } else { buffers.input };
        let reads = [buffers.input, sum];
        let ([input, rectified], [gradient]) = self.arenas[group].borrow(reads, [buffers.gradient]);
        let jobs = gradient.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len));
        let sums = self.sums[first_sum..].par_chunks_mut(2 * shape.channels);
        jobs.zip(rectified.par_chunks(bands.len)).zip(sums).for_each(|(((gradient, input), rectified), sums)| {
            body.normalize_reduce(NormalizeReduce {
                shape,
                gradient,
                gate: match buffers.rectifier {
                    Rectifier::None => Gate::Open,
                    Rectifier::OfInput => Gate::Input(values.affine()),
                    Rectifier::OfSum(_) => Gate::Output(rectified),
                },
                input,
                mean: &values.mean,
                inv_std: &values.inv_std,
                sums,
            });
        });
    }

    fn normalize_backward(&mut self, pass: Pass<'_>, norm: usize, buffers: NormBuffers, group: usize) {
        let body = pass.weights.body();
        let shape = pass.weights.program.norms[norm].shape;
        let (bands, images) = (Bands::new(shape, body.layout(), pass.images), self.images_in(group));
        let gate = matches!(buffers.rectifier, Rectifier::OfInput).then(|| pass.norms[norm].affine());
        let reads = [buffers.input, buffers.gradient];
        let ([input, gradient], [output]) = self.arenas[group].borrow(reads, [buffers.input_gradient]);
        let jobs = output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len));
        jobs.zip(gradient.par_chunks(bands.len)).for_each(|((output, input), gradient)| {
            let [a, b, c] = pass.factors;
            body.normalize_backward(NormalizeBackward { shape, gradient, gate, input, output, a, b, c, images });
        });
    }

    fn conv_input(&mut self, pass: Pass<'_>, conv: usize, gradient: Buffer, target: InputGradient, group: usize) {
        let layer = &pass.weights.program.convs[conv];
        let kernels = pass.weights.kernels.of(layer.layout);
        let bands = Bands::new(layer.conv.input(), layer.layout, pass.images);
        let ([input], [output]) = self.arenas[group].borrow([gradient], [target.buffer]);
        output.par_chunks_mut(bands.len).enumerate().for_each(|(index, output)| {
            kernels.conv(ConvBand {
                gather: &layer.backward,
                rows: bands.rows(index),
                input,
                weights: &pass.weights.packed[layer.packed_backward.clone()],
                output,
                accumulate: target.accumulate,
                moments: None,
            });
        });
    }

    fn conv_weights(&mut self, pass: Pass<'_>, conv: usize, (input, output_gradient): (Buffer, Buffer)) {
        let layer = &pass.weights.program.convs[conv];
        let (kernels, conv) = (pass.weights.kernels.of(layer.layout), &layer.conv);
        let len = kernels.gradient_len(conv);
        let (rows, parts) = weight_bands(layer, len, pass.images);
        let part = conv.outputs / parts;
        let per_set = layer.layout.weight_groups();
        let bands_a_set = conv.output().height / rows;
        let arenas = &self.arenas[..groups(self.images)];
        let inputs: Vec<_> = arenas.iter().map(|arena| arena.read(input)).collect();
        let gradients: Vec<_> = arenas.iter().map(|arena| arena.read(output_gradient)).collect();
        self.partial_len = arenas.len().div_ceil(per_set) * bands_a_set * len;
        if self.partials.as_slice().len() < self.partial_len {
            self.partials = Arena::new(self.partial_len);
        }
        let partials = &mut self.partials.all()[..self.partial_len];
        partials.par_chunks_mut(len / parts).enumerate().for_each(|(index, gradient)| {
            let (set, first_row) = (index / parts / bands_a_set, index / parts % bands_a_set * rows);
            let first = index % parts * part;
            let groups = set * per_set..inputs.len().min((set + 1) * per_set);
            kernels.conv_weights(ConvWeightsBand {
                conv,
                rows: first_row..first_row + rows,
                inputs: &inputs[groups.clone()],
                output_gradients: &gradients[groups],
                outputs: first..first + part,
                gradient,
            });
        });
        self.bias_gradient.clear();
        if layer.bias.is_some() {
            self.bias_gradient.resize(conv.outputs, 0.0);
            gradients.iter().for_each(|gradient| add_bias_gradient(gradient, &mut self.bias_gradient));
        }
    }
}

/// Rows of a band of a gradient by the weights, and into how many parts its outputs are cut.
fn weight_bands(layer: &ConvLayer, gradient_len: usize, images: usize) -> (usize, usize) {
    let shape = layer.conv.output();
    let sets = groups(images).div_ceil(layer.layout.weight_groups());
    let pixels = if layer.layout.cuts_outputs() { WEIGHT_BAND_PIXELS } else { TILED_WEIGHT_BAND_PIXELS };
    let most = BANDS.min((sets * shape.height * shape.width).div_ceil(pixels)).min(MAX_PARTIAL_LEN / gradient_len);
    let rows = band_rows(shape.height, sets, most);
    let bands = sets * (shape.height / rows);
    let parts = if layer.layout.cuts_outputs() { output_parts(layer.conv.outputs, BANDS.div_ceil(bands)) } else { 1 };
    (rows, parts)
}

/// The buffers of a batch norm's backward pass.
#[derive(Clone, Copy)]
struct NormBuffers {
    input: Buffer,
    rectifier: Rectifier<Buffer>,
    gradient: Buffer,
    input_gradient: Buffer,
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

/// Into how many equal parts, about `wanted`, of at least eight outputs, a weight gradient is cut.
fn output_parts(outputs: usize, wanted: usize) -> usize {
    (1..=wanted).rev().find(|parts| outputs.is_multiple_of(8 * parts)).unwrap_or(1)
}

fn add_bias(bias: &[f32], output: &mut [f32]) {
    for (lanes, bias) in output.chunks_exact_mut(GROUP).zip(bias) {
        lanes.iter_mut().for_each(|value| *value += bias);
    }
}

fn add_bias_gradient(output_gradient: &[f32], gradient: &mut [f32]) {
    for (total, lanes) in gradient.iter_mut().zip(output_gradient.chunks_exact(GROUP)) {
        *total += lanes.iter().sum::<f32>();
    }
}
