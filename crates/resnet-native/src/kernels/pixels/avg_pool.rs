//! Global average pooling.

use super::number::Number;
use crate::kernels::PixelAvgPool;
use crate::kernels::vector::Vector;

/// Mean over pixels.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn avg_pool<N: Number>(band: PixelAvgPool<'_>) {
    let PixelAvgPool { pixels, input, output } = band;
    let shape = pixels.shape;
    let blocks = input.chunks_exact(pixels.block_len()).zip(output.chunks_exact_mut(pixels.block));
    for (input, output) in blocks {
        for part in (0..pixels.block).step_by(N::Vector::LANES) {
            // SAFETY: passed on from the caller; pixels lie in the block.
            unsafe {
                let mut total = N::Vector::splat(0.0);
                for y in 0..shape.height {
                    let row = pixels.value(y, 0) + part;
                    for x in 0..shape.width {
                        total = total.add(N::load(input.as_ptr(), row + x * pixels.block, pixels.plane_len()));
                    }
                }
                let mean = total.mul(N::Vector::splat(1.0 / (shape.height * shape.width) as f32));
                mean.store(output.as_mut_ptr().add(part));
            }
        }
    }
}
