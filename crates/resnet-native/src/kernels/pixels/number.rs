//! The two ways to keep a value: as a float, or as the sum of numbers in bf16 in planes of their
//! own.

use std::marker::PhantomData;

use crate::kernels::tiles::TileUnit;
use crate::kernels::vector::{Simd, Vector};
use crate::layout::Format;

/// A way to keep values. Pointers are to the start of a block's first plane, and planes are
/// `plane_len` words long.
pub trait Number {
    /// The vectors it works with.
    type Vector: Vector;

    /// How values are kept.
    const FORMAT: Format;

    /// Loads values, from the one with index `at` in each plane on.
    ///
    /// # Safety
    /// Each plane has a vector's lanes of values from `at` on.
    unsafe fn load(simd: Simd<Self::Vector>, from: *const f32, at: usize, plane_len: usize) -> Self::Vector;
    /// Stores `count` pairs of neighbouring values, `[even, odd]`, one pair every `step` values
    /// from `at` on.
    ///
    /// # Safety
    /// Each plane has those values, and `count` is at most a vector's lanes.
    unsafe fn store_pairs(
        pairs: [Self::Vector; 2],
        count: usize,
        to: *mut f32,
        at: usize,
        step: usize,
        plane_len: usize,
    );
}

/// Single precision.
pub struct Single<V>(PhantomData<V>);

impl<V: Vector> Number for Single<V> {
    type Vector = V;

    const FORMAT: Format = Format::Single;

    #[inline(always)]
    unsafe fn load(simd: Simd<V>, from: *const f32, at: usize, _plane_len: usize) -> V {
        // SAFETY: the caller's plane has the values.
        unsafe { simd.load(from.add(at)) }
    }

    #[inline(always)]
    unsafe fn store_pairs(pairs: [V; 2], count: usize, to: *mut f32, at: usize, step: usize, _plane_len: usize) {
        let mut lanes = [[0.0; MAX_LANES]; 2];
        // SAFETY: no vector has more lanes, and the caller's plane has the pairs.
        unsafe {
            pairs[0].store(lanes[0].as_mut_ptr());
            pairs[1].store(lanes[1].as_mut_ptr());
            for lane in 0..count {
                *to.add(at + lane * step) = lanes[0][lane];
                *to.add(at + lane * step + 1) = lanes[1][lane];
            }
        }
    }
}

/// Lanes of the widest vector.
pub const MAX_LANES: usize = 16;

/// The sum of `PLANES` numbers in bf16, each what the larger ones leave, rounded.
pub struct Planes<U, const PLANES: usize>(PhantomData<U>);

impl<U: TileUnit, const PLANES: usize> Number for Planes<U, PLANES> {
    type Vector = U::Vector;

    const FORMAT: Format = Format::Planes(PLANES);

    #[inline(always)]
    unsafe fn load(simd: Simd<U::Vector>, from: *const f32, at: usize, plane_len: usize) -> U::Vector {
        // SAFETY: each of the caller's planes has the values, half a word each.
        unsafe {
            let from = from.cast::<u16>().add(at);
            let mut value = U::Vector::load_bf16(simd, from.add((PLANES - 1) * 2 * plane_len));
            for plane in (0..PLANES - 1).rev() {
                value = value.add(U::Vector::load_bf16(simd, from.add(plane * 2 * plane_len)));
            }
            value
        }
    }

    #[inline(always)]
    unsafe fn store_pairs(pairs: [U::Vector; 2], count: usize, to: *mut f32, at: usize, step: usize, plane_len: usize) {
        let mut words = [0.0; MAX_LANES];
        let mut rest = pairs;
        for plane in 0..PLANES {
            // SAFETY: no vector has more lanes, and each of the caller's planes has a word for each
            // pair.
            unsafe {
                U::Vector::narrow(rest[0], rest[1]).store(words.as_mut_ptr());
                let to = to.add(plane * plane_len + at / 2);
                for (lane, word) in words.iter().enumerate().take(count) {
                    *to.add(lane * step / 2) = *word;
                }
            }
            rest = [rest[0].sub(rest[0].round_bf16()), rest[1].sub(rest[1].round_bf16())];
        }
    }
}

impl<U: TileUnit, const PLANES: usize> Planes<U, PLANES> {
    /// Stores two vectors, the second 16 values after the first.
    ///
    /// # Safety
    /// From `to` on there are planes of `plane_len` words, which have room for both vectors from
    /// value `at` on.
    #[inline(always)]
    pub unsafe fn store_halves(simd: Simd<U>, values: [U::Vector; 2], to: *mut f32, at: usize, plane_len: usize) {
        let mut rest = values;
        for plane in 0..PLANES {
            // SAFETY: each of the caller's planes has room, half a word for a value.
            unsafe { U::store_halves(simd, rest, to.add(plane * plane_len).cast::<u16>().add(at)) };
            if plane + 1 < PLANES {
                rest = [rest[0].sub(rest[0].round_bf16()), rest[1].sub(rest[1].round_bf16())];
            }
        }
    }
}
