//! Kernels in plain Rust, four lanes wide: what a compiler vectorises on any machine.

use crate::kernels::Isa;
use crate::kernels::macros::{
    implement_kernels, implement_plane_pixels, implement_single_pixels, implement_tiled_kernels,
};
use crate::kernels::tiles::Software;
use crate::kernels::vector::{Simd, Vector};
use crate::layout::numbers::{narrow, narrow_24, widen, widen_24};

/// The kernels in single precision.
pub struct F32;

implement_kernels!(
    F32, Isa::Portable, Lanes,
    conv: 4 channels x 2 pixels, or x 2 at a point,
    weights: 2 outputs x 1 inputs x 3 columns, or 4 x 2 at a point
);

/// The kernels in bf16, without an instruction for it.
pub struct Bf16;

/// The kernels in two planes of bf16.
pub struct Tf32;

implement_tiled_kernels!(Bf16, Isa::Portable, Software<Lanes>, planes: 1,);
implement_tiled_kernels!(Tf32, Isa::Portable, Software<Lanes>, planes: 2,);

/// Inference in single precision.
pub struct SinglePixels;

implement_single_pixels!(SinglePixels, Isa::Portable, Lanes, conv: 2 vectors x 4 pixels or 1 x 8);

/// Inference in planes of bf16.
pub struct PlanePixels<const PLANES: usize>;

implement_plane_pixels!(PlanePixels, Isa::Portable, Software<Lanes>,);

/// Four floats.
#[derive(Clone, Copy)]
pub struct Lanes([f32; 4]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Lanes {
    const LANES: usize = 4;

    #[inline(always)]
    fn splat(_: Simd<Self>, value: f32) -> Self {
        Self([value; 4])
    }

    #[inline(always)]
    unsafe fn load(_: Simd<Self>, from: *const f32) -> Self {
        // SAFETY: the caller gives four floats.
        unsafe { Self(from.cast::<[f32; 4]>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for four floats.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    /// Two roundings: a fused multiply-add without the instruction is a slow library call.
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.mul(factor).add(addend)
    }

    #[inline(always)]
    fn relu(self) -> Self {
        Self(self.0.map(|v| if v < 0.0 { 0.0 } else { v }))
    }

    #[inline(always)]
    fn where_positive(self, condition: Self) -> Self {
        self.zip(condition, |v, condition| if condition > 0.0 { v } else { 0.0 })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        (self.0[0] + self.0[1]) + (self.0[2] + self.0[3])
    }

    #[inline(always)]
    fn sum_each(vectors: [Self; 4]) -> [f32; 4] {
        vectors.map(Self::sum)
    }

    #[inline(always)]
    fn widen(self) -> (Self, Self) {
        (Self(self.0.map(|word| widen(word)[0])), Self(self.0.map(|word| widen(word)[1])))
    }

    #[inline(always)]
    fn narrow(low: Self, high: Self) -> Self {
        low.zip(high, |low, high| narrow([low, high]))
    }

    #[inline(always)]
    unsafe fn load_bf16(_: Simd<Self>, from: *const u16) -> Self {
        // SAFETY: the caller gives four halves of words.
        Self(unsafe { from.cast::<[u16; 4]>().read_unaligned() }.map(|half| f32::from_bits(u32::from(half) << 16)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let halves = self.0.map(|value| narrow([value, 0.0]).to_bits() as u16);
        // SAFETY: the caller gives room for four halves of words.
        unsafe { to.cast::<[u16; 4]>().write_unaligned(halves) }
    }

    #[inline(always)]
    unsafe fn load_24(simd: Simd<Self>, words: *const f32, bytes: *const u16) -> (Self, Self) {
        // SAFETY: the caller gives four words and as many pairs of bytes.
        let (words, bytes) = unsafe { (simd.load(words), bytes.cast::<[u16; 4]>().read_unaligned()) };
        let values: [[f32; 2]; 4] = std::array::from_fn(|lane| widen_24(words.0[lane], bytes[lane]));
        (Self(values.map(|[low, _]| low)), Self(values.map(|[_, high]| high)))
    }

    #[inline(always)]
    unsafe fn store_24((low, high): (Self, Self), words: *mut f32, bytes: *mut u16, _: bool) {
        let values: [(f32, u16); 4] = std::array::from_fn(|lane| narrow_24([low.0[lane], high.0[lane]]));
        // SAFETY: the caller gives room for four words and as many pairs of bytes.
        unsafe {
            Self(values.map(|(word, _)| word)).store(words);
            bytes.cast::<[u16; 4]>().write_unaligned(values.map(|(_, bytes)| bytes));
        }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        Self(self.0.map(|value| widen(narrow([value, 0.0]))[0]))
    }

    #[inline(always)]
    fn zip_low(a: Self, b: Self) -> Self {
        a.zip(b, |a, b| f32::from_bits(a.to_bits() & 0xffff | b.to_bits() << 16))
    }

    #[inline(always)]
    fn zip_high(a: Self, b: Self) -> Self {
        a.zip(b, |a, b| f32::from_bits(a.to_bits() >> 16 | b.to_bits() & 0xffff_0000))
    }
}
