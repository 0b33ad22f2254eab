//! The kernels of inference for every instruction set and format of this machine against the
//! definition in double precision, on random shapes.

mod reference;

use proptest::prelude::*;
use reference::{Exact, Tolerance, noise, to_f64};
use resnet_graph::Shape;
use resnet_native::Isa;
use resnet_native::geometry::Conv2d;
use resnet_native::kernels::{PixelAvgPool, PixelConv, PixelKernels, PixelLoad, select_pixels};
use resnet_native::layout::{Format, Halo, NARROW_BLOCK, Pixels, Windows};

const FORMATS: [Format; 4] = [Format::Single, Format::Planes(1), Format::Planes(2), Format::Planes(3)];

/// Every format on every instruction set there is, or on the one that `RESNET_ISA` forces.
fn all_kernels() -> impl Iterator<Item = (&'static dyn PixelKernels, String)> {
    let formats =
        |isa| FORMATS.map(|format| select_pixels(Some(isa), format).expect("an instruction set that is available"));
    Isa::available().flat_map(formats).map(|kernels| {
        let name = format!("{} {:?}", kernels.isa().name(), kernels.format());
        (kernels, name)
    })
}

/// What a sum of products may lose: rounding errors of the sum and, with planes, of what is
/// multiplied.
fn tolerance(format: Format) -> Tolerance {
    match format {
        Format::Single | Format::Planes(3) => Tolerance { sum: 1e-6, result: 0.0 },
        Format::Planes(2) => Tolerance { sum: 3e-5, result: 1e-5 },
        Format::Planes(_) => Tolerance { sum: 1e-6, result: 1.0 / 256.0 },
    }
}

/// Noise; in one plane, such as that represents exactly.
fn values(format: Format, seed: u64, len: usize) -> Vec<f32> {
    let mut values = noise(seed, len);
    if format == Format::Planes(1) {
        values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & 0xffff_0000));
    }
    values
}

/// An image laid out; the border is zero, as a session leaves it.
fn load(kernels: &dyn PixelKernels, pixels: &Pixels, image: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; pixels.image_len()];
    kernels.load(PixelLoad { pixels, image, output: &mut output });
    output
}

/// The values of one block of an image.
fn unload(pixels: &Pixels, block: usize, words: &[f32]) -> Vec<f32> {
    let mut values = Vec::new();
    for channel in 0..pixels.channels_of(block) {
        for y in 0..pixels.shape().height {
            for x in 0..pixels.shape().width {
                let at = pixels.value(y, x) + channel;
                values.push(match pixels.format() {
                    Format::Single => words[at],
                    Format::Planes(planes) => (0..planes)
                        .rev()
                        .map(|plane| {
                            let word = words[plane * pixels.plane_len() + at / 2].to_bits();
                            f32::from_bits(if at.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 })
                        })
                        .sum(),
                });
            }
        }
    }
    values
}

/// The words of a block that belong to no pixel.
fn outside(pixels: &Pixels, words: &[f32]) -> impl Iterator<Item = f32> {
    let mut words = words.to_vec();
    for plane in words.chunks_mut(pixels.plane_len()) {
        for (y, x) in (0..pixels.shape().height).flat_map(|y| (0..pixels.shape().width).map(move |x| (y, x))) {
            let first = pixels.format().words(pixels.value(y, x));
            plane[first..first + pixels.pixel_len()].fill(0.0);
        }
    }
    words.into_iter()
}

#[derive(Clone, Debug)]
struct Case {
    conv: Conv2d,
    residual: bool,
    relu: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![3 => 1usize..20, 1 => 20usize..=130];
    let kernel = prop_oneof![Just(1usize), Just(3), Just(7)];
    (channels(), channels(), 1usize..12, 1usize..40, kernel, 1usize..=2, any::<(bool, bool, u64)>()).prop_map(
        |(inputs, outputs, height, width, kernel, stride, (residual, relu, seed))| {
            let padding = kernel / 2;
            let extent = |side: usize| (side + 2 * padding - kernel) / stride + 1;
            let input = Shape::new(inputs, height, width);
            let output = Shape::new(outputs, extent(height), extent(width));
            Case { conv: Conv2d::new(input, output, kernel, stride, padding), residual, relu, seed }
        },
    )
}

impl Case {
    fn exact(&self, x: &[f32], w: &[f32], bias: &[f32], residual: &[f32]) -> Exact {
        let (input, output) = (self.conv.input(), self.conv.output());
        let mut exact = reference::conv(&self.conv, 1, input, output, &to_f64(x), &to_f64(w));
        for at in 0..output.len() {
            for term in [bias[at / (output.height * output.width)], if self.residual { residual[at] } else { 0.0 }] {
                exact.values[at] += f64::from(term);
                exact.magnitudes[at] += f64::from(term.abs());
            }
            if self.relu {
                exact.values[at] = exact.values[at].max(0.0);
            }
        }
        exact
    }

