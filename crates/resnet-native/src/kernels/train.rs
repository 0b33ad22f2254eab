//! The kernels of training: what each is given, and the checks of lengths that they rely on.

use std::ops::Range;

use super::Isa;
use crate::geometry::Conv2d;
use crate::layout::gather::Gather;
use crate::layout::{LANE_GROUP, Layout};
use resnet_graph::Shape;

/// Side of the largest kernel.
pub const MAX_KERNEL: usize = 7;

/// The kernels of one instruction set for one precision. Activations lie in its [`layout`](Kernels::layout).
pub trait Kernels: Send + Sync {
    /// Which instruction set.
    fn isa(&self) -> Isa;
    /// How activations lie in memory.
    fn layout(&self) -> Layout;
    /// How they want to be called.
    fn schedule(&self) -> Schedule;
    /// The convolution of the images as it runs on what [`load_images`](Kernels::load_images) stores:
    /// itself, or a pointwise one after im2col.
    fn stem(&self, conv: &Conv2d) -> Conv2d;
    /// Words that the weights of a convolution take, packed for [`conv`](Kernels::conv).
    fn packed_len(&self, gather: &Gather) -> usize;
    /// Puts weights in the order and the form in which convolutions read them.
    fn pack(&self, weights: Pack<'_>);
    /// Convolution, and its gradient with respect to the input.
    fn conv(&self, band: ConvBand<'_>);
    /// Multiplies and adds as fast as it can, with nothing to load or store; returns how many multiply-adds
    /// that were. What convolutions are measured against.
    fn peak(&self, rounds: usize) -> u64;
    /// weight gradient of a convolution.
    fn weight_gradient(&self, band: WeightGradientBand<'_>);
    /// Words of such a gradient.
    fn gradient_len(&self, conv: &Conv2d) -> usize;
    /// Puts a whole such gradient in the order of the weights, for the outputs from `first` on that
    /// `gradient` has room for.
    fn unpack_gradient(&self, conv: &Conv2d, summed: &[f32], first: usize, gradient: &mut [f32]);
    /// Stores the images of a group as the first convolution reads them.
    fn load_images(&self, images: Images<'_>);
    /// Batch norm with known statistics, shortcut and ReLU.
    fn normalize(&self, band: Normalize<'_>);
    /// The pass over its gradient; convolutions recompute the rest on load.
    fn normalize_reduce(&self, band: NormalizeReduce<'_>);
    /// Option A shortcut.
    fn pad_shortcut(&self, group: PadShortcut<'_>);
    /// Its gradient.
    fn pad_shortcut_backward(&self, group: PadShortcut<'_>);
    /// Global average pooling, to single precision `[channel][image]`.
    fn avg_pool(&self, group: AvgPool<'_>);
    /// Its gradient.
    fn avg_pool_backward(&self, group: AvgPool<'_>);
}

/// How kernels want the work of a weight gradient cut.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Lane groups that a call sums over, at most.
    pub lane_groups: usize,
    /// Pixels that a band should have at least: below, what a call costs besides shows.
    pub band_pixels: usize,
    /// Whether a call may be for some of the outputs alone.
    pub cuts_outputs: bool,
}

/// The kernels of a network: those of its convolutional part, and those of its head, which is always in
/// single precision.
#[derive(Clone, Copy)]
pub struct KernelSet {
    /// Up to the pooling.
    pub body: &'static dyn Kernels,
    /// From the pooling on.
    pub head: &'static dyn Kernels,
}

impl KernelSet {
    /// Those that work on `layout`.
    pub fn of(self, layout: Layout) -> &'static dyn Kernels {
        if layout == self.body.layout() { self.body } else { self.head }
    }
}

/// What a convolution reads: a tensor of one group, or what batch norm makes of one, recomputed on load rather
/// than written and read again.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// As it is stored.
    Stored(&'a [f32]),
    /// `relu(scale * input + shift)`, zero in lanes without an image.
    Normalized {
        /// What the convolution before gave.
        input: &'a [f32],
        /// The normalisation.
        affine: Affine<'a>,
        /// Images in the group.
        images: usize,
    },
    /// `a * gradient + b * input + c`, zero in lanes without an image: the gradient of what a convolution gave,
    /// with `gradient` masked by the ReLU after its batch norm.
    NormGradient {
        /// From a [`Reduction`].
        gradient: &'a [f32],
        /// What the convolution gave.
        input: &'a [f32],
        /// `a`, `b` and `c`, one value a channel.
        factors: [&'a [f32]; 3],
        /// Images in the group.
        images: usize,
    },
}

/// A convolution, or its gradient with respect to its input, over a band of the rows written.
pub struct ConvBand<'a> {
    /// What each pixel reads.
    pub gather: &'a Gather,
    /// Rows of the whole output that `output` holds.
    pub rows: Range<usize>,
    /// LaneGroup read, of shape `gather.from`.
    pub input: Source<'a>,
    /// From [`Kernels::pack`].
    pub weights: &'a [f32],
    /// Rows written, of shape `gather.to`.
    pub output: &'a mut [f32],
    /// Add to what `output` holds, instead of replacing it.
    pub accumulate: bool,
    /// Write with non-temporal stores what is replaced.
    pub non_temporal: bool,
    /// Sums over what is written.
    pub sums: Sums<'a>,
}

/// What a convolution sums up for a batch norm while its results are in registers.
pub enum Sums<'a> {
    /// Nothing.
    None,
    /// Forward: for the statistics of the batch norm that reads the result.
    Moments(Moments<'a>),
    /// Backward: for the batch norm whose output's gradient this is, all of it with what was there before.
    Gradient(Reduction<'a>),
}

/// First and second moment of each channel of a convolution's output about a pivot near the mean, which
/// keeps `E[(y - pivot)^2] - E[y - pivot]^2` from cancelling.
pub struct Moments<'a> {
    /// One value a channel.
    pub pivot: &'a [f32],
    /// Replaced by `[channel][sum of y - pivot, sum of (y - pivot)^2]`.
    pub sums: &'a mut [f64],
    /// Images in the group; further lanes do not count.
    pub images: usize,
}

/// The weight gradient of a convolution, over a band of rows of the output's gradient.
pub struct WeightGradientBand<'a> {
    /// The convolution.
    pub conv: &'a Conv2d,
    /// Rows of the output's gradient to sum over.
    pub rows: Range<usize>,
    /// The convolution's input in each group to sum over, at most [`Schedule::lane_groups`]; all worked out with the
    /// same values of the channels, if at all.
    pub inputs: &'a [Source<'a>],
    /// The gradient of its output in the same groups, likewise.
    pub output_gradients: &'a [Source<'a>],
    /// Feature maps of the output to work on: all, unless the kernels [cut](Schedule::cuts_outputs) them.
    pub outputs: Range<usize>,
    /// Replaced: `outputs` out of what [`Kernels::unpack_gradient`] takes.
    pub gradient: &'a mut [f32],
}

/// Images to store.
pub struct Images<'a> {
    /// Up to 16, `[image][channel][height][width]`.
    pub images: &'a [f32],
    /// The convolution that reads them.
    pub conv: &'a Conv2d,
    /// Where they go, of the shape that the [stem](Kernels::stem) reads.
    pub group: &'a mut [f32],
    /// Whether they are written with non-temporal stores, where the layout's kernels can.
    pub non_temporal: bool,
}

/// Weights to pack for [`Kernels::conv`].
pub struct Pack<'a> {
    /// The convolution, one way or the other.
    pub gather: &'a Gather,
    /// `[out][in][kernel][kernel]`.
    pub weights: &'a [f32],
    /// [`Kernels::packed_len`] words.
    pub packed: &'a mut [f32],
}

/// `output = relu(scale * input + shift + residual)` over some rows of a group.
pub struct Normalize<'a> {
    /// Shape of the tensor.
    pub shape: Shape,
    /// What the convolution gave.
    pub input: &'a [f32],
    /// Added before the ReLU.
    pub residual: Option<&'a [f32]>,
    /// Where the result goes; lanes without an image become zero.
    pub output: &'a mut [f32],
    /// One value a channel.
    pub scale: &'a [f32],
    /// One value a channel.
    pub shift: &'a [f32],
    /// Whether ReLU follows.
    pub relu: bool,
    /// Images in the group.
    pub images: usize,
}

/// `scale * input + shift`, one value a channel.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// What the input is multiplied by.
    pub scale: &'a [f32],
    /// What is added then.
    pub shift: &'a [f32],
}

/// First half of a batch norm's gradient: the gradient of its output is masked by the ReLU, which is what the shortcut
/// takes too, and summed. The second is worked out where it is read: [`Source::NormGradient`].
pub struct Reduction<'a> {
    /// What the ReLU let through.
    pub gate: Gate<'a>,
    /// What the batch norm read, in the rows of the gradient.
    pub input: &'a [f32],
    /// One value a channel.
    pub mean: &'a [f32],
    /// One value a channel.
    pub inv_std: &'a [f32],
    /// Replaced by `[channel][sum of g, sum of g * (input - mean) * inv_std]`.
    pub sums: &'a mut [f64],
}

