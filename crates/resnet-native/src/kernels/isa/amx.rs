//! AMX: eight registers of 1 KB and an instruction that multiplies two of them, in bf16.
//!
//! The mnemonics are assembled in place, for the compiler has no stable intrinsics for them.

use std::arch::asm;
use std::marker::PhantomData;

use super::avx512::Lanes;
use crate::kernels::Isa;
use crate::kernels::macros::{implement_plane_pixels, implement_tiled_kernels};
use crate::kernels::tiles::TileUnit;
use crate::kernels::vector::Simd;

/// The kernels in bf16.
pub struct Bf16;

/// The kernels with two planes, three dot products for one.
pub struct Tf32;

/// The kernels with three planes, six dot products for one.
pub struct F32;

implement_tiled_kernels!(Bf16, Isa::Amx, Unit, planes: 1, #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]);
implement_tiled_kernels!(Tf32, Isa::Amx, Unit, planes: 2, #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]);
implement_tiled_kernels!(F32, Isa::Amx, Unit, planes: 3, #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]);

/// Inference in planes of bf16.
pub struct PlanePixels<const PLANES: usize>;

implement_plane_pixels!(PlanePixels, Isa::Amx, Unit, #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]);

/// Shape of the registers, as `ldtilecfg` reads it.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers of 16 rows of 64 bytes.
static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Bytes from row to row of a tile in memory.
const STRIDE: usize = 64;

/// The matrix unit, configured on this thread as long as the value lives; a pointer keeps it from
/// other threads.
pub struct Unit(PhantomData<*const ()>);

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: a unit exists only where the machine has AMX; empty registers need not be saved
        // at a switch.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

impl TileUnit for Unit {
    type Vector = Lanes;

    #[inline(always)]
    fn new(_: Simd<Self>) -> Self {
        // SAFETY: the token proves AMX; `CONFIG` is the 64 bytes that the instruction reads.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
        Self(PhantomData)
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: a unit exists only while the registers are configured.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const f32) {
        // SAFETY: a unit exists only while the registers are configured; the caller gives a tile,
        // 16 rows of 64 bytes.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from, stride = in(reg) STRIDE,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn load_rows<const T: usize>(&mut self, from: *const f32, step: usize) {
        // SAFETY: a unit exists only while the registers are configured; the caller gives 16 rows
        // of 64 bytes.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {step}*1]", t = const T, from = in(reg) from, step = in(reg) step,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32) {
        // SAFETY: a unit exists only while the registers are configured; the caller gives room for
        // a tile.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) STRIDE,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn dot<const D: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: a unit exists only while the registers are configured; no memory is touched.
        unsafe {
            asm!("tdpbf16ps tmm{d}, tmm{a}, tmm{b}", d = const D, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    fn narrow(_: Simd<Self>, low: Lanes, high: Lanes) -> Lanes {
        // SAFETY: the token proves AVX-512BF16 and AVX-512BW, which a machine with AMX is required
        // to have.
        unsafe { low.narrow_bf16(high) }
    }

    #[inline(always)]
    unsafe fn store_halves(_: Simd<Self>, values: [Lanes; 2], to: *mut u16) {
        // SAFETY: the token proves AVX-512BF16; the caller gives room for 32 halves of words.
        unsafe { Lanes::store_halves_bf16(values, to) }
    }
}
