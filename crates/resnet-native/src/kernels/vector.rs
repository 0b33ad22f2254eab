//! A register of floats, as the algorithms see it.

use crate::layout::LANE_GROUP;

/// A register of floats; a group of images is a whole number of them.
///
/// # Safety
/// Every method needs a machine that has the vector's instructions; `load` and `store` need a pointer valid for
/// [`LANES`](Vector::LANES) floats, of any alignment, `load_bf16` and `store_bf16` one valid for as many `u16`.
pub trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `max(self, 0)`; NaN stays NaN.
    unsafe fn relu(self) -> Self;
    /// `self` in the lanes where `gate > 0`, else zero.
    unsafe fn where_positive(self, gate: Self) -> Self;
    /// Sum of all lanes.
    unsafe fn sum(self) -> f32;
    /// Sum of all lanes of each.
    unsafe fn sum_each(vectors: [Self; 4]) -> [f32; 4];

    /// The low and the high halves of every word, widened from bf16.
    unsafe fn widen(self) -> (Self, Self);
    /// The reverse of [`widen`](Vector::widen), rounding to the nearest and to even.
    unsafe fn narrow(low: Self, high: Self) -> Self;
    /// The low halves of two vectors of words, those of `a` in the low halves of the result.
    unsafe fn zip_low(a: Self, b: Self) -> Self;
    /// The same for the high halves.
    unsafe fn zip_high(a: Self, b: Self) -> Self;
    /// As many values in bf16, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// The reverse of [`load_bf16`](Vector::load_bf16), rounding to the nearest and to even.
    unsafe fn store_bf16(self, to: *mut u16);
    /// What [`store_bf16`](Vector::store_bf16) keeps of each value.
    unsafe fn round_bf16(self) -> Self;
    /// [`store`](Vector::store), with non-temporal stores where a vector is a line of them, for what will have left them before it is
    /// read: a line is then not fetched only to be overwritten. `to` is aligned to the vector.
    #[inline(always)]
    unsafe fn store_non_temporal(self, to: *mut f32) {
        // SAFETY: passed on from the caller.
        unsafe { self.store(to) }
    }
    /// One or the other.
    #[inline(always)]
    unsafe fn store_either(self, to: *mut f32, non_temporal: bool) {
        // SAFETY: passed on from the caller.
        unsafe { if non_temporal { self.store_non_temporal(to) } else { self.store(to) } }
    }
    /// Has everything [streamed](Vector::store_non_temporal) arrive before what is stored later: a kernel that non_temporal ends with it.
    #[inline(always)]
    unsafe fn fence() {}
    /// As many values of each half of a tile in 24 bits (see `layout`): `bytes` is valid for as many pairs.
    unsafe fn load_24(words: *const f32, bytes: *const u16) -> (Self, Self);
    /// The reverse of [`load_24`](Vector::load_24), rounding to the nearest; [streamed](Vector::store_non_temporal) or not.
    unsafe fn store_24(values: (Self, Self), words: *mut f32, bytes: *mut u16, non_temporal: bool);
    /// Each value rounded to bf16, to the nearest, and what that leaves, for a value to be the sum of numbers in bf16; which way
    /// a tie goes does not matter there.
    #[inline(always)]
    unsafe fn split_bf16(self) -> (Self, Self) {
        // SAFETY: passed on from the caller.
        unsafe {
            let rounded = self.round_bf16();
            (rounded, self.sub(rounded))
        }
    }
    /// Transposes a tile of 16 by 16 words.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, to: *mut f32) {
        for row in 0..LANE_GROUP {
            for column in 0..LANE_GROUP {
                // SAFETY: the caller gives two tiles that do not overlap.
                unsafe { *to.add(column * LANE_GROUP + row) = *from.add(row * LANE_GROUP + column) };
            }
        }
    }
}
