//! Kernels for AVX2 and FMA: eight lanes, sixteen registers.

use std::arch::x86_64::*;

use crate::kernels::Isa;
use crate::kernels::macros::{
    implement_kernels, implement_plane_pixels, implement_single_pixels, implement_tiled_kernels,
};
use crate::kernels::tiles::Software;
use crate::kernels::vector::{Simd, Vector};

/// The kernels in single precision.
pub struct F32;

implement_kernels!(
    F32, Isa::Avx2, Lanes, #[target_feature(enable = "avx2,fma")]
    conv: 4 channels x 3 pixels, or x 2 at a point,
    weights: 2 outputs x 2 inputs x 3 columns, or 4 x 2 at a point
);

/// The kernels in bf16, without an instruction for it.
pub struct Bf16;

/// The kernels in two planes of bf16.
pub struct Tf32;

implement_tiled_kernels!(Bf16, Isa::Avx2, Software<Lanes>, planes: 1, #[target_feature(enable = "avx2,fma")]);
implement_tiled_kernels!(Tf32, Isa::Avx2, Software<Lanes>, planes: 2, #[target_feature(enable = "avx2,fma")]);

/// Inference in single precision.
pub struct SinglePixels;

implement_single_pixels!(
    SinglePixels, Isa::Avx2, Lanes, #[target_feature(enable = "avx2,fma")]
    conv: 2 vectors x 4 pixels or 1 x 8
);

/// Inference in planes of bf16.
pub struct PlanePixels<const PLANES: usize>;

implement_plane_pixels!(PlanePixels, Isa::Avx2, Software<Lanes>, #[target_feature(enable = "avx2,fma")]);

/// The high half of a word.
const HIGH: i32 = 0xffff_0000u32 as i32;

/// The third byte of a word.
const THIRD: i32 = 0xff00;

/// Runs intrinsics that work on registers alone, inside a function that has a [`Lanes`] or a
/// `Simd<Lanes>`.
macro_rules! avx2 {
    ($($intrinsics:tt)*) => {{
        // SAFETY: the value that the function has exists only where the machine has AVX2 and FMA,
        // and no pointer is used.
        unsafe { $($intrinsics)* }
    }};
}

/// Eight floats.
#[derive(Clone, Copy)]
pub struct Lanes(__m256);

impl Vector for Lanes {
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(_: Simd<Self>, value: f32) -> Self {
        avx2! { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(_: Simd<Self>, from: *const f32) -> Self {
        // SAFETY: the token proves the instructions; the caller gives eight floats.
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: `self` proves the instructions; the caller gives room for eight floats.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        avx2! { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        avx2! { Self(_mm256_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        avx2! { Self(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        avx2! { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    fn relu(self) -> Self {
        // A NaN in the second operand is what `max` gives: it is not hidden.
        avx2! { Self(_mm256_max_ps(_mm256_setzero_ps(), self.0)) }
    }

    #[inline(always)]
    fn where_positive(self, condition: Self) -> Self {
        avx2! { Self(_mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_GT_OQ>(condition.0, _mm256_setzero_ps()))) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        avx2! {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn sum_each(vectors: [Self; 4]) -> [f32; 4] {
        // SAFETY: the vectors prove the instructions; `found` has room for four floats.
        unsafe {
            let [Self(a), Self(b), Self(c), Self(d)] = vectors;
            let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            let mut found = [0.0; 4];
            _mm_storeu_ps(found.as_mut_ptr(), sums);
            found
        }
    }

    #[inline(always)]
    fn widen(self) -> (Self, Self) {
        avx2! {
            let words = _mm256_castps_si256(self.0);
            let low = _mm256_slli_epi32::<16>(words);
            let high = _mm256_and_si256(words, _mm256_set1_epi32(HIGH));
            (Self(_mm256_castsi256_ps(low)), Self(_mm256_castsi256_ps(high)))
        }
    }

    #[inline(always)]
    fn narrow(low: Self, high: Self) -> Self {
        avx2! {
            let low = _mm256_srli_epi32::<16>(low.rounded());
            let high = _mm256_and_si256(high.rounded(), _mm256_set1_epi32(HIGH));
            Self(_mm256_castsi256_ps(_mm256_or_si256(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(_: Simd<Self>, from: *const u16) -> Self {
        // SAFETY: the token proves the instructions; the caller gives eight halves of words.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: `self` proves the instructions; the caller gives room for eight halves of words.
        unsafe {
            let words = _mm256_srli_epi32::<16>(self.rounded());
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn load_24(simd: Simd<Self>, words: *const f32, bytes: *const u16) -> (Self, Self) {
        // SAFETY: the token proves the instructions; the caller gives eight words and as many pairs
        // of bytes.
        unsafe {
            let (Self(low), Self(high)) = simd.load(words).widen();
            let pairs = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.cast()));
            let third = _mm256_set1_epi32(THIRD);
            let low_bytes = _mm256_and_si256(_mm256_slli_epi32::<8>(pairs), third);
            let high_bytes = _mm256_and_si256(pairs, third);
            let low = _mm256_or_ps(low, _mm256_castsi256_ps(low_bytes));
            let high = _mm256_or_ps(high, _mm256_castsi256_ps(high_bytes));
            (Self(low), Self(high))
        }
    }

    #[inline(always)]
    unsafe fn store_24((low, high): (Self, Self), words: *mut f32, bytes: *mut u16, _: bool) {
        // SAFETY: the values prove the instructions; the caller gives room for eight words and as
        // many pairs of bytes.
        unsafe {
            let half = _mm256_set1_epi32(0x80);
            let low = _mm256_add_epi32(_mm256_castps_si256(low.0), half);
            let high = _mm256_add_epi32(_mm256_castps_si256(high.0), half);
            Self::zip_high(Self(_mm256_castsi256_ps(low)), Self(_mm256_castsi256_ps(high))).store(words);
            let low_bytes = _mm256_and_si256(_mm256_srli_epi32::<8>(low), _mm256_set1_epi32(0xff));
            let high_bytes = _mm256_and_si256(high, _mm256_set1_epi32(THIRD));
            let pairs = _mm256_or_si256(low_bytes, high_bytes);
            let pairs = _mm_packus_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            _mm_storeu_si128(bytes.cast(), pairs);
        }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        avx2! { Self(_mm256_castsi256_ps(_mm256_and_si256(self.rounded(), _mm256_set1_epi32(HIGH)))) }
    }

    #[inline(always)]
    fn zip_low(a: Self, b: Self) -> Self {
        avx2! {
            let low = _mm256_andnot_si256(_mm256_set1_epi32(HIGH), _mm256_castps_si256(a.0));
            let high = _mm256_slli_epi32::<16>(_mm256_castps_si256(b.0));
            Self(_mm256_castsi256_ps(_mm256_or_si256(low, high)))
        }
    }

    #[inline(always)]
    fn zip_high(a: Self, b: Self) -> Self {
        avx2! {
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(a.0));
            let high = _mm256_and_si256(_mm256_castps_si256(b.0), _mm256_set1_epi32(HIGH));
            Self(_mm256_castsi256_ps(_mm256_or_si256(low, high)))
        }
    }
}

impl Lanes {
    /// The values as words whose high halves are their values in bf16, to the nearest and to even.
    #[inline(always)]
    fn rounded(self) -> __m256i {
        avx2! {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd)
        }
    }
}
