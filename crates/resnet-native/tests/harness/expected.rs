//! What kernels should give, by the definition in double precision, and what they may lose.

use resnet_graph::{Precision, Shape};
use resnet_native::geometry::Conv2d;
use resnet_native::kernels::{NormValues, Operand};

use super::cases::Case;
use super::data::channel_of;
use crate::reference::{Exact, Tolerance};

/// What sums in single precision may lose.
pub const SUM: Tolerance = Tolerance { sum: 1e-6, result: 0.0 };

/// What sums in single precision may lose where a few hundred squares are added up one after the
/// other.
pub const MOMENTS: Tolerance = Tolerance { sum: 4e-6, result: 0.0 };

/// What an activation computed in a precision may lose.
pub fn stored(precision: Precision) -> Tolerance {
    let result = match precision {
        Precision::F32 => 0.0,
        Precision::Tf32 => 1.0 / 65536.0,
        Precision::Bf16 => 1.0 / 256.0,
    };
    Tolerance { result, ..summed(precision) }
}

/// What a sum of products loses: in `Tf32` the product of both factors' second planes is left out.
fn summed(precision: Precision) -> Tolerance {
    if precision == Precision::Tf32 { Tolerance { sum: 2e-5, ..SUM } } else { SUM }
}

/// What a sum of products of an operand loses: factors recomputed on load are rounded before they
/// are multiplied.
pub fn multiplied(precision: Precision, operand: Operand<(), ()>) -> Tolerance {
    match (operand, precision) {
        (Operand::Stored(()), _) | (_, Precision::F32) => summed(precision),
        (_, Precision::Tf32) => Tolerance { sum: 5e-5, ..SUM },
        (_, Precision::Bf16) => Tolerance { sum: 1.0 / 128.0, ..SUM },
    }
}

/// What the sums of an epilogue lose, over results that lost `tolerance`.
pub fn epilogue(tolerance: Tolerance) -> Tolerance {
    Tolerance { sum: tolerance.sum.max(MOMENTS.sum), ..MOMENTS }
}

/// A sum of products of an operand and weights, and the same with every term made positive.
pub fn exact_products(operand: &Exact, weights: &[f64], run: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Exact {
    let values = run(&operand.values, weights);
    Exact {
        values,
        magnitudes: run(&operand.magnitudes, &weights.iter().map(|weight| weight.abs()).collect::<Vec<_>>()),
    }
}

/// Moments of exact results, in the magnitudes of their sums.
pub fn moments(exact: &Exact, case: &Case, pivot: &[f32]) -> Exact {
    let shape = case.output();
    let mut sums = Exact { values: vec![0.0; 2 * shape.channels], magnitudes: vec![0.0; 2 * shape.channels] };
    for (index, (value, magnitude)) in exact.values.iter().zip(&exact.magnitudes).enumerate() {
        let channel = channel_of(index, shape);
        let centred = value - f64::from(pivot[channel]);
        let magnitude = magnitude + f64::from(pivot[channel].abs());
        for (which, (term, magnitude)) in
            [(centred, magnitude), (centred * centred, magnitude * magnitude)].into_iter().enumerate()
        {
            sums.values[2 * channel + which] += term;
            sums.magnitudes[2 * channel + which] += magnitude;
        }
    }
    sums
}

/// Sums of a gradient, `[channel][of g, of g * normalised input]`.
pub fn gradient_sums(g: &[f32], y: &[f32], norm: &NormValues, shape: Shape) -> Exact {
    channel_sums(g, shape, |i, c| {
        let normalized = (f64::from(y[i]) - f64::from(norm.mean[c])) * f64::from(norm.inv_std[c]);
        [g[i].into(), f64::from(g[i]) * normalized]
    })
}

fn channel_sums(like: &[f32], shape: Shape, terms: impl Fn(usize, usize) -> [f64; 2]) -> Exact {
    let mut exact = Exact { values: vec![0.0; 2 * shape.channels], magnitudes: vec![0.0; 2 * shape.channels] };
    for index in 0..like.len() {
        let channel = channel_of(index, shape);
        for (which, term) in terms(index, channel).into_iter().enumerate() {
            exact.values[2 * channel + which] += term;
            exact.magnitudes[2 * channel + which] += term.abs().max(1e-3);
        }
    }
    exact
}

/// What each tap of a convolution reads for each pixel it writes: `[image][channel, row,
/// column][pixel]`.
pub fn im2col(conv: &Conv2d, images: &[f32]) -> Vec<f32> {
    let (input, output, shape) = (conv.input(), conv.output(), conv.im2col());
    let (kernel, stride, padding) = (conv.vertical.kernel, conv.vertical.stride, conv.vertical.padding);
    let mut found = Vec::new();
    for image in images.chunks(input.len()) {
        for tap in 0..shape.channels {
            let (channel, row, column) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
            for pixel in 0..output.height * output.width {
                let y = (pixel / output.width * stride + row).checked_sub(padding).filter(|&y| y < input.height);
                let x = (pixel % output.width * stride + column).checked_sub(padding).filter(|&x| x < input.width);
                let at = y.zip(x).map(|(y, x)| (channel * input.height + y) * input.width + x);
                found.push(at.map_or(0.0, |at| image[at]));
            }
        }
    }
    found
}
