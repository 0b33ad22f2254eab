//! Convolutions to try, and how a kernel is run over a batch.

use proptest::prelude::*;
use resnet_graph::Shape;
use resnet_native::geometry::Conv2d;
use resnet_native::kernels::{ConvBand, ConvOperands, Epilogue, Kernels, Pack, WeightGradientBand};
use resnet_native::layout::LANE_GROUP;
use resnet_native::layout::gather::Gather;

use super::data::{Lines, pack, split, unpack_checked};
use super::norms::BatchNorm;
use super::operands::BatchOperand;

/// A convolution of a batch.
#[derive(Clone, Debug)]
pub struct Case {
    pub conv: Conv2d,
    pub images: usize,
    pub seed: u64,
}

/// A convolution with a border of half its kernel.
pub fn conv_of(input: Shape, outputs: usize, kernel: usize, stride: usize) -> Conv2d {
    let padding = kernel / 2;
    let extent = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    Conv2d::new(input, Shape::new(outputs, extent(input.height), extent(input.width)), kernel, stride, padding)
}

/// Convolutions of odd and even sizes, down to one pixel, with few and many channels.
pub fn cases() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![3 => 1usize..20, 1 => 20usize..=130];
    // Half of them may be computed by Winograd's method.
    let kind = prop_oneof![3 => Just((3, 1)), 1 => Just((3, 2)), 1 => Just((1, 1)), 1 => Just((1, 2))];
    (channels(), channels(), 1usize..10, 1usize..14, kind, 1usize..=40, any::<u64>()).prop_map(
        |(inputs, outputs, height, width, (kernel, stride), images, seed)| Case {
            conv: conv_of(Shape::new(inputs, height, width), outputs, kernel, stride),
            images,
            seed,
        },
    )
}

/// The convolutions of ImageNet's networks that [`cases`] has none of: a stem of 7x7 with step 2,
/// and more than 512 channels, which the shortcuts of deep stages read or write.
pub fn large_cases() -> impl Iterator<Item = Case> {
    let kinds = [
        (Shape::new(3, 15, 18), 64, 7, 2, 17),
        (Shape::new(20, 7, 8), 9, 7, 2, 3),
        (Shape::new(520, 3, 4), 24, 3, 1, 2),
        (Shape::new(24, 4, 5), 545, 3, 1, 2),
        (Shape::new(530, 3, 3), 33, 3, 2, 2),
        (Shape::new(1024, 3, 4), 16, 1, 2, 18),
        (Shape::new(40, 2, 3), 1030, 1, 1, 2),
    ];
    kinds.into_iter().zip(1..).map(|((input, outputs, kernel, stride, images), seed)| Case {
        conv: conv_of(input, outputs, kernel, stride),
        images,
        seed,
    })
}

/// What a convolution is run on.
pub struct Data<'a> {
    pub input: &'a BatchOperand,
    pub weights: &'a [f32],
    /// What it adds to.
    pub before: Option<&'a [f32]>,
    pub wanted: Wanted<'a>,
}

/// What is to be summed.
#[derive(Clone, Copy)]
pub enum Wanted<'a> {
    Nothing,
    /// About these pivots.
    Moments(&'a [f32]),
    NormReduction(&'a BatchNorm),
}

impl Case {
    pub fn input(&self) -> Shape {
        self.conv.input()
    }

    pub fn output(&self) -> Shape {
        self.conv.output()
    }

    /// Runs a convolution over all groups, each in two bands; gives what it wrote and its sums over
    /// the batch.
    pub fn run(&self, kernels: &dyn Kernels, gather: &Gather, data: Data<'_>) -> (Vec<f32>, Vec<f32>) {
        let layout = kernels.layout();
        let mut weights = vec![f32::NAN; kernels.packed_len(gather)];
        kernels.pack(Pack { gather, weights: data.weights, packed: &mut weights });
        let input = data.input.pack(layout);
        let mut output = Lines::new(match data.before {
            Some(before) => pack(layout, before, gather.to),
            None => vec![f32::NAN; self.images.div_ceil(LANE_GROUP) * layout.lane_group_len(gather.to)],
        });
        let output = output.words();
        let norm = match data.wanted {
            Wanted::NormReduction(norm) => norm.pack(layout, gather.to),
            _ => Default::default(),
        };
        let sums_len = if let Wanted::Nothing = data.wanted { 0 } else { 2 * gather.to.channels };
        let mut totals = vec![0.0f64; sums_len];
        let lane_group_len = layout.lane_group_len(gather.to);
        for (group, output) in output.chunks_mut(lane_group_len).enumerate() {
            let band_len = gather.to.height.div_ceil(2) * layout.row_len(gather.to);
            for (band, (rows, output)) in split(gather.to.height, 2).zip(output.chunks_mut(band_len)).enumerate() {
                let mut sums = vec![f64::NAN; sums_len];
                let start = group * lane_group_len + band * band_len;
                let place = start..start + output.len();
                kernels.conv(ConvBand {
                    gather,
                    rows,
                    input: data.input.group(layout, &input, group),
                    images: data.input.images_of(group),
                    weights: &weights,
                    output,
                    accumulate: data.before.is_some(),
                    non_temporal: self.seed.is_multiple_of(2),
                    epilogue: match data.wanted {
                        Wanted::Nothing => Epilogue::None,
                        Wanted::Moments(pivot) => Epilogue::Moments { pivot },
                        Wanted::NormReduction(batch_norm) => {
                            let tensors = norm.each_ref().map(|tensor| &tensor[place.clone()]);
                            Epilogue::NormReduction(batch_norm.reduction(tensors))
                        }
                    },
                    sums: &mut sums,
                });
                totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            }
        }
        let output = unpack_checked(layout, output, gather.to, self.images);
        (output, totals.into_iter().map(|total| total as f32).collect())
    }

    /// The weight gradient, summed over bands of rows, parts of the outputs and sets of groups.
    pub fn weight_gradient(
        &self,
        kernels: &dyn Kernels,
        x: &BatchOperand,
        g: &BatchOperand,
        (bands, parts): (usize, usize),
    ) -> Vec<f32> {
        let (conv, layout) = (&self.conv, kernels.layout());
        let (input, gradient) = (x.pack(layout), g.pack(layout));
        let whole = kernels.gradient_len(conv);
        let mut summed = vec![0.0f32; whole];
        let groups: Vec<_> = (0..self.images.div_ceil(LANE_GROUP))
            .map(|group| ConvOperands {
                input: x.group(layout, &input, group),
                output_gradient: g.group(layout, &gradient, group),
                images: x.images_of(group),
            })
            .collect();
        for groups in groups.chunks(kernels.schedule().lane_groups) {
            for rows in split(self.output().height, bands) {
                for outputs in split(conv.outputs, if kernels.schedule().cuts_outputs { parts } else { 1 }) {
                    let range = outputs.start * whole / conv.outputs..outputs.end * whole / conv.outputs;
                    let mut part = vec![f32::NAN; range.len()];
                    let rows = rows.clone();
                    kernels.weight_gradient(WeightGradientBand { conv, rows, groups, outputs, gradient: &mut part });
                    summed[range].iter_mut().zip(&part).for_each(|(total, part)| *total += part);
                }
            }
        }
        let mut found = vec![f32::NAN; conv.weight_len()];
        for outputs in split(conv.outputs, 3) {
            let len = conv.inputs * conv.taps();
            kernels.unpack_gradient(conv, &summed, outputs.start, &mut found[outputs.start * len..outputs.end * len]);
        }
        found
    }
}
