//! The weight gradient of a convolution on tiles: a sum over pixels of products of 32 images, so
//! two groups at a time. The output's gradient needs its groups put side by side, the input that
//! and a transposition; rows of both are kept so for as long as they are needed.

use std::ops::Range;

use super::interleave::interleave;
use super::operand::TileOperand;
use super::rows::row_steps;
use super::{SCRATCH, Simd, Tile, TileUnit, Vector, ZERO, gradient_len, plane_products};
use crate::geometry::Conv2d;
use crate::kernels::{ConvOperands, WeightGradientBand};
use crate::layout::tiles::{TILE, Tiling};
use crate::layout::{Layout, MAX_PLANES};

/// Columns of pixels, over whole rows, that the sums stay in registers for.
const COLUMNS: usize = 32;

/// Columns of the kernel whose window slides along a row.
const WINDOW: usize = 3;

/// Computes a band.
#[inline(always)]
pub fn weight_gradient<U: TileUnit, const PLANES: usize>(simd: Simd<U>, band: WeightGradientBand<'_>) {
    band.check(Layout::Tiles { planes: PLANES }, super::SCHEDULE, gradient_len(band.conv));
    let (vertical, horizontal) = (band.conv.vertical, band.conv.horizontal);
    let (input, output) = (Tiling::new(band.conv.input()), Tiling::new(band.conv.output()));
    let rows_at_once = (COLUMNS / horizontal.output).clamp(1, band.rows.len());
    let inputs_kept = (rows_at_once - 1) * vertical.stride + vertical.kernel;
    let input_row = horizontal.input * input.chunks() * PLANES;
    let output_row = horizontal.output * output.chunks() * PLANES;
    let groups = band.groups.iter();
    let (input_groups, gradient_groups) = groups
        .map(|&ConvOperands { input, output_gradient, images }| {
            let input = TileOperand::new(input, images, band.conv.input());
            (input, TileOperand::new(output_gradient, images, band.conv.output()))
        })
        .unzip();
    band.gradient.fill(0.0);
    let gradient = band.gradient.as_mut_ptr();
    let mut scratch = SCRATCH.take();
    let (inputs_len, outputs_len) = (inputs_kept * input_row, rows_at_once * output_row);
    scratch.resize(scratch.len().max(inputs_len + outputs_len), Tile::ZERO);
    let (inputs, outputs) = scratch.split_at_mut(inputs_len);
    let mut kernel = Kernel::<U, PLANES> {
        simd,
        unit: U::new(simd),
        conv: band.conv,
        input_groups,
        gradient_groups,
        input,
        output,
        inputs_kept,
        inputs,
        outputs,
    };
    for (read, rows) in row_steps(band.rows, rows_at_once, |rows| band.conv.rows_read(rows)) {
        // SAFETY: rows lie inside the band's tensors, scratch has room for them, and the gradient
        // for all weights.
        unsafe {
            for row in read {
                kernel.prepare_input(row);
            }
            for (slot, row) in rows.clone().enumerate() {
                kernel.prepare_output(row, slot);
            }
            kernel.add_rows(rows, gradient);
        }
    }
    drop(kernel);
    SCRATCH.set(scratch);
}

/// The matrix unit and what it works on.
struct Kernel<'a, U, const PLANES: usize> {
    simd: Simd<U>,
    unit: U,
    conv: &'a Conv2d,
    /// The input in each group.
    input_groups: Vec<TileOperand<'a>>,
    /// The gradient of the output in each group.
    gradient_groups: Vec<TileOperand<'a>>,
    input: Tiling,
    output: Tiling,
    /// Rows of the input that `inputs` has room for.
    inputs_kept: usize,
    /// `[row modulo those kept][x][chunk][plane]`, tiles of 16 channels by 32 images.
    inputs: &'a mut [Tile],
    /// `[row since the first][x][chunk][plane]`, tiles of 32 images by 16 channels.
    outputs: &'a mut [Tile],
}

