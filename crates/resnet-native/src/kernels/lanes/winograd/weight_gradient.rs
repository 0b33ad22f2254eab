//! The weight gradient: at each point, `K` outputs by `C` inputs stay in registers while the quads
//! go by.

use std::ops::Range;

use super::super::rows::Rows;
use super::super::{Simd, Vector};
use super::gradient_len;
use crate::geometry::Conv2d;
use crate::kernels::WeightGradientBand;
use crate::kernels::winograd::transform::{Gradient, Input, Transform};
use crate::kernels::winograd::{KERNEL, POINTS, QUAD, Row, WINDOW};
use crate::layout::{LANE_GROUP, Layout};
use crate::memory::Scratch;

/// Quads summed at once: those of `K` outputs then stay in the first-level cache while the inputs
/// go by.
const QUADS: usize = 64;

/// Points computed at once: 0 and infinity, a and -a, or b and -b, which share most of the work.
const PAIR: usize = 2;

/// Computes a band.
#[inline(always)]
pub fn weight_gradient<V: Vector, const K: usize, const C: usize>(simd: Simd<V>, band: WeightGradientBand<'_>) {
    band.check(Layout::Lanes, crate::kernels::lanes::SCHEDULE, gradient_len(band.conv));
    let (conv, horizontal, group) = (band.conv, band.conv.horizontal, band.groups[0]);
    let input = Row { width: horizontal.input, pixel: conv.inputs * LANE_GROUP, padding: horizontal.padding as isize };
    let output = Row { width: horizontal.output, pixel: conv.outputs * LANE_GROUP, padding: 0 };
    let quads = output.width.div_ceil(QUAD);
    let step = (QUADS / quads).max(1);
    band.gradient.fill(0.0);
    for first in band.rows.clone().step_by(step) {
        let rows = first..(first + step).min(band.rows.end);
        let read = conv.rows_read(rows.clone());
        let inputs = Rows::new(simd, group.input, group.images, read.clone(), input.width * input.pixel);
        let gradients = Rows::new(simd, group.output_gradient, group.images, rows.clone(), output.width * output.pixel);
        let x = Factor { row: input, rows: read, channels: 0..conv.inputs, group: inputs.group(), quads };
        let g = Factor { row: output, rows, channels: band.outputs.clone(), group: gradients.group(), quads };
        // SAFETY: `inputs` and `gradients` hold the rows named.
        unsafe {
            add_pair::<V, K, C, 0>(simd, conv, &x, &g, band.gradient);
            add_pair::<V, K, C, 1>(simd, conv, &x, &g, band.gradient);
            add_pair::<V, K, C, 2>(simd, conv, &x, &g, band.gradient);
        }
    }
}

/// Adds the sums over some rows at a pair of points to `[out][kernel row][point][in]`.
///
/// # Safety
/// Where the operands' groups begin if all their rows were there, those named are there.
#[inline(always)]
unsafe fn add_pair<V: Vector, const K: usize, const C: usize, const INDEX: usize>(
    simd: Simd<V>,
    conv: &Conv2d,
    x: &Factor,
    g: &Factor,
    gradient: &mut [f32],
) {
    // SAFETY: the caller's rows are there.
    let (mut x_points, mut g_points) =
        unsafe { (x.at_points::<V, Input, C, INDEX>(simd), g.at_points::<V, Gradient, K, INDEX>(simd)) };
    for (point, kernel_row) in (0..PAIR).flat_map(|point| (0..KERNEL).map(move |kernel_row| (point, kernel_row))) {
        // Rows of outputs that see a row of the input in this row of the kernel: `y + kernel_row -
        // padding`.
        let padding = conv.vertical.padding;
        let seen = |y: usize| (y + kernel_row).checked_sub(padding).is_some_and(|from| from < conv.vertical.input);
        let Some(first) = g.rows.clone().find(|&y| seen(y)) else { continue };
        let count = (first..g.rows.end).take_while(|&y| seen(y)).count() * x.quads;
        for output in (0..g.channels.len()).step_by(K) {
            let gradients = g_points.place(point, output / K, first - g.rows.start);
            for input in (0..conv.inputs).step_by(C) {
                let inputs = x_points.place(point, input / C, first + kernel_row - padding - x.rows.start);
                // SAFETY: `count` quads lie between the places and the ends of their blocks.
                let sums = unsafe { multiply::<V, K, C>(simd, inputs, gradients, count) };
                for k in 0..K.min(g.channels.len() - output) {
                    let row = (((output + k) * KERNEL + kernel_row) * POINTS + INDEX * PAIR + point) * conv.inputs;
                    for (total, sum) in gradient[row + input..row + conv.inputs].iter_mut().zip(sums[k]) {
                        *total += sum;
                    }
                }
            }
        }
    }
}

