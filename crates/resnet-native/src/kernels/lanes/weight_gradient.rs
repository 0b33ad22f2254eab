//! The weight gradient of a convolution: a tile of output channels by input channels by kernel
//! columns stays in registers while the pixels go by; lanes are summed at the end of the band.

use super::rows::Rows;
use super::{Simd, Vector, gradient_len, winograd};
use crate::kernels::winograd::fits;
use crate::kernels::{ConvOperands, WeightGradientBand};
use crate::layout::{LANE_GROUP, Layout};

/// Kernel columns of a tile.
const COLUMNS: usize = 3;

/// Inputs of a tile for 1x1 kernels, which have one column.
const POINTWISE_INPUTS: usize = 4;

/// Computes a band with tiles of `K` outputs by `C` inputs by three kernel columns, or `L` outputs
/// by `D` inputs at a point of [`winograd`].
#[inline(always)]
pub fn weight_gradient<V: Vector, const K: usize, const C: usize, const L: usize, const D: usize>(
    simd: Simd<V>,
    band: WeightGradientBand<'_>,
) {
    if fits(band.conv) {
        winograd::weight_gradient::<V, L, D>(simd, band);
    } else if band.conv.horizontal.kernel == 1 {
        tiles::<V, K, POINTWISE_INPUTS, 1>(simd, band);
    } else {
        tiles::<V, K, C, COLUMNS>(simd, band);
    }
}

/// Computes a band with tiles of `K` outputs by `C` inputs by `X` kernel columns.
#[inline(always)]
fn tiles<V: Vector, const K: usize, const C: usize, const X: usize>(simd: Simd<V>, band: WeightGradientBand<'_>) {
    band.check(Layout::Lanes, super::SCHEDULE, gradient_len(band.conv));
    let (kernel, inputs) = (band.conv.horizontal.kernel, band.conv.inputs);
    let gradient = band.gradient.as_mut_ptr();
    let (input_row, output_row) = (Layout::Lanes.row_len(band.conv.input()), Layout::Lanes.row_len(band.conv.output()));
    let ConvOperands { input, output_gradient, images } = band.groups[0];
    let input_rows = Rows::new(simd, input, images, band.conv.rows_read(band.rows.clone()), input_row);
    let output_rows = Rows::new(simd, output_gradient, images, band.rows.clone(), output_row);
    let groups = (input_rows.group(), output_rows.group());
    for row in 0..kernel {
        for column in (0..kernel).step_by(X) {
            for input in (0..inputs).step_by(C) {
                for output in band.outputs.clone().step_by(K) {
                    // SAFETY: the groups hold all rows that the band reads; only outputs, inputs
                    // and columns that exist are written, and the gradient has a weight for each.
                    unsafe {
                        let sums = tile::<V, K, C, X>(simd, &band, groups, row, column, input, output);
                        for k in 0..K.min(band.outputs.end - output) {
                            for c in 0..C.min(inputs - input) {
                                for x in 0..X.min(kernel - column) {
                                    let pair = (output - band.outputs.start + k) * inputs + input + c;
                                    *gradient.add((pair * kernel + row) * kernel + column + x) = sums[k][c][x].sum();
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Sums over the band's pixels for `K` outputs from `output`, `C` inputs from `input` and `X`
/// kernel columns from `column`, in kernel row `row`. Channels past the last repeat it.
///
/// # Safety
/// Where the groups begin if all their rows were there, the rows of the band and those they read
/// are there.
#[inline(always)]
unsafe fn tile<V: Vector, const K: usize, const C: usize, const X: usize>(
    simd: Simd<V>,
    band: &WeightGradientBand<'_>,
    (input_group, gradient_group): (*const f32, *const f32),
    row: usize,
    column: usize,
    input: usize,
    output: usize,
) -> [[[V; X]; C]; K] {
    let (vertical, horizontal) = (band.conv.vertical, band.conv.horizontal);
    let (in_channels, out_channels) = (band.conv.inputs, band.conv.outputs);
    let mut inputs = [0; C];
    for c in 0..C {
        inputs[c] = (input + c).min(in_channels - 1) * LANE_GROUP;
    }
    let mut outputs = [0; K];
    for k in 0..K {
        outputs[k] = (output + k).min(out_channels - 1) * LANE_GROUP;
    }
    let (pixel, output_pixel) = (in_channels * LANE_GROUP, out_channels * LANE_GROUP);
    // SAFETY: rows and columns are kept inside both images, and channels below the last.
    unsafe {
        let mut sums = [[[simd.zero(); X]; C]; K];
        for y in band.rows.clone() {
            let Some(from) = (y * vertical.stride + row).checked_sub(vertical.padding) else { continue };
            if from >= vertical.input {
                continue;
            }
            let input_row = input_group.add(from * horizontal.input * pixel);
            let gradient_row = gradient_group.add(y * horizontal.output * output_pixel);
            for x in 0..horizontal.output {
                let gradient = gradient_row.add(x * output_pixel);
                let first = x * horizontal.stride + column;
                for part in (0..LANE_GROUP).step_by(V::LANES) {
                    let mut g = [simd.zero(); K];
                    for k in 0..K {
                        g[k] = simd.load(gradient.add(outputs[k] + part));
                    }
                    for j in 0..X {
                        // Columns over the border contribute nothing; the branch is taken at the
                        // two ends of a row and predicted in between.
                        let from = (first + j).wrapping_sub(horizontal.padding);
                        if from >= horizontal.input {
                            continue;
                        }
                        let source = input_row.add(from * pixel + part);
                        for c in 0..C {
                            let value = simd.load(source.add(inputs[c]));
                            for k in 0..K {
                                sums[k][c][j] = value.mul_add(g[k], sums[k][c][j]);
                            }
                        }
                    }
                }
            }
        }
        sums
    }
}
