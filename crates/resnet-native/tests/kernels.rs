//! Every kernel of every instruction set of this machine against the definition in double precision, on
//! random shapes.

mod reference;

use proptest::prelude::*;
use reference::{Exact, Tolerance, noise, to_f64};
use resnet_graph::{Precision, Shape};
use resnet_native::Isa;
use resnet_native::geometry::{Conv2d, Direction};
use resnet_native::kernels::{
    Affine, AvgPool, ConvBand, Gate, Images, Kernels, Moments, Normalize, NormalizeReduce, Pack, PadShortcut,
    Reduction, Source, Sums, WeightGradientBand, select,
};
use resnet_native::layout::gather::Gather;
use resnet_native::layout::{LANE_GROUP, Layout};

/// What sums in single precision may lose.
const SUM: Tolerance = Tolerance { sum: 1e-6, result: 0.0 };

/// The same where a few hundred squares are added up one after the other.
const MOMENTS: Tolerance = Tolerance { sum: 4e-6, result: 0.0 };

/// The kernels of every instruction set there is, or of the one that `RESNET_ISA` forces.
fn all_kernels(precision: Precision) -> impl Iterator<Item = &'static dyn Kernels> {
    Isa::available().map(move |isa| select(Some(isa), precision).expect("an instruction set that is available").body)
}

/// What an activation computed in a precision may lose.
fn stored(precision: Precision) -> Tolerance {
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

/// The same where factors were recomputed on load: they are rounded before they are multiplied.
fn worked_out(precision: Precision, on_load: OnLoad) -> Tolerance {
    match (on_load, precision) {
        (OnLoad::Nothing, _) | (_, Precision::F32) => summed(precision),
        (_, Precision::Tf32) => Tolerance { sum: 5e-5, ..SUM },
        (_, Precision::Bf16) => Tolerance { sum: 1.0 / 128.0, ..SUM },
    }
}

/// Noise that the precision represents exactly.
fn values(precision: Precision, seed: u64, len: usize) -> Vec<f32> {
    let mut values = noise(seed, len);
    let kept = match precision {
        Precision::F32 => u32::MAX,
        Precision::Tf32 => 0xffff_ff00,
        Precision::Bf16 => 0xffff_0000,
    };
    values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & kept));
    values
}

/// How a convolution gets at what it reads.
#[derive(Clone, Copy, Debug)]
enum OnLoad {
    Nothing,
    Normalization,
    Gradient,
}

fn on_load() -> impl Strategy<Value = OnLoad> {
    prop_oneof![
        2 => Just(OnLoad::Nothing),
        1 => Just(OnLoad::Normalization),
        2 => Just(OnLoad::Gradient),
    ]
}

/// What a convolution reads, of a batch.
struct Operand {
    on_load: OnLoad,
    shape: Shape,
    images: usize,
    /// The tensor, or the gradient that another is worked out from.
    first: Vec<f32>,
    /// The other tensor, where there is one.
    second: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    factors: [Vec<f32>; 3],
}

impl Operand {
    fn new(precision: Precision, on_load: OnLoad, seed: u64, images: usize, shape: Shape) -> Self {
        let per_channel = |salt| noise(seed ^ salt, shape.channels);
        let first = values(precision, seed, images * shape.len());
        let second = values(precision, seed ^ 16, images * shape.len());
        let (scale, shift) = (per_channel(17), per_channel(18));
        let factors = [19, 20, 21].map(per_channel);
        Self { on_load, shape, images, first, second, scale, shift, factors }
    }

    /// What is read, and the same with every term made positive.
    fn exact(&self) -> Exact {
        each(&self.first, self.shape, |i, c| {
            let (first, second) = (f64::from(self.first[i]), f64::from(self.second[i]));
            let (scale, shift) = (f64::from(self.scale[c]), f64::from(self.shift[c]));
            let [fa, fb, fc] = self.factors.each_ref().map(|values| f64::from(values[c]));
            match self.on_load {
                OnLoad::Nothing => (first, first.abs()),
                OnLoad::Normalization => ((scale * first + shift).max(0.0), (scale * first).abs() + shift.abs()),
                OnLoad::Gradient => {
                    (fa * first + fb * second + fc, (fa * first).abs() + (fb * second).abs() + fc.abs())
                }
            }
        })
    }

