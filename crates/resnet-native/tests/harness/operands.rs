//! Operands of convolutions: values that are stored, and values that are recomputed on load.

use proptest::prelude::*;
use resnet_graph::{Precision, Shape};
use resnet_native::kernels::{NormValues, Operand};
use resnet_native::layout::{LANE_GROUP, Layout};

use super::data::{each, pack, values};
use crate::reference::{Exact, noise};

/// The kinds of operands, without tensors.
pub const KINDS: [Operand<(), ()>; 3] = [
    Operand::Stored(()),
    Operand::Normalized { input: (), norm: () },
    Operand::NormGradient { gradient: (), input: (), norm: () },
];

/// One of the [`KINDS`].
pub fn kinds() -> impl Strategy<Value = Operand<(), ()>> {
    prop_oneof![2 => Just(KINDS[0]), 1 => Just(KINDS[1]), 2 => Just(KINDS[2])]
}

/// An operand of a batch.
pub struct BatchOperand {
    kind: Operand<(), ()>,
    shape: Shape,
    images: usize,
    /// As [`Operand::tensors`] gives them.
    tensors: [Vec<f32>; 2],
    norm: NormValues,
}

impl BatchOperand {
    pub fn new(precision: Precision, kind: Operand<(), ()>, seed: u64, images: usize, shape: Shape) -> Self {
        let per_channel = |salt| noise(seed ^ salt, shape.channels);
        let tensors = [0, 16].map(|salt| values(precision, seed ^ salt, images * shape.len()));
        let (scale, shift) = (per_channel(17), per_channel(18));
        let norm =
            NormValues { scale, shift, factors: [19, 20, 21].map(per_channel), ..NormValues::new(shape.channels) };
        Self { kind, shape, images, tensors, norm }
    }

    /// What is read, and the same with every term made positive.
    pub fn exact(&self) -> Exact {
        each(&self.tensors[0], self.shape, |i, c| {
            let [first, second] = self.tensors.each_ref().map(|tensor| f64::from(tensor[i]));
            let (scale, shift) = (f64::from(self.norm.scale[c]), f64::from(self.norm.shift[c]));
            let [fa, fb, fc] = self.norm.factors.each_ref().map(|values| f64::from(values[c]));
            match self.kind {
                Operand::Stored(()) => (first, first.abs()),
                Operand::Normalized { .. } => ((scale * first + shift).max(0.0), (scale * first).abs() + shift.abs()),
                Operand::NormGradient { .. } => {
                    (fa * first + fb * second + fc, (fa * first).abs() + (fb * second).abs() + fc.abs())
                }
            }
        })
    }

    /// Both tensors, laid out.
    pub fn pack(&self, layout: Layout) -> [Vec<f32>; 2] {
        self.tensors.each_ref().map(|tensor| pack(layout, tensor, self.shape))
    }

    /// A lane group of what [`pack`](Self::pack) gave.
    pub fn group<'a>(
        &'a self,
        layout: Layout,
        packed: &'a [Vec<f32>; 2],
        group: usize,
    ) -> Operand<&'a [f32], &'a NormValues> {
        let len = layout.lane_group_len(self.shape);
        self.kind.of(packed.each_ref().map(|tensor| &tensor[group * len..][..len]), |()| &self.norm)
    }

    /// Images in a lane group.
    pub fn images_of(&self, group: usize) -> usize {
        (self.images - group * LANE_GROUP).min(LANE_GROUP)
    }
}