/// Where a ReLU let values through.
#[derive(Clone, Copy)]
pub enum Gate<'a> {
    /// Everywhere: there is none.
    Open,
    /// Where this is positive, the output: after an addition nothing else tells.
    Output(&'a [f32]),
    /// Where this is positive, recomputed from the input: cheaper than reading the output.
    Input(Affine<'a>),
}

/// A [`Reduction`] of a gradient that no convolution gave.
pub struct NormalizeReduce<'a> {
    /// Shape of the tensor.
    pub shape: Shape,
    /// Gradient of the output; it becomes that of what the ReLU saw.
    pub gradient: &'a mut [f32],
    /// What is done with it.
    pub reduction: Reduction<'a>,
}

/// An option A shortcut, or its gradient, of one group.
pub struct PadShortcut<'a> {
    /// Shape before.
    pub narrow: Shape,
    /// Shape after: fewer pixels, more channels.
    pub wide: Shape,
    /// Step between the pixels kept.
    pub stride: usize,
    /// What is read: the narrow tensor, or the gradient of the wide one.
    pub input: &'a [f32],
    /// What is written.
    pub output: &'a mut [f32],
}

/// Global average pooling, or its gradient, of one group; the mean is `[channel][16 images]` in single
/// precision.
pub struct AvgPool<'a> {
    /// Shape before.
    pub shape: Shape,
    /// What is read: the tensor, or the gradient of the mean.
    pub input: &'a [f32],
    /// What is written.
    pub output: &'a mut [f32],
}

