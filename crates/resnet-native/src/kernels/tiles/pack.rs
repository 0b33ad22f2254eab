//! Weights in the form that multiplies tiles: 16 rows of pairs of values read by 16 channels
//! written.

use super::{Simd, Tile, TileUnit, Vector, store_planes, winograd};
use crate::geometry::{Conv2d, Direction};
use crate::kernels::Pack;
use crate::layout::gather::Gather;
use crate::layout::tiles::{HALF, TILE, Tiling, tile_pixels};

/// Words of the packed weights.
pub fn packed_len(gather: &Gather, planes: usize) -> usize {
    if winograd::fits(&gather.conv, planes) {
        return winograd::packed_len(gather, planes);
    }
    Tiling::new(gather.to).chunks() * chunk_len(gather, planes)
}

/// Words of the weights that write one chunk of channels: `[kernel row][way to meet][block][plane]`
/// tiles.
pub fn chunk_len(gather: &Gather, planes: usize) -> usize {
    gather.kernel * gather.tiles.weights.len() * Tiling::new(gather.from).blocks * planes * TILE
}

/// Packs `[out][in][row][column]`.
#[inline(always)]
pub fn pack<U: TileUnit, const PLANES: usize>(simd: Simd<U>, weights: Pack<'_>) {
    weights.check(packed_len(weights.gather, PLANES));
    if winograd::fits(&weights.gather.conv, PLANES) {
        return winograd::pack::<U, PLANES>(simd, weights);
    }
    let Pack { gather, weights, packed } = weights;
    let blocks = Tiling::new(gather.from).blocks;
    let (ways, kernel) = (&gather.tiles.weights, gather.kernel);
    for (index, tiles) in packed.chunks_exact_mut(PLANES * TILE).enumerate() {
        let (block, rest) = (index % blocks, index / blocks);
        let (way, rest) = (ways[rest % ways.len()], rest / ways.len());
        let (row, chunk) = (rest % kernel, rest / kernel);
        let halves = [0, 1].map(|half| half_tile(gather, weights, (chunk, block, half), row, way[half]));
        for at in (0..TILE).step_by(U::Vector::LANES) {
            // SAFETY: `at` is a vector of a tile, and there is a tile for each plane.
            unsafe {
                let (low, high) = (halves[0].as_ptr().add(at), halves[1].as_ptr().add(at));
                let values = (simd.vector().load(low), simd.vector().load(high));
                store_planes::<U, PLANES>(simd, values, tiles.as_mut_ptr().add(at));
            }
        }
    }
}

/// The weights `[16 read][16 written]` that half a tile meets in a kernel's row and column; zeros
/// where a channel or the column does not exist.
fn half_tile(
    gather: &Gather,
    weights: &[f32],
    (chunk, block, half): (usize, usize, usize),
    row: usize,
    column: Option<usize>,
) -> Tile {
    let mut tile = Tile::ZERO;
    let Some(column) = column else { return tile };
    let (from, to, taps) = (gather.from.channels, gather.to.channels, gather.kernel * gather.kernel);
    let (read_step, written_step) = match gather.direction {
        Direction::Forward => (taps, from * taps),
        Direction::Backward => (to * taps, taps),
    };
    // The second half of a tile holds further channels of the pixel, or the next pixel's.
    let first_read = if tile_pixels(from) == 1 { (2 * block + half) * HALF } else { 0 };
    let first_written = chunk * HALF;
    let written = HALF.min(to.saturating_sub(first_written));
    for (read, values) in (first_read..from).zip(tile.0.chunks_exact_mut(HALF)) {
        let first = read * read_step + first_written * written_step + row * gather.kernel + column;
        for (lane, value) in values.iter_mut().enumerate().take(written) {
            *value = weights[first + lane * written_step];
        }
    }
    tile
}

/// Words of a weight gradient.
pub fn gradient_len(conv: &Conv2d) -> usize {
    conv.taps() * Tiling::new(conv.input()).chunks() * Tiling::new(conv.output()).chunks() * TILE
}

/// Puts a gradient summed in tiles `[row][column][input chunk][output chunk][16 inputs][16
/// outputs]` in the order of the weights, for the outputs from `first` on that `gradient` has room
/// for.
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
