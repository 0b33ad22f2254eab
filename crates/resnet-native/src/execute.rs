//! Runs the steps of a plan: cuts each into bands and hands them to the threads.
//!
//! How a step is cut depends on the batch alone, and partial sums are added in the order of the bands,
//! so the result does not depend on the number of threads nor on their timing.

use rayon::prelude::*;

use crate::arena::{Arena, Buffer};
use crate::graph::Shape;
use crate::kernels::{
    ConvBand, ConvWeightsBand, Direction, Kernels, Moments, Normalize, NormalizeBackward, NormalizeReduce, pack_weights,
};
use crate::layout::{GROUP, band_rows, group_len, groups, images_in_group, pack_group, unpack_group};
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
    /// Partial gradients of a convolution by its weights, `[band][weights]`.
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
    pub kernels: &'a dyn Kernels,
    /// Flat parameters.
    pub parameters: &'a [f32],
    /// Packed weights of all convolutions.
    pub packed: &'a [f32],
}

/// Packs the weights of every convolution both ways.
pub fn pack_all(program: &Program, block: usize, parameters: &[f32], packed: &mut [f32]) {
    let mut rest = packed;
    let mut jobs = Vec::with_capacity(2 * program.convs.len());
    for conv in &program.convs {
        let (forward, tail) = rest.split_at_mut(conv.packed_forward.len());
        let (backward, tail) = tail.split_at_mut(conv.packed_backward.len());
        rest = tail;
        jobs.push((conv, Direction::Forward, forward));
        jobs.push((conv, Direction::Backward, backward));
    }
    jobs.into_par_iter().for_each(|(conv, direction, packed)| {
        pack_weights(&parameters[conv.weight.clone()], conv.extents(), direction, block, packed);
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
    pub fn load_images(&mut self, shape: Shape, pixels: &[f32]) {
        let buffer = self.plan.input.first(groups(pixels.len() / shape.len()) * group_len(shape));
        let (_, [input]) = self.arena.borrow([], [buffer]);
        let groups = input.par_chunks_mut(group_len(shape)).zip(pixels.par_chunks(GROUP * shape.len()));
        groups.for_each(|(group, pixels)| pack_group(pixels, shape, group));
    }

    /// The logits of the last forward pass, `[images][classes]`.
    pub fn logits(&mut self, shape: Shape, images: usize, logits: &mut [f32]) {
        let buffer = self.plan.logits.first(groups(images) * group_len(shape));
        let groups = self.arena.read(buffer).chunks_exact(group_len(shape));
        for (group, logits) in groups.zip(logits.chunks_mut(GROUP * shape.len())) {
            unpack_group(group, shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, shape: Shape, gradient: &[f32]) {
        let buffer = self.plan.logits_gradient.expect("a plan for training");
        let (_, [groups]) = self.arena.borrow([], [buffer]);
        for (group, gradient) in groups.chunks_exact_mut(group_len(shape)).zip(gradient.chunks(GROUP * shape.len())) {
            pack_group(gradient, shape, group);
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
                    let (from, to) = (program.shapes[input], program.shapes[output]);
                    self.by_group(images, (step.input, from), (step.output, to), |input, output| {
                        pad(input, from, output, to, stride);
                    });
                }
                Layer::Pool { input, output } => {
                    let (from, to) = (program.shapes[input], program.shapes[output]);
                    self.by_group(images, (step.input, from), (step.output, to), pool);
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
                    self.conv_weights(weights.kernels, layer, input, output_gradient, images, gradients);
                    if let Some(target) = input_gradient {
                        self.conv_input(weights, layer, output_gradient, target, images);
                    }
                }
                Backward::Norm { norm, input, rectified, gradient, input_gradient } => {
                    let buffers = NormBuffers { input, rectified, gradient, input_gradient };
                    self.normalize_backward(weights, norm, buffers, images, gradients);
                }
                Backward::Pad { stride, input, output, output_gradient, input_gradient } => {
                    let (to, from) = (program.shapes[input], program.shapes[output]);
                    self.by_group(images, (output_gradient, from), (input_gradient, to), |gradient, output| {
                        pad_backward(gradient, from, output, to, stride);
                    });
                }
                Backward::Pool { input, output_gradient, input_gradient } => {
                    let to = program.shapes[input];
                    let from = Shape::new(to.channels, 1, 1);
                    self.by_group(images, (output_gradient, from), (input_gradient, to), pool_backward);
                }
            }
        }
    }

    /// Runs `kernel(input, output)` on each group.
    fn by_group(
        &mut self,
        images: usize,
        (input, from): (Buffer, Shape),
        (output, to): (Buffer, Shape),
        kernel: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        let count = groups(images);
        let reads = [input.first(count * group_len(from))];
        let ([input], [output]) = self.arena.borrow(reads, [output.first(count * group_len(to))]);
        let groups = output.par_chunks_mut(group_len(to)).zip(input.par_chunks(group_len(from)));
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
        let bands = Bands::new(layer.output, images);
        let norm = layer.norm.map(|norm| &weights.program.norms[norm]);
        let pivot = match (norm, &*statistics) {
            (Some(norm), Statistics::Batch(running)) => Some(&running[norm.running_mean.clone()]),
            _ => None,
        };
        let channels = layer.output.channels;
        self.sums.clear();
        self.sums.resize(bands.count * 2 * channels, 0.0);
        let reads = [bands.whole(step.input, layer.input)];
        let ([input], [output]) = self.arena.borrow(reads, [bands.whole(step.output, layer.output)]);
        let input_len = group_len(layer.input);
        let jobs = output.par_chunks_mut(bands.len).zip(self.sums.par_chunks_mut(2 * channels)).enumerate();
        jobs.for_each(|(index, (output, sums))| {
            let band = bands.at(index);
            weights.kernels.conv(ConvBand {
                gather: &layer.forward,
                rows: band.rows,
                input: &input[band.group * input_len..][..input_len],
                in_channels: layer.input.channels,
                weights: &weights.packed[layer.packed_forward.clone()],
                output: &mut *output,
                out_channels: channels,
                accumulate: false,
                moments: pivot.map(|pivot| Moments { pivot, sums, images: band.images }),
            });
            if let Some(bias) = &layer.bias {
                add_bias(&weights.parameters[bias.clone()], output);
            }
        });
        if let (Some(index), Some(norm), Statistics::Batch(running)) = (layer.norm, norm, statistics) {
            let totals = add_up(&self.sums, 2 * channels);
            let count = images * layer.output.height * layer.output.width;
            self.norms[index].use_batch(norm, weights.parameters, &totals, count, running);
        }
    }

    fn normalize(&mut self, weights: Weights<'_>, norm: usize, relu: bool, step: &Forward, images: usize) {
        let shape = weights.program.norms[norm].shape;
        let bands = Bands::new(shape, images);
        let values = &self.norms[norm];
        let residual = step.residual.unwrap_or(step.input);
        let reads = [bands.whole(step.input, shape), bands.whole(residual, shape)];
        let ([input, residual], [output]) = self.arena.borrow(reads, [bands.whole(step.output, shape)]);
        let jobs =
            output.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len)).zip(residual.par_chunks(bands.len));
        jobs.enumerate().for_each(|(index, ((output, input), residual))| {
            weights.kernels.normalize(Normalize {
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
        let bands = Bands::new(layer.shape, images);
        let values = &self.norms[norm];
        let channels = layer.shape.channels;
        let whole = |buffer| bands.whole(buffer, layer.shape);
        self.sums.clear();
        self.sums.resize(bands.count * 2 * channels, 0.0);
        let reads = [whole(buffers.input), whole(buffers.rectified.unwrap_or(buffers.input))];
        let ([input, rectified], [gradient]) = self.arena.borrow(reads, [whole(buffers.gradient)]);
        let jobs = gradient.par_chunks_mut(bands.len).zip(input.par_chunks(bands.len));
        let jobs = jobs.zip(rectified.par_chunks(bands.len)).zip(self.sums.par_chunks_mut(2 * channels));
        jobs.for_each(|(((gradient, input), rectified), sums)| {
            weights.kernels.normalize_reduce(NormalizeReduce {
                gradient,
                rectified: buffers.rectified.is_some().then_some(rectified),
                input,
                mean: &values.mean,
                inv_std: &values.inv_std,
                sums,
            });
        });
        let totals = add_up(&self.sums, 2 * channels);
        let count = images * layer.shape.height * layer.shape.width;
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
            weights.kernels.normalize_backward(NormalizeBackward { gradient, input, output, a, b, c, images });
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
        let bands = Bands::new(layer.input, images);
        let reads = [bands.whole(gradient, layer.output)];
        let ([gradient], [output]) = self.arena.borrow(reads, [bands.whole(target.buffer, layer.input)]);
        let gradient_len = group_len(layer.output);
        output.par_chunks_mut(bands.len).enumerate().for_each(|(index, output)| {
            let band = bands.at(index);
            weights.kernels.conv(ConvBand {
                gather: &layer.backward,
                rows: band.rows,
                input: &gradient[band.group * gradient_len..][..gradient_len],
                in_channels: layer.output.channels,
                weights: &weights.packed[layer.packed_backward.clone()],
                output,
                out_channels: layer.input.channels,
                accumulate: target.accumulate,
                moments: None,
            });
        });
    }

    fn conv_weights(
        &mut self,
        kernels: &dyn Kernels,
        layer: &ConvLayer,
        input: Buffer,
        output_gradient: Buffer,
        images: usize,
        gradients: &mut [f32],
    ) {
        let weight_len = layer.weight.len();
        let pixels = groups(images) * layer.output.height * layer.output.width;
        let most = BANDS.min(pixels.div_ceil(WEIGHT_BAND_PIXELS)).min(MAX_PARTIAL_LEN / weight_len);
        let bands = Bands::with_count(layer.output, images, most);
        let parts = output_parts(layer.output.channels, BANDS.div_ceil(bands.count));
        let part = layer.output.channels / parts;
        if self.partials.len() < bands.count * weight_len {
            self.partials.resize(bands.count * weight_len, 0.0);
        }
        let partials = &mut self.partials[..bands.count * weight_len];
        let reads = [bands.whole(input, layer.input), bands.whole(output_gradient, layer.output)];
        let ([input, output_gradient], []) = self.arena.borrow(reads, []);
        let (input_len, output_len) = (group_len(layer.input), group_len(layer.output));
        partials.par_chunks_mut(weight_len / parts).enumerate().for_each(|(index, gradient)| {
            let band = bands.at(index / parts);
            let first = index % parts * part;
            kernels.conv_weights(ConvWeightsBand {
                conv: &layer.conv,
                rows: band.rows,
                input: &input[band.group * input_len..][..input_len],
                in_channels: layer.input.channels,
                output_gradient: &output_gradient[band.group * output_len..][..output_len],
                out_channels: layer.output.channels,
                outputs: first..first + part,
                gradient,
            });
        });
        if let Some(bias) = &layer.bias {
            bias_gradient(output_gradient, &mut gradients[bias.clone()]);
        }
        add_partials(partials, &mut gradients[layer.weight.clone()]);
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

/// A tensor cut into bands of rows.
struct Bands {
    images: usize,
    rows: usize,
    per_group: usize,
    count: usize,
    /// Floats of a band.
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
    fn new(shape: Shape, images: usize) -> Self {
        Self::with_count(shape, images, BANDS)
    }

    fn with_count(shape: Shape, images: usize, count: usize) -> Self {
        let rows = band_rows(shape.height, groups(images), count);
        let per_group = shape.height / rows;
        Self { images, rows, per_group, count: groups(images) * per_group, len: group_len(shape) / per_group }
    }

    fn at(&self, index: usize) -> Band {
        let group = index / self.per_group;
        let first = index % self.per_group * self.rows;
        Band { group, rows: first..first + self.rows, images: images_in_group(self.images, group) }
    }

    /// The part of a buffer that the batch fills.
    fn whole(&self, buffer: Buffer, shape: Shape) -> Buffer {
        buffer.first(groups(self.images) * group_len(shape))
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

/// Keeps every `stride`-th pixel and puts zero channels on both sides.
fn pad(input: &[f32], from: Shape, output: &mut [f32], to: Shape, stride: usize) {
    output.fill(0.0);
    for (source, target) in subsampled(from, to, stride) {
        output[target..][..from.channels * GROUP].copy_from_slice(&input[source..][..from.channels * GROUP]);
    }
}

/// The reverse of [`pad`]: what was dropped gets no gradient.
fn pad_backward(gradient: &[f32], from: Shape, output: &mut [f32], to: Shape, stride: usize) {
    output.fill(0.0);
    for (target, source) in subsampled(to, from, stride) {
        output[target..][..to.channels * GROUP].copy_from_slice(&gradient[source..][..to.channels * GROUP]);
    }
}

/// Offsets of each pixel kept: in the narrow tensor, and of its first channel in the padded one.
fn subsampled(narrow: Shape, wide: Shape, stride: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = (wide.channels - narrow.channels) / 2;
    (0..wide.height * wide.width).map(move |pixel| {
        let (y, x) = (pixel / wide.width * stride, pixel % wide.width * stride);
        ((y * narrow.width + x) * narrow.channels * GROUP, (pixel * wide.channels + first) * GROUP)
    })
}

/// Mean over pixels.
fn pool(input: &[f32], output: &mut [f32]) {
    output.fill(0.0);
    for pixel in input.chunks_exact(output.len()) {
        output.iter_mut().zip(pixel).for_each(|(total, value)| *total += value);
    }
    let scale = output.len() as f32 / input.len() as f32;
    output.iter_mut().for_each(|total| *total *= scale);
}

fn pool_backward(gradient: &[f32], output: &mut [f32]) {
    let scale = gradient.len() as f32 / output.len() as f32;
    for pixel in output.chunks_exact_mut(gradient.len()) {
        pixel.iter_mut().zip(gradient).for_each(|(value, g)| *value = g * scale);
    }
}
