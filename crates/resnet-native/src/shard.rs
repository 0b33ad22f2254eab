//! The part of a batch that one thread takes through a stretch of layers: one or two groups of images with
//! an arena of their own, small enough that what a layer writes is still in the cache when the next reads it.
//!
//! Where a stretch's layers need one group alone, a shard takes its groups through it one after the other.
//!
//! A shard's steps are cut into bands further, for the threads that have no shard. How a step is cut depends
//! on the batch alone, never on the number of threads, and with it so does the order of every sum.

use std::ops::Range;
use std::slice::ChunksMut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::vec;

use crate::arena::{Arena, Buffer};
use crate::graph::{NodeId, Shape};
use crate::kernels::{
    ConvBand, ConvWeightsBand, Gate, Images, KernelSet, Kernels, Moments, Normalize, NormalizeReduce, Pad, Pool,
    Reduction, Source, Sums,
};
use crate::layout::{GROUP, Layout, band_rows, groups, images_in_group};
use crate::plan::{Backward, ConvGradients, Forward, Plan, Read, Rectifier, Reduce};
use crate::profile::{StepTime, Work};
use crate::program::{ConvLayer, Layer, Program};
use crate::statistics::NormValues;
use crate::team::Team;

/// Bands that a step is cut into over the whole batch, as near as the height allows: enough for many threads.
const BANDS: usize = 16;

/// Bytes of a tensor that may be in the caches when the next layer reads it.
const CACHED_BYTES: usize = 2 << 20;

/// Pixels that a band of a gradient by weights should have at least: below, summing the lanes of the
/// accumulators takes a noticeable share of the time.
const WEIGHT_BAND_PIXELS: usize = 64;

/// The same for tiles, whose sums are as long as all weights.
const TILED_WEIGHT_BAND_PIXELS: usize = 256;

/// Floats that the partial gradients of one convolution may take.
const MAX_PARTIAL_LEN: usize = 1 << 22;

/// Layout of the logits and their gradient.
const HEAD: Layout = Layout::Interleaved;

/// What the steps need of the network, and the threads that take them.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// The threads.
    pub team: &'a Team,
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
}

