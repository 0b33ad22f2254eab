//! Kernels for AVX-512F: sixteen lanes, a whole group of images, and thirty-two registers.

use std::arch::x86_64::*;

use crate::kernels::Isa;
use crate::kernels::macros::{
    implement_kernels, implement_plane_pixels, implement_single_pixels, implement_tiled_kernels,
};
use crate::kernels::tiles::Software;
use crate::kernels::vector::{Matrix, Simd, Vector};

/// The kernels in single precision.
pub struct F32;

implement_kernels!(
    F32, Isa::Avx512, Lanes, #[target_feature(enable = "avx512f")]
    conv: 8 channels x 3 pixels, or x 3 at a point,
    weights: 4 outputs x 2 inputs x 3 columns, or 8 x 3 at a point
);

/// The kernels in bf16, without an instruction for it.
pub struct Bf16;

/// The kernels in two planes of bf16.
pub struct Tf32;

implement_tiled_kernels!(Bf16, Isa::Avx512, Software<Lanes>, planes: 1, #[target_feature(enable = "avx512f")]);
implement_tiled_kernels!(Tf32, Isa::Avx512, Software<Lanes>, planes: 2, #[target_feature(enable = "avx512f")]);

/// Inference in single precision.
pub struct SinglePixels;

implement_single_pixels!(
    SinglePixels, Isa::Avx512, Lanes, #[target_feature(enable = "avx512f")]
    conv: 2 vectors x 8 pixels or 1 x 16
);

/// Inference in planes of bf16.
pub struct PlanePixels<const PLANES: usize>;

implement_plane_pixels!(PlanePixels, Isa::Avx512, Software<Lanes>, #[target_feature(enable = "avx512f")]);

/// The high half of a word.
const HIGH: i32 = 0xffff_0000u32 as i32;

/// The third byte of a word.
const THIRD: i32 = 0xff00;

/// Runs intrinsics that work on registers alone, inside a function that has a [`Lanes`] or a
/// `Simd<Lanes>`.
macro_rules! avx512 {
    ($($intrinsics:tt)*) => {{
        // SAFETY: the value that the function has exists only where the machine has AVX-512F, and
        // no pointer is used.
        unsafe { $($intrinsics)* }
    }};
}

/// Sixteen floats.
#[derive(Clone, Copy)]
pub struct Lanes(__m512);

impl Vector for Lanes {
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(_: Simd<Self>, value: f32) -> Self {
        avx512! { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(_: Simd<Self>, from: *const f32) -> Self {
        // SAFETY: the token proves the instructions; the caller gives sixteen floats.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: `self` proves the instructions; the caller gives room for sixteen floats.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        avx512! { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        avx512! { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        avx512! { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        avx512! { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    fn relu(self) -> Self {
        // A NaN in the second operand is what `max` gives: it is not hidden.
        avx512! { Self(_mm512_max_ps(_mm512_setzero_ps(), self.0)) }
    }

    #[inline(always)]
    fn where_positive(self, condition: Self) -> Self {
        avx512! {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(condition.0, _mm512_setzero_ps());
            Self(_mm512_maskz_mov_ps(positive, self.0))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        avx512! { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    fn sum_each(vectors: [Self; 4]) -> [f32; 4] {
        // SAFETY: the vectors prove the instructions; `found` has room for four floats.
        unsafe {
            let [Self(a), Self(b), Self(c), Self(d)] = vectors;
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            // Each quarter of the register has a sum of every vector.
            let low = _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let quarters = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
            let far = _mm512_shuffle_f32x4::<0b11_10_11_10>(quarters, quarters);
            let halves = _mm512_castps512_ps256(_mm512_add_ps(quarters, far));
            let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            let mut found = [0.0; 4];
            _mm_storeu_ps(found.as_mut_ptr(), sums);
            found
        }
    }

    #[inline(always)]
    fn widen(self) -> (Self, Self) {
        avx512! {
            let words = _mm512_castps_si512(self.0);
            let low = _mm512_slli_epi32::<16>(words);
            let high = _mm512_and_si512(words, _mm512_set1_epi32(HIGH));
            (Self(_mm512_castsi512_ps(low)), Self(_mm512_castsi512_ps(high)))
        }
    }

    #[inline(always)]
    fn narrow(low: Self, high: Self) -> Self {
        avx512! { Self::select_halves(high.rounded(), _mm512_srli_epi32::<16>(low.rounded())) }
    }

    #[inline(always)]
    fn zip_low(a: Self, b: Self) -> Self {
        avx512! { Self::select_halves(_mm512_slli_epi32::<16>(_mm512_castps_si512(b.0)), _mm512_castps_si512(a.0)) }
    }

    #[inline(always)]
    fn zip_high(a: Self, b: Self) -> Self {
        avx512! { Self::select_halves(_mm512_castps_si512(b.0), _mm512_srli_epi32::<16>(_mm512_castps_si512(a.0))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(_: Simd<Self>, from: *const u16) -> Self {
        // SAFETY: the token proves the instructions; the caller gives sixteen halves of words.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: `self` proves the instructions; the caller gives room for sixteen halves of
        // words.
        unsafe {
            let words = _mm512_srli_epi32::<16>(self.rounded());
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(words));
        }
    }

    #[inline(always)]
    unsafe fn load_24(_: Simd<Self>, words: *const f32, bytes: *const u16) -> (Self, Self) {
        // SAFETY: the token proves the instructions; the caller gives sixteen words and as many
        // pairs of bytes.
        unsafe {
            let words = _mm512_loadu_si512(words.cast());
            let pairs = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.cast()));
            let third = _mm512_set1_epi32(THIRD);
            let low_bytes = _mm512_and_si512(_mm512_slli_epi32::<8>(pairs), third);
            let low = _mm512_or_si512(_mm512_slli_epi32::<16>(words), low_bytes);
            let high = Self::select_halves(words, _mm512_and_si512(pairs, third));
            (Self(_mm512_castsi512_ps(low)), high)
        }
    }

    #[inline(always)]
    unsafe fn store_24((low, high): (Self, Self), words: *mut f32, bytes: *mut u16, non_temporal: bool) {
        // SAFETY: the values prove the instructions; the caller gives room for sixteen words and as
        // many pairs of bytes, aligned to a line and to half of one where the stores are
        // non-temporal.
        unsafe {
            let half = _mm512_set1_epi32(0x80);
            let low = _mm512_add_epi32(_mm512_castps_si512(low.0), half);
            let high = _mm512_add_epi32(_mm512_castps_si512(high.0), half);
            Self::select_halves(high, _mm512_srli_epi32::<16>(low)).store_either(words, non_temporal);
            let pairs = select(_mm512_set1_epi32(THIRD), high, _mm512_srli_epi32::<8>(low));
            let pairs = _mm512_cvtepi32_epi16(pairs);
            if non_temporal {
                _mm256_stream_si256(bytes.cast(), pairs);
            } else {
                _mm256_storeu_si256(bytes.cast(), pairs);
            }
        }
    }

    #[inline(always)]
    fn round_bf16(self) -> Self {
        avx512! { Self(_mm512_castsi512_ps(_mm512_and_si512(self.rounded(), _mm512_set1_epi32(HIGH)))) }
    }

    #[inline(always)]
    unsafe fn store_non_temporal(self, to: *mut f32) {
        // SAFETY: `self` proves the instructions; the caller gives room for a vector, aligned to
        // it.
        unsafe { _mm512_stream_ps(to, self.0) }
    }

    #[inline(always)]
    fn fence(_: Simd<Self>) {
        avx512! { _mm_sfence() }
    }

    #[inline(always)]
    fn split_bf16(self) -> (Self, Self) {
        // Half a unit of the last place is added, which takes a third of what ties to even do.
        avx512! {
            let raised = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x8000));
            let rounded = _mm512_castsi512_ps(_mm512_and_si512(raised, _mm512_set1_epi32(HIGH)));
            (Self(rounded), Self(_mm512_sub_ps(self.0, rounded)))
        }
    }

    #[inline(always)]
    fn transpose(_: Simd<Self>, from: &Matrix, to: &mut Matrix) {
        // SAFETY: the token proves the instructions; each of 16 rows is 16 words of the matrix.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, words) in rows.iter_mut().enumerate() {
                *words = _mm512_loadu_si512(from.as_ptr().add(16 * row).cast());
            }
            transpose_words(&mut rows);
            for (row, words) in rows.into_iter().enumerate() {
                _mm512_storeu_si512(to.as_mut_ptr().add(16 * row).cast(), words);
            }
        }
    }
}

impl Lanes {
    /// The values as words whose high halves are their values in bf16, to the nearest and to even.
    #[inline(always)]
    fn rounded(self) -> __m512i {
        avx512! {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd)
        }
    }

    /// The high halves of some words and the low ones of others.
    ///
    /// # Safety
    /// The machine has AVX-512F.
    #[inline(always)]
    unsafe fn select_halves(high: __m512i, low: __m512i) -> Self {
        // SAFETY: the caller's machine has AVX-512F.
        unsafe { Self(_mm512_castsi512_ps(select(_mm512_set1_epi32(HIGH), high, low))) }
    }

    /// [`Vector::store_bf16`] for two vectors, one after the other, with the instruction for it.
    ///
    /// # Safety
    /// The machine has AVX-512BF16, and `to` is valid for writing 32 halves of words.
    #[inline(always)]
    pub unsafe fn store_halves_bf16(values: [Self; 2], to: *mut u16) {
        // SAFETY: the caller's machine has the conversion, and 32 halves of words are one register.
        unsafe {
            let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(values[1].0, values[0].0));
            _mm512_storeu_si512(to.cast(), halves);
        }
    }

    /// [`Vector::narrow`] with the instruction for it.
    ///
    /// # Safety
    /// The machine has AVX-512BW and AVX-512BF16.
    #[inline(always)]
    pub unsafe fn narrow_bf16(self, high: Self) -> Self {
        // SAFETY: the caller's machine has the conversion and the permutation; `order` fills a
        // register.
        unsafe {
            let mut order = [0u16; 32];
            for (word, order) in order.iter_mut().enumerate() {
                *order = (word / 2 + word % 2 * 16) as u16;
            }
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high.0, self.0));
            Self(_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves)))
        }
    }
}

