//! The kernels of training: what each is given, and the checks of lengths that they rely on.

use std::ops::Range;

use super::Isa;
use crate::geometry::Conv2d;
use crate::layout::gather::Gather;
use crate::layout::{LANE_GROUP, Layout};
use resnet_graph::Shape;

/// Side of the largest kernel.
pub const MAX_KERNEL: usize = 7;

/// The kernels of one instruction set for one precision. Activations lie in its
/// [`layout`](Kernels::layout).
pub trait Kernels: Send + Sync {
    /// The instruction set they are made of.
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
    /// Multiplies and adds as fast as it can, with nothing to load or store; returns how many
    /// multiply-adds that were. What convolutions are measured against.
    fn peak(&self, rounds: usize) -> u64;
    /// The weight gradient of a convolution, in the kernels' order.
    fn weight_gradient(&self, band: WeightGradientBand<'_>);
    /// Words of a [weight gradient](Kernels::weight_gradient).
    fn gradient_len(&self, conv: &Conv2d) -> usize;
    /// Puts a whole [weight gradient](Kernels::weight_gradient) in the order of the weights, for
    /// the outputs from `first` on that `gradient` has room for.
    fn unpack_gradient(&self, conv: &Conv2d, summed: &[f32], first: usize, gradient: &mut [f32]);
    /// Stores the images of a lane group as the first convolution reads them.
    fn load_images(&self, images: Images<'_>);
    /// Batch norm with known statistics, shortcut and ReLU.
    fn normalize(&self, band: Normalize<'_>);
    /// The first half of batch norm's gradient, where no convolution gave the gradient of its
    /// output; convolutions recompute the second half on load.
    fn normalize_reduce(&self, band: NormalizeReduce<'_>);
    /// Option A shortcut (arXiv:1512.03385, section 3.3): zero channels and a stride.
    fn pad_shortcut(&self, group: PadShortcut<'_>);
    /// The gradient of an option A shortcut.
    fn pad_shortcut_backward(&self, group: PadShortcut<'_>);
    /// Global average pooling, to single precision `[channel][image]`.
    fn avg_pool(&self, group: AvgPool<'_>);
    /// The gradient of global average pooling.
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

/// The kernels of a network: those of its convolutional part, and those of its head, which is
/// always in single precision.
#[derive(Clone, Copy)]
pub struct KernelSet {
    /// Up to the pooling.
    pub body: &'static dyn Kernels,
    /// From the pooling on.
    pub head: &'static dyn Kernels,
}

impl KernelSet {
    /// The kernels that work on `layout`.
    pub fn of(self, layout: Layout) -> &'static dyn Kernels {
        if layout == self.body.layout() { self.body } else { self.head }
    }
}

/// What a convolution reads: a tensor, or what batch norm makes of one, recomputed on load rather
/// than written and read again.
///
/// Tensors go by `P` and batch norms by `N`: in a plan places in memory and indices, in a kernel
/// the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand<P, N> {
    /// The tensor as it is stored.
    Stored(P),
    /// A batch norm's output after the ReLU, `relu(scale * input + shift)`.
    Normalized {
        /// What the batch norm reads: the output of the convolution before.
        input: P,
        /// The batch norm.
        norm: N,
    },
    /// The gradient of a batch norm's input, `a * gradient + b * input + c` with its
    /// [factors](NormValues::factors).
    NormGradient {
        /// The gradient of the batch norm's output, masked by the ReLU: see [`NormReduction`].
        gradient: P,
        /// What the batch norm read: the output of the convolution before.
        input: P,
        /// The batch norm.
        norm: N,
    },
}

impl<P: Copy, N> Operand<P, N> {
    /// The tensors read; where there is one, it twice.
    pub fn tensors(&self) -> [P; 2] {
        match *self {
            Self::Stored(tensor) => [tensor; 2],
            Self::Normalized { input, .. } => [input; 2],
            Self::NormGradient { gradient, input, .. } => [gradient, input],
        }
    }

    /// The same kind of operand, of other [tensors](Self::tensors) and another batch norm.
    pub fn of<Q, M>(self, [first, second]: [Q; 2], norm: impl FnOnce(N) -> M) -> Operand<Q, M> {
        match self {
            Self::Stored(_) => Operand::Stored(first),
            Self::Normalized { norm: n, .. } => Operand::Normalized { input: first, norm: norm(n) },
            Self::NormGradient { norm: n, .. } => {
                Operand::NormGradient { gradient: first, input: second, norm: norm(n) }
            }
        }
    }
}

/// What a batch norm does to each channel in the current batch.
#[derive(Clone)]
pub struct NormValues {
    /// Mean of the input.
    pub mean: Vec<f32>,
    /// One over the input's standard deviation.
    pub inv_std: Vec<f32>,
    /// What the input is multiplied by.
    pub scale: Vec<f32>,
    /// What is added then.
    pub shift: Vec<f32>,
    /// `a`, `b` and `c` of the gradient with respect to the input `y`, `a g + b y + c` for a
    /// gradient `g` of the output, once the backward pass has come that far.
    pub factors: [Vec<f32>; 3],
}

impl NormValues {
    /// All zero.
    pub fn new(channels: usize) -> Self {
        let zeros = || vec![0.0; channels];
        let factors = std::array::from_fn(|_| zeros());
        Self { mean: zeros(), inv_std: zeros(), scale: zeros(), shift: zeros(), factors }
    }

    /// Panics unless there are values for `channels`.
    fn check(&self, channels: usize) {
        let values = [&self.mean, &self.inv_std, &self.scale, &self.shift].into_iter().chain(&self.factors);
        assert!(values.into_iter().all(|values| values.len() == channels));
    }
}

/// Where the ReLU after a batch norm let values through, which masks a gradient. Tensors go by `P`,
/// as in [`Operand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReluMask<P> {
    /// Everywhere: there is no ReLU.
    None,
    /// Where the batch norm's output is positive, recomputed from its input: cheaper than reading
    /// the output.
    Input,
    /// Where this is positive, the ReLU's output: after an addition nothing else tells.
    Output(P),
}

/// The first half of a batch norm's gradient: the gradient `g` of its output is masked by the ReLU,
/// which makes it that of the residual too, and summed, alone and times the normalised input. The
/// second half is recomputed where it is read: [`Operand::NormGradient`]. Tensors go by `P` and
/// batch norms by `N`, as in [`Operand`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormReduction<P, N> {
    /// The batch norm.
    pub norm: N,
    /// What it read.
    pub input: P,
    /// The ReLU after it.
    pub mask: ReluMask<P>,
}

impl<P: Copy, N> NormReduction<P, N> {
    /// The tensors read: the input, and the ReLU's output or, where that is not needed, the input
    /// again.
    pub fn tensors(&self) -> [P; 2] {
        [self.input, if let ReluMask::Output(output) = self.mask { output } else { self.input }]
    }

    /// The same kind of reduction, of other [tensors](Self::tensors) and another batch norm.
    pub fn of<Q, M>(self, [input, output]: [Q; 2], norm: impl FnOnce(N) -> M) -> NormReduction<Q, M> {
        let mask = match self.mask {
            ReluMask::None => ReluMask::None,
            ReluMask::Input => ReluMask::Input,
            ReluMask::Output(_) => ReluMask::Output(output),
        };
        NormReduction { norm: norm(self.norm), input, mask }
    }
}

/// A convolution, or its gradient with respect to its input, over a band of the rows written.
pub struct ConvBand<'a> {
    /// What each pixel reads.
    pub gather: &'a Gather,
    /// Rows of the whole output that `output` holds.
    pub rows: Range<usize>,
    /// Lane group read, of shape `gather.from`.
    pub input: Operand<&'a [f32], &'a NormValues>,
    /// Images in the lane group; further lanes are zero, and count in no sum.
    pub images: usize,
    /// From [`Kernels::pack`].
    pub weights: &'a [f32],
    /// Rows written, of shape `gather.to`.
    pub output: &'a mut [f32],
    /// Add to what `output` holds, instead of replacing it.
    pub accumulate: bool,
    /// Write what is replaced with non-temporal stores.
    pub non_temporal: bool,
    /// What is done with the results while they are in registers.
    pub epilogue: Epilogue<'a>,
    /// Replaced by what the [epilogue](Epilogue) sums up, `[channel][2]`; empty where it sums
    /// nothing.
    pub sums: &'a mut [f64],
}

/// What a convolution does with its results while they are in registers: it sums them up for a
/// batch norm.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Forward, for the statistics of the batch norm that reads the results: sums of `y - pivot`
    /// and of `(y - pivot)^2`. A pivot near the mean keeps `E[(y - pivot)^2] - E[y - pivot]^2` from
    /// cancelling.
    Moments {
        /// One value a channel.
        pivot: &'a [f32],
    },
    /// Backward, for the batch norm whose output's gradient `g` this is, all of it with what was
    /// there before: sums of `g`, masked, and of `g * (input - mean) * inv_std`.
    NormReduction(NormReduction<&'a [f32], &'a NormValues>),
}

/// The weight gradient of a convolution, over a band of rows of the output's gradient.
pub struct WeightGradientBand<'a> {
    /// The convolution.
    pub conv: &'a Conv2d,
    /// Rows of the output's gradient to sum over.
    pub rows: Range<usize>,
    /// The lane groups to sum over, at most [`Schedule::lane_groups`]; each tensor is the same kind
    /// of operand of the same batch norm in all of them.
    pub groups: &'a [ConvOperands<'a>],
    /// Feature maps of the output to work on: all, unless the kernels
    /// [cut](Schedule::cuts_outputs) them.
    pub outputs: Range<usize>,
    /// Replaced: `outputs` out of what [`Kernels::unpack_gradient`] takes.
    pub gradient: &'a mut [f32],
}