impl<'a> Pass<'a> {
    /// What a convolution reads from its [places](Read::places) in a group of `images`.
    fn source<'b>(&self, read: Read<Buffer>, [first, second]: [&'b [f32]; 2], images: usize) -> Source<'b>
    where
        'a: 'b,
    {
        match read {
            Read::Stored(_) => Source::Stored(first),
            Read::Normalized { norm, .. } => {
                Source::Normalized { input: first, affine: self.norms[norm].affine(), images }
            }
            Read::NormGradient { norm, .. } => {
                let factors = self.norms[norm].factors.each_ref().map(Vec::as_slice);
                Source::NormGradient { gradient: first, input: second, factors, images }
            }
        }
    }

    /// What becomes of the gradient of a batch norm's output, from its [places](Reduce::places) in the rows of a band.
    fn reduction<'b>(
        &self,
        reduce: Reduce<Buffer>,
        [input, rectified]: [&'b [f32]; 2],
        sums: &'b mut [f64],
    ) -> Reduction<'b>
    where
        'a: 'b,
    {
        let values = &self.norms[reduce.norm];
        let gate = match reduce.rectifier {
            Rectifier::None => Gate::Open,
            Rectifier::OfInput => Gate::Input(values.affine()),
            Rectifier::OfSum(_) => Gate::Output(rectified),
        };
        Reduction { gate, input, mean: &values.mean, inv_std: &values.inv_std, sums }
    }
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

    fn note(&mut self, work: Work, node: Option<NodeId>, time: Duration) {
        self.times.push(StepTime { work, node, time });
    }

    /// Lays images `[images][channels][height][width]` out, no more than fit.
    pub fn load_images(&mut self, plan: &Plan, weights: Weights<'_>, pixels: &[f32]) {
        let (start, program) = (Instant::now(), weights.program);
        let image_len = program.stem.input().len();
        self.images = pixels.len() / image_len;
        let groups = self.arenas.iter_mut().zip(pixels.chunks(GROUP * image_len));
        weights.team.for_each(groups, |(arena, images)| {
            let (_, [group]) = arena.borrow([], [plan.input]);
            weights.body().load_images(Images { images, conv: &program.stem, group });
        });
        self.note(Work::Load, None, start.elapsed());
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

    /// Runs some backward steps.
    pub fn backward(&mut self, pass: Pass<'_>, steps: Range<usize>) {
        self.sums.clear();
        let is_conv = |step: &(NodeId, Backward)| matches!(step.1, Backward::Conv(_));
        for steps in pass.plan.backward[steps].chunk_by(|a, b| !is_conv(a) && !is_conv(b)) {
            if let (node, Backward::Conv(step)) = steps[0] {
                self.conv_backward(pass, node, step);
            } else {
                for group in 0..groups(self.images) {
                    steps.iter().for_each(|&step| self.backward_step(pass, step, group));
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
                let ([input, _], [output]) = self.arenas[group].borrow(step.input.places(), [step.output]);
                body.pad(Pad { narrow, wide, stride, input, output });
            }
            Layer::Pool { input, .. } => {
                let shape = program.shapes[input];
                let ([input, _], [output]) = self.arenas[group].borrow(step.input.places(), [step.output]);
                body.pool(Pool { shape, input, output });
            }
        }
        self.note(Work::Forward, Some(step.layer.output()), start.elapsed());
    }

    /// Runs a backward step, other than a convolution's, on a group.
    fn backward_step(&mut self, pass: Pass<'_>, (node, step): (NodeId, Backward), group: usize) {
        let start = Instant::now();
        let (program, body) = (pass.weights.program, pass.weights.body());
        match step {
            Backward::Conv(_) => unreachable!("convolutions take all groups at once"),
            Backward::Norm { reduce, gradient } => self.normalize_reduce(pass, reduce, gradient, group),
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
        self.note(Work::Backward, Some(node), start.elapsed());
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
        let (places, [output]) = self.arenas[group].borrow(step.input.places(), [step.output]);
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

    fn normalize(&mut self, pass: Pass<'_>, norm: usize, relu: bool, step: &Forward, group: usize) {
        let (body, values) = (pass.weights.body(), &pass.norms[norm]);
        let shape = pass.weights.program.norms[norm].shape;
        let (bands, images) = (Bands::new(shape, body.layout(), pass.images), self.images_in(group));
        let [input, _] = step.input.places();
        let reads = [input, step.residual.unwrap_or(input)];
        let ([input, residual], [output]) = self.arenas[group].borrow(reads, [step.output]);
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

    fn normalize_reduce(&mut self, pass: Pass<'_>, reduce: Reduce<Buffer>, gradient: Buffer, group: usize) {
        let body = pass.weights.body();
        let shape = pass.weights.program.norms[reduce.norm].shape;
        let bands = Bands::new(shape, body.layout(), pass.images);
        let first_sum = self.new_sums(bands.count * 2 * shape.channels);
        let (places, [gradient]) = self.arenas[group].borrow(reduce.places(), [gradient]);
        let [input, rectified] = places.map(|place| place.chunks(bands.len));
        let sums = self.sums[first_sum..].chunks_mut(2 * shape.channels);
        let jobs = gradient.chunks_mut(bands.len).zip(input).zip(rectified).zip(sums);
        pass.weights.team.for_each(jobs, |(((gradient, input), rectified), sums)| {
            let reduction = pass.reduction(reduce, [input, rectified], sums);
            body.normalize_reduce(NormalizeReduce { shape, gradient, reduction });
        });
    }

    /// Gradients of a convolution by its weights and by its input, band by band: what both read is then still in
    /// the cache for the second.
    fn conv_backward(&mut self, pass: Pass<'_>, node: NodeId, step: ConvGradients) {
        let layer = &pass.weights.program.convs[step.conv];
        let (conv, layout) = (&layer.conv, layer.layout);
        let len = pass.weights.kernels.of(layout).gradient_len(conv);
        let (rows, parts) = weight_bands(layer, len, pass.images);
        let (groups, bands) = (groups(self.images), conv.output().height / rows);
        self.new_partials(len * bands * groups.div_ceil(layout.weight_groups()));
        self.add_up_bias(step.output_gradient, layer);
        let sums_len = if step.reduce().is_some() { 2 * conv.inputs } else { 0 };
        let first_sum = self.new_sums(groups * bands * sums_len);
        let mut sums = self.sums[first_sum..].chunks_mut(sums_len.max(1));
        let band_len = conv.input().height.div_ceil(bands) * layout.row_len(conv.input());
        let arenas = self.arenas[..groups].iter_mut().enumerate();
        let mut groups: Vec<_> = arenas
            .map(|(index, arena)| {
                let images = images_in_group(self.images, index);
                ConvGroup::new(pass, step, arena, images, band_len, &mut sums)
            })
            .collect();
        let mut jobs = Vec::new();
        let mut partials = self.partials.all()[..self.partial_len].chunks_mut(len / parts);
        for set in groups.chunks_mut(layout.weight_groups()) {
            for (band, part) in (0..bands).flat_map(|band| (0..parts).map(move |part| (band, part))) {
                let inputs = set.iter().map(|group| group.input).collect();
                let output_gradients: Vec<_> = set.iter().map(|group| group.output_gradient).collect();
                // The input's gradient goes with the first part of the outputs.
                let written = set.iter_mut().filter(|_| part == 0).filter_map(|group| group.bands.next()).collect();
                let gradient = partials.next().expect("a partial gradient for every job");
                jobs.push(ConvJob { band, part, inputs, output_gradients, gradient, written });
            }
        }
        let accumulate = step.input_gradient.is_some_and(|gradient| gradient.accumulate);
        let streams = streams(layout, conv.input(), pass.images);
        let work = ConvBackward { layer, pass, rows, part: conv.outputs / parts, accumulate, streams };
        let times = [const { AtomicU64::new(0) }; 2];
        pass.weights.team.for_each(jobs.into_iter(), |job| work.run(job, &times));
        let [weights, input] = times.map(|time| Duration::from_nanos(time.into_inner()));
        self.note(Work::BackwardWeights, Some(node), weights);
        if step.input_gradient.is_some() {
            self.note(Work::Backward, Some(node), input);
        }
    }

    /// Sums the gradient of a layer's output for its bias, where it has one.
    fn add_up_bias(&mut self, output_gradient: Read<Buffer>, layer: &ConvLayer) {
        self.bias_gradient.clear();
        if layer.bias.is_none() {
            return;
        }
        self.bias_gradient.resize(layer.conv.outputs, 0.0);
        let [gradient, _] = output_gradient.places();
        for arena in &self.arenas[..groups(self.images)] {
            for (total, lanes) in self.bias_gradient.iter_mut().zip(arena.read(gradient).chunks_exact(GROUP)) {
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
    input: Source<'a>,
    output_gradient: Source<'a>,
    /// Of the gradient by the input.
    bands: vec::IntoIter<ConvOutput<'a>>,
}

impl<'a> ConvGroup<'a> {
    /// From the group's arena, with the gradient by the input in bands of `band_len`, each with the next of the `sums` where
    /// a batch norm wants them.
    fn new<'s: 'a>(
        pass: Pass<'a>,
        step: ConvGradients,
        arena: &'a mut Arena,
        images: usize,
        band_len: usize,
        sums: &mut ChunksMut<'s, f64>,
    ) -> Self {
        let nowhere = Buffer { offset: 0, len: 0 };
        let ([i, j], [g, h]) = (step.input.places(), step.output_gradient.places());
        let [y, sum] = step.reduce().map_or([nowhere; 2], Reduce::places);
        let target = step.input_gradient.map_or(nowhere, |gradient| gradient.buffer);
        let ([i, j, g, h, y, sum], [written]) = arena.borrow([i, j, g, h, y, sum], [target]);
        let bands = written.chunks_mut(band_len).enumerate().map(|(band, output)| {
            let places = [y, sum].map(|tensor| tensor.chunks(band_len).nth(band).unwrap_or_default());
            let reduction = step.reduce().zip(sums.next()).map(|(reduce, sums)| pass.reduction(reduce, places, sums));
            ConvOutput { output, sums: reduction.map_or(Sums::None, Sums::Gradient) }
        });
        let bands = bands.collect::<Vec<_>>().into_iter();
        let input = pass.source(step.input, [i, j], images);
        Self { input, output_gradient: pass.source(step.output_gradient, [g, h], images), bands }
    }
}

/// A band of a gradient by the input.
struct ConvOutput<'a> {
    output: &'a mut [f32],
    sums: Sums<'a>,
}

/// A band of rows of the gradients of a convolution.
struct ConvJob<'a> {
    band: usize,
    /// Which part of the outputs' weights.
    part: usize,
    inputs: Vec<Source<'a>>,
    output_gradients: Vec<Source<'a>>,
    /// By the weights.
    gradient: &'a mut [f32],
    /// By the input, of each group.
    written: Vec<ConvOutput<'a>>,
}

/// The backward pass of a convolution.
struct ConvBackward<'a> {
    layer: &'a ConvLayer,
    pass: Pass<'a>,
    /// Rows of a band of the output.
    rows: usize,
    /// Outputs of a part of the weights.
    part: usize,
    /// Whether the gradient by the input is added to what is there.
    accumulate: bool,
    /// Whether else it is written past the caches.
    streams: bool,
}

impl ConvBackward<'_> {
    /// Works on a band, and adds the nanoseconds that the gradients by the weights and by the input took.
    fn run(&self, job: ConvJob<'_>, times: &[AtomicU64; 2]) {
        let (layer, weights) = (self.layer, self.pass.weights);
        let kernels = weights.kernels.of(layer.layout);
        let start = Instant::now();
        kernels.conv_weights(ConvWeightsBand {
            conv: &layer.conv,
            rows: job.band * self.rows..(job.band + 1) * self.rows,
            inputs: &job.inputs,
            output_gradients: &job.output_gradients,
            outputs: job.part * self.part..(job.part + 1) * self.part,
            gradient: job.gradient,
        });
        let middle = Instant::now();
        let row_len = layer.layout.row_len(layer.conv.input());
        let first = job.band * layer.conv.input().height.div_ceil(layer.conv.output().height / self.rows);
        for (input, ConvOutput { output, sums }) in job.output_gradients.iter().zip(job.written) {
            kernels.conv(ConvBand {
                gather: &layer.backward,
                rows: first..first + output.len() / row_len,
                input: *input,
                weights: &weights.packed[layer.packed_backward.clone()],
                output,
                accumulate: self.accumulate,
                streams: self.streams,
                sums,
            });
        }
        for (time, spent) in times.iter().zip([middle - start, middle.elapsed()]) {
            time.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
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

/// Whether a tensor of all images is written past the caches. A layer is computed for all of them before the next one reads it, so
/// only what the second-level caches hold is found there again.
fn streams(layout: Layout, shape: Shape, images: usize) -> bool {
    groups(images) * layout.group_len(shape) * size_of::<f32>() > CACHED_BYTES
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
