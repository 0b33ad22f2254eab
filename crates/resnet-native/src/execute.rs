//! Runs the steps of a plan: cuts each into bands and hands them to the threads.
//!
//! How a step is cut depends on the batch alone, and partial sums are added in the order of the bands,
//! so the result does not depend on the number of threads nor on their timing.

use rayon::prelude::*;

use crate::arena::{Arena, Buffer};
use crate::graph::{Graph, NodeId, Shape};
use crate::kernels::{
    ConvBand, ConvWeightsBand, Images, KernelSet, Kernels, Moments, Normalize, NormalizeBackward, NormalizeReduce, Pad,
    Pool,
};
use crate::layout::{GROUP, HALF, Layout, band_rows, groups, images_in_group};
use crate::plan::{Backward, Forward, InputGradient, Mode, Plan};
use crate::program::{ConvLayer, Layer, NormLayer, Program};

/// Bands that a step is cut into, as near as the height allows: enough for many threads.
const BANDS: usize = 32;

/// Pixels that a band of a gradient by weights should have at least: below, summing the lanes of the
/// accumulators takes a noticeable share of the time.
const WEIGHT_BAND_PIXELS: usize = 64;

/// Floats that the partial gradients of one convolution may take.
const MAX_PARTIAL_LEN: usize = 1 << 22;

/// Momentum of the running statistics, as PyTorch's default.
const RUNNING_MOMENTUM: f64 = 0.1;

/// Added to the variance, as PyTorch's default.
const EPS: f64 = 1e-5;

/// A plan and the memory it runs in.
pub struct Executor {
    plan: Plan,
    arena: Arena,
    norms: Vec<NormValues>,
    /// Partial sums of batch norm, `[band][channel][2]`.
    sums: Vec<f64>,
    /// Partial gradients of a convolution by its weights, `[band][part]`, and behind them their sum.
    partials: Vec<f32>,
}

/// Per-channel values of a batch norm in the current batch.
#[derive(Clone, Default)]
struct NormValues {
    mean: Vec<f32>,
    inv_std: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

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
    fn body(&self) -> &'static dyn Kernels {
        self.kernels.body
    }
}

/// Packs the weights of every convolution both ways.
pub fn pack_all(program: &Program, kernels: KernelSet, parameters: &[f32], packed: &mut [f32]) {
    let mut rest = packed;
    let mut jobs = Vec::with_capacity(2 * program.convs.len());
    for conv in &program.convs {
        let (forward, tail) = rest.split_at_mut(conv.packed_forward.len());
        let (backward, tail) = tail.split_at_mut(conv.packed_backward.len());
        rest = tail;
        jobs.push((conv, &conv.forward, forward));
        jobs.push((conv, &conv.backward, backward));
    }
    jobs.into_par_iter().for_each(|(conv, gather, packed)| {
        kernels.of(conv.layout).pack_weights(gather, &parameters[conv.weight.clone()], packed);
    });
}

impl Executor {
    /// Plans for batches of up to `capacity` images and allocates what that takes.
    pub fn new(program: &Program, capacity: usize, mode: Mode) -> Self {
        let plan = Plan::new(program, capacity, mode);
        let arena = Arena::new(plan.arena_len);
        let values = |norm: &NormLayer| {
            let zeros = vec![0.0; norm.shape.channels];
            NormValues { mean: zeros.clone(), inv_std: zeros.clone(), scale: zeros.clone(), shift: zeros }
        };
        let norms = program.norms.iter().map(values).collect();
        Self { plan, arena, norms, sums: Vec::new(), partials: Vec::new() }
    }

    /// Most images of a batch.
    pub fn capacity(&self) -> usize {
        self.plan.capacity
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.plan.arena_len * size_of::<f32>()
    }

    /// Lays images `[images][channels][height][width]` out.
    pub fn load_images(&mut self, program: &Program, kernels: KernelSet, pixels: &[f32]) {
        let image_len = program.stem.input().len();
        let tensor = Tensor::of(program, Graph::INPUT);
        let (_, [input]) = self.arena.borrow([], [tensor.whole(self.plan.input, pixels.len() / image_len)]);
        let groups = input.par_chunks_mut(tensor.group_len()).zip(pixels.par_chunks(GROUP * image_len));
        groups.for_each(|(group, images)| kernels.body.load_images(Images { images, conv: &program.stem, group }));
    }

