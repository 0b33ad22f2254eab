//! The definition of every layer, written out in double precision: slow, and plain enough to trust.
//!
//! Tensors are `[images][channels][height][width]`, flat. Next to each result comes its
//! *magnitude*, the same sum with every term made positive: what a rounding error has to be
//! measured against.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod network;

use resnet_graph::{Graph, Op, Shape};
use resnet_native::geometry::Conv2d;

/// Values and their magnitudes.
pub struct Exact {
    pub values: Vec<f64>,
    pub magnitudes: Vec<f64>,
}

impl Exact {
    fn zeros(len: usize) -> Self {
        Self { values: vec![0.0; len], magnitudes: vec![0.0; len] }
    }

    fn add(&mut self, at: usize, term: f64) {
        self.values[at] += term;
        self.magnitudes[at] += term.abs();
    }

    /// Panics when a value found is further from the exact one than `tolerance` allows.
    pub fn assert_close(&self, found: &[f32], tolerance: Tolerance, what: &str) {
        assert_eq!(found.len(), self.values.len(), "{what}: length");
        for (index, &found) in found.iter().enumerate() {
            let (exact, magnitude) = (self.values[index], self.magnitudes[index]);
            let error = (f64::from(found) - exact).abs();
            let allowed = tolerance.sum * magnitude + tolerance.result * exact.abs() + 1e-30;
            assert!(error <= allowed, "{what}[{index}]: {found} is not {exact} (error {error:e})");
        }
    }
}

/// Rounding errors that a result may show.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// In magnitudes of the sum.
    pub sum: f64,
    /// In parts of the result, from the form in which it is stored.
    pub result: f64,
}

/// Calls `visit(image, out, in, tap, output index, input index)` for every product of a
/// convolution.
fn products(conv: &Conv2d, images: usize, input: Shape, output: Shape, mut visit: impl FnMut(usize, usize, usize)) {
    let (kernel, stride, padding) = (conv.vertical.kernel, conv.vertical.stride, conv.vertical.padding);
    for image in 0..images {
        for k in 0..output.channels {
            for c in 0..input.channels {
                for (oy, ox) in pixels(output) {
                    for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                        let (y, x) = (oy * stride + ky, ox * stride + kx);
                        if y < padding || x < padding || y - padding >= input.height || x - padding >= input.width {
                            continue;
                        }
                        let from =
                            ((image * input.channels + c) * input.height + y - padding) * input.width + x - padding;
                        let to = ((image * output.channels + k) * output.height + oy) * output.width + ox;
                        visit(from, to, ((k * input.channels + c) * kernel + ky) * kernel + kx);
                    }
                }
            }
        }
    }
}

fn pixels(shape: Shape) -> impl Iterator<Item = (usize, usize)> {
    (0..shape.height).flat_map(move |y| (0..shape.width).map(move |x| (y, x)))
}

pub fn conv(conv: &Conv2d, images: usize, input: Shape, output: Shape, x: &[f64], w: &[f64]) -> Exact {
    let mut exact = Exact::zeros(images * output.len());
    products(conv, images, input, output, |from, to, weight| exact.add(to, x[from] * w[weight]));
    exact
}

pub fn conv_input(conv: &Conv2d, images: usize, input: Shape, output: Shape, g: &[f64], w: &[f64]) -> Exact {
    let mut exact = Exact::zeros(images * input.len());
    products(conv, images, input, output, |from, to, weight| exact.add(from, g[to] * w[weight]));
    exact
}

pub fn weight_gradient(conv: &Conv2d, images: usize, input: Shape, output: Shape, x: &[f64], g: &[f64]) -> Exact {
    let mut exact = Exact::zeros(output.channels * input.channels * conv.vertical.kernel.pow(2));
    products(conv, images, input, output, |from, to, weight| exact.add(weight, x[from] * g[to]));
    exact
}

pub fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Numbers in `-1..1` from a seed; simple and the same everywhere.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Mean softmax cross-entropy of a graph in training mode. `tensor` gives the values of a tensor of
/// the state by name.
pub fn loss(graph: &Graph, tensor: &dyn Fn(&str) -> Vec<f64>, images: &[f64], labels: &[u32], smoothing: f64) -> f64 {
    cross_entropy(&logits(graph, tensor, images, labels.len(), Statistics::Batch), labels, smoothing)
}

/// Which statistics batch norm uses.
#[derive(Clone, Copy, PartialEq)]
pub enum Statistics {
    Batch,
    Running,
}

