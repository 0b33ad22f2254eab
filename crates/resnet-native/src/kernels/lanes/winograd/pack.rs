//! Weights, and the gradients with respect to them, at the points.

use std::f64::consts::{FRAC_1_SQRT_2 as A, SQRT_2 as B};

use crate::geometry::Conv2d;
use crate::kernels::winograd::{KERNEL, POINTS, taps};
use crate::layout::gather::Gather;

/// `G`: what each tap contributes to the values at the points.
const FILTER: [[f64; KERNEL]; POINTS] = [
    [1.0, 0.0, 0.0],
    [0.0, 0.0, 1.0],
    [-2.0 / 3.0, -2.0 / 3.0 * A, -1.0 / 3.0],
    [-2.0 / 3.0, 2.0 / 3.0 * A, -1.0 / 3.0],
    [1.0 / 6.0, B / 6.0, 1.0 / 3.0],
    [1.0 / 6.0, -B / 6.0, 1.0 / 3.0],
];

/// Length of packed weights, `block` channels written side by side.
pub fn packed_len(gather: &Gather, block: usize) -> usize {
    gather.to.channels.next_multiple_of(block) * gather.from.channels * KERNEL * POINTS
}

/// Packs `[out][in][tap]` as `[point][written / block][kernel row][read][block]`; channels past the
/// last are zero.
pub fn pack(gather: &Gather, weights: &[f32], block: usize, packed: &mut [f32]) {
    let (read, written) = (gather.from.channels, gather.to.channels);
    let point_len = packed.len() / POINTS;
    for at in 0..point_len {
        let (to, from) = (at / block / read / KERNEL * block + at % block, at / block % read);
        let row = at / block / read % KERNEL;
        let taps = if to < written { taps(gather, weights, [from, to], row) } else { [0.0; KERNEL] };
        for (value, factors) in packed[at..].iter_mut().step_by(point_len).zip(FILTER) {
            *value = factors.iter().zip(taps).map(|(factor, tap)| factor * f64::from(tap)).sum::<f64>() as f32;
        }
    }
}

/// Length of a weight gradient at the points.
pub fn gradient_len(conv: &Conv2d) -> usize {
    conv.outputs * KERNEL * POINTS * conv.inputs
}

/// Applies `G'` to a gradient `[out][kernel row][point][in]`, for the outputs from `first` on that
/// `gradient`, `[out][in][tap]`, has room for.
pub fn unpack_gradient(conv: &Conv2d, summed: &[f32], first: usize, gradient: &mut [f32]) {
    let inputs = conv.inputs;
    let rows = summed[first * KERNEL * POINTS * inputs..].chunks_exact(POINTS * inputs);
    for (at, points) in rows.take(gradient.len() / inputs / KERNEL).enumerate() {
        let (output, row) = (at / KERNEL, at % KERNEL);
        for input in 0..inputs {
            let taps = &mut gradient[((output * inputs + input) * KERNEL + row) * KERNEL..][..KERNEL];
            for (tap, value) in taps.iter_mut().enumerate() {
                let sum: f64 =
                    (0..POINTS).map(|point| FILTER[point][tap] * f64::from(points[point * inputs + input])).sum();
                *value = sum as f32;
            }
        }
    }
}
