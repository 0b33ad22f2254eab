//! Training in bf16 against a reference in double precision that rounds where the engine says it rounds
//! (docs/kernels.md): whatever is stored or multiplied is a number in bf16, sums are not.

mod reference;

use std::collections::HashMap;

use reference::network::{CLASSES, Shortcut, batch, graph, session};
use reference::to_f64;
use resnet_graph::{Part, Precision, Shape};
use resnet_native::geometry::Conv2d;
use resnet_native::{Isa, Options};

const IMAGES: usize = 19;
const INPUT: Shape = Shape::new(3, 6, 7);
const EPS: f64 = 1e-5;

/// To the nearest number in bf16, ties to even.
fn round(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    f64::from(f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
}

fn rounded(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    values.into_iter().map(round).collect()
}

/// A convolution and its batch norm, as far as the backward pass needs them.
struct Unit {
    conv: Conv2d,
    names: [String; 2],
    /// What the convolution read, in bf16.
    input: Vec<f64>,
    /// Its weights, in bf16.
    weights: Vec<f64>,
    /// What it gave, in bf16.
    stored: Vec<f64>,
    mean: Vec<f64>,
    inv_std: Vec<f64>,
    scale: Vec<f64>,
    /// The batch norm's result, not rounded.
    output: Vec<f64>,
}

/// A network's parameters by name, and the gradients found for them.
struct Reference {
    parameters: HashMap<String, Vec<f64>>,
    gradients: HashMap<String, Vec<f64>>,
}

impl Reference {
    fn forward(
        &self,
        name: [&str; 2],
        input: Vec<f64>,
        from: Shape,
        channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Unit {
        let extent = |side: usize| (side + 2 * (kernel / 2) - kernel) / stride + 1;
        let to = Shape::new(channels, extent(from.height), extent(from.width));
        let conv = Conv2d::new(from, to, kernel, stride, kernel / 2);
        let parameter = |node: &str, suffix: &str| &self.parameters[&format!("{node}.{suffix}")];
        let weights = rounded(parameter(name[0], "weight").iter().copied());
        let exact = reference::conv(&conv, IMAGES, from, to, &input, &weights).values;
        let stored = rounded(exact.iter().copied());
        let count = (IMAGES * to.pixels()) as f64;
        let of_channel = |channel: usize| (0..exact.len()).filter(move |at| at / to.pixels() % channels == channel);
        let mean: Vec<f64> = (0..channels).map(|c| of_channel(c).map(|at| exact[at]).sum::<f64>() / count).collect();
        let variance = |c: usize| of_channel(c).map(|at| (exact[at] - mean[c]).powi(2)).sum::<f64>() / count;
        let inv_std: Vec<f64> = (0..channels).map(|c| 1.0 / (variance(c) + EPS).sqrt()).collect();
        let scale: Vec<f64> = parameter(name[1], "weight").iter().zip(&inv_std).map(|(w, s)| w * s).collect();
        let bias = parameter(name[1], "bias");
        let normalised = |(at, y): (usize, &f64)| {
            let c = at / to.pixels() % channels;
            scale[c] * (y - mean[c]) + bias[c]
        };
        let output = stored.iter().enumerate().map(normalised).collect();
        let names = name.map(str::to_owned);
        Unit { conv, names, input, weights, stored, mean, inv_std, scale, output }
    }

    /// From the gradient of a unit's output, masked and not yet rounded, and that gradient as it is stored:
    /// gradients of its parameters, and the gradient with respect to its input, not rounded.
    fn backward(&mut self, unit: &Unit, summed: &[f64], stored: &[f64]) -> Vec<f64> {
        let (from, to) = (unit.conv.input(), unit.conv.output());
        let count = (IMAGES * to.pixels()) as f64;
        let channel = |at: usize| at / to.pixels() % to.channels;
        let mut sums = vec![[0.0; 2]; to.channels];
        for (at, g) in summed.iter().enumerate() {
            let c = channel(at);
            sums[c][0] += g;
            sums[c][1] += g * (unit.stored[at] - unit.mean[c]) * unit.inv_std[c];
        }
        // a g + b y + c, computed where it is read and rounded there.
        let gradient = rounded(stored.iter().enumerate().map(|(at, g)| {
            let c = channel(at);
            let normalised = (unit.stored[at] - unit.mean[c]) * unit.inv_std[c];
            unit.scale[c] * (g - sums[c][0] / count - normalised * sums[c][1] / count)
        }));
        let [conv, norm] = &unit.names;
        self.gradients.insert(format!("{norm}.bias"), sums.iter().map(|sums| sums[0]).collect());
        self.gradients.insert(format!("{norm}.weight"), sums.iter().map(|sums| sums[1]).collect());
        let weights = reference::weight_gradient(&unit.conv, IMAGES, from, to, &unit.input, &gradient);
        self.gradients.insert(format!("{conv}.weight"), weights.values);
        reference::conv_input(&unit.conv, IMAGES, from, to, &gradient, &unit.weights).values
    }

    /// Backward through a unit and the ReLU after it, whose result is `output`.
    fn backward_relu(&mut self, unit: &Unit, gradient: &[f64], output: &[f64]) -> Vec<f64> {
        let masked = mask(gradient, output);
        self.backward(unit, &masked, &rounded(masked.iter().copied()))
    }

    /// One step: loss and all gradients.
    fn step(&mut self, kind: Shortcut, images: &[f64], labels: &[u32]) -> f64 {
        let is_residual = kind != Shortcut::Plain;
        let stem = self.forward(["conv1", "bn1"], rounded(images.iter().copied()), INPUT, 5, 3, 1);
        let x0 = relu(&stem.output);
        let shape = stem.conv.output();
        let first = self.forward(["layer1.0.conv1", "layer1.0.bn1"], x0.clone(), shape, 5, 3, 1);
        let inner1 = relu(&first.output);
        let second = self.forward(["layer1.0.conv2", "layer1.0.bn2"], inner1.clone(), shape, 5, 3, 1);
        let x1 = if is_residual { relu(&add(&second.output, &x0)) } else { relu(&second.output) };
        let third = self.forward(["layer2.0.conv1", "layer2.0.bn1"], x1.clone(), shape, 9, 3, 2);
        let inner2 = relu(&third.output);
        let fourth = self.forward(["layer2.0.conv2", "layer2.0.bn2"], inner2.clone(), third.conv.output(), 9, 3, 1);
        let wide = fourth.conv.output();
        let projects = kind == Shortcut::B;
        let side_names = ["layer2.0.downsample.0", "layer2.0.downsample.1"];
        let side = projects.then(|| self.forward(side_names, x1.clone(), shape, 9, 1, 2));
        let shortcut = match (kind, &side) {
            (_, Some(side)) => rounded(side.output.iter().copied()),
            (Shortcut::A, None) => reference::pad_shortcut(&x1, shape, wide, 2),
            _ => vec![0.0; fourth.output.len()],
        };
        let x2 = relu(&add(&fourth.output, &shortcut));

        let pixels = wide.pixels();
        let (loss, pooled_gradient) = self.head(&x2, pixels, labels);
        let g = rounded((0..x2.len()).map(|at| pooled_gradient[at / pixels] / pixels as f64));
        // What comes from the pooling is masked where it is stored: sums are of rounded values.
        let g2 = mask(&g, &x2);
        let inner = self.backward(&fourth, &g2, &g2);
        let of_side = match (kind, &side) {
            (_, Some(side)) => self.backward(side, &g2, &g2),
            (Shortcut::A, None) => reference::pad_shortcut_backward(&g2, shape, wide, 2),
            _ => vec![0.0; x1.len()],
        };
        let of_main = self.backward_relu(&third, &inner, &inner2);
        // The convolution that completes a gradient adds what another reader has left there, rounded.
        let g1 = add(&of_main, &rounded(of_side));
        let g1 = mask(&g1, &x1);
        let stored1 = rounded(g1.iter().copied());
        let inner = self.backward(&second, &g1, &stored1);
        let of_main = self.backward_relu(&first, &inner, &inner1);
        let g0 = if is_residual { add(&of_main, &stored1) } else { of_main };
        self.backward_relu(&stem, &g0, &x0);
        loss
    }

    /// Pooling, fully connected layer and loss, in single precision: the loss, and the gradient with respect
    /// to the pooled features.
    fn head(&mut self, x: &[f64], pixels: usize, labels: &[u32]) -> (f64, Vec<f64>) {
        let pooled: Vec<f64> = x.chunks(pixels).map(|plane| plane.iter().sum::<f64>() / pixels as f64).collect();
        let features = pooled.len() / IMAGES;
        let (weight, bias) = (self.parameters["fc.weight"].clone(), &self.parameters["fc.bias"]);
        let mut gradients = [vec![0.0; weight.len()], vec![0.0; CLASSES]];
        let mut of_pooled = vec![0.0; pooled.len()];
        let mut loss = 0.0;
        for (image, pooled) in pooled.chunks(features).enumerate() {
            let logit = |class: usize| {
                let row = &weight[class * features..][..features];
                row.iter().zip(pooled).map(|(w, x)| w * x).sum::<f64>() + bias[class]
            };
            let logits: Vec<f64> = (0..CLASSES).map(logit).collect();
            let log_sum = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
            let label = labels[image] as usize;
            loss += (log_sum - logits[label]) / IMAGES as f64;
            for (class, z) in logits.iter().enumerate() {
                let g = ((z - log_sum).exp() - f64::from(u8::from(class == label))) / IMAGES as f64;
                gradients[1][class] += g;
                for (feature, x) in pooled.iter().enumerate() {
                    gradients[0][class * features + feature] += g * x;
                    of_pooled[image * features + feature] += g * weight[class * features + feature];
                }
            }
        }
        let [weight, bias] = gradients;
        self.gradients.extend([("fc.weight".to_owned(), weight), ("fc.bias".to_owned(), bias)]);
        (loss, of_pooled)
    }
}

fn relu(values: &[f64]) -> Vec<f64> {
    rounded(values.iter().map(|v| v.max(0.0)))
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// A gradient where a ReLU let values through.
fn mask(gradient: &[f64], output: &[f64]) -> Vec<f64> {
    gradient.iter().zip(output).map(|(g, &x)| if x > 0.0 { *g } else { 0.0 }).collect()
}

/// Of a tensor's length: 1e-5 is what is found, and what single precision leaves of sums. A sum that falls on
/// the other side of a rounding moves a value by a step of bf16, and may move it over a ReLU's edge.
const TOLERANCE: f64 = 2e-3;

#[test]
fn gradients_in_bf16_are_those_of_the_same_network_rounded_in_the_same_places() {
    for (kind, isa) in
        Isa::available().flat_map(|isa| [Shortcut::Plain, Shortcut::A, Shortcut::B].map(|kind| (kind, isa)))
    {
        check(kind, isa);
    }
}

fn check(kind: Shortcut, isa: Isa) {
    let graph = graph(INPUT, kind);
    let (pixels, labels) = batch(INPUT, IMAGES);
    let options = Options { threads: 2, isa: Some(isa), precision: Precision::Bf16 };
    let mut session = session(&graph, options);
    let tensors = session.tensors().clone();
    let parameters = tensors.parameters().map(|spec| (spec.name.clone(), to_f64(session.values(spec))));
    let mut exact = Reference { parameters: parameters.collect(), gradients: HashMap::new() };
    let loss = exact.step(kind, &to_f64(&pixels), &labels);
    let targets = labels.clone().into();
    let found = session.forward_backward(&pixels, &targets, 0.0, Part::WHOLE).expect("a step");
    let name = format!("{kind:?} {}", isa.name());
    assert!((f64::from(found.loss) - loss).abs() < 1e-3 * loss, "{name}: loss {} is not {loss}", found.loss);
    let gradients = session.gradients().to_vec();
    for spec in tensors.parameters() {
        let expected = &exact.gradients[&spec.name];
        let found = to_f64(&gradients[spec.range.clone()]);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut expected.iter().zip(&found).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
        assert!(error < TOLERANCE, "{name} {}: relative error {error}", spec.name);
    }
}
