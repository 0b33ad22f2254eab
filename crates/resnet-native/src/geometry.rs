//! Which input pixels an output pixel of a convolution sees: worked out once, in one dimension at a
//! time, for forward and backward alike.
//!
//! A convolution reads input `i = o * stride + k - padding` for output `o` and tap `k`. Backward-data
//! asks the reverse, which outputs `i = (o + padding - k) / stride` saw the input `o`. Both are "gather
//! from these taps", so one kernel serves both: it is given [`Run`]s of outputs that share their taps.
//!

use std::ops::Range;

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
    pub(crate) fn moved(self, by: usize) -> Self {
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
    pub(crate) fn reads(&self, direction: Direction, position: usize) -> Vec<Tap> {
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

    /// Shape of its input after im2col: every pixel written gets a copy of the patch it sees.
    pub fn im2col(&self) -> Shape {
        Shape { channels: self.inputs * self.taps(), ..self.output() }
    }

    /// The rows that some rows of the output read, from the first to the last.
    pub fn rows_read(&self, written: Range<usize>) -> Range<usize> {
        let Conv1d { kernel, stride, padding, input, .. } = self.vertical;
        let first = (written.start * stride).saturating_sub(padding);
        first..((written.end - 1) * stride + kernel).saturating_sub(padding).clamp(first, input.max(first))
    }
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
    fn the_interior_of_a_3x3_convolution_is_one_run() {
        let conv = Conv1d { kernel: 3, stride: 1, padding: 1, input: 32, output: 32 };
        let counts: Vec<_> = conv.forward().iter().map(|run| run.count).collect();
        assert_eq!(counts, [1, 30, 1]);
    }
}
