//! Weights in the form that multiplies tiles: 16 rows of pairs of values read by 16 channels written.

use crate::geometry::{Conv2d, Direction, Gather};
use crate::layout::{HALF, TILE, Tiling, narrow};

/// Words of the packed weights.
pub fn packed_len(gather: &Gather) -> usize {
    Tiling::new(gather.to).chunks() * chunk_len(gather)
}

/// Words of the weights that write one chunk of channels: `[kernel row][way to meet][block]` tiles.
pub fn chunk_len(gather: &Gather) -> usize {
    gather.kernel * gather.tiles.weights.len() * Tiling::new(gather.from).blocks * TILE
}

/// Packs `[out][in][row][column]`.
pub fn pack_weights(gather: &Gather, weights: &[f32], packed: &mut [f32]) {
    let read = Tiling::new(gather.from);
    let ways = &gather.tiles.weights;
    let kernel = gather.kernel;
    let weight = |written: usize, read: usize, row: usize, column: Option<usize>| match column {
        Some(column) if written < gather.to.channels && read < gather.from.channels => {
            let pair = match gather.direction {
                Direction::Forward => written * gather.from.channels + read,
                Direction::Backward => read * gather.to.channels + written,
            };
            weights[(pair * kernel + row) * kernel + column]
        }
        _ => 0.0,
    };
    for (index, tile) in packed.chunks_exact_mut(TILE).enumerate() {
        let (block, rest) = (index % read.blocks, index / read.blocks);
        let (way, rest) = (ways[rest % ways.len()], rest / ways.len());
        let (row, chunk) = (rest % kernel, rest / kernel);
        // The second half of a tile holds further channels of the pixel, or the next pixel's.
        let halves = [2 * HALF * block, if read.pixels == 1 { 2 * HALF * block + HALF } else { 0 }];
        for (at, word) in tile.iter_mut().enumerate() {
            let (channel, written) = (at / HALF, chunk * HALF + at % HALF);
            *word = narrow([0, 1].map(|half| weight(written, halves[half] + channel, row, way[half])));
        }
    }
}

/// Words of a gradient by the weights.
pub fn gradient_len(conv: &Conv2d) -> usize {
    conv.taps() * Tiling::new(conv.input()).chunks() * Tiling::new(conv.output()).chunks() * TILE
}

/// Puts a gradient summed in tiles `[row][column][input chunk][output chunk][16 inputs][16 outputs]` in the
/// order of the weights, for the outputs from `first` on that `gradient` has room for.
pub fn unpack_gradient(conv: &Conv2d, tiles: &[f32], first: usize, gradient: &mut [f32]) {
    let taps = conv.taps();
    let (in_chunks, out_chunks) = (Tiling::new(conv.input()).chunks(), Tiling::new(conv.output()).chunks());
    for (output, gradient) in (first..).zip(gradient.chunks_exact_mut(conv.inputs * taps)) {
        for (input, gradient) in gradient.chunks_exact_mut(taps).enumerate() {
            let word = (input % HALF) * HALF + output % HALF;
            for (tap, value) in gradient.iter_mut().enumerate() {
                let tile = (tap * in_chunks + input / HALF) * out_chunks + output / HALF;
                *value = tiles[tile * TILE + word];
            }
        }
    }
}
