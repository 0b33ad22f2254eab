//! AMX: eight registers of 1 KB and an instruction that multiplies two of them, in bf16.
//!
//! The mnemonics are assembled in place, for the compiler has no stable intrinsics for them.

use std::arch::asm;

use super::avx512::Lanes;
use crate::kernels::Isa;
use crate::kernels::macros::{implement_plane_pixels, implement_tiled_kernels};
use crate::kernels::tiles::TileUnit;

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

/// The matrix unit, configured on this thread as long as the value lives.
pub struct Unit(());

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: made only where the machine has AMX; empty registers need not be saved at a switch.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

// SAFETY of every block below: the caller's machine has AMX, registers are configured in `new`, and pointers
// are to whole tiles.
impl TileUnit for Unit {
    type Vector = Lanes;

    #[inline(always)]
    unsafe fn new() -> Self {
        // SAFETY: as above.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
        Self(())
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>(&mut self) {
        // SAFETY: as above.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const f32) {
        // SAFETY: as above.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from, stride = in(reg) STRIDE,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn load_rows<const T: usize>(&mut self, from: *const f32, step: usize) {
        // SAFETY: as above, rows being as far apart as the caller says.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {step}*1]", t = const T, from = in(reg) from, step = in(reg) step,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32) {
        // SAFETY: as above.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) STRIDE,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn dot<const D: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: as above.
        unsafe {
            asm!("tdpbf16ps tmm{d}, tmm{a}, tmm{b}", d = const D, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn narrow(low: Lanes, high: Lanes) -> Lanes {
        // SAFETY: as above, with AVX-512's bf16 and word permutations.
        unsafe { low.narrow_bf16(high) }
    }

    #[inline(always)]
    unsafe fn store_halves(values: [Lanes; 2], to: *mut u16) {
        // SAFETY: as above, with AVX-512's bf16.
        unsafe { Lanes::store_halves_bf16(values, to) }
    }
}
