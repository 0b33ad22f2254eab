//! Every kernel of every instruction set and precision against the definition in double precision,
//! on random shapes.
//!
//! A test is named after the kernels it is of: `avx2_bf16::conv`. It is skipped, and says so, where
//! the machine lacks the instruction set.

mod harness;
mod reference;

use harness::cases::{Case, Data, Wanted, cases, conv_of, large_cases};
use harness::data::{Lines, each, pack, unpack, unpack_checked, values};
use harness::expected::{self, MOMENTS, SUM, multiplied, stored};
use harness::norms::{BatchNorm, MASKS, masks};
use harness::operands::{BatchOperand, KINDS, kinds};
use harness::{Tested, on_random};
use proptest::prelude::*;
use reference::{Exact, Tolerance, noise, to_f64};
use resnet_graph::{Precision, Shape};
use resnet_native::Isa;
use resnet_native::geometry::Direction;
use resnet_native::kernels::{
    AvgPool, Images, NormReduction, NormValues, Normalize, NormalizeReduce, Operand, PadShortcut, ReluMask,
};
use resnet_native::layout::gather::Gather;
use resnet_native::layout::{LANE_GROUP, Layout};

macro_rules! tests {
    ($($module:ident: $isa:ident $precision:ident,)+) => {$(
        mod $module {
            use super::*;

            const KERNELS: (Isa, Precision) = (Isa::$isa, Precision::$precision);

            #[test]
            fn conv() {
                on_random(KERNELS.0, KERNELS.1, (cases(), kinds()), |tested, (case, kind)| {
                    check_conv(tested, &case, kind);
                });
            }

            #[test]
            fn input_gradient() {
                let values = (cases(), kinds(), any::<bool>(), masks());
                on_random(KERNELS.0, KERNELS.1, values, |tested, (case, kind, accumulate, mask)| {
                    check_input_gradient(tested, &case, kind, accumulate, mask);
                });
            }

            #[test]
            fn weight_gradient() {
                let values = (cases(), [kinds(), kinds()], 1usize..4, 1usize..4);
                on_random(KERNELS.0, KERNELS.1, values, |tested, (case, kinds, bands, parts)| {
                    check_weight_gradient(tested, &case, kinds, (bands, parts));
                });
            }

            #[test]
            fn large_kernels_and_many_channels() {
                let Some(tested) = Tested::new(KERNELS.0, KERNELS.1) else { return };
                for (index, case) in large_cases().enumerate() {
                    let (kind, other) = (KINDS[index % 3], KINDS[(index + 1) % 3]);
                    check_conv(tested, &case, kind);
                    check_input_gradient(tested, &case, other, index % 2 == 0, Some(MASKS[index % 3]));
                    check_weight_gradient(tested, &case, [kind, other], (2, 2));
                }
            }

            #[test]
            fn load_images() {
                let values = (cases(), prop_oneof![Just(1usize), Just(3), Just(7)], 0usize..30);
                on_random(KERNELS.0, KERNELS.1, values, |tested, (case, kernel, wider)| {
                    check_load_images(tested, &case, kernel, wider);
                });
            }

            #[test]
            fn normalize() {
                let shapes = (1usize..=130, 1usize..8, 1usize..12);
                let values = (shapes, 1usize..=LANE_GROUP, any::<bool>(), any::<bool>(), any::<u64>());
                on_random(KERNELS.0, KERNELS.1, values, |tested, ((channels, height, width), images, relu, residual, seed)| {
                    check_normalize(tested, Shape::new(channels, height, width), images, (relu, residual), seed);
                });
            }

            #[test]
            fn pad_shortcut() {
                let values = (pooled_shapes(), 0usize..70, 1usize..=2, 1usize..=LANE_GROUP, any::<u64>());
                on_random(KERNELS.0, KERNELS.1, values, |tested, (narrow, more, stride, images, seed)| {
                    check_pad_shortcut(tested, narrow, (more, stride), images, seed);
                });
            }

            #[test]
            fn avg_pool() {
                let values = (pooled_shapes(), 1usize..=LANE_GROUP, any::<u64>());
                on_random(KERNELS.0, KERNELS.1, values, |tested, (shape, images, seed)| {
                    check_avg_pool(tested, shape, images, seed);
                });
            }
        }
    )+};
}

