//! The most that a machine can do, to measure the rest against.

use super::Vector;

/// Products that a round adds to each accumulator.
const STEPS: usize = 64;

/// Keeps `K` times two accumulators busy; returns the multiply-adds done.
///
/// # Safety
/// See the [module](super).
#[inline(always)]
pub unsafe fn peak<V: Vector, const K: usize>(rounds: usize) -> u64 {
    // SAFETY: no memory is touched.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; K];
        let factors = [V::splat(1.0), V::splat(0.5)];
        for round in 0..rounds {
            let value = V::splat(std::hint::black_box(round as f32));
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
    }
    (rounds * STEPS * 2 * K * V::LANES) as u64
}
