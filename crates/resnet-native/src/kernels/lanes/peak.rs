//! The most that a machine can do, to measure the rest against.

use super::{Simd, Vector};

/// Products that a round adds to each accumulator.
const STEPS: usize = 64;

/// Keeps `K` times two accumulators busy; returns the multiply-adds done.
#[inline(always)]
pub fn peak<V: Vector, const K: usize>(simd: Simd<V>, rounds: usize) -> u64 {
    let mut sums = [[simd.zero(); 2]; K];
    let factors = [simd.splat(1.0), simd.splat(0.5)];
    for round in 0..rounds {
        let value = simd.splat(std::hint::black_box(round as f32));
        for _ in 0..STEPS {
            for sums in &mut sums {
                sums[0] = value.mul_add(factors[0], sums[0]);
                sums[1] = value.mul_add(factors[1], sums[1]);
            }
        }
    }
    for sum in sums.as_flattened() {
        std::hint::black_box(sum.sum());
    }
    (rounds * STEPS * 2 * K * V::LANES) as u64
}
