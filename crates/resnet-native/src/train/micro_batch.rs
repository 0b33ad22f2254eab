//! The part of a batch that one thread takes through a segment of layers: one or two groups of images, few
//! enough that what a layer writes is still in the cache when the next reads it.
//!
//! Where a segment's layers need one group alone, a micro-batch takes its groups through it one after the other, unless
//! another thread has nothing else to do. Weight gradients take all groups of a micro-batch together, in bands of rows.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::vec;

use crate::kernels::{ConvBand, ConvOperands, Epilogue, Kernels, Operand, WeightGradientBand};
use crate::layout::{LANE_GROUP, lane_groups};
use crate::memory::{Arena, Buffer};
use crate::profile::StepTime;
use crate::train::bands::WeightBands;
use crate::train::context::{BatchContext, Context, non_temporal};
use crate::train::lane_group::LaneGroup;
use crate::train::plan::{Backward, ConvGradients, Plan};
use crate::train::program::ConvLayer;
use resnet_graph::{NodeId, Shape, Work};

/// Some images of a batch.
pub struct MicroBatch {
    /// As many as fit; those in use are the first.
    groups: Vec<LaneGroup>,
    /// Partial weight gradients of the last segment's convolution, `[band][gradient]`.
    partials: Arena,
    partial_len: usize,
    bias_gradient: Vec<f32>,
    times: Vec<StepTime>,
}

impl MicroBatch {
    /// Images of a full micro-batch.
    pub fn capacity(kernels: &dyn Kernels) -> usize {
        LANE_GROUP * kernels.schedule().lane_groups
    }

    /// A micro-batch with the memory that `plan` takes.
    pub fn new(plan: &Plan, kernels: &dyn Kernels) -> Self {
        Self {
            groups: (0..kernels.schedule().lane_groups).map(|_| LaneGroup::new(plan)).collect(),
            partials: Arena::new(0),
            partial_len: 0,
            bias_gradient: Vec::new(),
            times: Vec::new(),
        }
    }

    /// Images it holds.
    pub fn images(&self) -> usize {
        self.groups.iter().map(|group| group.images).sum()
    }

    /// Sums of the batch norm that the last segment of layers ended at, `[band][channel][2]` of each group.
    pub fn sums(&self) -> impl Iterator<Item = &[f64]> {
        self.groups.iter().filter(|group| group.images > 0).map(|group| group.sums.as_slice())
    }

    /// Partial weight gradients of the last segment's convolution, one after the other.
    pub fn partials(&self) -> &[f32] {
        &self.partials.as_slice()[..self.partial_len]
    }

    /// Gradient with respect to the bias of the last segment's convolution.
    pub fn bias_gradient(&self) -> &[f32] {
        &self.bias_gradient
    }

    /// The times of the steps since the last call.
    pub fn take_times(&mut self) -> Vec<StepTime> {
        std::mem::take(&mut self.times)
    }

    /// The groups that hold images.
    fn groups_in_use(&mut self) -> impl Iterator<Item = &mut LaneGroup> {
        self.groups.iter_mut().filter(|group| group.images > 0)
    }

    /// Lays images `[images][channels][height][width]` out, no more than fit, with non-temporal stores or not.
    pub fn load_images(&mut self, plan: &Plan, context: Context<'_>, pixels: &[f32], non_temporal: bool) {
        let start = Instant::now();
        let mut images = pixels.chunks(LANE_GROUP * context.program.stem.input().len());
        let groups = self.groups.iter_mut().map(|group| (group, images.next().unwrap_or_default()));
        context.team.for_each(groups, |(group, images)| group.load_images(plan, context, images, non_temporal));
        self.times.push(StepTime { work: Work::Load, node: None, time: start.elapsed() });
    }

    /// The logits `[images][classes]` of the last forward pass.
    pub fn logits(&self, plan: &Plan, shape: Shape, logits: &mut [f32]) {
        for (group, logits) in self.groups.iter().zip(logits.chunks_mut(LANE_GROUP * shape.len())) {
            group.logits(plan, shape, logits);
        }
    }

    /// Puts the gradient of the logits, `[images][classes]`, where the backward pass starts.
    pub fn load_logits_gradient(&mut self, plan: &Plan, shape: Shape, gradient: &[f32]) {
        for (group, gradient) in self.groups.iter_mut().zip(gradient.chunks(LANE_GROUP * shape.len())) {
            group.load_logits_gradient(plan, shape, gradient);
        }
    }

    /// Runs some forward steps.
    pub fn forward(&mut self, batch: BatchContext<'_>, steps: Range<usize>) {
        batch.context.team.for_each(self.groups_in_use(), |group| {
            group.sums.clear();
            batch.plan.forward[steps.clone()].iter().for_each(|step| group.forward_step(batch, step));
        });
        self.add_up_times();
    }

