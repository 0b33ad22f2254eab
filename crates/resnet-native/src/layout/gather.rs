//! What each pixel written by a convolution reads, forward and backward alike: by pixels and by tiles.
//!
//! Where a tile of memory holds two pixels side by side (see [`tiles`](super::tiles)), the taps of columns
//! are worked out again for columns of tiles: [`TileTap`].

use std::collections::BTreeMap;
use std::ops::Range;

use resnet_graph::Shape;

use super::tiles::{Tiling, tile_pixels};
use crate::geometry::{Conv1d, Conv2d, Direction, Run, Tap};

/// What each pixel written reads, in two dimensions.
#[derive(Clone, Debug)]
pub struct Gather {
    /// The convolution.
    pub conv: Conv2d,
    /// Whether outputs are written or gradients of inputs.
    pub direction: Direction,
    /// Side of the kernel.
    pub kernel: usize,
    /// Taps of each row written.
    pub rows: Vec<Vec<Tap>>,
    /// Runs over the columns written.
    pub columns: Vec<Run>,
    /// The same in columns of tiles.
    pub tiles: TileGather,
    /// For each row written and each run of columns of tiles, all that is summed.
    pub terms: Vec<Vec<Vec<TileTerm>>>,
    /// Shape of what is read.
    pub from: Shape,
    /// Shape of what is written.
    pub to: Shape,
}

/// One tile read and the weights it meets, for a row written.
#[derive(Clone, Copy, Debug)]
pub struct TileTerm {
    /// Row read.
    pub row: usize,
    /// Column of tiles read for the run's first column; outside the row, all are zero.
    pub column: isize,
    /// Tiles from the start of a chunk's packed weights, for each half of the tile written.
    pub weights: [Option<usize>; 2],
}

impl Gather {
    /// What each pixel written reads: outputs going forward, gradients of inputs going backward.
    pub fn new(conv: &Conv2d, direction: Direction) -> Self {
        let (vertical, columns) = match direction {
            Direction::Forward => (conv.vertical.forward(), conv.horizontal.forward()),
            Direction::Backward => (conv.vertical.backward(), conv.horizontal.backward()),
        };
        let (from, to) = match direction {
            Direction::Forward => (conv.input(), conv.output()),
            Direction::Backward => (conv.output(), conv.input()),
        };
        let tiles = tile_columns(&conv.horizontal, direction, tile_pixels(from.channels), tile_pixels(to.channels));
        let rows = by_row(&vertical);
        let terms = rows.iter().map(|row| tiles.columns.iter().map(|run| terms(row, run, &tiles, from)).collect());
        let terms = terms.collect();
        Self { conv: *conv, direction, kernel: conv.vertical.kernel, rows, columns, tiles, terms, from, to }
    }

    /// The rows that some rows written read, from the first to the last.
    pub fn rows_read(&self, written: Range<usize>) -> Range<usize> {
        let taps = || self.rows[written.clone()].iter().flatten().map(|tap| tap.from);
        taps().min().map_or(0..0, |first| first..taps().max().unwrap_or(first) + 1)
    }
}

/// What each column of tiles written reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileGather {
    /// Runs over the columns of tiles written.
    pub columns: Vec<TileRun>,
    /// The kernel's column that each half of a tile read meets, for every way it can meet them.
    pub weights: Vec<[Option<usize>; 2]>,
}

/// All that a row and a run of columns of tiles read.
fn terms(row: &[Tap], run: &TileRun, tiles: &TileGather, from: Shape) -> Vec<TileTerm> {
    let tiling = Tiling::new(from);
    let term = |tap: &Tap, tile: &TileTap| TileTerm {
        row: tap.from,
        column: tile.from,
        weights: tile.weights.map(|way| Some((tap.kernel * tiles.weights.len() + way?) * tiling.blocks)),
    };
    row.iter().flat_map(|tap| run.taps.iter().map(move |tile| term(tap, tile))).collect()
}

/// One column of tiles read, and the weights it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileTap {
    /// Column of tiles read for the first column of its [`TileRun`]; outside the row, all are zero.
    pub from: isize,
    /// Index into [`TileGather::weights`] for each half of the tile written; none where the tile read
    /// holds nothing for it.
    pub weights: [Option<usize>; 2],
}

/// Columns of tiles `start, start + step, ...` that read the same taps, each `from_step` further on; all of
/// them, with zeros beyond the borders, so that they can be worked on in pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileRun {
    /// First column written.
    pub start: usize,
    /// Number of columns.
    pub count: usize,
    /// Distance between columns written.
    pub step: usize,
    /// Distance between columns read.
    pub from_step: usize,
    /// What the first column reads.
    pub taps: Vec<TileTap>,
}