    /// Both tensors.
    fn pack(&self, layout: Layout) -> [Vec<f32>; 2] {
        [&self.first, &self.second].map(|values| pack(layout, values, self.shape))
    }

    /// A group of what [`pack`](Self::pack) gave.
    fn source<'a>(&'a self, layout: Layout, [first, second]: &'a [Vec<f32>; 2], group: usize) -> Source<'a> {
        let len = layout.lane_group_len(self.shape);
        let place = group * len..(group + 1) * len;
        let images = (self.images - group * LANE_GROUP).min(LANE_GROUP);
        let affine = Affine { scale: &self.scale, shift: &self.shift };
        match self.on_load {
            OnLoad::Nothing => Source::Stored(&first[place]),
            OnLoad::Normalization => Source::Normalized { input: &first[place], affine, images },
            OnLoad::Gradient => Source::NormGradient {
                gradient: &first[place.clone()],
                input: &second[place],
                factors: self.factors.each_ref().map(Vec::as_slice),
                images,
            },
        }
    }
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

/// All groups of some images.
fn pack(layout: Layout, images: &[f32], shape: Shape) -> Vec<f32> {
    let mut groups = Vec::new();
    for images in images.chunks(LANE_GROUP * shape.len()) {
        let mut group = vec![f32::NAN; layout.lane_group_len(shape)];
        layout.pack_images(images, shape, &mut group);
        groups.extend(group);
    }
    groups
}

fn unpack(layout: Layout, groups: &[f32], shape: Shape, images: usize) -> Vec<f32> {
    let mut values = vec![0.0; images * shape.len()];
    let images = values.chunks_mut(LANE_GROUP * shape.len());
    images
        .zip(groups.chunks(layout.lane_group_len(shape)))
        .for_each(|(images, group)| layout.unpack_images(group, shape, images));
    values
}

/// Words that begin with a line of the cache, as those of the engine do: only such are written past it.
struct Lines {
    words: Vec<f32>,
    first: usize,
    len: usize,
}

impl Lines {
    fn new(values: Vec<f32>) -> Self {
        let len = values.len();
        let mut words = vec![0.0; len + LANE_GROUP];
        let first = words.as_ptr().align_offset(64);
        words[first..first + len].copy_from_slice(&values);
        Self { words, first, len }
    }

    fn words(&mut self) -> &mut [f32] {
        &mut self.words[self.first..self.first + self.len]
    }
}

/// The bits of the numbers that a word of some groups holds, or of parts of them, but for signs.
fn numbers(layout: Layout, at: usize) -> &'static [u32] {
    /// Words of a tile in 24 bits: those of the upper halves, and all with the third bytes.
    const TILE: [usize; 2] = [LANE_GROUP * LANE_GROUP, LANE_GROUP * LANE_GROUP * 3 / 2];
    match layout {
        Layout::Tiles { planes: 2 } if at % TILE[1] >= TILE[0] => &[0xff, 0xff00, 0xff_0000, 0xff00_0000],
        Layout::Tiles { planes: 1 | 2 } => &[0x7fff, 0x7fff_0000],
        _ => &[0x7fff_ffff],
    }
}

/// The values of the images, after a check that all else is zero.
fn unpack_checked(layout: Layout, groups: &[f32], shape: Shape, images: usize) -> Vec<f32> {
    // In 24 bits, a mark in every byte but the last.
    let marks = pack(layout, &vec![1.0 + f32::powi(2.0, -15); images * shape.len()], shape);
    for (at, (word, mark)) in groups.iter().zip(&marks).enumerate() {
        let is_clean = numbers(layout, at).iter().all(|bits| mark.to_bits() & bits != 0 || word.to_bits() & bits == 0);
        assert!(is_clean, "what belongs to no image is zero");
    }
    unpack(layout, groups, shape, images)
}

#[derive(Clone, Debug)]
struct Case {
    conv: Conv2d,
    images: usize,
    seed: u64,
}

impl Case {
    fn input(&self) -> Shape {
        self.conv.input()
    }

    fn output(&self) -> Shape {
        self.conv.output()
    }