    /// Runs some backward steps.
    pub fn backward(&mut self, batch: BatchContext<'_>, steps: Range<usize>) {
        self.groups_in_use().for_each(|group| group.sums.clear());
        let is_conv = |step: &(NodeId, Backward<Buffer>)| matches!(step.1, Backward::Conv(_));
        for steps in batch.plan.backward[steps].chunk_by(|a, b| !is_conv(a) && !is_conv(b)) {
            if let (node, Backward::Conv(step)) = steps[0] {
                self.conv_backward(batch, node, step);
            } else {
                batch.context.team.for_each(self.groups_in_use(), |group| {
                    steps.iter().for_each(|&step| group.backward_step(batch, step));
                });
                self.add_up_times();
            }
        }
    }

    /// Adds up the groups' times of the same steps.
    fn add_up_times(&mut self) {
        let first = self.times.len();
        for group in &mut self.groups {
            for (index, step) in group.times.drain(..).enumerate() {
                match self.times.get_mut(first + index) {
                    Some(total) => total.time += step.time,
                    None => self.times.push(step),
                }
            }
        }
    }

    /// The gradients of a convolution with respect to weights and input, band by band: what both read
    /// is then still in the cache for the second.
    fn conv_backward(&mut self, batch: BatchContext<'_>, node: NodeId, step: ConvGradients<Buffer>) {
        let layer = &batch.context.program.convs[step.conv];
        let (conv, kernels) = (&layer.conv, batch.context.kernels.of(layer.layout));
        let (len, schedule) = (kernels.gradient_len(conv), kernels.schedule());
        let WeightBands { rows, parts } = WeightBands::new(conv, schedule, len, batch.images);
        let bands = conv.output().height / rows;
        self.new_partials(len * bands * lane_groups(self.images()).div_ceil(schedule.lane_groups));
        self.add_up_bias(step.output_gradient, layer);
        let groups = self.groups.iter_mut().filter(|group| group.images > 0);
        let mut groups: Vec<_> = groups.map(|group| ConvGroup::new(batch, step, group, bands)).collect();
        let mut jobs = Vec::new();
        let mut partials = self.partials.all()[..self.partial_len].chunks_mut(len / parts);
        for set in groups.chunks_mut(schedule.lane_groups) {
            for (band, part) in (0..bands).flat_map(|band| (0..parts).map(move |part| (band, part))) {
                let operands = set.iter().map(|group| group.operands).collect();
                // The input's gradient goes with the first part of the outputs.
                let written = set.iter_mut().filter(|_| part == 0).filter_map(|group| group.bands.next()).collect();
                let gradient = partials.next().expect("a partial gradient for every job");
                jobs.push(ConvJob { band, part, operands, gradient, written });
            }
        }
        let accumulate = step.input_gradient.is_some_and(|gradient| gradient.accumulate);
        let non_temporal = non_temporal(layer.layout, conv.input(), batch.images);
        let work = ConvBackward { layer, batch, rows, part: conv.outputs / parts, accumulate, non_temporal };
        let times = [const { AtomicU64::new(0) }; 2];
        batch.context.team.for_each(jobs.into_iter(), |job| work.run(job, &times));
        let [weights, input] = times.map(|time| Duration::from_nanos(time.into_inner()));
        self.times.push(StepTime { work: Work::BackwardWeights, node: Some(node), time: weights });
        if step.input_gradient.is_some() {
            self.times.push(StepTime { work: Work::BackwardInput, node: Some(node), time: input });
        }
    }

    /// Sums the gradient of a layer's output for its bias, where it has one.
    fn add_up_bias(&mut self, output_gradient: Operand<Buffer, usize>, layer: &ConvLayer) {
        self.bias_gradient.clear();
        if layer.bias.is_none() {
            return;
        }
        self.bias_gradient.resize(layer.conv.outputs, 0.0);
        let [gradient, _] = output_gradient.tensors();
        for group in self.groups.iter().filter(|group| group.images > 0) {
            for (total, lanes) in self.bias_gradient.iter_mut().zip(group.arena.read(gradient).chunks_exact(LANE_GROUP))
            {
                *total += lanes.iter().sum::<f32>();
            }
        }
    }

    /// Room for partial gradients of some length in all.
    fn new_partials(&mut self, len: usize) {
        self.partial_len = len;
        if self.partials.as_slice().len() < len {
            self.partials = Arena::new(len);
        }
    }
}

