//! Global average pooling.

use super::number::Number;
use crate::kernels::PixelAvgPool;
use crate::kernels::vector::{Simd, Vector};

/// Mean over pixels.
#[inline(always)]
pub fn avg_pool<N: Number>(simd: Simd<N::Vector>, band: PixelAvgPool<'_>) {
    band.check(N::FORMAT);
    let PixelAvgPool { pixels, input, output } = band;
    let shape = pixels.shape;
    let blocks = input.chunks_exact(pixels.block_len()).zip(output.chunks_exact_mut(pixels.block));
    for (input, output) in blocks {
        for part in (0..pixels.block).step_by(N::Vector::LANES) {
            let mut total = simd.zero();
            for y in 0..shape.height {
                let row = pixels.value(y, 0) + part;
                for x in 0..shape.width {
                    // SAFETY: the pixel has a whole block of channels in each plane, of which a
                    // part is a vector.
                    let value = unsafe { N::load(simd, input.as_ptr(), row + x * pixels.block, pixels.plane_len()) };
                    total = total.add(value);
                }
            }
            let mean = total.mul(simd.splat(1.0 / (shape.height * shape.width) as f32));
            // SAFETY: the means are a whole block, of which a part is a vector.
            unsafe { mean.store(output.as_mut_ptr().add(part)) };
        }
    }
}
