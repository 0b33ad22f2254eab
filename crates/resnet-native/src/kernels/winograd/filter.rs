//! Taps of the kernel, in the order in which they meet pixels.

use super::KERNEL;
use crate::geometry::Direction;
use crate::layout::gather::Gather;

/// The row of the kernel through which channel `to` is written from `from`, in the order in which
/// its taps meet pixels; the weights are `[out][in][tap]`.
pub fn taps(gather: &Gather, weights: &[f32], [from, to]: [usize; 2], row: usize) -> [f32; KERNEL] {
    let pair = match gather.direction {
        Direction::Forward => to * gather.from.channels + from,
        Direction::Backward => from * gather.to.channels + to,
    };
    let first = (pair * KERNEL + row) * KERNEL;
    let [a, b, c] = [0, 1, 2].map(|tap| weights[first + tap]);
    match gather.direction {
        Direction::Forward => [a, b, c],
        Direction::Backward => [c, b, a],
    }
}
