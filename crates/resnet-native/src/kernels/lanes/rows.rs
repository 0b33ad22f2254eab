//! The rows that a convolution reads: where they are stored, or recomputed on load into memory of the thread's.

use std::ops::Range;

use super::Vector;
use super::normalize::apply;
use crate::kernels::Source;
use crate::layout::{LANE_GROUP, lane_mask};
use crate::memory::Scratch;

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
                for (pixel, output) in output.chunks_exact_mut(channels * LANE_GROUP).enumerate() {
                    for channel in 0..channels {
                        for part in (0..LANE_GROUP).step_by(V::LANES) {
                            let at = channel * LANE_GROUP + part;
                            let y = V::load(input.add(pixel * channels * LANE_GROUP + at));
                            let mask = V::load(mask.as_ptr().add(part));
                            apply(affine, y, channel).relu().mul(mask).store(output.as_mut_ptr().add(at));
                        }
                    }
                }
            }
            Source::NormGradient { gradient, input, factors: [a, b, c], images } => {
                let (channels, mask) = (a.len(), lane_mask(images));
                let (gradient, input) = (gradient.as_ptr().add(first), input.as_ptr().add(first));
                for (pixel, output) in output.chunks_exact_mut(channels * LANE_GROUP).enumerate() {
                    for channel in 0..channels {
                        for part in (0..LANE_GROUP).step_by(V::LANES) {
                            let at = channel * LANE_GROUP + part;
                            let y = V::load(input.add(pixel * channels * LANE_GROUP + at));
                            let g = V::load(gradient.add(pixel * channels * LANE_GROUP + at));
                            let rest = y.mul_add(V::splat(b[channel]), V::splat(c[channel]));
                            let value = g.mul_add(V::splat(a[channel]), rest);
                            value.mul(V::load(mask.as_ptr().add(part))).store(output.as_mut_ptr().add(at));
                        }
                    }
                }
            }
        }
    }
}
