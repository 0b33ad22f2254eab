//! Which input pixels an output pixel of a convolution sees: worked out once, in one dimension at a
//! time, for forward and backward alike.
//!
//! A convolution reads input `i = o * stride + k - padding` for output `o` and tap `k`. Backward-data
//! asks the reverse, which outputs `i = (o + padding - k) / stride` saw the input `o`. Both are "gather
//! from these taps", so one kernel serves both: it is given [`Run`]s of outputs that share their taps.
//!
//! Where a tile of memory holds two pixels side by side (see `layout`), the same is worked out for
//! columns of tiles: [`TileTap`].

use std::collections::BTreeMap;
use std::ops::Range;

use crate::layout::{Tiling, tile_pixels};
use resnet_graph::Shape;

/// One dimension of a square convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1d {
    /// Taps.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros before the first input.
    pub padding: usize,
    /// Number of inputs.
    pub input: usize,
    /// Number of outputs.
    pub output: usize,
}

/// One tap and the position it reads for the first position of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Index in the kernel.
    pub kernel: usize,
    /// Position read.
    pub from: usize,
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

/// Positions `start, start + step, ...` that read the same taps, each `from_step` further on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First position written.
    pub start: usize,
    /// Number of positions.
    pub count: usize,
    /// Distance between positions written.
    pub step: usize,
    /// Distance between positions read.
    pub from_step: usize,
    /// What the first position reads; empty where no tap reaches.
    pub taps: Vec<Tap>,
}

impl Tap {
    /// The same, `by` positions further on.
    fn moved(self, by: usize) -> Self {
        Self { from: self.from + by, ..self }
    }
}

/// Which way a convolution is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From input channels to output channels.
    Forward,
    /// From the output's gradient to the input's: channels exchanged.
    Backward,
}

impl Conv1d {
    /// Runs over the outputs, reading inputs.
    pub fn forward(&self) -> Vec<Run> {
        runs(self.output, 1, self.stride, |output| self.reads(Direction::Forward, output))
    }

    /// Runs over the inputs, reading outputs.
    pub fn backward(&self) -> Vec<Run> {
        runs(self.input, self.stride, 1, |input| self.reads(Direction::Backward, input))
    }

    /// What one position reads.
    fn reads(&self, direction: Direction, position: usize) -> Vec<Tap> {
        match direction {
            Direction::Forward => self.taps(|k| (position * self.stride + k).checked_sub(self.padding), self.input),
            Direction::Backward => {
                let output = |k: usize| {
                    let scaled = (position + self.padding).checked_sub(k)?;
                    scaled.is_multiple_of(self.stride).then_some(scaled / self.stride)
                };
                self.taps(output, self.output)
            }
        }
    }

    fn taps(&self, from: impl Fn(usize) -> Option<usize>, limit: usize) -> Vec<Tap> {
        (0..self.kernel)
            .filter_map(|kernel| Some(Tap { kernel, from: from(kernel)? }))
            .filter(|tap| tap.from < limit)
            .collect()
    }

    /// The same for columns of tiles that hold `read` and `written` pixels.
    fn tiles(&self, direction: Direction, read: usize, written: usize) -> TileGather {
        let (positions, moves, per) = match direction {
            Direction::Forward => (self.output, self.stride * written, read),
            Direction::Backward => (self.input, written, self.stride * read),
        };
        let step = per / gcd(per, moves);
        // A tile's second pixel meets the tap `next` further on than its first, so the weights of a tile
        // are those of the first pixel's tap, which may lie outside the kernel when the second's is inside.
        let next = match direction {
            Direction::Forward => 1,
            Direction::Backward => -(self.stride as isize),
        };
        let (first, count) = match (read, direction) {
            (1, _) => (0, self.kernel),
            (_, Direction::Forward) => (-1, self.kernel + 1),
            (_, Direction::Backward) => (0, self.kernel + self.stride),
        };
        let inside = |tap: isize| usize::try_from(tap).ok().filter(|&tap| tap < self.kernel);
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
                for tap in self.reads(direction, position) {
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
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A square convolution in two dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// From row to row.
    pub vertical: Conv1d,
    /// From column to column.
    pub horizontal: Conv1d,
    /// Feature maps read.
    pub inputs: usize,
    /// Feature maps written.
    pub outputs: usize,
}

impl Conv2d {
    /// A convolution with the same kernel, stride and padding both ways.
    pub fn new(input: Shape, output: Shape, kernel: usize, stride: usize, padding: usize) -> Self {
        let along = |input, output| Conv1d { kernel, stride, padding, input, output };
        Self {
            vertical: along(input.height, output.height),
            horizontal: along(input.width, output.width),
            inputs: input.channels,
            outputs: output.channels,
        }
    }

    /// Taps.
    pub fn taps(&self) -> usize {
        self.vertical.kernel * self.horizontal.kernel
    }

    /// Number of weights.
    pub fn weight_len(&self) -> usize {
        self.outputs * self.inputs * self.taps()
    }

    /// Shape of what it reads.
    pub fn input(&self) -> Shape {
        Shape::new(self.inputs, self.vertical.input, self.horizontal.input)
    }

    /// Shape of what it writes.
    pub fn output(&self) -> Shape {
        Shape::new(self.outputs, self.vertical.output, self.horizontal.output)
    }

    /// Shape of its input when every pixel written gets a copy of the patch it sees.
    pub fn patches(&self) -> Shape {
        Shape { channels: self.inputs * self.taps(), ..self.output() }
    }

    /// The rows that some rows of the output read, from the first to the last.
    pub fn rows_read(&self, written: Range<usize>) -> Range<usize> {
        let Conv1d { kernel, stride, padding, input, .. } = self.vertical;
        let first = (written.start * stride).saturating_sub(padding);
        first..((written.end - 1) * stride + kernel).saturating_sub(padding).clamp(first, input.max(first))
    }

    /// What each pixel written reads: outputs going forward, gradients of inputs going backward.
    pub fn gather(&self, direction: Direction) -> Gather {
        let (vertical, columns) = match direction {
            Direction::Forward => (self.vertical.forward(), self.horizontal.forward()),
            Direction::Backward => (self.vertical.backward(), self.horizontal.backward()),
        };
        let (from, to) = match direction {
            Direction::Forward => (self.input(), self.output()),
            Direction::Backward => (self.output(), self.input()),
        };
        let tiles = self.horizontal.tiles(direction, tile_pixels(from.channels), tile_pixels(to.channels));
        let rows = by_row(&vertical);
        let terms = rows.iter().map(|row| tiles.columns.iter().map(|run| terms(row, run, &tiles, from)).collect());
        let terms = terms.collect();
        Gather { conv: *self, direction, kernel: self.vertical.kernel, rows, columns, tiles, terms, from, to }
    }
}

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
    pub terms: Vec<Vec<Vec<Term>>>,
    /// Shape of what is read.
    pub from: Shape,
    /// Shape of what is written.
    pub to: Shape,
}

/// One tile read and the weights it meets, for a row written.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Row read.
    pub row: usize,
    /// Column of tiles read for the run's first column; outside the row, all are zero.
    pub column: isize,
    /// Tiles from the start of a chunk's packed weights, for each half of the tile written.
    pub weights: [Option<usize>; 2],
}