    /// Runs a convolution over all groups; gives what it wrote and its sums over the batch.
    fn run(&self, kernels: &dyn Kernels, gather: &Gather, data: Data<'_>) -> (Vec<f32>, Vec<f32>) {
        let layout = kernels.layout();
        let mut weights = vec![f32::NAN; kernels.packed_len(gather)];
        kernels.pack(Pack { gather, weights: data.weights, packed: &mut weights });
        let input = data.input.pack(layout);
        let mut output = Lines::new(match data.before {
            Some(before) => pack(layout, before, gather.to),
            None => vec![f32::NAN; self.images.div_ceil(LANE_GROUP) * layout.lane_group_len(gather.to)],
        });
        let output = output.words();
        let norm =
            if let Wanted::Gradient(norm) = data.wanted { norm.pack(layout, gather.to) } else { Default::default() };
        let mut totals = vec![0.0f64; 2 * gather.to.channels];
        let lane_group_len = layout.lane_group_len(gather.to);
        for (index, output) in output.chunks_mut(lane_group_len).enumerate() {
            let input = data.input.source(layout, &input, index);
            let images = (self.images - index * LANE_GROUP).min(LANE_GROUP);
            let band_len = gather.to.height.div_ceil(2) * layout.row_len(gather.to);
            for (band, (rows, output)) in split(gather.to.height, 2).zip(output.chunks_mut(band_len)).enumerate() {
                let mut sums = vec![f64::NAN; 2 * gather.to.channels];
                let start = index * lane_group_len + band * band_len;
                let place = start..start + output.len();
                kernels.conv(ConvBand {
                    gather,
                    rows,
                    input,
                    weights: &weights,
                    output,
                    accumulate: data.before.is_some(),
                    non_temporal: self.seed.is_multiple_of(2),
                    sums: match data.wanted {
                        Wanted::Nothing => Sums::None,
                        Wanted::Moments(pivot) => Sums::Moments(Moments { pivot, sums: &mut sums, images }),
                        Wanted::Gradient(reduced) => Sums::Gradient(
                            reduced.reduction(norm.each_ref().map(|tensor| &tensor[place.clone()]), &mut sums),
                        ),
                    },
                });
                totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            }
        }
        let output = unpack_checked(layout, output, gather.to, self.images);
        (output, totals.into_iter().map(|total| total as f32).collect())
    }
}

/// What a convolution is run on.
struct Data<'a> {
    input: &'a Operand,
    weights: &'a [f32],
    /// What it adds to.
    before: Option<&'a [f32]>,
    wanted: Wanted<'a>,
}

/// What is to be summed.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Nothing,
    /// About these pivots.
    Moments(&'a [f32]),
    Gradient(&'a Norm),
}

#[derive(Clone, Copy, Debug)]
enum Rectifier {
    None,
    OfInput,
    OfSum,
}

/// A batch norm whose output's gradient a convolution gives.
struct Norm {
    relu: Rectifier,
    /// What it read, and what the ReLU after an addition gave.
    input: Vec<f32>,
    rectified: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    mean: Vec<f32>,
    inv_std: Vec<f32>,
}

impl Norm {
    fn new(precision: Precision, relu: Rectifier, seed: u64, images: usize, shape: Shape) -> Self {
        let per_channel = |salt| noise(seed ^ salt, shape.channels);
        let [scale, shift, mean, inv_std] = [31, 32, 33, 34].map(per_channel);
        let mut input = values(precision, seed ^ 35, images * shape.len());
        for (index, input) in input.iter_mut().enumerate() {
            let channel = channel_of(index, shape);
            let is_at_the_gate = |value: f32| (scale[channel] * value + shift[channel]).abs() < 1e-5;
            // Rounding decides which side of the ReLU this falls on: it must not matter.
            if is_at_the_gate(*input) {
                *input = if is_at_the_gate(1.0) { -1.0 } else { 1.0 };
            }
        }
        Self { relu, input, rectified: values(precision, seed ^ 36, images * shape.len()), scale, shift, mean, inv_std }
    }

    /// What it read and what the ReLU gave.
    fn pack(&self, layout: Layout, shape: Shape) -> [Vec<f32>; 2] {
        [&self.input, &self.rectified].map(|values| pack(layout, values, shape))
    }

    fn reduction<'a>(&'a self, [input, rectified]: [&'a [f32]; 2], sums: &'a mut [f64]) -> Reduction<'a> {
        let gate = match self.relu {
            Rectifier::None => Gate::Open,
            Rectifier::OfInput => Gate::Input(Affine { scale: &self.scale, shift: &self.shift }),
            Rectifier::OfSum => Gate::Output(rectified),
        };
        Reduction { gate, input, mean: &self.mean, inv_std: &self.inv_std, sums }
    }

    /// Masks a gradient and gives its sums, `[channel][of g, of g * normalised]`, in the magnitudes of their terms.
    fn reduce(&self, gradient: &mut Exact, shape: Shape) -> Exact {
        let mut sums = Exact { values: vec![0.0; 2 * shape.channels], magnitudes: vec![0.0; 2 * shape.channels] };
        for (index, (value, magnitude)) in gradient.values.iter_mut().zip(&mut gradient.magnitudes).enumerate() {
            let channel = channel_of(index, shape);
            let input = f64::from(self.input[index]);
            let open = match self.relu {
                Rectifier::None => true,
                Rectifier::OfInput => f64::from(self.scale[channel]) * input + f64::from(self.shift[channel]) > 0.0,
                Rectifier::OfSum => self.rectified[index] > 0.0,
            };
            if !open {
                (*value, *magnitude) = (0.0, 0.0);
            }
            let (mean, inv_std) = (f64::from(self.mean[channel]), f64::from(self.inv_std[channel]));
            let normalized = [1.0, (input - mean) * inv_std];
            let magnitudes = [1.0, (input.abs() + mean.abs()) * inv_std.abs()];
            for which in 0..2 {
                sums.values[2 * channel + which] += *value * normalized[which];
                sums.magnitudes[2 * channel + which] += *magnitude * magnitudes[which];
            }
        }
        sums
    }
}