    /// The logits of the last forward pass, `[images][classes]`.
    pub fn logits(&mut self, shape: Shape, images: usize, logits: &mut [f32]) {
        let tensor = Tensor::head(shape);
        let groups = self.arena.read(tensor.whole(self.plan.logits, images)).chunks_exact(tensor.group_len());
        for (group, logits) in groups.zip(logits.chunks_mut(GROUP * shape.len())) {
            tensor.layout.unpack_group(group, shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, shape: Shape, gradient: &[f32]) {
        let tensor = Tensor::head(shape);
        let buffer = self.plan.logits_gradient.expect("a plan for training");
        let (_, [groups]) = self.arena.borrow([], [buffer]);
        for (group, gradient) in groups.chunks_exact_mut(tensor.group_len()).zip(gradient.chunks(GROUP * shape.len())) {
            tensor.layout.pack_group(gradient, shape, group);
        }
    }

    /// Runs the forward pass on the images loaded.
    pub fn forward(&mut self, weights: Weights<'_>, images: usize, mut statistics: Statistics<'_>) {
        let program = weights.program;
        if let Statistics::Running(running) = &statistics {
            for (norm, values) in program.norms.iter().zip(&mut self.norms) {
                values.use_running(norm, weights.parameters, running);
            }
        }
        for index in 0..self.plan.forward.len() {
            let step = self.plan.forward[index];
            match step.layer {
                Layer::Conv { conv, .. } => self.conv(weights, conv, &step, images, &mut statistics),
                Layer::Norm { norm, relu, .. } => self.normalize(weights, norm, relu, &step, images),
                Layer::Pad { stride, input, output } => {
                    let (narrow, wide) = (Tensor::of(program, input), Tensor::of(program, output));
                    self.by_group(images, (step.input, narrow), (step.output, wide), |input, output| {
                        let (narrow, wide) = (narrow.shape, wide.shape);
                        weights.body().pad(Pad { narrow, wide, stride, input, output });
                    });
                }
                Layer::Pool { input, output } => {
                    let (from, to) = (Tensor::of(program, input), Tensor::of(program, output));
                    self.by_group(images, (step.input, from), (step.output, to), |input, output| {
                        weights.body().pool(Pool { shape: from.shape, input, output });
                    });
                }
            }
        }
    }

    /// Runs the backward pass from the gradient of the logits; `gradients` is flat like the parameters.
    pub fn backward(&mut self, weights: Weights<'_>, images: usize, gradients: &mut [f32]) {
        let program = weights.program;
        for index in 0..self.plan.backward.len() {
            match self.plan.backward[index] {
                Backward::Conv { conv, input, output_gradient, input_gradient } => {
                    let layer = &program.convs[conv];
                    self.conv_weights(weights, layer, (input, output_gradient), images, gradients);
                    if let Some(target) = input_gradient {
                        self.conv_input(weights, layer, output_gradient, target, images);
                    }
                }
                Backward::Norm { norm, input, rectified, gradient, input_gradient } => {
                    let buffers = NormBuffers { input, rectified, gradient, input_gradient };
                    self.normalize_backward(weights, norm, buffers, images, gradients);
                }
                Backward::Pad { stride, input, output, output_gradient, input_gradient } => {
                    let (narrow, wide) = (Tensor::of(program, input), Tensor::of(program, output));
                    self.by_group(images, (output_gradient, wide), (input_gradient, narrow), |input, output| {
                        let (narrow, wide) = (narrow.shape, wide.shape);
                        weights.body().pad_backward(Pad { narrow, wide, stride, input, output });
                    });
                }
                Backward::Pool { input, output_gradient, input_gradient } => {
                    let to = Tensor::of(program, input);
                    let from = Tensor::head(Shape::new(to.shape.channels, 1, 1));
                    self.by_group(images, (output_gradient, from), (input_gradient, to), |input, output| {
                        weights.body().pool_backward(Pool { shape: to.shape, input, output });
                    });
                }
            }
        }
    }

    /// Runs `kernel(input, output)` on each group.
    fn by_group(
        &mut self,
        images: usize,
        (input, from): (Buffer, Tensor),
        (output, to): (Buffer, Tensor),
        kernel: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        let ([input], [output]) = self.arena.borrow([from.whole(input, images)], [to.whole(output, images)]);
        let groups = output.par_chunks_mut(to.group_len()).zip(input.par_chunks(from.group_len()));
        groups.for_each(|(output, input)| kernel(input, output));
    }

    fn conv(
        &mut self,
        weights: Weights<'_>,
        conv: usize,
        step: &Forward,
        images: usize,
        statistics: &mut Statistics<'_>,
    ) {
        let layer = &weights.program.convs[conv];
        let kernels = weights.kernels.of(layer.layout);
        let (from, to) = (Tensor::read_by(layer), Tensor::written_by(layer));
        let bands = Bands::new(to, images);
        let norm = layer.norm.map(|norm| &weights.program.norms[norm]);
        let pivot = match (norm, &*statistics) {
            (Some(norm), Statistics::Batch(running)) => Some(&running[norm.running_mean.clone()]),
            _ => None,
        };
        let channels = layer.conv.outputs;
        self.sums.clear();
        self.sums.resize(bands.count * 2 * channels, 0.0);
        let reads = [from.whole(step.input, images)];
        let ([input], [output]) = self.arena.borrow(reads, [to.whole(step.output, images)]);
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
        if let (Some(index), Some(norm), Statistics::Batch(running)) = (layer.norm, norm, statistics) {
            let totals = add_up(&self.sums, 2 * channels);
            let count = images * to.pixels();
            self.norms[index].use_batch(norm, weights.parameters, &totals, count, running);
        }
    }

    fn normalize(&mut self, weights: Weights<'_>, norm: usize, relu: bool, step: &Forward, images: usize) {
        let tensor = Tensor { shape: weights.program.norms[norm].shape, layout: weights.body().layout() };
        let bands = Bands::new(tensor, images);
        let values = &self.norms[norm];
        let whole = |buffer| tensor.whole(buffer, images);
        let reads = [whole(step.input), whole(step.residual.unwrap_or(step.input))];
        let ([input, residual], [output]) = self.arena.borrow(reads, [whole(step.output)]);
        let jobs =
            output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len)).zip(residual.par_chunks(bands.len));
        jobs.enumerate().for_each(|(index, ((output, input), residual))| {
            weights.body().normalize(Normalize {
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

    fn normalize_backward(
        &mut self,
        weights: Weights<'_>,
        norm: usize,
        buffers: NormBuffers,
        images: usize,
        gradients: &mut [f32],
    ) {
        let layer = &weights.program.norms[norm];
        let tensor = Tensor { shape: layer.shape, layout: weights.body().layout() };
        let shape = tensor.shape;
        let bands = Bands::new(tensor, images);
        let values = &self.norms[norm];
        let channels = shape.channels;
        let whole = |buffer| tensor.whole(buffer, images);
        self.sums.clear();
        self.sums.resize(bands.count * 2 * channels, 0.0);
        let reads = [whole(buffers.input), whole(buffers.rectified.unwrap_or(buffers.input))];
        let ([input, rectified], [gradient]) = self.arena.borrow(reads, [whole(buffers.gradient)]);
        let jobs = gradient.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len));
        let jobs = jobs.zip(rectified.par_chunks(bands.len)).zip(self.sums.par_chunks_mut(2 * channels));
        jobs.for_each(|(((gradient, input), rectified), sums)| {
            weights.body().normalize_reduce(NormalizeReduce {
                shape,
                gradient,
                rectified: buffers.rectified.is_some().then_some(rectified),
                input,
                mean: &values.mean,
                inv_std: &values.inv_std,
                sums,
            });
        });
        let totals = add_up(&self.sums, 2 * channels);
        let count = images * tensor.pixels();
        let factors = values.backward_factors(&weights.parameters[layer.weight.clone()], &totals, count);
        for (channel, sums) in totals.chunks_exact(2).enumerate() {
            gradients[layer.bias.start + channel] = sums[0] as f32;
            gradients[layer.weight.start + channel] = sums[1] as f32;
        }
        let reads = [whole(buffers.input), whole(buffers.gradient)];
        let ([input, gradient], [output]) = self.arena.borrow(reads, [whole(buffers.input_gradient)]);
        let jobs =
            output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len)).zip(gradient.par_chunks(bands.len));
        jobs.enumerate().for_each(|(index, ((output, input), gradient))| {
            let [a, b, c] = &factors;
            let images = bands.at(index).images;
            weights.body().normalize_backward(NormalizeBackward { shape, gradient, input, output, a, b, c, images });
        });
    }

    fn conv_input(
        &mut self,
        weights: Weights<'_>,
        layer: &ConvLayer,
        gradient: Buffer,
        target: InputGradient,
        images: usize,
    ) {
        let kernels = weights.kernels.of(layer.layout);
        let (from, to) = (Tensor::written_by(layer), Tensor::read_by(layer));
        let bands = Bands::new(to, images);
        let reads = [from.whole(gradient, images)];
        let ([gradient], [output]) = self.arena.borrow(reads, [to.whole(target.buffer, images)]);
        let gradient_len = from.group_len();
        output.par_chunks_mut(bands.len).enumerate().for_each(|(index, output)| {
            let band = bands.at(index);
            kernels.conv(ConvBand {
                gather: &layer.backward,
                rows: band.rows,
                input: &gradient[band.group * gradient_len..][..gradient_len],
                weights: &weights.packed[layer.packed_backward.clone()],
                output,
                accumulate: target.accumulate,
                moments: None,
            });
        });
    }

    fn conv_weights(
        &mut self,
        weights: Weights<'_>,
        layer: &ConvLayer,
        (input, output_gradient): (Buffer, Buffer),
        images: usize,
        gradients: &mut [f32],
    ) {
        let (kernels, conv) = (weights.kernels.of(layer.layout), &layer.conv);
        let (from, to) = (Tensor::read_by(layer), Tensor::written_by(layer));
        let (len, per_band) = (kernels.gradient_len(conv), layer.layout.weight_groups());
        let sets = groups(images).div_ceil(per_band);
        let most = BANDS.min((sets * to.pixels()).div_ceil(WEIGHT_BAND_PIXELS)).min(MAX_PARTIAL_LEN / len);
        let rows = band_rows(to.shape.height, sets, most);
        let bands_a_set = to.shape.height / rows;
        let bands = sets * bands_a_set;
        let parts = if layer.layout.cuts_outputs() { output_parts(conv.outputs, BANDS.div_ceil(bands)) } else { 1 };
        let part = conv.outputs / parts;
        self.partials.resize(self.partials.len().max((bands + 1) * len), 0.0);
        let (partials, summed) = self.partials.split_at_mut(bands * len);
        let reads = [from.whole(input, images), to.whole(output_gradient, images)];
        let ([input, output_gradient], []) = self.arena.borrow(reads, []);
        let of_set = |tensor: &'_ [f32], set: usize, group_len: usize| {
            let first = set * per_band * group_len;
            first..tensor.len().min(first + per_band * group_len)
        };
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
        if let Some(bias) = &layer.bias {
            bias_gradient(output_gradient, &mut gradients[bias.clone()]);
        }
        add_partials(partials, &mut summed[..len]);
        let gradient = &mut gradients[layer.weight.clone()];
        gradient.par_chunks_mut(HALF * conv.inputs * conv.taps()).enumerate().for_each(|(chunk, gradient)| {
            kernels.unpack_gradient(conv, &summed[..len], chunk * HALF, gradient);
        });
    }
}