impl Gather {
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
fn terms(row: &[Tap], run: &TileRun, tiles: &TileGather, from: Shape) -> Vec<Term> {
    let tiling = Tiling::new(from);
    let term = |tap: &Tap, tile: &TileTap| Term {
        row: tap.from,
        column: tile.from,
        weights: tile.weights.map(|way| Some((tap.kernel * tiles.weights.len() + way?) * tiling.blocks)),
    };
    row.iter().flat_map(|tap| run.taps.iter().map(move |tile| term(tap, tile))).collect()
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

/// Groups positions `0..count` into runs of distance `step` whose taps move on by `from_step`.
fn runs(count: usize, step: usize, from_step: usize, reads: impl Fn(usize) -> Vec<Tap>) -> Vec<Run> {
    let mut all = Vec::new();
    for phase in 0..step.min(count) {
        let mut current: Option<Run> = None;
        for position in (phase..count).step_by(step) {
            let taps = reads(position);
            match &mut current {
                Some(run) if continues(run, &taps) => run.count += 1,
                _ => all.extend(current.replace(Run { start: position, count: 1, step, from_step, taps })),
            }
        }
        all.extend(current);
    }
    all
}

fn continues(run: &Run, taps: &[Tap]) -> bool {
    let further = run.count * run.from_step;
    run.taps.len() == taps.len() && run.taps.iter().zip(taps).all(|(first, tap)| first.moved(further) == *tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(runs: &[Run]) -> Vec<(usize, usize, usize)> {
        let mut pairs: Vec<_> = runs
            .iter()
            .flat_map(|run| {
                (0..run.count).flat_map(move |n| {
                    run.taps.iter().map(move |tap| (run.start + n * run.step, tap.kernel, tap.from + n * run.from_step))
                })
            })
            .collect();
        pairs.sort_unstable();
        pairs
    }

    #[test]
    fn runs_hold_exactly_the_pairs_of_the_definition() {
        for (kernel, stride, padding, input) in [
            (3, 1, 1, 8),
            (3, 2, 1, 8),
            (3, 2, 1, 7),
            (1, 1, 0, 5),
            (1, 2, 0, 5),
            (7, 2, 3, 12),
            (3, 1, 1, 1),
            (3, 2, 1, 2),
        ] {
            let output = (input + 2 * padding - kernel) / stride + 1;
            let conv = Conv1d { kernel, stride, padding, input, output };
            let mut forward = Vec::new();
            for o in 0..output {
                for k in 0..kernel {
                    let at = (o * stride + k) as isize - padding as isize;
                    if (0..input as isize).contains(&at) {
                        forward.push((o, k, at as usize));
                    }
                }
            }
            let mut backward: Vec<_> = forward.iter().map(|&(o, k, i)| (i, k, o)).collect();
            backward.sort_unstable();
            assert_eq!(expand(&conv.forward()), forward, "{conv:?}");
            assert_eq!(expand(&conv.backward()), backward, "{conv:?}");
            let covered: usize = conv.backward().iter().map(|run| run.count).sum();
            assert_eq!(covered, input, "every input belongs to one run, {conv:?}");
        }
    }

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
                let TileGather { columns, weights } = conv.tiles(direction, read, written);
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

    #[test]
    fn the_interior_of_a_3x3_convolution_is_one_run() {
        let conv = Conv1d { kernel: 3, stride: 1, padding: 1, input: 32, output: 32 };
        let counts: Vec<_> = conv.forward().iter().map(|run| run.count).collect();
        assert_eq!(counts, [1, 30, 1]);
    }
}
