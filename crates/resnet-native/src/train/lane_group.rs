//! Sixteen images or fewer, which lie side by side in memory of their own, and the steps that take them through the network.
//!
//! A step is cut into bands of rows, for the threads that have nothing else to do. How it is cut depends on the batch alone, never on
//! the number of threads, and with it so does the order of every sum.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::fuse::Layer;
use crate::kernels::{AvgPool, ConvBand, Epilogue, Images, NormReduction, Normalize, NormalizeReduce, PadShortcut};
use crate::layout::{LANE_GROUP, Layout, lane_groups};
use crate::memory::{Arena, Buffer};
use crate::profile::StepTime;
use crate::train::bands::{BANDS, band_rows};
use crate::train::context::{BatchContext, Context, non_temporal};
use crate::train::plan::{Backward, Forward, Plan};
use resnet_graph::{NodeId, Shape, Work};

/// Images of a batch that are stored side by side.
pub struct LaneGroup {
    /// Their activations and gradients.
    pub arena: Arena,
    /// How many there are.
    pub images: usize,
    /// Sums of the batch norm that the last segment of layers ended at, `[band][channel][2]`.
    pub sums: Vec<f64>,
    /// Times of the steps.
    pub times: Vec<StepTime>,
}

impl LaneGroup {
    /// No images yet, with the memory that `plan` takes.
    pub fn new(plan: &Plan) -> Self {
        Self { arena: Arena::new(plan.arena_len), images: 0, sums: Vec::new(), times: Vec::new() }
    }

    /// Lays images `[images][channels][height][width]` out, up to [`LANE_GROUP`], with non-temporal stores or not.
    pub fn load_images(&mut self, plan: &Plan, context: Context<'_>, images: &[f32], non_temporal: bool) {
        let conv = &context.program.stem;
        self.images = images.len() / conv.input().len();
        if images.is_empty() {
            return;
        }
        let (_, [group]) = self.arena.borrow([], [plan.input]);
        context.body().load_images(Images { images, conv, group, non_temporal });
    }

    /// The logits of the last forward pass, `[images][classes]`.
    pub fn logits(&self, plan: &Plan, shape: Shape, logits: &mut [f32]) {
        Layout::Lanes.unpack_images(self.arena.read(plan.logits), shape, logits);
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, plan: &Plan, shape: Shape, gradient: &[f32]) {
        let (_, [group]) = self.arena.borrow([], [plan.logits_gradient]);
        Layout::Lanes.pack_images(gradient, shape, group);
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
    pub fn forward_step(&mut self, batch: BatchContext<'_>, step: &Forward) {
        let start = Instant::now();
        let (program, body) = (batch.context.program, batch.context.body());
        match step.layer {
            Layer::Conv { conv, .. } => self.conv(batch, conv, step),
            Layer::Norm { norm, relu, .. } => self.normalize(batch, norm, relu, step),
            Layer::PadShortcut { stride, input, output } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let ([input, _], [output]) = self.arena.borrow(step.input.tensors(), [step.output]);
                body.pad_shortcut(PadShortcut { narrow, wide, stride, input, output });
            }
            Layer::AvgPool { input, .. } => {
                let shape = program.shapes[input];
                let ([input, _], [output]) = self.arena.borrow(step.input.tensors(), [step.output]);
                body.avg_pool(AvgPool { shape, input, output });
            }
        }
        self.note(Work::Forward, Some(step.layer.output()), start.elapsed());
    }

    /// Runs a backward step, other than a convolution's.
    pub fn backward_step(&mut self, batch: BatchContext<'_>, (node, step): (NodeId, Backward<Buffer>)) {
        let start = Instant::now();
        let (program, body) = (batch.context.program, batch.context.body());
        match step {
            Backward::Conv(_) => unreachable!("convolutions take all groups at once"),
            Backward::Norm { reduction, gradient } => self.normalize_reduce(batch, reduction, gradient),
            Backward::PadShortcut { stride, input, output, output_gradient, input_gradient } => {
                let (narrow, wide) = (program.shapes[input], program.shapes[output]);
                let ([input], [output]) = self.arena.borrow([output_gradient], [input_gradient]);
                body.pad_shortcut_backward(PadShortcut { narrow, wide, stride, input, output });
            }
            Backward::AvgPool { input, output_gradient, input_gradient } => {
                let shape = program.shapes[input];
                let ([input], [output]) = self.arena.borrow([output_gradient], [input_gradient]);
                body.avg_pool_backward(AvgPool { shape, input, output });
            }
        }
        self.note(Work::BackwardInput, Some(node), start.elapsed());
    }

