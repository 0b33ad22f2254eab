//! A register of floats, as the algorithms see it, and the proof that there are such registers.

use std::marker::PhantomData;

use crate::layout::LANE_GROUP;

/// Proof that this machine has the instructions of `T`, a [`Vector`] or a matrix unit.
///
/// It is made where a kernel enters its instruction set. Values of `T` come from it alone, so
/// whoever has one may compute with it: `unsafe` is left to pointers.
pub struct Simd<T>(PhantomData<T>);

impl<T> Clone for Simd<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Simd<T> {}

impl<T> Simd<T> {
    /// The proof, on the caller's word.
    ///
    /// # Safety
    /// The machine has the instructions of `T`.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(PhantomData)
    }
}

impl<V: Vector> Simd<V> {
    /// `value` in all lanes.
    #[inline(always)]
    pub fn splat(self, value: f32) -> V {
        V::splat(self, value)
    }

    /// Zero in all lanes.
    #[inline(always)]
    pub fn zero(self) -> V {
        V::splat(self, 0.0)
    }

    /// The floats at `from`.
    ///
    /// # Safety
    /// `from` is valid for reading [`LANES`](Vector::LANES) floats, of any alignment.
    #[inline(always)]
    pub unsafe fn load(self, from: *const f32) -> V {
        // SAFETY: the caller gives as many floats.
        unsafe { V::load(self, from) }
    }
}

/// A register of floats; a lane group of images is a whole number of them.
///
/// Functions that load or store need pointers valid for [`LANES`](Vector::LANES) numbers of the
/// pointer's type, of any alignment.
pub trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;

    /// `value` in all lanes.
    fn splat(simd: Simd<Self>, value: f32) -> Self;
    /// The floats at `from`.
    ///
    /// # Safety
    /// `from` is valid for reading.
    unsafe fn load(simd: Simd<Self>, from: *const f32) -> Self;
    /// Writes the floats to `to`.
    ///
    /// # Safety
    /// `to` is valid for writing.
    unsafe fn store(self, to: *mut f32);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `max(self, 0)`; NaN stays NaN.
    fn relu(self) -> Self;
    /// `self` in the lanes where `condition > 0`, else zero.
    fn where_positive(self, condition: Self) -> Self;
    /// Sum of all lanes.
    fn sum(self) -> f32;
    /// For each of four vectors, the sum of its lanes.
    fn sum_each(vectors: [Self; 4]) -> [f32; 4];

    /// The two numbers in bf16 that each word holds, as floats: those in its low half, those in its
    /// high half.
    fn widen(self) -> (Self, Self);
    /// Words of two numbers in bf16, rounded to the nearest and to even: `low` in the low halves.
    fn narrow(low: Self, high: Self) -> Self;
    /// Words of the low halves of the words of `a`, below those of `b`.
    fn zip_low(a: Self, b: Self) -> Self;
    /// Words of the high halves of the words of `a`, below those of `b`.
    fn zip_high(a: Self, b: Self) -> Self;
    /// Numbers in bf16, as floats.
    ///
    /// # Safety
    /// `from` is valid for reading.
    unsafe fn load_bf16(simd: Simd<Self>, from: *const u16) -> Self;
    /// Stores the values in bf16, rounded to the nearest and to even.
    ///
    /// # Safety
    /// `to` is valid for writing.
    unsafe fn store_bf16(self, to: *mut u16);
    /// Each value as [`store_bf16`](Vector::store_bf16) rounds it.
    fn round_bf16(self) -> Self;
    /// [`store`](Vector::store) with a non-temporal store, where a vector is a cache line: for what
    /// will have left the caches before it is read, so that a line is not fetched only to be
    /// overwritten.
    ///
    /// # Safety
    /// `to` is valid for writing and aligned to the vector.
    #[inline(always)]
    unsafe fn store_non_temporal(self, to: *mut f32) {
        // SAFETY: the caller gives room for a vector.
        unsafe { self.store(to) }
    }
    /// [`store_non_temporal`](Vector::store_non_temporal) if `non_temporal`, else
    /// [`store`](Vector::store).
    ///
    /// # Safety
    /// As for the one chosen.
    #[inline(always)]
    unsafe fn store_either(self, to: *mut f32, non_temporal: bool) {
        // SAFETY: the caller gives room for a vector, aligned if the store is non-temporal.
        unsafe { if non_temporal { self.store_non_temporal(to) } else { self.store(to) } }
    }
    /// Has every [non-temporal](Vector::store_non_temporal) store arrive before what is stored
    /// later: a kernel that makes such stores ends with it.
    #[inline(always)]
    fn fence(_: Simd<Self>) {}
    /// The values of both halves of a tile in 24 bits (see `layout`), from their words and pairs of
    /// third bytes.
    ///
    /// # Safety
    /// Both pointers are valid for reading.
    unsafe fn load_24(simd: Simd<Self>, words: *const f32, bytes: *const u16) -> (Self, Self);
    /// Stores values of both halves of a tile in 24 bits, rounded to the nearest.
    ///
    /// # Safety
    /// Both pointers are valid for writing; if `non_temporal`, `words` is aligned to the vector and
    /// `bytes` to half of it.
    unsafe fn store_24(values: (Self, Self), words: *mut f32, bytes: *mut u16, non_temporal: bool);
    /// Each value rounded to bf16, to the nearest, and what that leaves, for a value to be the sum
    /// of numbers in bf16; which way a tie goes does not matter there.
    #[inline(always)]
    fn split_bf16(self) -> (Self, Self) {
        let rounded = self.round_bf16();
        (rounded, self.sub(rounded))
    }
    /// Transposes a matrix of 16 by 16 words.
    #[inline(always)]
    fn transpose(_: Simd<Self>, from: &Matrix, to: &mut Matrix) {
        for row in 0..LANE_GROUP {
            for column in 0..LANE_GROUP {
                to[column * LANE_GROUP + row] = from[row * LANE_GROUP + column];
            }
        }
    }
}

/// 16 rows of 16 words.
pub type Matrix = [f32; LANE_GROUP * LANE_GROUP];
