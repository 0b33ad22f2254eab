//! Weights in the order in which the convolution reads them.

use super::winograd;
use crate::geometry::{Conv2d, Direction};
use crate::kernels::Pack;
use crate::kernels::winograd::fits;
use crate::layout::gather::Gather;

/// Length of packed weights, `block` channels written side by side.
pub fn packed_len(gather: &Gather, block: usize) -> usize {
    if fits(&gather.conv) {
        return winograd::packed_len(gather, block);
    }
    gather.to.channels.next_multiple_of(block) * gather.from.channels * gather.kernel * gather.kernel
}

/// Packs `[out][in][tap]` as `[written / block][tap][read][block]`, or at the points of
/// [`winograd`]; channels past the last are zero.
pub fn pack(weights: Pack<'_>, block: usize) {
    weights.check(packed_len(weights.gather, block));
    let Pack { gather, weights, packed } = weights;
    if fits(&gather.conv) {
        return winograd::pack(gather, weights, block, packed);
    }
    let (read, written, taps) = (gather.from.channels, gather.to.channels, gather.kernel * gather.kernel);
    for (at, lanes) in packed.chunks_exact_mut(block).enumerate() {
        let (from, tap, first) = (at % read, at / read % taps, at / read / taps * block);
        for (to, value) in (first..).zip(lanes) {
            let pair = match gather.direction {
                Direction::Forward => to * read + from,
                Direction::Backward => from * written + to,
            };
            *value = if to < written { weights[pair * taps + tap] } else { 0.0 };
        }
    }
}

/// Length of a weight gradient as bands give it.
pub fn gradient_len(conv: &Conv2d) -> usize {
    if fits(conv) { winograd::gradient_len(conv) } else { conv.weight_len() }
}

/// Puts a whole such gradient in the order of the weights, for the outputs from `first` on that
/// `gradient` has room for.
pub fn unpack_gradient(conv: &Conv2d, summed: &[f32], first: usize, gradient: &mut [f32]) {
    if fits(conv) {
        return winograd::unpack_gradient(conv, summed, first, gradient);
    }
    let start = first * conv.inputs * conv.taps();
    gradient.copy_from_slice(&summed[start..start + gradient.len()]);
}