tests! {
    portable_f32: Portable F32,
    portable_tf32: Portable Tf32,
    portable_bf16: Portable Bf16,
    avx2_f32: Avx2 F32,
    avx2_tf32: Avx2 Tf32,
    avx2_bf16: Avx2 Bf16,
    avx512_f32: Avx512 F32,
    avx512_tf32: Avx512 Tf32,
    avx512_bf16: Avx512 Bf16,
    amx_f32: Amx F32,
    amx_tf32: Amx Tf32,
    amx_bf16: Amx Bf16,
}

fn pooled_shapes() -> impl Strategy<Value = Shape> {
    (1usize..70, 1usize..9, 1usize..9).prop_map(|(channels, height, width)| Shape::new(channels, height, width))
}

/// A convolution and the moments of what it gives.
fn check_conv(tested: Tested, case: &Case, kind: Operand<(), ()>) {
    let Tested { kernels, precision } = tested;
    let (conv, gather) = (&case.conv, Gather::new(&case.conv, Direction::Forward));
    let x = BatchOperand::new(precision, kind, case.seed, case.images, case.input());
    let w = values(precision, case.seed ^ 1, conv.weight_len());
    let pivot = noise(case.seed ^ 2, conv.outputs);
    let run = |x: &[f64], w: &[f64]| reference::conv(conv, case.images, case.input(), case.output(), x, w).values;
    let exact = expected::exact_products(&x.exact(), &to_f64(&w), run);
    let tolerance = Tolerance { result: stored(precision).result, ..multiplied(precision, kind) };
    let data = Data { input: &x, weights: &w, before: None, wanted: Wanted::Moments(&pivot) };
    let (found, sums) = case.run(kernels, &gather, data);
    exact.assert_close(&found, tolerance, &tested.name());
    expected::moments(&exact, case, &pivot).assert_close(&sums, expected::epilogue(tolerance), &tested.name());
}

/// The gradient with respect to the input, which replaces what was there or adds to it, and a batch
/// norm's reduction of it.
fn check_input_gradient(
    tested: Tested,
    case: &Case,
    kind: Operand<(), ()>,
    accumulate: bool,
    mask: Option<ReluMask<()>>,
) {
    let Tested { kernels, precision } = tested;
    let (conv, gather) = (&case.conv, Gather::new(&case.conv, Direction::Backward));
    let g = BatchOperand::new(precision, kind, case.seed, case.images, case.output());
    let w = values(precision, case.seed ^ 1, conv.weight_len());
    let before = values(precision, case.seed ^ 2, case.images * case.input().len());
    let run = |g: &[f64], w: &[f64]| reference::conv_input(conv, case.images, case.input(), case.output(), g, w).values;
    let mut exact = expected::exact_products(&g.exact(), &to_f64(&w), run);
    let tolerance = Tolerance { result: stored(precision).result, ..multiplied(precision, kind) };
    if accumulate {
        exact.values.iter_mut().zip(&before).for_each(|(value, &b)| *value += f64::from(b));
        exact.magnitudes.iter_mut().zip(&before).for_each(|(value, b)| *value += f64::from(b.abs()));
    }
    let norm = mask.map(|mask| BatchNorm::new(precision, mask, case.seed, case.images, case.input()));
    let expected_sums = norm.as_ref().map(|norm| norm.reduce(&mut exact, case.input()));
    let wanted = norm.as_ref().map_or(Wanted::Nothing, Wanted::NormReduction);
    let data = Data { input: &g, weights: &w, before: accumulate.then_some(&before), wanted };
    let (found, sums) = case.run(kernels, &gather, data);
    exact.assert_close(&found, tolerance, &tested.name());
    if let Some(expected_sums) = &expected_sums {
        expected_sums.assert_close(&sums, expected::epilogue(tolerance), &tested.name());
    }
}