fn rectifiers() -> impl Strategy<Value = Option<Rectifier>> {
    prop_oneof![Just(None), Just(Some(Rectifier::None)), Just(Some(Rectifier::OfInput)), Just(Some(Rectifier::OfSum)),]
}

/// Convolutions of odd and even sizes, down to one pixel, with few and many channels.
fn cases() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![3 => 1usize..20, 1 => 20usize..=130];
    // Half of them may be computed by Winograd's method.
    let kind = prop_oneof![3 => Just((3, 1)), 1 => Just((3, 2)), 1 => Just((1, 1)), 1 => Just((1, 2))];
    (channels(), channels(), 1usize..10, 1usize..14, kind, 1usize..=40, any::<u64>()).prop_map(
        |(inputs, outputs, height, width, (kernel, stride), images, seed)| {
            let padding = kernel / 2;
            let extent = |side: usize| (side + 2 * padding - kernel) / stride + 1;
            let input = Shape::new(inputs, height, width);
            let output = Shape::new(outputs, extent(height), extent(width));
            Case { conv: Conv2d::new(input, output, kernel, stride, padding), images, seed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolution_and_its_moments(case in cases(), on_load in on_load()) {
        let (conv, gather) = (&case.conv, Gather::new(&case.conv, Direction::Forward));
        for precision in Precision::ALL {
            let x = Operand::new(precision, on_load, case.seed, case.images, case.input());
            let w = values(precision, case.seed ^ 1, conv.weight_len());
            let pivot = noise(case.seed ^ 2, conv.outputs);
            let run = |x: &[f64], w: &[f64]| reference::conv(conv, case.images, case.input(), case.output(), x, w).values;
            let exact = exact_products(&x.exact(), &to_f64(&w), run);
            let tolerance = Tolerance { result: stored(precision).result, ..worked_out(precision, on_load) };
            for kernels in all_kernels(precision) {
                let data = Data { input: &x, weights: &w, before: None, wanted: Wanted::Moments(&pivot) };
                let (found, sums) = case.run(kernels, &gather, data);
                let name = format!("{} {}", kernels.isa().name(), precision.name());
                exact.assert_close(&found, tolerance, &name);
                let lost = Tolerance { sum: tolerance.sum.max(MOMENTS.sum), ..MOMENTS };
                moments(&exact, &case, &pivot).assert_close(&sums, lost, &name);
            }
        }
    }

    #[test]
    fn gradient_by_the_input_replacing_and_adding(
        case in cases(), on_load in on_load(), accumulate: bool, relu in rectifiers(),
    ) {
        let (conv, gather) = (&case.conv, Gather::new(&case.conv, Direction::Backward));
        for precision in Precision::ALL {
            let g = Operand::new(precision, on_load, case.seed, case.images, case.output());
            let w = values(precision, case.seed ^ 1, conv.weight_len());
            let before = values(precision, case.seed ^ 2, case.images * case.input().len());
            let run =
                |g: &[f64], w: &[f64]| reference::conv_input(conv, case.images, case.input(), case.output(), g, w).values;
            let mut exact = exact_products(&g.exact(), &to_f64(&w), run);
            let tolerance = Tolerance { result: stored(precision).result, ..worked_out(precision, on_load) };
            if accumulate {
                exact.values.iter_mut().zip(&before).for_each(|(value, &b)| *value += f64::from(b));
                exact.magnitudes.iter_mut().zip(&before).for_each(|(value, b)| *value += f64::from(b.abs()));
            }
            let norm = relu.map(|kind| Norm::new(precision, kind, case.seed, case.images, case.input()));
            let expected_sums = norm.as_ref().map(|norm| norm.reduce(&mut exact, case.input()));
            for kernels in all_kernels(precision) {
                let wanted = norm.as_ref().map_or(Wanted::Nothing, Wanted::Gradient);
                let data = Data { input: &g, weights: &w, before: accumulate.then_some(&before), wanted };
                let (found, sums) = case.run(kernels, &gather, data);
                let name = format!("{} {}", kernels.isa().name(), precision.name());
                exact.assert_close(&found, tolerance, &name);
                if let Some(expected) = &expected_sums {
                    let lost = Tolerance { sum: tolerance.sum.max(MOMENTS.sum), ..MOMENTS };
                    expected.assert_close(&sums, lost, &name);
                }
            }
        }
    }

    #[test]
    fn gradient_by_the_weights_in_bands_and_parts(
        case in cases(), input in on_load(), gradient in on_load(), bands in 1usize..4, parts in 1usize..4,
    ) {
        let conv = &case.conv;
        for precision in Precision::ALL {
            let x = Operand::new(precision, input, case.seed, case.images, case.input());
            let g = Operand::new(precision, gradient, case.seed ^ 1, case.images, case.output());
            let run = |x: &[f64], g: &[f64]| {
                reference::weight_gradient(conv, case.images, case.input(), case.output(), x, g).values
            };
            let exact_g = g.exact();
            let exact = Exact {
                values: run(&x.exact().values, &exact_g.values),
                magnitudes: run(&x.exact().magnitudes, &exact_g.magnitudes),
            };
            let [lost, other] = [input, gradient].map(|on_load| worked_out(precision, on_load).sum);
            let tolerance = Tolerance { sum: lost.max(other) * 2.0, ..SUM };
            for kernels in all_kernels(precision) {
                let found = weight_gradient(kernels, &case, &x, &g, (bands, parts));
                exact.assert_close(&found, tolerance, &format!("{} {}", kernels.isa().name(), precision.name()));
            }
        }
    }

    #[test]
    fn images_are_stored_as_the_first_convolution_reads_them(
        case in cases(), kernel in prop_oneof![Just(1usize), Just(3), Just(7)], wide in 0usize..30,
    ) {
        let input = Shape { channels: case.conv.inputs.min(8), width: case.input().width + wide, ..case.input() };
        let (stride, padding) = (case.conv.vertical.stride, kernel / 2);
        let extent = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let output = Shape::new(4, extent(input.height), extent(input.width));
        let conv = Conv2d::new(input, output, kernel, stride, padding);
        let images = case.images.min(LANE_GROUP);
        for precision in Precision::ALL {
            let x = values(precision, case.seed, images * input.len());
            for kernels in all_kernels(precision) {
                let layout = kernels.layout();
                let shape = kernels.stem(&conv).input();
                let mut group = Lines::new(vec![f32::NAN; layout.lane_group_len(shape)]);
                kernels.load_images(Images { images: &x, conv: &conv, group: group.words(), non_temporal: true });
                let found = unpack_checked(layout, group.words(), shape, images);
                let expected = if matches!(layout, Layout::Tiles { .. }) { patches(&conv, &x) } else { x.clone() };
                prop_assert_eq!(found, expected, "{} {}", kernels.isa().name(), precision.name());
            }
        }
    }

    #[test]
    fn normalisation_and_its_gradient(
        channels in 1usize..=130, height in 1usize..8, width in 1usize..12, images in 1usize..=LANE_GROUP,
        relu: bool, residual: bool, seed: u64,
    ) {
        let shape = Shape::new(channels, height, width);
        let per_channel = |salt| noise(seed ^ salt, channels);
        let (scale, shift, mean) = (per_channel(4), per_channel(5), per_channel(6));
        for precision in Precision::ALL {
            let values = |salt| values(precision, seed ^ salt, images * shape.len());
            let (y, r, g) = (values(1), values(2), values(3));
            for kernels in all_kernels(precision) {
                let (layout, tolerance) = (kernels.layout(), stored(precision));
                let name = &format!("{} {}", kernels.isa().name(), precision.name());
                let (input, packed_residual) = (pack(layout, &y, shape), pack(layout, &r, shape));
                let mut output = vec![f32::NAN; input.len()];
                kernels.normalize(Normalize {
                    shape,
                    input: &input,
                    residual: residual.then_some(&packed_residual),
                    output: &mut output,
                    scale: &scale,
                    shift: &shift,
                    relu,
                    images,
                });
                let z = unpack_checked(layout, &output, shape, images);
                each(&y, shape, |i, c| {
                    let sum = f64::from(scale[c]) * f64::from(y[i]) + f64::from(shift[c]);
                    let sum = sum + if residual { f64::from(r[i]) } else { 0.0 };
                    (if relu { sum.max(0.0) } else { sum }, 3.0)
                }).assert_close(&z, tolerance, name);

                // After an addition the output tells what the ReLU let through, else the input.
                let affine = Affine { scale: &scale, shift: &shift };
                let gate = match (relu, residual) {
                    (false, _) => Gate::Open,
                    (true, true) => Gate::Output(&output),
                    (true, false) => Gate::Input(affine),
                };
                let mut gradient = pack(layout, &g, shape);
                let mut sums = vec![f64::NAN; 2 * channels];
                kernels.normalize_reduce(NormalizeReduce {
                    shape,
                    gradient: &mut gradient,
                    reduction: Reduction { gate, input: &input, mean: &mean, inv_std: &scale, sums: &mut sums },
                });
                let masked: Vec<f32> = g.iter().zip(&z).map(|(&g, &z)| if relu && z <= 0.0 { 0.0 } else { g }).collect();
                let left = unpack_checked(layout, &gradient, shape, images);
                prop_assert_eq!(&left, &masked, "{}", name);
                gradient_sums(&masked, &y, &mean, &scale, shape)
                    .assert_close(&sums.iter().map(|&s| s as f32).collect::<Vec<_>>(), MOMENTS, name);
            }
        }
    }

    #[test]
    fn padding_pooling_and_their_gradients(
        channels in 1usize..70, more in 0usize..70, height in 1usize..9, width in 1usize..9, stride in 1usize..=2,
        images in 1usize..=LANE_GROUP, seed: u64,
    ) {
        let narrow = Shape::new(channels, height, width);
        let wide = Shape::new(channels + more, height.div_ceil(stride), width.div_ceil(stride));
        for precision in Precision::ALL {
            let x = values(precision, seed, images * narrow.len());
            let g = values(precision, seed ^ 1, images * wide.len());
            let means = noise(seed ^ 2, images * channels);
            for kernels in all_kernels(precision) {
                let layout = kernels.layout();
                let name = &format!("{} {}", kernels.isa().name(), precision.name());
                let (input, gradient) = (pack(layout, &x, narrow), pack(layout, &g, wide));
                let mut output = vec![f32::NAN; gradient.len()];
                kernels.pad_shortcut(PadShortcut { narrow, wide, stride, input: &input, output: &mut output });
                let mut back = vec![f32::NAN; input.len()];
                kernels.pad_shortcut_backward(PadShortcut { narrow, wide, stride, input: &gradient, output: &mut back });
                let (padded, cut) = padding(&x, &g, narrow, wide, stride);
                prop_assert_eq!(unpack_checked(layout, &output, wide, images), padded, "{}", name);
                prop_assert_eq!(unpack_checked(layout, &back, narrow, images), cut, "{}", name);

                let mean_shape = Shape::new(channels, 1, 1);
                let pixels = height * width;
                let mut mean = vec![f32::NAN; Layout::Lanes.lane_group_len(mean_shape)];
                kernels.avg_pool(AvgPool { shape: narrow, input: &input, output: &mut mean });
                let planes = x.chunks(pixels).map(|plane| {
                    let sum = |f: fn(f32) -> f32| plane.iter().map(|&v| f64::from(f(v))).sum::<f64>() / pixels as f64;
                    (sum(|v| v), sum(f32::abs))
                });
                let (values, magnitudes) = planes.unzip();
                Exact { values, magnitudes }
                    .assert_close(&unpack(Layout::Lanes, &mean, mean_shape, images), SUM, name);
                let packed = pack(Layout::Lanes, &means, mean_shape);
                kernels.avg_pool_backward(AvgPool { shape: narrow, input: &packed, output: &mut back });
                each(&x, narrow, |i, _| {
                    let share = f64::from(means[i / pixels]) / pixels as f64;
                    (share, share.abs())
                }).assert_close(&unpack_checked(layout, &back, narrow, images), stored(precision), name);
            }
        }
    }
}

/// A sum of products of an operand and weights, and the same with every term made positive.
fn exact_products(operand: &Exact, weights: &[f64], run: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Exact {
    let values = run(&operand.values, weights);
    Exact { values, magnitudes: run(&operand.magnitudes, &absolute(weights)) }
}

/// The weight gradient, summed over bands of rows, parts of the outputs and sets of groups.
fn weight_gradient(
    kernels: &dyn Kernels,
    case: &Case,
    x: &Operand,
    g: &Operand,
    (bands, parts): (usize, usize),
) -> Vec<f32> {
    let (conv, layout) = (&case.conv, kernels.layout());
    let (input, gradient) = (x.pack(layout), g.pack(layout));
    let per_output = kernels.gradient_len(conv) / conv.outputs;
    let mut summed = vec![0.0f32; kernels.gradient_len(conv)];
    let groups: Vec<_> = (0..case.images.div_ceil(LANE_GROUP)).collect();
    for set in groups.chunks(kernels.schedule().lane_groups) {
        let inputs: Vec<_> = set.iter().map(|&group| x.source(layout, &input, group)).collect();
        let output_gradients: Vec<_> = set.iter().map(|&group| g.source(layout, &gradient, group)).collect();
        for rows in split(case.output().height, bands) {
            for outputs in split(conv.outputs, if kernels.schedule().cuts_outputs { parts } else { 1 }) {
                let range = if kernels.schedule().cuts_outputs {
                    outputs.start * per_output..outputs.end * per_output
                } else {
                    0..summed.len()
                };
                let mut part = vec![f32::NAN; range.len()];
                kernels.weight_gradient(WeightGradientBand {
                    conv,
                    rows: rows.clone(),
                    inputs: &inputs,
                    output_gradients: &output_gradients,
                    outputs,
                    gradient: &mut part,
                });
                summed[range].iter_mut().zip(&part).for_each(|(total, part)| *total += part);
            }
        }
    }
    let mut found = vec![f32::NAN; conv.weight_len()];
    for outputs in split(conv.outputs, 3) {
        let len = conv.inputs * conv.taps();
        kernels.unpack_gradient(conv, &summed, outputs.start, &mut found[outputs.start * len..outputs.end * len]);
    }
    found
}

/// What each tap of a convolution reads for each pixel it writes: `[image][channel, row, column][pixel]`.
fn patches(conv: &Conv2d, images: &[f32]) -> Vec<f32> {
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

/// Option A's output for `x`, and the gradient of its input for `g`, by the definition.
fn padding(x: &[f32], g: &[f32], narrow: Shape, wide: Shape, stride: usize) -> (Vec<f32>, Vec<f32>) {
    let images = x.len() / narrow.len();
    let first = (wide.channels - narrow.channels) / 2;
    let (mut padded, mut cut) = (vec![0.0; g.len()], vec![0.0; x.len()]);
    for image in 0..images {
        for channel in 0..narrow.channels {
            for pixel in 0..wide.height * wide.width {
                let (y, x_at) = (pixel / wide.width * stride, pixel % wide.width * stride);
                let from = ((image * narrow.channels + channel) * narrow.height + y) * narrow.width + x_at;
                let to = (image * wide.channels + first + channel) * wide.height * wide.width + pixel;
                padded[to] = x[from];
                cut[from] = g[to];
            }
        }
    }
    (padded, cut)
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

/// Moments of exact results, in the magnitudes of their sums.
fn moments(exact: &Exact, case: &Case, pivot: &[f32]) -> Exact {
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
