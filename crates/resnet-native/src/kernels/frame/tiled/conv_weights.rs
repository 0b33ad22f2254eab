//! The gradient of a convolution by its weights on tiles: a sum over pixels of products of 32 images, so
//! two groups at a time. The output's gradient needs its groups put side by side, the input that and a
//! transposition; rows of both are kept so for as long as they are needed.

use super::{SCRATCH, Tile, TileUnit, Vector};
use crate::kernels::ConvWeightsBand;
use crate::layout::{TILE, Tiling};

/// Columns of pixels, over whole rows, that the sums stay in registers for.
const COLUMNS: usize = 32;

/// Kernel columns that share a tile of the output's gradient.
const KERNEL_COLUMNS: usize = 3;

/// Computes a band.
///
/// # Safety
/// See the [module](super::super).
#[inline(always)]
pub unsafe fn conv_weights<U: TileUnit>(band: ConvWeightsBand<'_>) {
    let (vertical, horizontal) = (band.conv.vertical, band.conv.horizontal);
    let (input, output) = (Tiling::new(band.conv.input()), Tiling::new(band.conv.output()));
    let rows_at_once = (COLUMNS / horizontal.output).clamp(1, band.rows.len());
    let inputs_kept = (rows_at_once - 1) * vertical.stride + vertical.kernel;
    let (input_row, output_row) = (horizontal.input * input.chunks(), horizontal.output * output.chunks());
    band.gradient.fill(0.0);
    let gradient = band.gradient.as_mut_ptr();
    let mut scratch = SCRATCH.take();
    scratch.resize(scratch.len().max(inputs_kept * input_row + rows_at_once * output_row), Tile::ZERO);
    let (inputs, outputs) = scratch.split_at_mut(inputs_kept * input_row);
    // SAFETY: passed on from the caller.
    let unit = unsafe { U::new() };
    let mut pass = Pass { unit, band: &band, input, output, inputs_kept, inputs, outputs };
    let mut prepared = (band.rows.start * vertical.stride).saturating_sub(vertical.padding);
    for first in band.rows.clone().step_by(rows_at_once) {
        let rows = first..band.rows.end.min(first + rows_at_once);
        let needed = ((rows.end - 1) * vertical.stride + vertical.kernel).saturating_sub(vertical.padding);
        let needed = needed.min(vertical.input);
        // SAFETY: rows lie inside the band's tensors; scratch has room for them.
        unsafe {
            for row in prepared..needed {
                pass.prepare_input(row);
            }
            for (slot, row) in rows.clone().enumerate() {
                pass.prepare_output(row, slot);
            }
            pass.add_rows(rows, gradient);
        }
        prepared = prepared.max(needed);
    }
    drop(pass);
    SCRATCH.set(scratch);
}

struct Pass<'a, U> {
    unit: U,
    band: &'a ConvWeightsBand<'a>,
    input: Tiling,
    output: Tiling,
    /// Rows of the input that `inputs` has room for.
    inputs_kept: usize,
    /// `[row modulo those kept][x][chunk]`, tiles of 16 channels by 32 images.
    inputs: &'a mut [Tile],
    /// `[row since the first][x][chunk]`, tiles of 32 images by 16 channels.
    outputs: &'a mut [Tile],
}

/// Puts two groups' tile side by side: `halves[0]` gets the low halves of its words, `halves[1]` the high.
///
/// # Safety
/// All are tiles; a group that does not exist is null.
#[inline(always)]
unsafe fn zip<V: Vector>(groups: [*const f32; 2], halves: [*mut f32; 2]) {
    for at in (0..TILE).step_by(V::LANES) {
        // SAFETY: inside the tiles.
        unsafe {
            let first = V::load(groups[0].add(at));
            let second = if groups[1].is_null() { V::splat(0.0) } else { V::load(groups[1].add(at)) };
            V::zip_low(first, second).store(halves[0].add(at));
            V::zip_high(first, second).store(halves[1].add(at));
        }
    }
}