/// The weight gradient, in bands of rows and in parts of the outputs.
fn check_weight_gradient(tested: Tested, case: &Case, kinds: [Operand<(), ()>; 2], cut: (usize, usize)) {
    let Tested { kernels, precision } = tested;
    let conv = &case.conv;
    let x = BatchOperand::new(precision, kinds[0], case.seed, case.images, case.input());
    let g = BatchOperand::new(precision, kinds[1], case.seed ^ 1, case.images, case.output());
    let run =
        |x: &[f64], g: &[f64]| reference::weight_gradient(conv, case.images, case.input(), case.output(), x, g).values;
    let (exact_x, exact_g) = (x.exact(), g.exact());
    let exact = Exact {
        values: run(&exact_x.values, &exact_g.values),
        magnitudes: run(&exact_x.magnitudes, &exact_g.magnitudes),
    };
    let [lost, other] = kinds.map(|kind| multiplied(precision, kind).sum);
    let tolerance = Tolerance { sum: lost.max(other) * 2.0, ..SUM };
    exact.assert_close(&case.weight_gradient(kernels, &x, &g, cut), tolerance, &tested.name());
}

/// Images as the first convolution reads them.
fn check_load_images(tested: Tested, case: &Case, kernel: usize, wider: usize) {
    let Tested { kernels, precision } = tested;
    let input = Shape { channels: case.conv.inputs.min(8), width: case.input().width + wider, ..case.input() };
    let conv = conv_of(input, 4, kernel, case.conv.vertical.stride);
    let images = case.images.min(LANE_GROUP);
    let x = values(precision, case.seed, images * input.len());
    let layout = kernels.layout();
    let shape = kernels.stem(&conv).input();
    let mut group = Lines::new(vec![f32::NAN; layout.lane_group_len(shape)]);
    kernels.load_images(Images { images: &x, conv: &conv, group: group.words(), non_temporal: true });
    let found = unpack_checked(layout, group.words(), shape, images);
    let wanted = if matches!(layout, Layout::Tiles { .. }) { expected::im2col(&conv, &x) } else { x };
    assert_eq!(found, wanted, "{}", tested.name());
}

/// Batch norm with an addition and a ReLU or without, and the first half of its gradient.
fn check_normalize(tested: Tested, shape: Shape, images: usize, (relu, residual): (bool, bool), seed: u64) {
    let Tested { kernels, precision } = tested;
    let per_channel = |salt| noise(seed ^ salt, shape.channels);
    let [scale, shift, mean, inv_std] = [4, 5, 6, 7].map(per_channel);
    let norm = NormValues { scale, shift, mean, inv_std, ..NormValues::new(shape.channels) };
    let [y, r, g] = [1, 2, 3].map(|salt| values(precision, seed ^ salt, images * shape.len()));
    let (layout, tolerance, name) = (kernels.layout(), stored(precision), &tested.name());
    let (input, packed_residual) = (pack(layout, &y, shape), pack(layout, &r, shape));
    let mut output = vec![f32::NAN; input.len()];
    kernels.normalize(Normalize {
        shape,
        input: &input,
        residual: residual.then_some(&packed_residual),
        output: &mut output,
        norm: &norm,
        relu,
        images,
    });
    let z = unpack_checked(layout, &output, shape, images);
    let exact = each(&y, shape, |i, c| {
        let sum = f64::from(norm.scale[c]) * f64::from(y[i]) + f64::from(norm.shift[c]);
        let sum = sum + if residual { f64::from(r[i]) } else { 0.0 };
        (if relu { sum.max(0.0) } else { sum }, 3.0)
    });
    exact.assert_close(&z, tolerance, name);

    // After an addition the output tells what the ReLU let through, else the input.
    let mask = match (relu, residual) {
        (false, _) => ReluMask::None,
        (true, true) => ReluMask::Output(&*output),
        (true, false) => ReluMask::Input,
    };
    let mut gradient = pack(layout, &g, shape);
    let mut sums = vec![f64::NAN; 2 * shape.channels];
    let reduction = NormReduction { norm: &norm, input: &*input, mask };
    kernels.normalize_reduce(NormalizeReduce { shape, gradient: &mut gradient, reduction, sums: &mut sums });
    let masked: Vec<f32> = g.iter().zip(&z).map(|(&g, &z)| if relu && z <= 0.0 { 0.0 } else { g }).collect();
    assert_eq!(unpack_checked(layout, &gradient, shape, images), masked, "{name}");
    let sums: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
    expected::gradient_sums(&masked, &y, &norm, shape).assert_close(&sums, MOMENTS, name);
}