/// Transposes 16 rows of 16 words: pairs, then fours, then quarters of registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_words(rows: &mut [__m512i; 16]) {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in (0..16).step_by(4) {
        rows[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let mut halves = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        for half in [0, 8] {
            halves[half + i] = _mm512_shuffle_i32x4::<EVEN>(rows[half + i], rows[half + 4 + i]);
            halves[half + 4 + i] = _mm512_shuffle_i32x4::<ODD>(rows[half + i], rows[half + 4 + i]);
        }
    }
    for i in 0..8 {
        rows[i] = _mm512_shuffle_i32x4::<EVEN>(halves[i], halves[8 + i]);
        rows[8 + i] = _mm512_shuffle_i32x4::<ODD>(halves[i], halves[8 + i]);
    }
}

/// The bits of `chosen` where those of `mask` are set, elsewhere those of `other`.
///
/// # Safety
/// The machine has AVX-512F.
#[inline(always)]
unsafe fn select(mask: __m512i, chosen: __m512i, other: __m512i) -> __m512i {
    /// Truth table of "by the first: the second, else the third".
    const SELECT: i32 = 0xca;
    // SAFETY: the caller's machine has AVX-512F.
    unsafe { _mm512_ternarylogic_epi32::<SELECT>(mask, chosen, other) }
}