    /// The convolution block by block, after a check that what is no pixel is zero still.
    fn run(
        &self,
        kernels: &dyn PixelKernels,
        [from, to]: [&Pixels; 2],
        x: &[f32],
        w: &[f32],
        bias: &[f32],
        residual: &[f32],
    ) -> Vec<f32> {
        let windows = Windows::new(self.conv, *from, *to);
        let mut weights = vec![f32::NAN; to.blocks() * windows.packed_len()];
        windows.pack(w, &mut weights);
        let (input, residual) = (load(kernels, from, x), load(kernels, to, residual));
        let mut found = Vec::new();
        for block in 0..to.blocks() {
            let mut padded = bias[block * to.block()..][..to.channels_of(block)].to_vec();
            padded.resize(to.block(), 0.0);
            let mut output = vec![0.0; to.block_len()];
            kernels.conv(PixelConv {
                windows: &windows,
                input: &input,
                weights: &weights[block * windows.packed_len()..][..windows.packed_len()],
                bias: &padded,
                residual: self.residual.then(|| &residual[block * to.block_len()..][..to.block_len()]),
                output: &mut output,
                relu: self.relu,
            });
            assert!(outside(to, &output).all(|word| word == 0.0), "the border stays zero");
            found.extend(unload(to, block, &output));
        }
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolution_bias_shortcut_and_rectifier(case in cases(), image: bool, wider in 0usize..2) {
        let (input, output) = (case.conv.input(), case.conv.output());
        let halo = Halo { padding: case.conv.vertical.padding + wider, stride: 2 };
        for (kernels, name) in all_kernels() {
            let format = kernels.format();
            let from = if image { Pixels::of_image(input, format, halo) } else { Pixels::new(input, format, halo) };
            let to = Pixels::new(output, format, halo);
            let x = values(format, case.seed, input.len());
            let w = values(format, case.seed ^ 1, case.conv.weight_len());
            let residual = values(format, case.seed ^ 2, output.len());
            let bias = noise(case.seed ^ 3, output.channels);
            let found = case.run(kernels, [&from, &to], &x, &w, &bias, &residual);
            case.exact(&x, &w, &bias, &residual).assert_close(&found, tolerance(format), &name);
        }
    }

    #[test]
    fn what_is_loaded_is_kept_and_pooled(
        channels in 1usize..70, height in 1usize..9, width in 1usize..35, padding in 0usize..4, seed: u64,
    ) {
        let (shape, halo) = (Shape::new(channels, height, width), Halo { padding, stride: 1 });
        for (kernels, name) in all_kernels() {
            let format = kernels.format();
            let image = values(format, seed, shape.len());
            for pixels in [Pixels::of_image(shape, format, halo), Pixels::new(shape, format, halo)] {
                let words = load(kernels, &pixels, &image);
                let blocks = words.chunks(pixels.block_len()).enumerate();
                let found: Vec<f32> = blocks.flat_map(|(block, words)| unload(&pixels, block, words)).collect();
                let kept = image.iter().map(|&v| f64::from(v)).zip(image.iter().map(|v| f64::from(v.abs())));
                let (values, magnitudes) = kept.unzip();
                let stored = Tolerance { sum: 0.0, result: if format == Format::Planes(2) { 1e-5 } else { 0.0 } };
                Exact { values, magnitudes }.assert_close(&found, stored, &name);

                if pixels.block() < NARROW_BLOCK {
                    continue;
                }
                let mut means = vec![f32::NAN; pixels.blocks() * pixels.block()];
                kernels.avg_pool(PixelAvgPool { pixels: &pixels, input: &words, output: &mut means });
                let planes = image.chunks(height * width).map(|plane| {
                    let mean = |f: fn(f32) -> f32| plane.iter().map(|&v| f64::from(f(v))).sum::<f64>() / plane.len() as f64;
                    (mean(|v| v), mean(f32::abs))
                });
                let (values, magnitudes) = planes.unzip();
                let sum = if format == Format::Planes(2) { 1e-5 } else { 1e-6 };
                Exact { values, magnitudes }.assert_close(&means[..channels], Tolerance { sum, result: 0.0 }, &name);
                prop_assert!(means[channels..].iter().all(|&mean| mean == 0.0), "{}", name);
            }
        }
    }
}