/// The option A shortcut to `more` channels, and its gradient.
fn check_pad_shortcut(tested: Tested, narrow: Shape, (more, stride): (usize, usize), images: usize, seed: u64) {
    let Tested { kernels, precision } = tested;
    let wide = Shape::new(narrow.channels + more, narrow.height.div_ceil(stride), narrow.width.div_ceil(stride));
    let x = values(precision, seed, images * narrow.len());
    let g = values(precision, seed ^ 1, images * wide.len());
    let layout = kernels.layout();
    let (input, gradient) = (pack(layout, &x, narrow), pack(layout, &g, wide));
    let (mut output, mut back) = (vec![f32::NAN; gradient.len()], vec![f32::NAN; input.len()]);
    kernels.pad_shortcut(PadShortcut { narrow, wide, stride, input: &input, output: &mut output });
    kernels.pad_shortcut_backward(PadShortcut { narrow, wide, stride, input: &gradient, output: &mut back });
    let padded = reference::pad_shortcut(&x, narrow, wide, stride);
    let cut = reference::pad_shortcut_backward(&g, narrow, wide, stride);
    assert_eq!(unpack_checked(layout, &output, wide, images), padded, "{}", tested.name());
    assert_eq!(unpack_checked(layout, &back, narrow, images), cut, "{}", tested.name());
}

/// Global average pooling and its gradient.
fn check_avg_pool(tested: Tested, shape: Shape, images: usize, seed: u64) {
    let Tested { kernels, precision } = tested;
    let (layout, name) = (kernels.layout(), &tested.name());
    let (mean_shape, pixels) = (Shape::new(shape.channels, 1, 1), shape.height * shape.width);
    let x = values(precision, seed, images * shape.len());
    let input = pack(layout, &x, shape);
    let mut mean = vec![f32::NAN; Layout::Lanes.lane_group_len(mean_shape)];
    kernels.avg_pool(AvgPool { shape, input: &input, output: &mut mean });
    let planes = x.chunks(pixels).map(|plane| {
        let sum = |f: fn(f32) -> f32| plane.iter().map(|&v| f64::from(f(v))).sum::<f64>() / pixels as f64;
        (sum(|v| v), sum(f32::abs))
    });
    let (values, magnitudes) = planes.unzip();
    Exact { values, magnitudes }.assert_close(&unpack(Layout::Lanes, &mean, mean_shape, images), SUM, name);

    let means = noise(seed ^ 2, images * shape.channels);
    let packed = pack(Layout::Lanes, &means, mean_shape);
    let mut back = vec![f32::NAN; input.len()];
    kernels.avg_pool_backward(AvgPool { shape, input: &packed, output: &mut back });
    let exact = each(&x, shape, |i, _| {
        let share = f64::from(means[i / pixels]) / pixels as f64;
        (share, share.abs())
    });
    exact.assert_close(&unpack_checked(layout, &back, shape, images), stored(precision), name);
}