/// The factors of a weight gradient in one lane group.
#[derive(Clone, Copy)]
pub struct ConvOperands<'a> {
    /// The convolution's input.
    pub input: Operand<&'a [f32], &'a NormValues>,
    /// The gradient of its output.
    pub output_gradient: Operand<&'a [f32], &'a NormValues>,
    /// Images in the lane group; further lanes are zero.
    pub images: usize,
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
    /// The convolution, or its gradient with respect to the input.
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
    /// The batch norm.
    pub norm: &'a NormValues,
    /// Whether ReLU follows.
    pub relu: bool,
    /// Images in the lane group.
    pub images: usize,
}

/// A [`NormReduction`] of a gradient that no convolution gave.
pub struct NormalizeReduce<'a> {
    /// Shape of the tensor.
    pub shape: Shape,
    /// Gradient of the batch norm's output; it is masked in place.
    pub gradient: &'a mut [f32],
    /// How it is masked and summed.
    pub reduction: NormReduction<&'a [f32], &'a NormValues>,
    /// Replaced by `[channel][sum of g, sum of g * (input - mean) * inv_std]`.
    pub sums: &'a mut [f64],
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

/// Global average pooling, or its gradient, of one group; the mean is `[channel][16 images]` in
/// single precision.
pub struct AvgPool<'a> {
    /// Shape before.
    pub shape: Shape,
    /// What is read: the tensor, or the gradient of the mean.
    pub input: &'a [f32],
    /// What is written.
    pub output: &'a mut [f32],
}