impl<U: TileUnit> Pass<'_, U> {
    /// # Safety
    /// The row lies inside the input.
    #[inline(always)]
    unsafe fn prepare_input(&mut self, row: usize) {
        let (tiling, width) = (self.input, self.band.conv.horizontal.input);
        let slot = row % self.inputs_kept * width * tiling.chunks();
        let mut zipped = [Tile::ZERO; 2];
        for tile in 0..tiling.row_tiles() {
            // SAFETY: passed on from the caller.
            unsafe {
                let groups = groups(self.band.inputs, (row * tiling.row_tiles() + tile) * TILE);
                let [low, high] = &mut zipped;
                zip::<U::Vector>(groups, [low.as_mut_ptr(), high.as_mut_ptr()]);
            }
            for (half, zipped) in zipped.iter().enumerate() {
                if let Some(at) = place(tiling, tile, half, width) {
                    // SAFETY: two tiles.
                    unsafe { U::Vector::transpose(zipped.as_ptr(), self.inputs[slot + at].as_mut_ptr()) };
                }
            }
        }
    }

    /// # Safety
    /// The row lies inside the output.
    #[inline(always)]
    unsafe fn prepare_output(&mut self, row: usize, slot: usize) {
        let (tiling, width) = (self.output, self.band.conv.horizontal.output);
        let mut unused = Tile::ZERO;
        for tile in 0..tiling.row_tiles() {
            let halves = [0, 1].map(|half| match place(tiling, tile, half, width) {
                Some(at) => self.outputs[slot * width * tiling.chunks() + at].as_mut_ptr(),
                None => unused.as_mut_ptr(),
            });
            // SAFETY: passed on from the caller.
            unsafe {
                let at = (row * tiling.row_tiles() + tile) * TILE;
                zip::<U::Vector>(groups(self.band.output_gradients, at), halves);
            }
        }
    }

    /// Adds the products of some rows of the output's gradient.
    ///
    /// # Safety
    /// The rows are prepared.
    #[inline(always)]
    unsafe fn add_rows(&mut self, rows: std::ops::Range<usize>, gradient: *mut f32) {
        let kernel = self.band.conv.horizontal.kernel;
        let (inputs, outputs) = (self.input.chunks(), self.output.chunks());
        for row in 0..kernel {
            let mut column = 0;
            while column < kernel {
                let columns = if kernel - column < KERNEL_COLUMNS { 1 } else { KERNEL_COLUMNS };
                for (input, output) in (0..inputs).step_by(2).flat_map(|i| (0..outputs).map(move |o| (i, o))) {
                    let job = Job { row, column, input, output };
                    // SAFETY: passed on from the caller; a job's sums lie inside the gradient.
                    unsafe {
                        let sums = [0, 1, 2].map(|x| {
                            let tap = row * kernel + column + x.min(columns - 1);
                            [0, 1].map(|c| {
                                gradient.add(((tap * inputs + (input + c).min(inputs - 1)) * outputs + output) * TILE)
                            })
                        });
                        match (columns, inputs - input) {
                            (1, 1) => self.add::<1, 1>(rows.clone(), job, sums),
                            (1, _) => self.add::<1, 2>(rows.clone(), job, sums),
                            (_, 1) => self.add::<3, 1>(rows.clone(), job, sums),
                            _ => self.add::<3, 2>(rows.clone(), job, sums),
                        }
                    }
                }
                column += columns;
            }
        }
    }

    /// Sums `X` kernel columns by `C` chunks of inputs in registers 0 to 5, `2 * column + chunk`.
    ///
    /// # Safety
    /// As for [`add_rows`](Self::add_rows); `sums` are tiles.
    #[inline(always)]
    unsafe fn add<const X: usize, const C: usize>(
        &mut self,
        rows: std::ops::Range<usize>,
        job: Job,
        sums: [[*mut f32; 2]; 3],
    ) {
        let (vertical, horizontal) = (self.band.conv.vertical, self.band.conv.horizontal);
        let (inputs, outputs) = (self.input.chunks(), self.output.chunks());
        let unit = &mut self.unit;
        // SAFETY: passed on from the caller; rows and columns are kept inside both images.
        unsafe {
            unit.load::<0>(sums[0][0]);
            if C == 2 {
                unit.load::<1>(sums[0][1]);
            }
            if X == 3 {
                unit.load::<2>(sums[1][0]);
                unit.load::<4>(sums[2][0]);
                if C == 2 {
                    unit.load::<3>(sums[1][1]);
                    unit.load::<5>(sums[2][1]);
                }
            }
            for (slot, y) in rows.enumerate() {
                let Some(from) = (y * vertical.stride + job.row).checked_sub(vertical.padding) else { continue };
                if from >= vertical.input {
                    continue;
                }
                let input = self.inputs.as_ptr().add(from % self.inputs_kept * horizontal.input * inputs + job.input);
                let output = self.outputs.as_ptr().add(slot * horizontal.output * outputs + job.output);
                for x in 0..horizontal.output {
                    unit.load::<7>(output.add(x * outputs).cast());
                    let first = (x * horizontal.stride + job.column).wrapping_sub(horizontal.padding);
                    // The column over the left border wraps to a large one: all outside fail one test.
                    if first < horizontal.input {
                        let tile = input.add(first * inputs);
                        unit.load::<6>(tile.cast());
                        unit.dot::<0, 6, 7>();
                        if C == 2 {
                            unit.load::<6>(tile.add(1).cast());
                            unit.dot::<1, 6, 7>();
                        }
                    }
                    if X == 3 {
                        let second = first.wrapping_add(1);
                        if second < horizontal.input {
                            let tile = input.add(second * inputs);
                            unit.load::<6>(tile.cast());
                            unit.dot::<2, 6, 7>();
                            if C == 2 {
                                unit.load::<6>(tile.add(1).cast());
                                unit.dot::<3, 6, 7>();
                            }
                        }
                        let third = first.wrapping_add(2);
                        if third < horizontal.input {
                            let tile = input.add(third * inputs);
                            unit.load::<6>(tile.cast());
                            unit.dot::<4, 6, 7>();
                            if C == 2 {
                                unit.load::<6>(tile.add(1).cast());
                                unit.dot::<5, 6, 7>();
                            }
                        }
                    }
                }
            }
            unit.store::<0>(sums[0][0]);
            if C == 2 {
                unit.store::<1>(sums[0][1]);
            }
            if X == 3 {
                unit.store::<2>(sums[1][0]);
                unit.store::<4>(sums[2][0]);
                if C == 2 {
                    unit.store::<3>(sums[1][1]);
                    unit.store::<5>(sums[2][1]);
                }
            }
        }
    }
}

/// Which weights: kernel row, first kernel column, first chunk of inputs, chunk of outputs.
#[derive(Clone, Copy)]
struct Job {
    row: usize,
    column: usize,
    input: usize,
    output: usize,
}

/// A tile of each of two groups; null for one that does not exist.
///
/// # Safety
/// `at` lies inside a group.
#[inline(always)]
unsafe fn groups(groups: &[&[f32]], at: usize) -> [*const f32; 2] {
    // SAFETY: passed on from the caller.
    unsafe {
        let second = if groups.len() == 2 { groups[1].as_ptr().add(at) } else { std::ptr::null() };
        [groups[0].as_ptr().add(at), second]
    }
}

/// Where a half of a row's tile belongs in `[x][chunk]`; nowhere if its pixel does not exist.
#[inline(always)]
fn place(tiling: Tiling, tile: usize, half: usize, width: usize) -> Option<usize> {
    if tiling.pixels == 1 {
        Some(tile / tiling.blocks * tiling.chunks() + 2 * (tile % tiling.blocks) + half)
    } else {
        Some(2 * tile + half).filter(|&x| x < width)
    }
}
