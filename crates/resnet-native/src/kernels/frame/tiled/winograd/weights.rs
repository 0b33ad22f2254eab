//! Weights at the points, in the form that multiplies tiles.

use super::super::super::winograd::{KERNEL, POINTS, at_point};
use super::is_narrow;
use crate::geometry::Gather;
use crate::layout::{HALF, TILE, Tiling, narrow, split, widen};

/// Words of the packed weights.
pub fn packed_len(gather: &Gather, planes: usize) -> usize {
    POINTS * Tiling::new(gather.to).chunks() * chunk_len(gather, planes)
}

/// Words of the weights that write one chunk of channels at a point: `[kernel row][block][plane]` tiles.
pub fn chunk_len(gather: &Gather, planes: usize) -> usize {
    KERNEL * Tiling::new(gather.from).blocks * planes * TILE
}

/// Packs `[out][in][row][column]` as `[point][chunk]` of [`chunk_len`] words.
pub fn pack_weights(gather: &Gather, planes: usize, weights: &[f32], packed: &mut [f32]) {
    let (blocks, chunks) = (Tiling::new(gather.from).blocks, Tiling::new(gather.to).chunks());
    for (index, tiles) in packed.chunks_exact_mut(planes * TILE).enumerate() {
        let (block, rest) = (index % blocks, index / blocks);
        let (row, rest) = (rest % KERNEL, rest / KERNEL);
        let (chunk, point) = (rest % chunks, rest / chunks);
        let halves = [2 * block, 2 * block + 1].map(|from| half_tile(gather, weights, (from, chunk), row, point));
        for (word, (&low, &high)) in halves[0].iter().zip(&halves[1]).enumerate() {
            let words = tiles[word..].iter_mut().step_by(TILE);
            if is_narrow(gather.from.channels) {
                words.zip(paired(low)).for_each(|(word, planes)| *word = planes);
            } else {
                words.zip(split([low, high])).for_each(|(word, plane)| *word = plane);
            }
        }
    }
}

/// The planes of a value in both halves, two by two as the input's meet them.
fn paired(value: f32) -> impl Iterator<Item = f32> {
    let mut planes = split([value, value]);
    let [first, second, third] = std::array::from_fn(|_| planes.next().unwrap_or_default());
    [first, second, narrow([widen(first)[0], widen(third)[1]])].into_iter()
}

/// The weights `[16 read][16 written]` of a row of the kernel for two chunks at a point; zeros where a channel does not exist.
fn half_tile(gather: &Gather, weights: &[f32], (from, to): (usize, usize), row: usize, point: usize) -> [f32; TILE] {
    let mut values = [0.0; TILE];
    let (read, written) = (gather.from.channels, gather.to.channels);
    for (from, values) in (from * HALF..read).zip(values.chunks_exact_mut(HALF)) {
        for (to, value) in (to * HALF..written).zip(values) {
            *value = at_point(gather, weights, [from, to], row, point);
        }
    }
    values
}