/// Logits of `count` images, by the definition of each layer.
pub fn logits(
    graph: &Graph,
    tensor: &dyn Fn(&str) -> Vec<f64>,
    images: &[f64],
    count: usize,
    statistics: Statistics,
) -> Vec<f64> {
    let mut values: Vec<Vec<f64>> = Vec::new();
    for node in graph.nodes() {
        let shape = graph.input_of(node);
        let parameter = |suffix: &str| tensor(&format!("{}.{suffix}", node.name));
        let input = || &values[node.inputs[0]];
        let value = match node.op {
            Op::Input => images.to_vec(),
            Op::Conv { kernel, stride, padding } => {
                let geometry = Conv2d::new(shape, node.output, kernel, stride, padding);
                conv(&geometry, count, shape, node.output, input(), &parameter("weight")).values
            }
            Op::BatchNorm => {
                let running = [parameter("running_mean"), parameter("running_var")];
                let running = (statistics == Statistics::Running).then_some(&running);
                batch_norm(input(), shape, [&parameter("weight"), &parameter("bias")], running)
            }
            Op::Relu => input().iter().map(|v| v.max(0.0)).collect(),
            Op::Add => input().iter().zip(&values[node.inputs[1]]).map(|(a, b)| a + b).collect(),
            Op::MaxPool { kernel, stride, padding } => max_pool(input(), shape, node.output, [kernel, stride, padding]),
            Op::PadShortcut { stride } => pad_shortcut(input(), shape, node.output, stride),
            Op::GlobalAvgPool => {
                let pixels = shape.height * shape.width;
                input().chunks(pixels).map(|plane| plane.iter().sum::<f64>() / pixels as f64).collect()
            }
            Op::Linear => linear(input(), shape.len(), &parameter("weight"), &parameter("bias")),
        };
        values.push(value);
    }
    values.pop().expect("a graph has nodes")
}

fn batch_norm(input: &[f64], shape: Shape, [weight, bias]: [&[f64]; 2], running: Option<&[Vec<f64>; 2]>) -> Vec<f64> {
    let pixels = shape.height * shape.width;
    let mut output = input.to_vec();
    for channel in 0..shape.channels {
        let of_channel = |index: usize| index / pixels % shape.channels == channel;
        let own: Vec<f64> = (0..input.len()).filter(|&i| of_channel(i)).map(|i| input[i]).collect();
        let of_batch = own.iter().sum::<f64>() / own.len() as f64;
        let mean = running.map_or(of_batch, |[means, _]| means[channel]);
        let of_batch = own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / own.len() as f64;
        let variance = running.map_or(of_batch, |[_, variances]| variances[channel]);
        for index in (0..input.len()).filter(|&i| of_channel(i)) {
            output[index] = (input[index] - mean) / (variance + 1e-5).sqrt() * weight[channel] + bias[channel];
        }
    }
    output
}

fn max_pool(input: &[f64], from: Shape, to: Shape, [kernel, stride, padding]: [usize; 3]) -> Vec<f64> {
    let mut output = Vec::new();
    for plane in input.chunks(from.pixels()) {
        for (y, x) in pixels(to) {
            let rows = (y * stride).saturating_sub(padding)..(y * stride + kernel - padding).min(from.height);
            let columns = (x * stride).saturating_sub(padding)..(x * stride + kernel - padding).min(from.width);
            let window = rows.flat_map(|y| columns.clone().map(move |x| plane[y * from.width + x]));
            output.push(window.fold(f64::NEG_INFINITY, f64::max));
        }
    }
    output
}

/// Option A's output for `input`, `[images]` of the narrow shape.
pub fn pad_shortcut<T: Copy + Default>(input: &[T], narrow: Shape, wide: Shape, stride: usize) -> Vec<T> {
    let images = input.len() / narrow.len();
    let mut output = vec![T::default(); images * wide.len()];
    kept(images, narrow, wide, stride).for_each(|(from, to)| output[to] = input[from]);
    output
}

/// The gradient of option A's input for that of its output: what was dropped gets none.
pub fn pad_shortcut_backward<T: Copy + Default>(gradient: &[T], narrow: Shape, wide: Shape, stride: usize) -> Vec<T> {
    let images = gradient.len() / wide.len();
    let mut input = vec![T::default(); images * narrow.len()];
    kept(images, narrow, wide, stride).for_each(|(from, to)| input[from] = gradient[to]);
    input
}

/// The values that option A keeps: where each is in the narrow tensor and in the wide one.
fn kept(images: usize, narrow: Shape, wide: Shape, stride: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = (wide.channels - narrow.channels) / 2;
    let planes = (0..images).flat_map(move |image| (0..narrow.channels).map(move |channel| (image, channel)));
    planes.flat_map(move |(image, channel)| {
        let from = (image * narrow.channels + channel) * narrow.pixels();
        let to = (image * wide.channels + first + channel) * wide.pixels();
        pixels(wide).map(move |(y, x)| (from + y * stride * narrow.width + x * stride, to + y * wide.width + x))
    })
}

fn linear(input: &[f64], inputs: usize, weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let outputs =
        |x: &[f64]| -> Vec<f64> { weight.chunks(inputs).zip(bias).map(|(row, bias)| dot(x, row) + bias).collect() };
    input.chunks(inputs).flat_map(outputs).collect()
}

fn cross_entropy(logits: &[f64], labels: &[u32], smoothing: f64) -> f64 {
    let classes = logits.len() / labels.len();
    let of_image = |(z, &label): (&[f64], &u32)| {
        let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        let uniform = z.iter().map(|z| log_sum - z).sum::<f64>() / classes as f64;
        (1.0 - smoothing) * (log_sum - z[label as usize]) + smoothing * uniform
    };
    logits.chunks(classes).zip(labels).map(of_image).sum::<f64>() / labels.len() as f64
}
