//! Every kernel of every instruction set of this machine against the definition in double precision, on
//! random shapes.

mod reference;

use proptest::prelude::*;
use reference::{Exact, noise, to_f64};
use resnet_native::geometry::Conv2d;
use resnet_native::kernels::{
    ConvBand, ConvWeightsBand, Direction, Kernels, Moments, Normalize, NormalizeBackward, NormalizeReduce,
    pack_weights, packed_len, select,
};
use resnet_native::{GROUP, Isa, Shape, pack_group, unpack_group};

/// Rounding errors that a sum in single precision may show, in magnitudes of the sum.
const TOLERANCE: f64 = 1e-6;

/// The kernels of every instruction set there is, or of the one that `RESNET_ISA` forces.
fn all_kernels() -> Vec<&'static dyn Kernels> {
    Isa::available().map(|isa| select(Some(isa)).expect("an instruction set that is available")).collect()
}

fn pack(images: &[f32], shape: Shape) -> Vec<f32> {
    let mut group = vec![f32::NAN; shape.len() * GROUP];
    pack_group(images, shape, &mut group);
    group
}

fn unpack(group: &[f32], shape: Shape, images: usize) -> Vec<f32> {
    let mut values = vec![0.0; images * shape.len()];
    unpack_group(group, shape, &mut values);
    values
}

#[derive(Clone, Debug)]
struct Case {
    conv: Conv2d,
    input: Shape,
    output: Shape,
    images: usize,
    seed: u64,
}

impl Case {
    fn weight_len(&self) -> usize {
        self.output.channels * self.input.channels * self.conv.vertical.kernel.pow(2)
    }

    fn extents(&self) -> (usize, usize, usize) {
        (self.output.channels, self.input.channels, self.conv.vertical.kernel.pow(2))
    }

    fn packed(&self, weights: &[f32], direction: Direction, block: usize) -> Vec<f32> {
        let (outputs, inputs, _) = self.extents();
        let (written, read) = if direction == Direction::Forward { (outputs, inputs) } else { (inputs, outputs) };
        let mut packed = vec![f32::NAN; packed_len(written, read, self.conv.vertical.kernel, block)];
        pack_weights(weights, self.extents(), direction, block, &mut packed);
        packed
    }
}