/// Sums of `count` quads for `K` outputs by `C` inputs.
///
/// # Safety
/// From `x` on there are `count` quads of `C` channels, from `g` on as many of `K`.
#[inline(always)]
unsafe fn multiply<V: Vector, const K: usize, const C: usize>(
    simd: Simd<V>,
    x: *const f32,
    g: *const f32,
    count: usize,
) -> [[f32; C]; K] {
    const { assert!((K * C).is_multiple_of(4), "sums of lanes are taken four at a time") };
    // SAFETY: the caller's quads exist, and `lanes` has room for a vector of 16 lanes at most for
    // each sum.
    unsafe {
        let mut sums = [[simd.zero(); C]; K];
        for quad in 0..count {
            for part in (0..LANE_GROUP).step_by(V::LANES) {
                let (x, g) = (x.add(quad * C * LANE_GROUP + part), g.add(quad * K * LANE_GROUP + part));
                let mut inputs = [simd.zero(); C];
                for c in 0..C {
                    inputs[c] = simd.load(x.add(c * LANE_GROUP));
                }
                for k in 0..K {
                    let gradient = simd.load(g.add(k * LANE_GROUP));
                    for c in 0..C {
                        sums[k][c] = inputs[c].mul_add(gradient, sums[k][c]);
                    }
                }
            }
        }
        let mut lanes = [[[0.0f32; LANE_GROUP]; C]; K];
        for k in 0..K {
            for c in 0..C {
                sums[k][c].store(lanes[k][c].as_mut_ptr());
            }
        }
        // Through memory: what becomes of sums after a loop would cost them their registers in it.
        let lanes = std::hint::black_box(&lanes).as_flattened();
        let mut totals = [[0.0; C]; K];
        for (lanes, totals) in lanes.chunks_exact(4).zip(totals.as_flattened_mut().chunks_exact_mut(4)) {
            let mut rows = [simd.zero(); 4];
            for row in 0..4 {
                rows[row] = simd.load(lanes[row].as_ptr());
            }
            totals.copy_from_slice(&V::sum_each(rows));
        }
        totals
    }
}

/// Some rows of one factor.
struct Factor {
    row: Row,
    rows: Range<usize>,
    channels: Range<usize>,
    /// Where the group would begin if all its rows were there.
    group: *const f32,
    quads: usize,
}

/// A [`Factor`] at a pair of points: `[point][channel / block][row][quad][block][16 images]`.
struct Points {
    rows: usize,
    /// Floats of a row of a block of channels.
    row_len: usize,
    blocks: usize,
    scratch: Scratch,
}

impl Points {
    /// A row of a block of channels.
    fn place(&mut self, point: usize, block: usize, row: usize) -> *mut f32 {
        let index = (point * self.blocks + block) * self.rows + row;
        self.scratch.all()[index * self.row_len..].as_mut_ptr()
    }
}

impl Factor {
    /// Transforms the rows to a pair of points, in blocks of `BLOCK` channels; those past the last
    /// repeat it.
    ///
    /// # Safety
    /// Where the group begins if all its rows were there, those named are there.
    #[inline(always)]
    unsafe fn at_points<V: Vector, T: Transform, const BLOCK: usize, const INDEX: usize>(
        &self,
        simd: Simd<V>,
    ) -> Points {
        let (rows, row_len) = (self.rows.len(), self.quads * BLOCK * LANE_GROUP);
        let blocks = self.channels.len().div_ceil(BLOCK);
        let mut points = Points { rows, row_len, blocks, scratch: Scratch::take(PAIR * blocks * rows * row_len) };
        let mut zeros = Scratch::take(self.row.pixel);
        zeros.all().fill(0.0);
        let zeros = zeros.all().as_ptr();
        for (index, y) in self.rows.clone().enumerate() {
            let row = self.group.wrapping_add(y * self.row.width * self.row.pixel);
            for block in 0..blocks {
                let to = [points.place(0, block, index), points.place(1, block, index)];
                for quad in 0..self.quads {
                    let window = self.row.window(quad, row, zeros);
                    for lane in 0..BLOCK {
                        let channel = (self.channels.start + block * BLOCK + lane).min(self.channels.end - 1);
                        let place = (quad * BLOCK + lane) * LANE_GROUP;
                        for part in (0..LANE_GROUP).step_by(V::LANES) {
                            // SAFETY: a window is made of pixels of the caller's row or of zeros,
                            // and each of the two points has room for the quad.
                            unsafe {
                                let mut pixels = [simd.zero(); WINDOW];
                                for j in 0..T::PIXELS {
                                    pixels[j] = simd.load(window[j].add(channel * LANE_GROUP + part));
                                }
                                let values = T::apply(simd, pixels);
                                for point in 0..PAIR {
                                    values[INDEX * PAIR + point].store(to[point].add(place + part));
                                }
                            }
                        }
                    }
                }
            }
        }
        points
    }
}
