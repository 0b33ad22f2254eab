//! The part of a batch that one thread takes through a stretch of layers: one or two groups of images with
//! an arena of their own, small enough that what a layer writes is still in the cache when the next reads it.
//!
//! A shard's steps are cut into bands further, for the threads that have no shard. How a step is cut depends
//! on the batch alone, never on the number of threads, and with it so does the order of every sum.

use std::time::Instant;

use rayon::prelude::*;

use crate::arena::{Arena, Buffer};
use crate::graph::{NodeId, Shape};
use crate::kernels::{
    ConvBand, ConvWeightsBand, Images, KernelSet, Kernels, Moments, Normalize, NormalizeBackward, NormalizeReduce, Pad,
    Pool,
};
use crate::layout::{GROUP, Layout, band_rows, groups, images_in_group};
use crate::plan::{Backward, Forward, InputGradient, Plan};
use crate::profile::{StepTime, Work};
use crate::program::{ConvLayer, Layer, Program};
use crate::statistics::{Factors, NormValues};

/// Bands that a step is cut into over the whole batch, as near as the height allows: enough for many threads.
const BANDS: usize = 32;

/// Pixels that a band of a gradient by weights should have at least: below, summing the lanes of the
/// accumulators takes a noticeable share of the time.
const WEIGHT_BAND_PIXELS: usize = 64;

/// The same for tiles, whose sums are as long as all weights.
const TILED_WEIGHT_BAND_PIXELS: usize = 256;

