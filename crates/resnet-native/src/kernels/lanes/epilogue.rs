//! What a convolution does with a vector of its results before it writes them.

use super::{Simd, Vector};
use crate::kernels::Epilogue;

impl Epilogue<'_> {
    /// Adds a value to the sums of its channel; returns what is to be written. `at` is its place in
    /// the band, `pivot` the channel's, and `mask` is one in lanes that count in moments: gradients
    /// are zero in the others.
    ///
    /// # Safety
    /// A vector's lanes from `at` on lie inside the band, and the channel exists.
    #[inline(always)]
    pub(super) unsafe fn apply<V: Vector>(
        self,
        simd: Simd<V>,
        value: V,
        at: usize,
        channel: usize,
        [pivot, mask]: [V; 2],
        sums: &mut [V; 2],
    ) -> V {
        match self {
            Self::None => value,
            Self::Moments { .. } => {
                let centred = value.sub(pivot).mul(mask);
                *sums = [sums[0].add(centred), centred.mul_add(centred, sums[1])];
                value
            }
            Self::NormReduction(reduction) => {
                // SAFETY: the caller's place lies inside the band, as long as which the tensors
                // are.
                let (input, g) = unsafe {
                    let input = simd.load(reduction.input.as_ptr().add(at));
                    (input, reduction.masked(simd, value, input, at, channel))
                };
                *sums = [sums[0].add(g), g.mul_add(input.sub(pivot), sums[1])];
                g
            }
        }
    }
}
