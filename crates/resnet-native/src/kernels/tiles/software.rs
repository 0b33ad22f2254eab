//! Tiles without a matrix unit: the same results, at the speed of the machine's vectors.

use super::{Tile, TileUnit};
use crate::kernels::vector::{Simd, Vector};
use crate::layout::LANE_GROUP;
use crate::layout::numbers::widen;
use crate::layout::tiles::HALF;

/// Tile registers in memory.
pub struct Software<V> {
    registers: [Tile; 8],
    simd: Simd<V>,
}

impl<V: Vector> TileUnit for Software<V> {
    type Vector = V;

    #[inline(always)]
    fn new(simd: Simd<Self>) -> Self {
        Self { registers: [Tile::ZERO; 8], simd: simd.vector() }
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        self.registers[T] = Tile::ZERO;
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const f32) {
        // SAFETY: the caller gives a tile, of any alignment.
        self.registers[T].0 = unsafe { from.cast::<[f32; LANE_GROUP * HALF]>().read_unaligned() };
    }

    #[inline(always)]
    unsafe fn load_rows<const T: usize>(&mut self, from: *const f32, step: usize) {
        for (row, words) in self.registers[T].0.chunks_exact_mut(HALF).enumerate() {
            // SAFETY: the caller gives rows of a tile, of any alignment.
            words.copy_from_slice(&unsafe { from.byte_add(row * step).cast::<[f32; HALF]>().read_unaligned() });
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32) {
        // SAFETY: the caller gives room for a tile, of any alignment.
        unsafe { to.cast::<[f32; LANE_GROUP * HALF]>().write_unaligned(self.registers[T].0) }
    }

    #[inline(always)]
    fn dot<const D: usize, const A: usize, const B: usize>(&mut self) {
        let (a, b) = (self.registers[A], self.registers[B]);
        let sums = self.registers[D].as_mut_ptr();
        for part in (0..HALF).step_by(V::LANES) {
            for row in 0..LANE_GROUP {
                // SAFETY: rows of tiles are 16 words, of which a part is a vector.
                unsafe {
                    let sum = sums.add(row * HALF + part);
                    let mut total = self.simd.load(sum);
                    for i in 0..HALF {
                        let [low, high] = widen(a.0[row * HALF + i]);
                        let (b_low, b_high) = self.simd.load(b.as_ptr().add(i * HALF + part)).widen();
                        total = b_low.mul_add(self.simd.splat(low), total);
                        total = b_high.mul_add(self.simd.splat(high), total);
                    }
                    total.store(sum);
                }
            }
        }
    }
}
