//! The rows that a convolution reads: where they are stored, or worked out on load into memory of the thread's.

use std::ops::Range;

use super::Vector;
use super::normalize::apply;
use super::scratch::Scratch;
use crate::kernels::{Affine, Source};
use crate::layout::{GROUP, lane_mask};

/// Some rows of a group.
pub struct Rows {
    group: *const f32,
    /// Where they were worked out.
    _scratch: Option<Scratch>,
}

impl Rows {
    /// Rows `range` of a source, of `len` floats each.
    ///
    /// # Safety
    /// The rows lie inside the source, and the machine has the vector's instructions.
    #[inline(always)]
    pub unsafe fn new<V: Vector>(source: Source<'_>, range: Range<usize>, len: usize) -> Self {
        if let Source::Stored(values) = source {
            return Self { group: values.as_ptr(), _scratch: None };
        }
        let mut scratch = Scratch::take(range.len() * len);
        let (rows, first) = (scratch.all(), range.start * len);
        // SAFETY: passed on from the caller.
        unsafe { work_out::<V>(source, first, rows) };
        Self { group: rows.as_ptr().wrapping_sub(first), _scratch: Some(scratch) }
    }

    /// Where the group would begin if all its rows were there.
    pub fn group(&self) -> *const f32 {
        self.group
    }
}

/// Works out a source's values from the one at `first`, the start of a pixel, on.
///
/// # Safety
/// The values lie inside the source, and the machine has the vector's instructions.
#[inline(always)]
unsafe fn work_out<V: Vector>(source: Source<'_>, first: usize, output: &mut [f32]) {
    // SAFETY: passed on from the caller.
    unsafe {
        match source {
            Source::Stored(values) => output.copy_from_slice(&values[first..first + output.len()]),
            Source::Normalized { input, affine, images } => {
                let (channels, mask, input) = (affine.scale.len(), lane_mask(images), input.as_ptr().add(first));
                for (pixel, output) in output.chunks_exact_mut(channels * GROUP).enumerate() {
                    for channel in 0..channels {
                        for part in (0..GROUP).step_by(V::LANES) {
                            let at = channel * GROUP + part;
                            let y = V::load(input.add(pixel * channels * GROUP + at));
                            let mask = V::load(mask.as_ptr().add(part));
                            apply(affine, y, channel).relu().mul(mask).store(output.as_mut_ptr().add(at));
                        }
                    }
                }
            }
            Source::NormGradient { gradient, gate, input, factors, images } => {
                let tensors = [gradient.as_ptr().add(first), input.as_ptr().add(first)];
                let mask = lane_mask(images);
                // Each is compiled for itself.
                match gate {
                    None => norm_gradient::<V>(tensors, None, factors, &mask, output),
                    Some(affine) => norm_gradient::<V>(tensors, Some(affine), factors, &mask, output),
                }
            }
        }
    }
}

/// [`Source::NormGradient`] from the first values of the gradient and the input on.
///
/// # Safety
/// As for [`work_out`].
#[inline(always)]
unsafe fn norm_gradient<V: Vector>(
    [gradient, input]: [*const f32; 2],
    gate: Option<Affine<'_>>,
    [a, b, c]: [&[f32]; 3],
    mask: &[f32; GROUP],
    output: &mut [f32],
) {
    let channels = a.len();
    for (pixel, output) in output.chunks_exact_mut(channels * GROUP).enumerate() {
        for channel in 0..channels {
            for part in (0..GROUP).step_by(V::LANES) {
                let at = channel * GROUP + part;
                // SAFETY: passed on from the caller.
                unsafe {
                    let y = V::load(input.add(pixel * channels * GROUP + at));
                    let mut g = V::load(gradient.add(pixel * channels * GROUP + at));
                    if let Some(affine) = gate {
                        g = g.where_positive(apply(affine, y, channel));
                    }
                    let value = g.mul_add(V::splat(a[channel]), y.mul_add(V::splat(b[channel]), V::splat(c[channel])));
                    value.mul(V::load(mask.as_ptr().add(part))).store(output.as_mut_ptr().add(at));
                }
            }
        }
    }
}