/// What columns of tiles read along a row, where those read and written hold so many pixels.
fn tile_columns(along: &Conv1d, direction: Direction, read: usize, written: usize) -> TileGather {
    let (positions, moves, per) = match direction {
        Direction::Forward => (along.output, along.stride * written, read),
        Direction::Backward => (along.input, written, along.stride * read),
    };
    let step = per / gcd(per, moves);
    // A tile's second pixel meets the tap `next` further on than its first, so the weights of a tile
    // are those of the first pixel's tap, which may lie outside the kernel when the second's is inside.
    let next = match direction {
        Direction::Forward => 1,
        Direction::Backward => -(along.stride as isize),
    };
    let (first, count) = match (read, direction) {
        (1, _) => (0, along.kernel),
        (_, Direction::Forward) => (-1, along.kernel + 1),
        (_, Direction::Backward) => (0, along.kernel + along.stride),
    };
    let inside = |tap: isize| usize::try_from(tap).ok().filter(|&tap| tap < along.kernel);
    let weights = (first..first + count as isize)
        .map(|tap| [inside(tap), inside(if read == 1 { tap } else { tap + next })])
        .collect();
    let from_step = step * moves / per;
    let columns = (0..step.min(positions.div_ceil(written))).map(|start| {
        let count = (positions.div_ceil(written) - start).div_ceil(step);
        let mut tiles: BTreeMap<isize, [Option<usize>; 2]> = BTreeMap::new();
        for (n, half) in (0..count).flat_map(|n| [(n, 0), (n, 1)]) {
            let column = start + n * step;
            let position = if written == 2 { 2 * column + half } else { column };
            if position >= positions {
                continue;
            }
            for tap in along.reads(direction, position) {
                let second = (tap.from % read) as isize;
                let index = tap.kernel as isize - second * next - first;
                let from = (tap.from / read) as isize - (n * from_step) as isize;
                tiles.entry(from).or_default()[half] = Some(index as usize);
            }
        }
        let taps = tiles.into_iter().map(|(from, weights)| TileTap { from, weights }).collect();
        TileRun { start, count, step, from_step, taps }
    });
    TileGather { columns: columns.collect(), weights }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Taps of each position of some runs.
fn by_row(vertical: &[Run]) -> Vec<Vec<Tap>> {
    let mut rows = vec![Vec::new(); vertical.iter().map(|run| run.count).sum()];
    for run in vertical {
        for n in 0..run.count {
            rows[run.start + n * run.step] = run.taps.iter().map(|tap| tap.moved(n * run.from_step)).collect();
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_meet_exactly_the_taps_of_their_pixels() {
        let all = (1..=3)
            .flat_map(|kernel| (1..=2).flat_map(move |stride| (1..12).map(move |input| (kernel, stride, input))));
        for (kernel, stride, input) in all.filter(|(kernel, ..)| kernel % 2 == 1) {
            let padding = kernel / 2;
            let output = (input + 2 * padding - kernel) / stride + 1;
            let conv = Conv1d { kernel, stride, padding, input, output };
            for (direction, read, written) in
                [Direction::Forward, Direction::Backward].into_iter().flat_map(|direction| {
                    [(1, 1), (1, 2), (2, 1), (2, 2)].map(|(read, written)| (direction, read, written))
                })
            {
                let (from, to) = if direction == Direction::Forward { (input, output) } else { (output, input) };
                let TileGather { columns, weights } = tile_columns(&conv, direction, read, written);
                let mut pairs = Vec::new();
                for run in &columns {
                    for n in 0..run.count {
                        for tap in &run.taps {
                            for (half, index) in tap.weights.into_iter().enumerate().take(written) {
                                let Some(index) = index else { continue };
                                let position = (run.start + n * run.step) * written + half;
                                for (second, kernel) in weights[index].into_iter().enumerate().take(read) {
                                    let tile = tap.from + (n * run.from_step) as isize;
                                    let at = usize::try_from(tile).map_or(usize::MAX, |tile| tile * read + second);
                                    let exists = at < from && position < to;
                                    pairs.extend(kernel.filter(|_| exists).map(|kernel| (position, kernel, at)));
                                }
                            }
                        }
                    }
                }
                pairs.sort_unstable();
                let mut expected: Vec<_> = (0..to)
                    .flat_map(|position| {
                        conv.reads(direction, position).into_iter().map(move |tap| (position, tap.kernel, tap.from))
                    })
                    .collect();
                expected.sort_unstable();
                assert_eq!(pairs, expected, "{conv:?} {direction:?} {read} {written}");
            }
        }
    }
}