impl Source<'_> {
    fn check(&self, shape: Shape, layout: Layout) {
        let len = layout.lane_group_len(shape);
        match *self {
            Self::Stored(values) => assert_eq!(values.len(), len),
            Self::Normalized { input, affine, images } => {
                assert!(input.len() == len && images <= LANE_GROUP);
                affine.check(shape);
            }
            Self::NormGradient { gradient, input, factors, images } => {
                assert!(gradient.len() == len && input.len() == len && images <= LANE_GROUP);
                assert!(factors.iter().all(|values| values.len() == shape.channels));
            }
        }
    }
}

impl ConvBand<'_> {
    /// Whether the output is written with non-temporal stores, which takes whole lines.
    pub(super) fn non_temporal(&self) -> bool {
        self.non_temporal && !self.accumulate && begins_a_line(self.output)
    }

    /// Panics unless lengths are those of `layout`, with weights packed to `packed_len` words.
    pub(super) fn check(&self, layout: Layout, packed_len: usize) {
        let gather = self.gather;
        assert!(self.rows.end <= gather.rows.len() && gather.kernel <= MAX_KERNEL);
        assert_eq!(self.output.len(), self.rows.len() * layout.row_len(gather.to));
        assert_eq!(self.weights.len(), packed_len);
        self.input.check(gather.from, layout);
        let channels = gather.to.channels;
        match &self.sums {
            Sums::None => {}
            Sums::Moments(moments) => {
                assert!(moments.pivot.len() == channels && moments.sums.len() == 2 * channels);
            }
            Sums::Gradient(reduction) => reduction.check(gather.to, self.output.len()),
        }
    }
}

impl<'a> Sums<'a> {
    /// What is subtracted from each channel's values, or their second factors, before they are summed.
    pub(super) fn pivot(&self) -> &[f32] {
        match self {
            Self::None => &[],
            Self::Moments(moments) => moments.pivot,
            Self::Gradient(reduction) => reduction.mean,
        }
    }

    /// Images that count; gradients are zero in further lanes.
    pub(super) fn images(&self) -> usize {
        if let Self::Moments(moments) = self { moments.images } else { LANE_GROUP }
    }

    /// Where the sums go, `[channel][2]`, with those of gradients still to be multiplied by `inv_std`.
    pub(super) fn totals(&mut self) -> &mut [f64] {
        match self {
            Self::None => &mut [],
            Self::Moments(moments) => moments.sums,
            Self::Gradient(reduction) => reduction.sums,
        }
    }

    /// Ends the summing.
    pub(super) fn finish(&mut self) {
        if let Self::Gradient(Reduction { inv_std, sums, .. }) = self {
            sums.chunks_exact_mut(2).zip(*inv_std).for_each(|(sums, inv_std)| sums[1] *= f64::from(*inv_std));
        }
    }
}

impl Reduction<'_> {
    /// For a gradient of some length.
    fn check(&self, shape: Shape, len: usize) {
        assert_eq!(self.input.len(), len);
        match self.gate {
            Gate::Open => {}
            Gate::Output(rectified) => assert_eq!(rectified.len(), len),
            Gate::Input(affine) => affine.check(shape),
        }
        assert!(self.mean.len() == shape.channels && self.inv_std.len() == shape.channels);
        assert_eq!(self.sums.len(), 2 * shape.channels);
    }
}