/// Convolutions of odd and even sizes, down to one pixel, with few and many channels.
fn cases() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![3 => 1usize..20, 1 => 20usize..=130];
    (channels(), channels(), 1usize..10, 1usize..14, prop::bool::ANY, 1usize..=2, 1usize..=GROUP, any::<u64>())
        .prop_map(|(inputs, outputs, height, width, pointwise, stride, images, seed)| {
            let kernel = if pointwise { 1 } else { 3 };
            let padding = kernel / 2;
            let extent = |side: usize| (side + 2 * padding - kernel) / stride + 1;
            let input = Shape::new(inputs, height, width);
            let output = Shape::new(outputs, extent(height), extent(width));
            Case { conv: Conv2d::new(input, output, kernel, stride, padding), input, output, images, seed }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolution_and_its_moments(case in cases()) {
        let x = noise(case.seed, case.images * case.input.len());
        let w = noise(case.seed ^ 1, case.weight_len());
        let pivot = noise(case.seed ^ 2, case.output.channels);
        let exact = reference::conv(&case.conv, case.images, case.input, case.output, &to_f64(&x), &to_f64(&w));
        let gather = case.conv.forward();
        for kernels in all_kernels() {
            let mut output = vec![f32::NAN; case.output.len() * GROUP];
            let mut sums = vec![f64::NAN; 2 * case.output.channels];
            kernels.conv(ConvBand {
                gather: &gather,
                rows: 0..case.output.height,
                input: &pack(&x, case.input),
                in_channels: case.input.channels,
                weights: &case.packed(&w, Direction::Forward, kernels.block()),
                output: &mut output,
                out_channels: case.output.channels,
                accumulate: false,
                moments: Some(Moments { pivot: &pivot, sums: &mut sums, images: case.images }),
            });
            let name = kernels.isa().name();
            let found = unpack(&output, case.output, case.images);
            exact.assert_close(&found, TOLERANCE, name);
            moments(&found, &case, &pivot).assert_close(&sums.iter().map(|&s| s as f32).collect::<Vec<_>>(), TOLERANCE, name);
        }
    }

    #[test]
    fn gradient_by_the_input_replacing_and_adding(case in cases(), accumulate: bool) {
        let g = noise(case.seed, case.images * case.output.len());
        let w = noise(case.seed ^ 1, case.weight_len());
        let before = noise(case.seed ^ 2, case.images * case.input.len());
        let mut exact = reference::conv_input(&case.conv, case.images, case.input, case.output, &to_f64(&g), &to_f64(&w));
        if accumulate {
            exact.values.iter_mut().zip(&before).for_each(|(value, &b)| *value += f64::from(b));
            exact.magnitudes.iter_mut().zip(&before).for_each(|(value, b)| *value += f64::from(b.abs()));
        }
        let gather = case.conv.backward();
        for kernels in all_kernels() {
            let mut output = pack(&before, case.input);
            kernels.conv(ConvBand {
                gather: &gather,
                rows: 0..case.input.height,
                input: &pack(&g, case.output),
                in_channels: case.output.channels,
                weights: &case.packed(&w, Direction::Backward, kernels.block()),
                output: &mut output,
                out_channels: case.input.channels,
                accumulate,
                moments: None,
            });
            exact.assert_close(&unpack(&output, case.input, case.images), TOLERANCE, kernels.isa().name());
        }
    }

    #[test]
    fn gradient_by_the_weights_in_bands_and_parts(case in cases(), bands in 1usize..4, parts in 1usize..4) {
        let x = noise(case.seed, case.images * case.input.len());
        let g = noise(case.seed ^ 1, case.images * case.output.len());
        let exact = reference::conv_weights(&case.conv, case.images, case.input, case.output, &to_f64(&x), &to_f64(&g));
        let (outputs, inputs, taps) = case.extents();
        for kernels in all_kernels() {
            let mut total = vec![0.0f32; case.weight_len()];
            for rows in split(case.output.height, bands) {
                for outputs in split(outputs, parts) {
                    let mut gradient = vec![f32::NAN; outputs.len() * inputs * taps];
                    let first = outputs.start * inputs * taps;
                    kernels.conv_weights(ConvWeightsBand {
                        conv: &case.conv,
                        rows: rows.clone(),
                        input: &pack(&x, case.input),
                        in_channels: inputs,
                        output_gradient: &pack(&g, case.output),
                        out_channels: case.output.channels,
                        outputs,
                        gradient: &mut gradient,
                    });
                    total[first..].iter_mut().zip(&gradient).for_each(|(total, part)| *total += part);
                }
            }
            exact.assert_close(&total, TOLERANCE, kernels.isa().name());
        }
    }

    #[test]
    fn normalisation_and_its_gradient(
        channels in 1usize..=130, pixels in 1usize..100, images in 1usize..=GROUP, relu: bool, residual: bool, seed: u64,
    ) {
        let shape = Shape::new(channels, 1, pixels);
        let values = |salt| noise(seed ^ salt, images * shape.len());
        let (y, r, g) = (values(1), values(2), values(3));
        let per_channel = |salt| noise(seed ^ salt, channels);
        let (scale, shift, mean) = (per_channel(4), per_channel(5), per_channel(6));
        for kernels in all_kernels() {
            let name = kernels.isa().name();
            let packed_residual = pack(&r, shape);
            let mut output = vec![f32::NAN; shape.len() * GROUP];
            kernels.normalize(Normalize {
                input: &pack(&y, shape),
                residual: residual.then_some(&packed_residual),
                output: &mut output,
                scale: &scale,
                shift: &shift,
                relu,
                images,
            });
            let z = unpack(&output, shape, images);
            each(&y, shape, |i, c| {
                let sum = f64::from(scale[c]) * f64::from(y[i]) + f64::from(shift[c]);
                let sum = sum + if residual { f64::from(r[i]) } else { 0.0 };
                (if relu { sum.max(0.0) } else { sum }, 3.0)
            }).assert_close(&z, TOLERANCE, name);
            prop_assert!(output.chunks(GROUP).all(|lanes| lanes[images..].iter().all(|&v| v == 0.0)), "{name}: empty lanes");

            let mut gradient = pack(&g, shape);
            let mut sums = vec![f64::NAN; 2 * channels];
            kernels.normalize_reduce(NormalizeReduce {
                gradient: &mut gradient,
                rectified: relu.then_some(&output),
                input: &pack(&y, shape),
                mean: &mean,
                inv_std: &scale,
                sums: &mut sums,
            });
            let masked = unpack(&gradient, shape, images);
            each(&g, shape, |i, _| (if relu && z[i] <= 0.0 { 0.0 } else { g[i].into() }, 0.0)).assert_close(&masked, 0.0, name);
            gradient_sums(&masked, &y, &mean, &scale, shape)
                .assert_close(&sums.iter().map(|&s| s as f32).collect::<Vec<_>>(), TOLERANCE, name);

            kernels.normalize_backward(NormalizeBackward {
                gradient: &gradient,
                input: &pack(&y, shape),
                output: &mut output,
                a: &scale,
                b: &shift,
                c: &mean,
                images,
            });
            each(&y, shape, |i, c| {
                let linear = f64::from(scale[c]) * f64::from(masked[i]) + f64::from(shift[c]) * f64::from(y[i]);
                (linear + f64::from(mean[c]), 3.0)
            }).assert_close(&unpack(&output, shape, images), TOLERANCE, name);
        }
    }
}

/// Up to `parts` ranges that cover `0..len`.
fn split(len: usize, parts: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let size = len.div_ceil(parts);
    (0..len).step_by(size).map(move |start| start..len.min(start + size))
}

fn channel_of(index: usize, shape: Shape) -> usize {
    index / (shape.height * shape.width) % shape.channels
}

/// An elementwise result: `f(index, channel)` gives value and magnitude.
fn each(like: &[f32], shape: Shape, f: impl Fn(usize, usize) -> (f64, f64)) -> Exact {
    let (values, magnitudes) = (0..like.len()).map(|i| f(i, channel_of(i, shape))).unzip();
    Exact { values, magnitudes }
}

fn moments(y: &[f32], case: &Case, pivot: &[f32]) -> Exact {
    channel_sums(y, case.output, |i, c| {
        let centred = f64::from(y[i]) - f64::from(pivot[c]);
        [centred, centred * centred]
    })
}

fn gradient_sums(g: &[f32], y: &[f32], mean: &[f32], inv_std: &[f32], shape: Shape) -> Exact {
    channel_sums(g, shape, |i, c| {
        let normalized = (f64::from(y[i]) - f64::from(mean[c])) * f64::from(inv_std[c]);
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
