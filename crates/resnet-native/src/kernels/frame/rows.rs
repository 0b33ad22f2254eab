//! The rows that a convolution reads: where they are stored, or worked out on load into memory of the thread's.

use std::cell::RefCell;
use std::ops::Range;

use super::Vector;
use super::normalize::apply;
use crate::arena::Arena;
use crate::kernels::Source;
use crate::layout::{GROUP, lane_mask};

thread_local! {
    /// Memory for rows, kept for the next kernel.
    static SCRATCH: RefCell<Vec<Arena>> = const { RefCell::new(Vec::new()) };
}

/// Some rows of a group.
pub struct Rows {
    group: *const f32,
    scratch: Option<Arena>,
}

impl Rows {
    /// Rows `range` of a source, of `len` floats each.
    ///
    /// # Safety
    /// The rows lie inside the source, and the machine has the vector's instructions.
    #[inline(always)]
    pub unsafe fn new<V: Vector>(source: Source<'_>, range: Range<usize>, len: usize) -> Self {
        if let Source::Stored(values) = source {
            return Self { group: values.as_ptr(), scratch: None };
        }
        let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_else(|| Arena::new(0));
        if scratch.as_slice().len() < range.len() * len {
            scratch = Arena::new(range.len() * len);
        }
        let first = range.start * len;
        // SAFETY: passed on from the caller.
        unsafe { work_out::<V>(source, first, &mut scratch.all()[..range.len() * len]) };
        Self { group: scratch.as_slice().as_ptr().wrapping_sub(first), scratch: Some(scratch) }
    }

    /// Where the group would begin if all its rows were there.
    pub fn group(&self) -> *const f32 {
        self.group
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        SCRATCH.with_borrow_mut(|kept| kept.extend(self.scratch.take()));
    }
}

/// Works out a source's values from the one at `first` on.
///
/// # Safety
/// The values lie inside the source.
#[inline(always)]
unsafe fn work_out<V: Vector>(source: Source<'_>, first: usize, output: &mut [f32]) {
    // SAFETY: passed on from the caller.
    unsafe {
        match source {
            Source::Stored(values) => output.copy_from_slice(&values[first..first + output.len()]),
            Source::Normalized { input, affine, images } => {
                let (channels, mask) = (affine.scale.len(), lane_mask(images));
                for index in 0..output.len() / GROUP {
                    for part in (0..GROUP).step_by(V::LANES) {
                        let at = index * GROUP + part;
                        let value = apply(affine, V::load(input.as_ptr().add(first + at)), index % channels).relu();
                        value.mul(V::load(mask.as_ptr().add(part))).store(output.as_mut_ptr().add(at));
                    }
                }
            }
            Source::NormGradient { gradient, gate, input, factors: [a, b, c], images } => {
                let (channels, mask) = (a.len(), lane_mask(images));
                for index in 0..output.len() / GROUP {
                    let channel = index % channels;
                    let [a, b, c] = [a[channel], b[channel], c[channel]];
                    for part in (0..GROUP).step_by(V::LANES) {
                        let at = index * GROUP + part;
                        let y = V::load(input.as_ptr().add(first + at));
                        let mut g = V::load(gradient.as_ptr().add(first + at));
                        if let Some(affine) = gate {
                            g = g.where_positive(apply(affine, y, channel));
                        }
                        let value = g.mul_add(V::splat(a), y.mul_add(V::splat(b), V::splat(c)));
                        value.mul(V::load(mask.as_ptr().add(part))).store(output.as_mut_ptr().add(at));
                    }
                }
            }
        }
    }
}