impl<U: TileUnit, const PLANES: usize> Kernel<'_, U, PLANES> {
    /// Puts a row of the input's groups side by side, transposed.
    ///
    /// # Safety
    /// The row lies inside the input.
    #[inline(always)]
    unsafe fn prepare_input(&mut self, row: usize) {
        let (tiling, width) = (self.input, self.conv.horizontal.input);
        let slot = row % self.inputs_kept * width * tiling.chunks();
        let mut zipped = [[Tile::ZERO; MAX_PLANES]; 2];
        for tile in 0..tiling.row_tiles() {
            let halves = zipped.each_mut().map(|planes| planes.as_mut_ptr().cast());
            // SAFETY: the tile is one of the caller's row, and each half has the most planes.
            unsafe { interleave::<U, PLANES>(self.simd, &self.input_groups, row, (tile, tiling.row_tiles()), halves) };
            for (half, planes) in zipped.iter().enumerate() {
                let Some(at) = place(tiling, tile, half, width) else { continue };
                let to = &mut self.inputs[(slot + at) * PLANES..][..PLANES];
                for (plane, to) in planes.iter().zip(to) {
                    U::Vector::transpose(self.simd.vector(), &plane.0, &mut to.0);
                }
            }
        }
    }

    /// Puts a row of the gradient's groups side by side.
    ///
    /// # Safety
    /// The row lies inside the output.
    #[inline(always)]
    unsafe fn prepare_output(&mut self, row: usize, slot: usize) {
        let (tiling, width) = (self.output, self.conv.horizontal.output);
        let slot = slot * width * tiling.chunks();
        let mut unused = [Tile::ZERO; MAX_PLANES];
        for tile in 0..tiling.row_tiles() {
            let halves = [0, 1].map(|half| match place(tiling, tile, half, width) {
                Some(at) => self.outputs[(slot + at) * PLANES..][..PLANES].as_mut_ptr().cast(),
                None => unused.as_mut_ptr().cast(),
            });
            // SAFETY: the tile is one of the caller's row, and each half has all planes.
            unsafe {
                interleave::<U, PLANES>(self.simd, &self.gradient_groups, row, (tile, tiling.row_tiles()), halves)
            };
        }
    }

    /// Adds the products of some rows of the output's gradient.
    ///
    /// # Safety
    /// The rows are prepared.
    #[inline(always)]
    unsafe fn add_rows(&mut self, rows: Range<usize>, gradient: *mut f32) {
        let horizontal = self.conv.horizontal;
        let (inputs, outputs) = (self.input.chunks(), self.output.chunks());
        for row in 0..horizontal.kernel {
            let mut column = 0;
            while column < horizontal.kernel {
                let slides = horizontal.stride == 1 && horizontal.kernel - column >= WINDOW;
                let (at_once, columns) = if slides { (1, WINDOW) } else { (2, 1) };
                for input in (0..inputs).step_by(at_once) {
                    for output in (0..outputs).step_by(at_once) {
                        let job = Job { row, column, input, output };
                        // SAFETY: the caller's rows are prepared, and each job's sums are part of
                        // the gradient.
                        unsafe {
                            match (slides, inputs - input, outputs - output) {
                                (true, ..) => self.slide(rows.clone(), job, gradient),
                                (_, 1, 1) => self.block::<1, 1>(rows.clone(), job, gradient),
                                (_, 1, _) => self.block::<1, 2>(rows.clone(), job, gradient),
                                (_, _, 1) => self.block::<2, 1>(rows.clone(), job, gradient),
                                _ => self.block::<2, 2>(rows.clone(), job, gradient),
                            }
                        }
                    }
                }
                column += columns;
            }
        }
    }

    /// The sums of a job, some columns and chunks further on.
    ///
    /// # Safety
    /// The gradient has all sums of the convolution, and these are among them.
    #[inline(always)]
    unsafe fn sums(&self, gradient: *mut f32, job: Job, [column, input, output]: [usize; 3]) -> *mut f32 {
        let tap = job.row * self.conv.horizontal.kernel + job.column + column;
        let chunk = (tap * self.input.chunks() + job.input + input) * self.output.chunks() + job.output + output;
        // SAFETY: the caller's sums exist, a tile each.
        unsafe { gradient.add(chunk * TILE) }
    }

    /// The prepared rows that a row of the output's gradient and one of the kernel bring together;
    /// none beyond the border.
    #[inline(always)]
    fn rows_of(&self, job: Job, y: usize, slot: usize) -> Option<(*const Tile, *const Tile)> {
        let (vertical, horizontal) = (self.conv.vertical, self.conv.horizontal);
        let (inputs, outputs) = (self.input.chunks(), self.output.chunks());
        let from = (y * vertical.stride + job.row).checked_sub(vertical.padding).filter(|&y| y < vertical.input)?;
        let input = from % self.inputs_kept * horizontal.input * inputs + job.input;
        let output = slot * horizontal.output * outputs + job.output;
        let tile = |tiles: &[Tile], index: usize| tiles.as_ptr().wrapping_add(index * PLANES);
        Some((tile(self.inputs, input), tile(self.outputs, output)))
    }

    /// Sums three columns of the kernel in registers 0 to 2. The window of input that they see
    /// moves by one tile from pixel to pixel and stays in registers 3 to 5, which take turns.
    ///
    /// # Safety
    /// The rows are prepared and the sums exist; the stride is one.
    #[inline(always)]
    unsafe fn slide(&mut self, rows: Range<usize>, job: Job, gradient: *mut f32) {
        // SAFETY: the caller's sums exist and its rows are prepared.
        unsafe {
            let sums = [0, 1, 2].map(|column| self.sums(gradient, job, [column, 0, 0]));
            self.unit.load::<0>(sums[0]);
            self.unit.load::<1>(sums[1]);
            self.unit.load::<2>(sums[2]);
            for &(read, written) in plane_products(PLANES) {
                for (slot, y) in rows.clone().enumerate() {
                    if let Some((input, output)) = self.rows_of(job, y, slot) {
                        self.slide_along(job.column, input.wrapping_add(read), output.wrapping_add(written));
                    }
                }
            }
            self.unit.store::<0>(sums[0]);
            self.unit.store::<1>(sums[1]);
            self.unit.store::<2>(sums[2]);
        }
    }

    /// Adds a row's products to the registers.
    ///
    /// # Safety
    /// The rows are prepared.
    #[inline(always)]
    unsafe fn slide_along(&mut self, column: usize, input: *const Tile, output: *const Tile) {
        let horizontal = self.conv.horizontal;
        let (inputs, outputs) = (self.input.chunks() * PLANES, self.output.chunks() * PLANES);
        let tile = |x: usize| {
            let column = (x + column).wrapping_sub(horizontal.padding);
            if column < horizontal.input { input.wrapping_add(column * inputs) } else { ZERO.as_ptr() }
        };
        let unit = &mut self.unit;
        // SAFETY: the caller's rows are prepared; columns beyond the border are read from a tile of
        // zeros.
        unsafe {
            unit.load::<3>(tile(0).cast());
            unit.load::<4>(tile(1).cast());
            let mut x = 0;
            while x < horizontal.output {
                step::<U, 3, 4, 5>(unit, tile(x + 2), output.add(x * outputs));
                if x + 1 < horizontal.output {
                    step::<U, 4, 5, 3>(unit, tile(x + 3), output.add((x + 1) * outputs));
                }
                if x + 2 < horizontal.output {
                    step::<U, 5, 3, 4>(unit, tile(x + 4), output.add((x + 2) * outputs));
                }
                x += WINDOW;
            }
        }
    }

    /// Sums one tap of the kernel for `I` chunks of inputs by `O` of outputs in registers 0 to 3.
    ///
    /// # Safety
    /// The rows are prepared and the sums exist.
    #[inline(always)]
    unsafe fn block<const I: usize, const O: usize>(&mut self, rows: Range<usize>, job: Job, gradient: *mut f32) {
        // SAFETY: the caller's sums exist and its rows are prepared.
        unsafe {
            let sums = [[0, 0], [0, O - 1], [I - 1, 0], [I - 1, O - 1]];
            let sums = sums.map(|[input, output]| self.sums(gradient, job, [0, input, output]));
            self.unit.load::<0>(sums[0]);
            self.unit.load::<1>(sums[1]);
            self.unit.load::<2>(sums[2]);
            self.unit.load::<3>(sums[3]);
            for &(read, written) in plane_products(PLANES) {
                for (slot, y) in rows.clone().enumerate() {
                    if let Some((input, output)) = self.rows_of(job, y, slot) {
                        self.block_along::<I, O>(job.column, input.wrapping_add(read), output.wrapping_add(written));
                    }
                }
            }
            self.unit.store::<0>(sums[0]);
            if O == 2 {
                self.unit.store::<1>(sums[1]);
            }
            if I == 2 {
                self.unit.store::<2>(sums[2]);
            }
            if I == 2 && O == 2 {
                self.unit.store::<3>(sums[3]);
            }
        }
    }

    /// Adds a row's products to the registers.
    ///
    /// # Safety
    /// The rows are prepared.
    #[inline(always)]
    unsafe fn block_along<const I: usize, const O: usize>(
        &mut self,
        column: usize,
        input: *const Tile,
        output: *const Tile,
    ) {
        let horizontal = self.conv.horizontal;
        let (inputs, outputs) = (self.input.chunks() * PLANES, self.output.chunks() * PLANES);
        let unit = &mut self.unit;
        for x in 0..horizontal.output {
            // The column over the left border wraps to a large one: all outside fail one test.
            let column = (x * horizontal.stride + column).wrapping_sub(horizontal.padding);
            if column >= horizontal.input {
                continue;
            }
            // SAFETY: the caller's rows are prepared, and both columns lie inside them.
            unsafe {
                let (input, output) = (input.add(column * inputs), output.add(x * outputs));
                unit.load::<4>(input.cast());
                unit.load::<6>(output.cast());
                unit.dot::<0, 4, 6>();
                if O == 2 {
                    unit.load::<7>(output.add(PLANES).cast());
                    unit.dot::<1, 4, 7>();
                }
                if I == 2 {
                    unit.load::<5>(input.add(PLANES).cast());
                    unit.dot::<2, 5, 6>();
                }
                if I == 2 && O == 2 {
                    unit.dot::<3, 5, 7>();
                }
            }
        }
    }
}

/// One pixel's products with the three tiles of the window, of which `C` is new.
///
/// # Safety
/// Both are tiles.
#[inline(always)]
unsafe fn step<U: TileUnit, const A: usize, const B: usize, const C: usize>(
    unit: &mut U,
    newest: *const Tile,
    gradient: *const Tile,
) {
    // SAFETY: the caller's tiles.
    unsafe {
        unit.load::<C>(newest.cast());
        unit.load::<6>(gradient.cast());
        unit.dot::<0, A, 6>();
        unit.dot::<1, B, 6>();
        unit.dot::<2, C, 6>();
    }
}

/// Which weights are summed at a time: row and first column of the kernel, first chunk of inputs
/// and of outputs.
#[derive(Clone, Copy)]
struct Job {
    row: usize,
    column: usize,
    input: usize,
    output: usize,
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
