//! Batch norms whose output's gradient a convolution gives.

use proptest::prelude::*;
use resnet_graph::{Precision, Shape};
use resnet_native::kernels::{NormReduction, NormValues, ReluMask};
use resnet_native::layout::Layout;

use super::data::{channel_of, pack, values};
use crate::reference::{Exact, noise};

/// The kinds of masks, without tensors.
pub const MASKS: [ReluMask<()>; 3] = [ReluMask::None, ReluMask::Input, ReluMask::Output(())];

/// No batch norm, or one with one of the [`MASKS`].
pub fn masks() -> impl Strategy<Value = Option<ReluMask<()>>> {
    prop_oneof![Just(None), Just(Some(MASKS[0])), Just(Some(MASKS[1])), Just(Some(MASKS[2]))]
}

/// A batch norm in a batch.
pub struct BatchNorm {
    mask: ReluMask<()>,
    /// What it read.
    input: Vec<f32>,
    /// What the ReLU after an addition gave.
    output: Vec<f32>,
    values: NormValues,
}

impl BatchNorm {
    pub fn new(precision: Precision, mask: ReluMask<()>, seed: u64, images: usize, shape: Shape) -> Self {
        let per_channel = |salt| noise(seed ^ salt, shape.channels);
        let [scale, shift, mean, inv_std] = [31, 32, 33, 34].map(per_channel);
        let mut input = values(precision, seed ^ 35, images * shape.len());
        for (index, input) in input.iter_mut().enumerate() {
            let channel = channel_of(index, shape);
            let is_at_the_kink = |value: f32| (scale[channel] * value + shift[channel]).abs() < 1e-5;
            // Rounding decides which side of the ReLU this falls on: it must not matter.
            if is_at_the_kink(*input) {
                *input = if is_at_the_kink(1.0) { -1.0 } else { 1.0 };
            }
        }
        let output = values(precision, seed ^ 36, images * shape.len());
        let values = NormValues { scale, shift, mean, inv_std, ..NormValues::new(shape.channels) };
        Self { mask, input, output, values }
    }

    /// What it read and what the ReLU gave, laid out.
    pub fn pack(&self, layout: Layout, shape: Shape) -> [Vec<f32>; 2] {
        [&self.input, &self.output].map(|values| pack(layout, values, shape))
    }

    /// The reduction of some rows of what [`pack`](Self::pack) gave.
    pub fn reduction<'a>(&'a self, tensors: [&'a [f32]; 2]) -> NormReduction<&'a [f32], &'a NormValues> {
        NormReduction { norm: (), input: (), mask: self.mask }.of(tensors, |()| &self.values)
    }

    /// Masks a gradient and gives its sums, `[channel][of g, of g * normalised]`, in the magnitudes
    /// of their terms.
    pub fn reduce(&self, gradient: &mut Exact, shape: Shape) -> Exact {
        let NormValues { scale, shift, mean, inv_std, .. } = &self.values;
        let mut sums = Exact { values: vec![0.0; 2 * shape.channels], magnitudes: vec![0.0; 2 * shape.channels] };
        for (index, (value, magnitude)) in gradient.values.iter_mut().zip(&mut gradient.magnitudes).enumerate() {
            let channel = channel_of(index, shape);
            let input = f64::from(self.input[index]);
            let passes = match self.mask {
                ReluMask::None => true,
                ReluMask::Input => f64::from(scale[channel]) * input + f64::from(shift[channel]) > 0.0,
                ReluMask::Output(()) => self.output[index] > 0.0,
            };
            if !passes {
                (*value, *magnitude) = (0.0, 0.0);
            }
            let (mean, inv_std) = (f64::from(mean[channel]), f64::from(inv_std[channel]));
            let normalized = [1.0, (input - mean) * inv_std];
            let magnitudes = [1.0, (input.abs() + mean.abs()) * inv_std.abs()];
            for which in 0..2 {
                sums.values[2 * channel + which] += *value * normalized[which];
                sums.magnitudes[2 * channel + which] += *magnitude * magnitudes[which];
            }
        }
        sums
    }
}