/// Which statistics batch norm uses.
pub enum Statistics<'a> {
    /// Those of the batch, which move the running ones on.
    Batch(&'a mut [f32]),
    /// The running ones.
    Running(&'a [f32]),
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

    fn pixels(self) -> usize {
        self.shape.height * self.shape.width
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
    fn new(tensor: Tensor, images: usize) -> Self {
        let rows = band_rows(tensor.shape.height, groups(images), BANDS);
        let per_group = tensor.shape.height / rows;
        Self { images, rows, per_group, count: groups(images) * per_group, len: tensor.group_len() / per_group }
    }

    fn at(&self, index: usize) -> Band {
        let group = index / self.per_group;
        let first = index % self.per_group * self.rows;
        Band { group, rows: first..first + self.rows, images: images_in_group(self.images, group) }
    }
}

impl NormValues {
    /// Takes mean and variance from the moments of the batch, and moves the running statistics on: they
    /// take the unbiased variance, the normalisation the biased one.
    fn use_batch(&mut self, norm: &NormLayer, parameters: &[f32], moments: &[f64], count: usize, running: &mut [f32]) {
        let count = count as f64;
        for (channel, sums) in moments.chunks_exact(2).enumerate() {
            let running_mean = &mut running[norm.running_mean.start + channel];
            let offset = sums[0] / count;
            let mean = f64::from(*running_mean) + offset;
            let variance = (sums[1] / count - offset * offset).max(0.0);
            *running_mean = moved(*running_mean, mean);
            let unbiased = if count > 1.0 { variance * count / (count - 1.0) } else { variance };
            let running_var = &mut running[norm.running_var.start + channel];
            *running_var = moved(*running_var, unbiased);
            self.set(norm, parameters, channel, mean, variance);
        }
    }

    fn use_running(&mut self, norm: &NormLayer, parameters: &[f32], running: &[f32]) {
        for channel in 0..norm.shape.channels {
            let mean = running[norm.running_mean.start + channel];
            let variance = running[norm.running_var.start + channel];
            self.set(norm, parameters, channel, mean.into(), variance.into());
        }
    }

    fn set(&mut self, norm: &NormLayer, parameters: &[f32], channel: usize, mean: f64, variance: f64) {
        let inv_std = 1.0 / (variance + EPS).sqrt();
        let scale = f64::from(parameters[norm.weight.start + channel]) * inv_std;
        self.mean[channel] = mean as f32;
        self.inv_std[channel] = inv_std as f32;
        self.scale[channel] = scale as f32;
        self.shift[channel] = (f64::from(parameters[norm.bias.start + channel]) - mean * scale) as f32;
    }

    /// Factors `a, b, c` of `a g + b y + c`, the gradient by the normalised value's input `y` given the
    /// sums of `g` and of `g * normalised` (arXiv:1502.03167, section 3).
    fn backward_factors(&self, weight: &[f32], sums: &[f64], count: usize) -> [Vec<f32>; 3] {
        let mut factors = std::array::from_fn(|_| vec![0.0; weight.len()]);
        for channel in 0..weight.len() {
            let (mean, inv_std) = (f64::from(self.mean[channel]), f64::from(self.inv_std[channel]));
            let a = f64::from(weight[channel]) * inv_std;
            let b = -a * inv_std * sums[2 * channel + 1] / count as f64;
            let c = -a * sums[2 * channel] / count as f64 - b * mean;
            for (factor, value) in factors.iter_mut().zip([a, b, c]) {
                factor[channel] = value as f32;
            }
        }
        factors
    }
}

fn moved(running: f32, batch: f64) -> f32 {
    ((1.0 - RUNNING_MOMENTUM) * f64::from(running) + RUNNING_MOMENTUM * batch) as f32
}

/// Adds rows of `len` in order.
fn add_up(rows: &[f64], len: usize) -> Vec<f64> {
    let mut totals = vec![0.0; len];
    for row in rows.chunks_exact(len) {
        totals.iter_mut().zip(row).for_each(|(total, value)| *total += value);
    }
    totals
}

/// Adds the bands' partial gradients in order.
fn add_partials(partials: &[f32], gradient: &mut [f32]) {
    const CHUNK: usize = 1 << 12;
    let len = gradient.len();
    gradient.par_chunks_mut(CHUNK).enumerate().for_each(|(index, gradient)| {
        gradient.fill(0.0);
        for band in partials.chunks_exact(len) {
            let part = &band[index * CHUNK..][..gradient.len()];
            gradient.iter_mut().zip(part).for_each(|(total, value)| *total += value);
        }
    });
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
