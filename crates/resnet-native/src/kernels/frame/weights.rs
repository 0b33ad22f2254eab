//! Weights in the order in which the convolution reads them.

use crate::geometry::{Direction, Gather};

/// Length of packed weights, `block` channels written side by side.
pub fn packed_len(gather: &Gather, block: usize) -> usize {
    gather.to.channels.next_multiple_of(block) * gather.from.channels * gather.kernel * gather.kernel
}

/// Packs `[out][in][tap]` as `[written / block][tap][read][block]`; channels past the last are zero.
pub fn pack_weights(gather: &Gather, weights: &[f32], block: usize, packed: &mut [f32]) {
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
