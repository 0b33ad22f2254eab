//! An image, plane after plane of colour, as pixels.

use super::number::{MAX_LANES, Number};
use crate::kernels::PixelLoad;
use crate::kernels::vector::{Simd, Vector};

/// Lays an image out, two channels at a time.
#[inline(always)]
pub fn load<N: Number>(simd: Simd<N::Vector>, band: PixelLoad<'_>) {
    band.check(N::FORMAT);
    let PixelLoad { pixels, image, output } = band;
    let (shape, block_len) = (pixels.shape, pixels.block_len());
    let plane = shape.height * shape.width;
    for channel in (0..shape.channels).step_by(2) {
        let to = &mut output[channel / pixels.block * block_len..];
        for y in 0..shape.height {
            for x in (0..shape.width).step_by(N::Vector::LANES) {
                let count = N::Vector::LANES.min(shape.width - x);
                let mut values = [[0.0; MAX_LANES]; 2];
                for (which, values) in values.iter_mut().enumerate().take(shape.channels - channel) {
                    let from = (channel + which) * plane + y * shape.width + x;
                    values[..count].copy_from_slice(&image[from..from + count]);
                }
                let at = pixels.value(y, x) + channel % pixels.block;
                // SAFETY: no vector has more lanes, and the layout has a place for each pixel in
                // every plane.
                unsafe {
                    let pairs = [simd.load(values[0].as_ptr()), simd.load(values[1].as_ptr())];
                    N::store_pairs(pairs, count, to.as_mut_ptr(), at, pixels.block, pixels.plane_len());
                }
            }
        }
    }
}