/// What a convolution's backward pass takes of a group.
struct ConvGroup<'a> {
    operands: ConvOperands<'a>,
    /// The bands of the gradient with respect to the input.
    bands: vec::IntoIter<ConvOutput<'a>>,
}

impl<'a> ConvGroup<'a> {
    /// Takes them from the group's memory. The gradient with respect to the input comes in as many
    /// `bands`, each with sums of its own where a batch norm wants them.
    fn new(batch: BatchContext<'a>, step: ConvGradients<Buffer>, group: &'a mut LaneGroup, bands: usize) -> Self {
        let layer = &batch.context.program.convs[step.conv];
        let shape = layer.conv.input();
        let band_len = shape.height.div_ceil(bands) * layer.layout.row_len(shape);
        let sums_len = if step.reduction().is_some() { 2 * shape.channels } else { 0 };
        let first_sum = group.new_sums(bands * sums_len);
        let LaneGroup { arena, sums, images, .. } = group;
        let mut sums = sums[first_sum..].chunks_mut(sums_len.max(1));
        let nowhere = Buffer { offset: 0, len: 0 };
        let ([i, j], [g, h]) = (step.input.tensors(), step.output_gradient.tensors());
        let [y, relu] = step.reduction().map_or([nowhere; 2], |reduction| reduction.tensors());
        let target = step.input_gradient.map_or(nowhere, |gradient| gradient.buffer);
        let ([i, j, g, h, y, relu], [written]) = arena.borrow([i, j, g, h, y, relu], [target]);
        let bands = written.chunks_mut(band_len).enumerate().map(|(band, output)| {
            let tensors = [y, relu].map(|tensor| tensor.chunks(band_len).nth(band).unwrap_or_default());
            let reduction = step.reduction().map(|reduction| batch.reduction(reduction, tensors));
            let epilogue = reduction.map_or(Epilogue::None, Epilogue::NormReduction);
            ConvOutput { output, epilogue, sums: sums.next().unwrap_or_default() }
        });
        let bands = bands.collect::<Vec<_>>().into_iter();
        let input = batch.operand(step.input, [i, j]);
        let output_gradient = batch.operand(step.output_gradient, [g, h]);
        Self { operands: ConvOperands { input, output_gradient, images: *images }, bands }
    }
}

/// A band of a gradient with respect to the input.
struct ConvOutput<'a> {
    output: &'a mut [f32],
    epilogue: Epilogue<'a>,
    sums: &'a mut [f64],
}

/// A band of rows of the gradients of a convolution.
struct ConvJob<'a> {
    band: usize,
    /// Which part of the outputs' weights.
    part: usize,
    /// The operands in each group.
    operands: Vec<ConvOperands<'a>>,
    /// The part's gradient with respect to the weights, replaced.
    gradient: &'a mut [f32],
    /// The band's gradient with respect to the input in each group.
    written: Vec<ConvOutput<'a>>,
}

/// The backward pass of a convolution.
struct ConvBackward<'a> {
    layer: &'a ConvLayer,
    batch: BatchContext<'a>,
    /// Rows of a band of the output.
    rows: usize,
    /// Outputs of a part of the weights.
    part: usize,
    /// Whether the gradient with respect to the input is added to what is there.
    accumulate: bool,
    /// Whether else it is written with non-temporal stores.
    non_temporal: bool,
}

impl ConvBackward<'_> {
    /// Works on a band, and adds the nanoseconds that the two gradients took: with respect to the
    /// weights, and to the input.
    fn run(&self, job: ConvJob<'_>, times: &[AtomicU64; 2]) {
        let (layer, context) = (self.layer, self.batch.context);
        let kernels = context.kernels.of(layer.layout);
        let start = Instant::now();
        kernels.weight_gradient(WeightGradientBand {
            conv: &layer.conv,
            rows: job.band * self.rows..(job.band + 1) * self.rows,
            groups: &job.operands,
            outputs: job.part * self.part..(job.part + 1) * self.part,
            gradient: job.gradient,
        });
        let middle = Instant::now();
        let row_len = layer.layout.row_len(layer.conv.input());
        let first = job.band * layer.conv.input().height.div_ceil(layer.conv.output().height / self.rows);
        for (operands, ConvOutput { output, epilogue, sums }) in job.operands.iter().zip(job.written) {
            kernels.conv(ConvBand {
                gather: &layer.backward,
                rows: first..first + output.len() / row_len,
                input: operands.output_gradient,
                images: operands.images,
                weights: &context.packed[layer.packed_backward.clone()],
                output,
                accumulate: self.accumulate,
                non_temporal: self.non_temporal,
                epilogue,
                sums,
            });
        }
        for (time, spent) in times.iter().zip([middle - start, middle.elapsed()]) {
            time.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
        }
    }
}
