//! How a step is cut into bands of rows, for threads that have nothing else to do.
//!
//! How it is cut depends on the batch and the kernels alone, never on the number of threads, and with it so
//! does the order of every sum.

use crate::geometry::Conv2d;
use crate::kernels::Schedule;
use crate::layout::lane_groups;

/// Bands that a step is cut into over the whole batch, as near as the height allows: enough for many threads.
pub const BANDS: usize = 16;

/// Floats that the partial gradients of one convolution may take.
const MAX_PARTIAL_LEN: usize = 1 << 22;

/// How a weight gradient is cut.
pub struct WeightBands {
    /// Rows of the output in a band.
    pub rows: usize,
    /// Equal parts of the outputs.
    pub parts: usize,
}

impl WeightBands {
    /// How the weight gradient of `conv`, `gradient_len` floats long, is cut in a batch of `images`.
    pub fn new(conv: &Conv2d, schedule: Schedule, gradient_len: usize, images: usize) -> Self {
        let shape = conv.output();
        let calls = lane_groups(images).div_ceil(schedule.lane_groups);
        let most = BANDS.min((calls * shape.pixels()).div_ceil(schedule.band_pixels));
        let rows = band_rows(shape.height, calls, most.min(MAX_PARTIAL_LEN / gradient_len));
        let wanted = BANDS.div_ceil(calls * (shape.height / rows));
        Self { rows, parts: if schedule.cuts_outputs { output_parts(conv.outputs, wanted) } else { 1 } }
    }
}

/// Into how many equal parts, about `wanted`, of at least eight outputs, a weight gradient is cut.
fn output_parts(outputs: usize, wanted: usize) -> usize {
    (1..=wanted).rev().find(|parts| outputs.is_multiple_of(8 * parts)).unwrap_or(1)
}

/// Height of the bands of rows that an operation is cut into: the tallest that divides the height
/// and gives about `bands` bands over all lane groups.
pub fn band_rows(height: usize, groups: usize, bands: usize) -> usize {
    let wanted = bands.div_ceil(groups.max(1)).clamp(1, height);
    (1..=height).rev().find(|rows| height.is_multiple_of(*rows) && height / rows >= wanted).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_the_height_evenly() {
        assert_eq!(band_rows(32, 8, 32), 8);
        assert_eq!(band_rows(8, 8, 32), 2);
        assert_eq!(band_rows(7, 1, 4), 1);
        assert_eq!(band_rows(1, 8, 32), 1);
        assert_eq!(band_rows(32, 64, 32), 32);
    }
}
