//! The rows that a convolution reads: where they are stored, or recomputed on load into memory of
//! the thread's.

use std::ops::Range;

use super::{Simd, Vector};
use crate::kernels::{NormValues, Operand};
use crate::layout::{LANE_GROUP, lane_mask};
use crate::memory::Scratch;

/// Some rows of an operand.
pub struct Rows {
    group: *const f32,
    /// What holds them where they are computed.
    _scratch: Option<Scratch>,
}

impl Rows {
    /// Rows `range` of an operand in a lane group of `images`, of `len` floats each.
    #[inline(always)]
    pub fn new<V: Vector>(
        simd: Simd<V>,
        operand: Operand<&[f32], &NormValues>,
        images: usize,
        range: Range<usize>,
        len: usize,
    ) -> Self {
        if let Operand::Stored(values) = operand {
            assert!(range.end * len <= values.len());
            return Self { group: values.as_ptr(), _scratch: None };
        }
        let mut scratch = Scratch::take(range.len() * len);
        let (rows, first) = (scratch.all(), range.start * len);
        compute(simd, operand, images, first, rows);
        Self { group: rows.as_ptr().wrapping_sub(first), _scratch: Some(scratch) }
    }

    /// Where the group would begin if all its rows were there.
    pub fn group(&self) -> *const f32 {
        self.group
    }
}

/// Computes an operand's values from the one at `first`, the start of a pixel, on; zeros in lanes
/// without an image.
#[inline(always)]
fn compute<V: Vector>(
    simd: Simd<V>,
    operand: Operand<&[f32], &NormValues>,
    images: usize,
    first: usize,
    output: &mut [f32],
) {
    let mask = lane_mask(images);
    match operand {
        Operand::Stored(values) => output.copy_from_slice(&values[first..][..output.len()]),
        Operand::Normalized { input, norm: NormValues { scale, shift, .. } } => {
            let pixel = scale.len() * LANE_GROUP;
            let input = input[first..][..output.len()].chunks_exact(pixel);
            for (input, output) in input.zip(output.chunks_exact_mut(pixel)) {
                for (channel, (&scale, &shift)) in scale.iter().zip(shift).enumerate() {
                    let (scale, shift) = (simd.splat(scale), simd.splat(shift));
                    for part in (0..LANE_GROUP).step_by(V::LANES) {
                        let at = channel * LANE_GROUP + part;
                        // SAFETY: both pixels are 16 lanes for each channel, and the mask is one
                        // for each lane.
                        unsafe {
                            let value = simd.load(input.as_ptr().add(at)).mul_add(scale, shift).relu();
                            value.mul(simd.load(mask.as_ptr().add(part))).store(output.as_mut_ptr().add(at));
                        }
                    }
                }
            }
        }
        Operand::NormGradient { gradient, input, norm } => {
            let [a, b, c] = &norm.factors;
            let pixel = a.len() * LANE_GROUP;
            let gradient = gradient[first..][..output.len()].chunks_exact(pixel);
            let input = input[first..][..output.len()].chunks_exact(pixel);
            for ((gradient, input), output) in gradient.zip(input).zip(output.chunks_exact_mut(pixel)) {
                for (channel, ((&a, &b), &c)) in a.iter().zip(b).zip(c).enumerate() {
                    let [a, b, c] = [simd.splat(a), simd.splat(b), simd.splat(c)];
                    for part in (0..LANE_GROUP).step_by(V::LANES) {
                        let at = channel * LANE_GROUP + part;
                        // SAFETY: all pixels are 16 lanes for each channel, and the mask is one for
                        // each lane.
                        unsafe {
                            let rest = simd.load(input.as_ptr().add(at)).mul_add(b, c);
                            let value = simd.load(gradient.as_ptr().add(at)).mul_add(a, rest);
                            value.mul(simd.load(mask.as_ptr().add(part))).store(output.as_mut_ptr().add(at));
                        }
                    }
                }
            }
        }
    }
}