/// Floats that the partial gradients of one convolution may take.
const MAX_PARTIAL_LEN: usize = 1 << 22;

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
    /// In training, the running statistics: pivots of the moments.
    pub running: Option<&'a [f32]>,
    /// Of the last batch norm whose gradient was summed.
    pub factors: &'a Factors,
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
    arena: Arena,
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
    pub fn new(plan: &Plan) -> Self {
        Self {
            arena: Arena::new(plan.arena_len),
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
        let tensor = Tensor::of(program, crate::graph::Graph::INPUT);
        let (_, [input]) = self.arena.borrow([], [tensor.whole(plan.input, self.images)]);
        let groups = input.par_chunks_mut(tensor.group_len()).zip(pixels.par_chunks(GROUP * image_len));
        groups.for_each(|(group, images)| weights.body().load_images(Images { images, conv: &program.stem, group }));
        self.note(Work::Load, None, start);
    }

    /// The logits `[images][classes]` of the last forward pass.
    pub fn logits(&mut self, plan: &Plan, shape: Shape, logits: &mut [f32]) {
        let tensor = Tensor::head(shape);
        let groups = self.arena.read(tensor.whole(plan.logits, self.images)).chunks_exact(tensor.group_len());
        for (group, logits) in groups.zip(logits.chunks_mut(GROUP * shape.len())) {
            tensor.layout.unpack_group(group, shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, plan: &Plan, shape: Shape, gradient: &[f32]) {
        let tensor = Tensor::head(shape);
        let buffer = plan.logits_gradient.expect("a plan for training");
        let (_, [groups]) = self.arena.borrow([], [buffer]);
        for (group, gradient) in groups.chunks_exact_mut(tensor.group_len()).zip(gradient.chunks(GROUP * shape.len())) {
            tensor.layout.pack_group(gradient, shape, group);
        }
    }

    /// Runs a forward step.
    pub fn forward(&mut self, pass: Pass<'_>, index: usize) {
        let (start, step) = (Instant::now(), pass.plan.forward[index]);
        let (program, body) = (pass.weights.program, pass.weights.body());
        match step.layer {
            Layer::Conv { conv, .. } => self.conv(pass, conv, &step),
            Layer::Norm { norm, relu, .. } => self.normalize(pass, norm, relu, &step),
            Layer::Pad { stride, input, output } => {
                let (narrow, wide) = (Tensor::of(program, input), Tensor::of(program, output));
                self.by_group((step.input, narrow), (step.output, wide), |input, output| {
                    let (narrow, wide) = (narrow.shape, wide.shape);
                    body.pad(Pad { narrow, wide, stride, input, output });
                });
            }
            Layer::Pool { input, output } => {
                let (from, to) = (Tensor::of(program, input), Tensor::of(program, output));
                self.by_group((step.input, from), (step.output, to), |input, output| {
                    body.pool(Pool { shape: from.shape, input, output });
                });
            }
        }
        self.note(Work::Forward, Some(step.layer.output()), start);
    }

    /// Runs a part of a backward step.
    pub fn backward(&mut self, pass: Pass<'_>, index: usize, part: BackwardPart) {
        let start = Instant::now();
        let (program, body) = (pass.weights.program, pass.weights.body());
        let mut work = Work::Backward;
        match pass.plan.backward[index] {
            Backward::Conv { conv, input, output_gradient, input_gradient } => match (part, input_gradient) {
                (BackwardPart::ConvInput, Some(target)) => self.conv_input(pass, conv, output_gradient, target),
                _ => {
                    work = Work::BackwardWeights;
                    self.conv_weights(pass, conv, (input, output_gradient));
                }
            },
            Backward::Norm { norm, input, rectified, gradient, input_gradient } => {
                let buffers = NormBuffers { input, rectified, gradient, input_gradient };
                match part {
                    BackwardPart::NormReduce => self.normalize_reduce(pass, norm, buffers),
                    _ => self.normalize_backward(pass, norm, buffers),
                }
            }
            Backward::Pad { stride, input, output, output_gradient, input_gradient } => {
                let (narrow, wide) = (Tensor::of(program, input), Tensor::of(program, output));
                self.by_group((output_gradient, wide), (input_gradient, narrow), |input, output| {
                    let (narrow, wide) = (narrow.shape, wide.shape);
                    body.pad_backward(Pad { narrow, wide, stride, input, output });
                });
            }
            Backward::Pool { input, output_gradient, input_gradient } => {
                let to = Tensor::of(program, input);
                let from = Tensor::head(Shape::new(to.shape.channels, 1, 1));
                self.by_group((output_gradient, from), (input_gradient, to), |input, output| {
                    body.pool_backward(Pool { shape: to.shape, input, output });
                });
            }
        }
        // Backward steps are the layers in reverse.
        let node = program.layers[program.layers.len() - 1 - index].output();
        self.note(work, Some(node), start);
    }

    /// Runs `kernel(input, output)` on each group.
    fn by_group(
        &mut self,
        (input, from): (Buffer, Tensor),
        (output, to): (Buffer, Tensor),
        kernel: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        let reads = [from.whole(input, self.images)];
        let ([input], [output]) = self.arena.borrow(reads, [to.whole(output, self.images)]);
        let groups = output.par_chunks_mut(to.group_len()).zip(input.par_chunks(from.group_len()));
        groups.for_each(|(output, input)| kernel(input, output));
    }

    fn conv(&mut self, pass: Pass<'_>, conv: usize, step: &Forward) {
        let weights = pass.weights;
        let layer = &weights.program.convs[conv];
        let kernels = weights.kernels.of(layer.layout);
        let (from, to) = (Tensor::read_by(layer), Tensor::written_by(layer));
        let bands = Bands::new(to, self.images, pass.images);
        let pivot = layer.norm.zip(pass.running).map(|(norm, running)| {
            &running[weights.program.norms[norm].running_mean.clone()]
        });
        let channels = layer.conv.outputs;
        self.sums.clear();
        self.sums.resize(bands.count * 2 * channels, 0.0);
        let reads = [from.whole(step.input, self.images)];
        let ([input], [output]) = self.arena.borrow(reads, [to.whole(step.output, self.images)]);
        let input_len = from.group_len();
        let jobs = output.par_chunks_mut(bands.len).zip(self.sums.par_chunks_mut(2 * channels)).enumerate();
        jobs.for_each(|(index, (output, sums))| {
            let band = bands.at(index);
            kernels.conv(ConvBand {
                gather: &layer.forward,
                rows: band.rows,
                input: &input[band.group * input_len..][..input_len],
                weights: &weights.packed[layer.packed_forward.clone()],
                output: &mut *output,
                accumulate: false,
                moments: pivot.map(|pivot| Moments { pivot, sums, images: band.images }),
            });
            if let Some(bias) = &layer.bias {
                add_bias(&weights.parameters[bias.clone()], output);
            }
        });
    }

    fn normalize(&mut self, pass: Pass<'_>, norm: usize, relu: bool, step: &Forward) {
        let body = pass.weights.body();
        let tensor = Tensor { shape: pass.weights.program.norms[norm].shape, layout: body.layout() };
        let bands = Bands::new(tensor, self.images, pass.images);
        let values = &pass.norms[norm];
        let whole = |buffer| tensor.whole(buffer, self.images);
        let reads = [whole(step.input), whole(step.residual.unwrap_or(step.input))];
        let ([input, residual], [output]) = self.arena.borrow(reads, [whole(step.output)]);
        let jobs =
            output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len)).zip(residual.par_chunks(bands.len));
        jobs.enumerate().for_each(|(index, ((output, input), residual))| {
            body.normalize(Normalize {
                shape: tensor.shape,
                input,
                residual: step.residual.is_some().then_some(residual),
                output,
                scale: &values.scale,
                shift: &values.shift,
                relu,
                images: bands.at(index).images,
            });
        });
    }

    fn normalize_reduce(&mut self, pass: Pass<'_>, norm: usize, buffers: NormBuffers) {
        let body = pass.weights.body();
        let tensor = Tensor { shape: pass.weights.program.norms[norm].shape, layout: body.layout() };
        let (shape, bands) = (tensor.shape, Bands::new(tensor, self.images, pass.images));
        let values = &pass.norms[norm];
        let whole = |buffer| tensor.whole(buffer, self.images);
        self.sums.clear();
        self.sums.resize(bands.count * 2 * shape.channels, 0.0);
        let reads = [whole(buffers.input), whole(buffers.rectified.unwrap_or(buffers.input))];
        let ([input, rectified], [gradient]) = self.arena.borrow(reads, [whole(buffers.gradient)]);
        let jobs = gradient.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len));
        let jobs = jobs.zip(rectified.par_chunks(bands.len)).zip(self.sums.par_chunks_mut(2 * shape.channels));
        jobs.for_each(|(((gradient, input), rectified), sums)| {
            body.normalize_reduce(NormalizeReduce {
                shape,
                gradient,
                rectified: buffers.rectified.is_some().then_some(rectified),
                input,
                mean: &values.mean,
                inv_std: &values.inv_std,
                sums,
            });
        });
    }

    fn normalize_backward(&mut self, pass: Pass<'_>, norm: usize, buffers: NormBuffers) {
        let body = pass.weights.body();
        let tensor = Tensor { shape: pass.weights.program.norms[norm].shape, layout: body.layout() };
        let (shape, bands) = (tensor.shape, Bands::new(tensor, self.images, pass.images));
        let whole = |buffer| tensor.whole(buffer, self.images);
        let reads = [whole(buffers.input), whole(buffers.gradient)];
        let ([input, gradient], [output]) = self.arena.borrow(reads, [whole(buffers.input_gradient)]);
        let jobs =
            output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len)).zip(gradient.par_chunks(bands.len));
        jobs.enumerate().for_each(|(index, ((output, input), gradient))| {
            let [a, b, c] = pass.factors;
            let images = bands.at(index).images;
            body.normalize_backward(NormalizeBackward { shape, gradient, input, output, a, b, c, images });
        });
    }

    fn conv_input(&mut self, pass: Pass<'_>, conv: usize, gradient: Buffer, target: InputGradient) {
        let layer = &pass.weights.program.convs[conv];
        let kernels = pass.weights.kernels.of(layer.layout);
        let (from, to) = (Tensor::written_by(layer), Tensor::read_by(layer));
        let bands = Bands::new(to, self.images, pass.images);
        let reads = [from.whole(gradient, self.images)];
        let ([gradient], [output]) = self.arena.borrow(reads, [to.whole(target.buffer, self.images)]);
        let gradient_len = from.group_len();
        output.par_chunks_mut(bands.len).enumerate().for_each(|(index, output)| {
            let band = bands.at(index);
            kernels.conv(ConvBand {
                gather: &layer.backward,
                rows: band.rows,
                input: &gradient[band.group * gradient_len..][..gradient_len],
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
        let (from, to) = (Tensor::read_by(layer), Tensor::written_by(layer));
        let len = kernels.gradient_len(conv);
        let (rows, parts) = weight_bands(layer, len, pass.images);
        let part = conv.outputs / parts;
        let bands_a_set = to.shape.height / rows;
        let per_set = layer.layout.weight_groups();
        self.partial_len = groups(self.images).div_ceil(per_set) * bands_a_set * len;
        if self.partials.as_slice().len() < self.partial_len {
            self.partials = Arena::new(self.partial_len);
        }
        let reads = [from.whole(input, self.images), to.whole(output_gradient, self.images)];
        let ([input, output_gradient], []) = self.arena.borrow(reads, []);
        let of_set = |tensor: &[f32], set: usize, group_len: usize| {
            let first = set * per_set * group_len;
            first..tensor.len().min(first + per_set * group_len)
        };
        let partials = &mut self.partials.all()[..self.partial_len];
        partials.par_chunks_mut(len / parts).enumerate().for_each(|(index, gradient)| {
            let (set, first_row) = (index / parts / bands_a_set, index / parts % bands_a_set * rows);
            let first = index % parts * part;
            let input = &input[of_set(input, set, from.group_len())];
            kernels.conv_weights(ConvWeightsBand {
                conv,
                rows: first_row..first_row + rows,
                groups: input.len() / from.group_len(),
                input,
                output_gradient: &output_gradient[of_set(output_gradient, set, to.group_len())],
                outputs: first..first + part,
                gradient,
            });
        });
        self.bias_gradient.clear();
        if layer.bias.is_some() {
            self.bias_gradient.resize(conv.outputs, 0.0);
            bias_gradient(output_gradient, &mut self.bias_gradient);
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
    let parts =
        if layer.layout.cuts_outputs() { output_parts(layer.conv.outputs, BANDS.div_ceil(bands)) } else { 1 };
    (rows, parts)
}

/// The buffers of a batch norm's backward pass.
#[derive(Clone, Copy)]
struct NormBuffers {
    input: Buffer,
    rectified: Option<Buffer>,
    gradient: Buffer,
    input_gradient: Buffer,
}

/// How a tensor is stored.
#[derive(Clone, Copy)]
struct Tensor {
    shape: Shape,
    layout: Layout,
}

impl Tensor {
    fn of(program: &Program, node: NodeId) -> Self {
        Self { shape: program.shapes[node], layout: program.layouts[node] }
    }

    fn read_by(layer: &ConvLayer) -> Self {
        Self { shape: layer.conv.input(), layout: layer.layout }
    }

    fn written_by(layer: &ConvLayer) -> Self {
        Self { shape: layer.conv.output(), layout: layer.layout }
    }

    /// A tensor of the head, which is in single precision.
    fn head(shape: Shape) -> Self {
        Self { shape, layout: Layout::Interleaved }
    }

    fn group_len(self) -> usize {
        self.layout.group_len(self.shape)
    }

    /// The part of a buffer that a batch fills.
    fn whole(self, buffer: Buffer, images: usize) -> Buffer {
        buffer.first(groups(images) * self.group_len())
    }
}

/// A tensor cut into bands of rows.
struct Bands {
    images: usize,
    rows: usize,
    per_group: usize,
    count: usize,
    /// Words of a band.
    len: usize,
}

/// One of them.
struct Band {
    group: usize,
    rows: std::ops::Range<usize>,
    /// Images in the group.
    images: usize,
}

impl Bands {
    /// Bands of a shard's `images` out of a batch of `batch`.
    fn new(tensor: Tensor, images: usize, batch: usize) -> Self {
        let rows = band_rows(tensor.shape.height, groups(batch), BANDS);
        let per_group = tensor.shape.height / rows;
        Self { images, rows, per_group, count: groups(images) * per_group, len: tensor.group_len() / per_group }
    }

    fn at(&self, index: usize) -> Band {
        let group = index / self.per_group;
        let first = index % self.per_group * self.rows;
        Band { group, rows: first..first + self.rows, images: images_in_group(self.images, group) }
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

fn bias_gradient(output_gradient: &[f32], gradient: &mut [f32]) {
    gradient.fill(0.0);
    for group in output_gradient.chunks_exact(gradient.len() * GROUP) {
        for (total, lanes) in gradient.iter_mut().zip(group.chunks_exact(GROUP)) {
            *total += lanes.iter().sum::<f32>();
        }
    }
}