impl WeightGradientBand<'_> {
    /// Panics unless lengths are those of `layout` and `schedule`, where all weights' gradient takes `whole` words.
    pub(super) fn check(&self, layout: Layout, schedule: Schedule, whole: usize) {
        let conv = self.conv;
        assert!(self.rows.end <= conv.vertical.output && !self.rows.is_empty() && self.outputs.end <= conv.outputs);
        assert!(schedule.cuts_outputs || self.outputs == (0..conv.outputs));
        assert!((1..=schedule.lane_groups).contains(&self.inputs.len()));
        assert_eq!(self.inputs.len(), self.output_gradients.len());
        self.inputs.iter().for_each(|group| group.check(conv.input(), layout));
        self.output_gradients.iter().for_each(|group| group.check(conv.output(), layout));
        assert_eq!(
            self.gradient.len(),
            if schedule.cuts_outputs { whole / conv.outputs * self.outputs.len() } else { whole }
        );
    }
}

/// Whether memory begins with a whole line of the caches.
fn begins_a_line(memory: &[f32]) -> bool {
    const LINE_BYTES: usize = 64;
    (memory.as_ptr() as usize).is_multiple_of(LINE_BYTES)
}

impl Pack<'_> {
    /// Panics unless there is room for `packed_len` words.
    pub(super) fn check(&self, packed_len: usize) {
        assert_eq!(self.weights.len(), self.gather.conv.weight_len());
        assert_eq!(self.packed.len(), packed_len);
    }
}

impl Images<'_> {
    /// Whether they are written with non-temporal stores, which takes whole lines.
    pub(super) fn non_temporal(&self) -> bool {
        self.non_temporal && begins_a_line(self.group)
    }

    /// Panics unless lengths are those of `layout`, where the first convolution reads `shape`.
    pub(super) fn check(&self, layout: Layout, shape: Shape) {
        assert!(self.images.len() <= LANE_GROUP * self.conv.input().len());
        assert_eq!(self.group.len(), layout.lane_group_len(shape));
    }
}

/// Checks that slices are of one length, a whole number of rows of `shape`.
fn check_rows(shape: Shape, layout: Layout, slices: &[&[f32]]) {
    let len = slices[0].len();
    assert!(len.is_multiple_of(layout.row_len(shape)) && slices.iter().all(|slice| slice.len() == len));
}

impl Normalize<'_> {
    /// Panics unless lengths are those of `layout`.
    pub(super) fn check(&self, layout: Layout) {
        check_rows(self.shape, layout, &[self.input, self.output, self.residual.unwrap_or(self.input)]);
        assert!(self.scale.len() == self.shape.channels && self.shift.len() == self.shape.channels);
        assert!(self.images <= LANE_GROUP);
    }
}

impl Affine<'_> {
    fn check(&self, shape: Shape) {
        assert!(self.scale.len() == shape.channels && self.shift.len() == shape.channels);
    }
}

impl NormalizeReduce<'_> {
    /// Panics unless lengths are those of `layout`.
    pub(super) fn check(&self, layout: Layout) {
        check_rows(self.shape, layout, &[self.gradient]);
        self.reduction.check(self.shape, self.gradient.len());
    }
}

impl PadShortcut<'_> {
    /// Panics unless lengths are those of `layout`.
    pub(super) fn check(&self, layout: Layout) {
        let (narrow, wide) = (layout.lane_group_len(self.narrow), layout.lane_group_len(self.wide));
        let lengths = (self.input.len(), self.output.len());
        assert!(lengths == (narrow, wide) || lengths == (wide, narrow));
        assert!(self.first_channel() + self.narrow.channels <= self.wide.channels);
        assert!(self.kept_pixels().all(|(kept, _)| kept < self.narrow.height * self.narrow.width));
    }

    /// Where the narrow tensor's channels begin in the wide one.
    pub(super) fn first_channel(&self) -> usize {
        (self.wide.channels - self.narrow.channels) / 2
    }

    /// Each pixel of the narrow tensor that is kept, and its place in the wide one.
    pub(super) fn kept_pixels(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (narrow, wide, stride) = (self.narrow.width, self.wide, self.stride);
        (0..wide.height * wide.width)
            .map(move |pixel| (pixel / wide.width * stride * narrow + pixel % wide.width * stride, pixel))
    }
}

impl AvgPool<'_> {
    /// Panics unless lengths are those of `layout`.
    pub(super) fn check(&self, layout: Layout) {
        let (before, after) = (layout.lane_group_len(self.shape), self.shape.channels * LANE_GROUP);
        let lengths = (self.input.len(), self.output.len());
        assert!(lengths == (before, after) || lengths == (after, before));
    }
}