impl Operand<&[f32], &NormValues> {
    fn check(&self, shape: Shape, layout: Layout) {
        assert!(self.tensors().iter().all(|tensor| tensor.len() == layout.lane_group_len(shape)));
        match self {
            Self::Stored(_) => {}
            Self::Normalized { norm, .. } | Self::NormGradient { norm, .. } => norm.check(shape.channels),
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
        assert!(self.images <= LANE_GROUP);
        let channels = gather.to.channels;
        match self.epilogue {
            Epilogue::None => {}
            Epilogue::Moments { pivot } => assert_eq!(pivot.len(), channels),
            Epilogue::NormReduction(reduction) => reduction.check(gather.to, self.output.len()),
        }
        assert_eq!(self.sums.len(), if self.epilogue.sums_up() { 2 * channels } else { 0 });
    }
}

impl<'a> Epilogue<'a> {
    /// Whether anything is summed up.
    pub(super) fn sums_up(self) -> bool {
        !matches!(self, Self::None)
    }

    /// What is subtracted from each channel's values, or from their second factors, before they are
    /// summed.
    pub(super) fn pivot(self) -> &'a [f32] {
        match self {
            Self::None => &[],
            Self::Moments { pivot } => pivot,
            Self::NormReduction(reduction) => &reduction.norm.mean,
        }
    }

    /// Ends the summing: what was summed of a gradient is still to be multiplied by `inv_std`.
    pub(super) fn finish(self, sums: &mut [f64]) {
        if let Self::NormReduction(NormReduction { norm, .. }) = self {
            sums.chunks_exact_mut(2).zip(&norm.inv_std).for_each(|(sums, inv_std)| sums[1] *= f64::from(*inv_std));
        }
    }
}

impl NormReduction<&[f32], &NormValues> {
    /// Panics unless tensors are of the length of some rows of `shape`.
    fn check(&self, shape: Shape, len: usize) {
        assert!(self.tensors().iter().all(|tensor| tensor.len() == len));
        self.norm.check(shape.channels);
    }
}

impl WeightGradientBand<'_> {
    /// Panics unless lengths are those of `layout` and `schedule`, where all weights' gradient
    /// takes `whole` words.
    pub(super) fn check(&self, layout: Layout, schedule: Schedule, whole: usize) {
        let conv = self.conv;
        assert!(self.rows.end <= conv.vertical.output && !self.rows.is_empty() && self.outputs.end <= conv.outputs);
        assert!(schedule.cuts_outputs || self.outputs == (0..conv.outputs));
        assert!((1..=schedule.lane_groups).contains(&self.groups.len()));
        for group in self.groups {
            group.input.check(conv.input(), layout);
            group.output_gradient.check(conv.output(), layout);
            assert!(group.images <= LANE_GROUP);
        }
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
        self.norm.check(self.shape.channels);
        assert!(self.images <= LANE_GROUP);
    }
}

impl NormalizeReduce<'_> {
    /// Panics unless lengths are those of `layout`.
    pub(super) fn check(&self, layout: Layout) {
        check_rows(self.shape, layout, &[self.gradient]);
        self.reduction.check(self.shape, self.gradient.len());
        assert_eq!(self.sums.len(), 2 * self.shape.channels);
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