    fn conv(&mut self, batch: BatchContext<'_>, conv: usize, step: &Forward) {
        let context = batch.context;
        let layer = &context.program.convs[conv];
        let kernels = context.kernels.of(layer.layout);
        let bands = Bands::new(layer.conv.output(), layer.layout, batch.images);
        let pivot = layer
            .norm
            .zip(batch.running)
            .map(|(norm, running)| &running[context.program.norms[norm].running_mean.clone()]);
        let (channels, images) = (layer.conv.outputs, self.images);
        let sums_len = if pivot.is_some() { 2 * channels } else { 0 };
        let first_sum = self.new_sums(bands.count * sums_len);
        let (tensors, [output]) = self.arena.borrow(step.input.tensors(), [step.output]);
        let input = batch.operand(step.input, tensors);
        let mut sums = self.sums[first_sum..].chunks_mut(sums_len.max(1));
        let jobs = output.chunks_mut(bands.len).map(|output| (output, sums.next().unwrap_or_default()));
        context.team.for_each(jobs.enumerate(), |(index, (output, sums))| {
            kernels.conv(ConvBand {
                gather: &layer.forward,
                rows: bands.rows(index),
                input,
                images,
                weights: &context.packed[layer.packed_forward.clone()],
                output: &mut *output,
                accumulate: false,
                non_temporal: layer.bias.is_none() && non_temporal(layer.layout, layer.conv.output(), batch.images),
                epilogue: pivot.map_or(Epilogue::None, |pivot| Epilogue::Moments { pivot }),
                sums,
            });
            if let Some(bias) = &layer.bias {
                add_bias(&context.parameters[bias.clone()], output);
            }
        });
    }

    fn normalize(&mut self, batch: BatchContext<'_>, norm: usize, relu: bool, step: &Forward) {
        let body = batch.context.body();
        let shape = batch.context.program.norms[norm].shape;
        let (bands, images) = (Bands::new(shape, body.layout(), batch.images), self.images);
        let [input, _] = step.input.tensors();
        let reads = [input, step.residual.unwrap_or(input)];
        let ([input, residual], [output]) = self.arena.borrow(reads, [step.output]);
        let jobs = output.chunks_mut(bands.len).zip(input.chunks(bands.len));
        batch.context.team.for_each(jobs.zip(residual.chunks(bands.len)), |((output, input), residual)| {
            body.normalize(Normalize {
                shape,
                input,
                residual: step.residual.is_some().then_some(residual),
                output,
                norm: &batch.norms[norm],
                relu,
                images,
            });
        });
    }

    fn normalize_reduce(&mut self, batch: BatchContext<'_>, reduction: NormReduction<Buffer, usize>, gradient: Buffer) {
        let body = batch.context.body();
        let shape = batch.context.program.norms[reduction.norm].shape;
        let bands = Bands::new(shape, body.layout(), batch.images);
        let first_sum = self.new_sums(bands.count * 2 * shape.channels);
        let (tensors, [gradient]) = self.arena.borrow(reduction.tensors(), [gradient]);
        let [input, output] = tensors.map(|tensor| tensor.chunks(bands.len));
        let sums = self.sums[first_sum..].chunks_mut(2 * shape.channels);
        let jobs = gradient.chunks_mut(bands.len).zip(input).zip(output).zip(sums);
        batch.context.team.for_each(jobs, |(((gradient, input), output), sums)| {
            let reduction = batch.reduction(reduction, [input, output]);
            body.normalize_reduce(NormalizeReduce { shape, gradient, reduction, sums });
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
        let height = band_rows(shape.height, lane_groups(images), BANDS);
        Self { height, count: shape.height / height, len: height * layout.row_len(shape) }
    }

    fn rows(&self, index: usize) -> Range<usize> {
        index * self.height..(index + 1) * self.height
    }
}

fn add_bias(bias: &[f32], output: &mut [f32]) {
    for (lanes, bias) in output.chunks_exact_mut(LANE_GROUP).zip(bias) {
        lanes.iter_mut().for_each(|value| *value += bias);
    }
}
