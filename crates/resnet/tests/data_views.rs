//! How images are seen: today's views, and those that training on ImageNet needs, against plain
//! references.

use std::sync::Arc;

use resnet::arch::Shape;
use resnet::data::{Dataset, Framing, Image, Images, Normalizer, Preprocess, Scratch, Span, View, Workers};

/// A smooth image with some noise, so that a pixel off shows.
fn picture(shape: Shape) -> Image {
    let value = |i: usize| {
        let (y, x) = (i / shape.width, i % shape.width);
        ((y * 5 + x * 3 + i * i % 41) % 256) as u8
    };
    Image::new(shape, (0..shape.len()).map(value).collect()).unwrap()
}

fn framed(view: &View, image: &Image) -> Vec<u8> {
    view.frame(image, &mut Scratch::default()).unwrap().to_vec()
}

/// What the network sees, without a mean, as bytes.
fn seen(view: &View, image: &Image) -> Vec<u8> {
    let nothing =
        Preprocess::Channel { mean: Some(vec![0.0; view.canvas.channels]), std: Some(vec![1.0; view.canvas.channels]) };
    let normalizer = nothing.fit(&*data_set(view.canvas), view.canvas, &Workers::new(1).unwrap()).unwrap();
    let mut out = vec![f32::NAN; view.canvas.len()];
    normalizer.render(image, view, &mut Scratch::default(), &mut out).unwrap();
    out.iter().map(|x| (x * 255.0).round() as u8).collect()
}

fn data_set(shape: Shape) -> Arc<dyn Dataset> {
    Arc::new(Images::new(shape, vec!["a".into()], vec![0], vec![0; shape.len()]).unwrap())
}

fn view(rows: Span, columns: Span, flip: bool) -> View {
    let canvas = Shape::new(3, rows.len, columns.len);
    View { rows, columns, flip, ..Framing::Pad.view(canvas, canvas) }
}

/// A triangle filter written as its definition says: every pixel of the image with its weight, in
/// `f64`.
fn reference(image: &Image, rows: Span, columns: Span) -> Vec<u8> {
    let shape = image.shape();
    let weights = |span: Span, output: usize, inputs: usize| -> Vec<f64> {
        let (centre, reach) = (span.start + (output as f64 + 0.5) * span.step, span.step.max(1.0));
        let weights = (0..inputs).map(|input| (1.0 - (input as f64 + 0.5 - centre).abs() / reach).max(0.0));
        let weights: Vec<f64> = weights.collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    };
    let mut out = Vec::new();
    for plane in image.pixels().chunks(shape.pixels()) {
        for y in 0..rows.len {
            let down = weights(rows, y, shape.height);
            for x in 0..columns.len {
                let across = weights(columns, x, shape.width);
                let row = |row: &[u8]| row.iter().zip(&across).map(|(&p, w)| f64::from(p) * w).sum::<f64>();
                let value: f64 = plane.chunks(shape.width).zip(&down).map(|(pixels, w)| row(pixels) * w).sum();
                out.push(value.round() as u8);
            }
        }
    }
    out
}

/// Both filters round once, in another precision.
fn assert_close(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(1), "off by {worst:?}");
}

fn mirrored(pixels: &[u8], width: usize) -> Vec<u8> {
    pixels.chunks(width).flat_map(|row| row.iter().rev().copied()).collect()
}

fn crop(image: &Image, top: usize, left: usize, height: usize, width: usize) -> Vec<u8> {
    let rows = image.pixels().chunks(image.shape().pixels()).flat_map(|plane| {
        plane.chunks(image.shape().width).skip(top).take(height).flat_map(|row| &row[left..left + width])
    });
    rows.copied().collect()
}

#[test]
fn grey_images_are_centred_on_black_and_repeated_for_a_colour_network() {
    let grey = picture(Shape::new(1, 28, 28));
    let canvas = Shape::new(3, 32, 32);
    let framing = Framing::of(&*data_set(grey.shape()), canvas).unwrap();
    let padded = framed(&framing.view(grey.shape(), canvas), &grey);
    assert_eq!(padded.len(), 3 * 32 * 32);
    for (i, &x) in padded.iter().enumerate() {
        let (y, x0) = (i / 32 % 32, i % 32);
        let inside = (2..30).contains(&y) && (2..30).contains(&x0);
        assert_eq!(x, if inside { grey.pixels()[(y - 2) * 28 + x0 - 2] } else { 0 });
    }
}

#[test]
fn images_that_cannot_fit_are_refused() {
    let message = |shape, canvas| Framing::of(&*data_set(shape), canvas).err().unwrap().to_string();
    assert!(message(Shape::new(3, 8, 8), Shape::new(1, 8, 8)).contains("3 channels"));
    assert!(message(Shape::new(3, 9, 8), Shape::new(3, 8, 8)).contains("larger"));
}

#[test]
fn filling_shows_the_largest_centred_part_of_the_aspect_ratio() {
    let image = picture(Shape::new(3, 40, 50));
    for (height, width, rows, columns) in [(16, 16, (0.0, 40.0), (5.0, 40.0)), (10, 25, (10.0, 20.0), (0.0, 50.0))] {
        let view = Framing::Fill.view(image.shape(), Shape::new(3, height, width));
        let [rows, columns] =
            [(rows, height), (columns, width)].map(|((start, of), len)| Span { start, step: of / len as f64, len });
        assert_close(&framed(&view, &image), &reference(&image, rows, columns));
    }
}

#[test]
fn a_random_resized_crop_is_a_pair_of_spans() {
    let image = picture(Shape::new(3, 47, 61));
    let part = |top: f64, left: f64, height: f64, width: f64, size: usize| {
        let span = |start, of| Span { start, step: of / size as f64, len: size };
        (span(top, height), span(left, width))
    };
    for (rows, columns) in
        [part(3.0, 7.0, 20.0, 27.0, 16), part(11.5, 0.25, 35.5, 19.0, 12), part(40.0, 50.0, 5.0, 4.0, 9)]
    {
        let expected = reference(&image, rows, columns);
        assert_close(&seen(&view(rows, columns, false), &image), &expected);
        assert_close(&seen(&view(rows, columns, true), &image), &mirrored(&expected, columns.len));
    }
}

/// arXiv:1409.1556: the shorter side is scaled to a length drawn from a range, then a part of fixed
/// size is cropped.
#[test]
fn scale_augmentation_scales_only_what_it_crops_and_is_the_same() {
    let image = picture(Shape::new(3, 60, 80));
    for shorter in [30, 45, 75] {
        let step = 60.0 / shorter as f64;
        let (height, width) = (shorter, shorter * 4 / 3);
        let whole = |len| Span { start: 0.0, step, len };
        let scaled = Image::new(Shape::new(3, height, width), reference(&image, whole(height), whole(width))).unwrap();
        let (top, left) = (height - 24, width / 5);
        let part = |from: usize| Span { start: from as f64 * step, step, len: 24 };
        assert_close(&seen(&view(part(top), part(left), false), &image), &crop(&scaled, top, left, 24, 24));
    }
}

/// "the standard 10-crop testing" (section 3.4, after Krizhevsky et al.): corners and centre, and
/// their mirror images.
#[test]
fn ten_crops_are_ten_views() {
    let image = picture(Shape::new(3, 40, 52));
    let span = |start: usize| Span { start: start as f64, ..Span::whole(32) };
    for (top, left) in [(0, 0), (0, 20), (8, 0), (8, 20), (4, 10)] {
        let expected = crop(&image, top, left, 32, 32);
        assert_eq!(seen(&view(span(top), span(left), false), &image), expected);
        assert_eq!(seen(&view(span(top), span(left), true), &image), mirrored(&expected, 32));
    }
}

/// "we average the scores at multiple scales": the shorter side, and so the canvas, takes several
/// lengths (section 3.4).
#[test]
fn several_scales_are_views_on_several_canvases() {
    let image = picture(Shape::new(3, 48, 72));
    for shorter in [12, 24, 48, 64] {
        let canvas = Shape::new(3, shorter, shorter * 3 / 2);
        let step = 48.0 / shorter as f64;
        let expected = reference(
            &image,
            Span { start: 0.0, step, len: canvas.height },
            Span { start: 0.0, step, len: canvas.width },
        );
        assert_close(&seen(&Framing::Fill.view(image.shape(), canvas), &image), &expected);
    }
}

#[test]
fn what_is_beyond_the_image_is_its_edge() {
    let image = picture(Shape::new(1, 6, 6));
    let span = |start| Span { start, ..Span::whole(4) };
    let view = View { canvas: Shape::new(1, 4, 4), ..view(span(-2.0), span(4.0), false) };
    let at = |y: usize, x: usize| image.pixels()[y * 6 + x];
    let row = |y| [at(y, 4), at(y, 5), at(y, 5), at(y, 5)];
    assert_eq!(framed(&view, &image), [row(0), row(0), row(0), row(1)].concat());
}

#[test]
fn views_that_show_nothing_or_more_than_there_is_do_no_harm() {
    let image = picture(Shape::new(3, 6, 6));
    let whole = view(Span::whole(6), Span::whole(6), false);
    let refused = |view: View, image: &Image| view.frame(image, &mut Scratch::default()).is_err();
    assert!(refused(View { rows: Span::whole(0), ..whole }, &image));
    assert!(refused(View { canvas: Shape::new(3, 6, 0), ..whole }, &image));
    assert!(refused(View { canvas: Shape::new(2, 6, 6), ..whole }, &image));
    assert!(refused(whole, &Image::default()));
    for strange in [f64::NAN, f64::INFINITY, -1e300, 1e300] {
        assert_eq!(framed(&View { rows: Span { start: strange, step: 1.0, len: 6 }, ..whole }, &image).len(), 108);
        assert_eq!(framed(&View { rows: Span { start: 0.0, step: strange, len: 6 }, ..whole }, &image).len(), 108);
    }
    let outside = View { top: usize::MAX, left: 7, down: isize::MIN, right: isize::MAX, ..whole };
    assert_eq!(seen(&outside, &image), [0; 108]);
}

#[test]
fn a_view_on_another_canvas_is_not_normalised() {
    let image = picture(Shape::new(3, 6, 6));
    let preprocess = Preprocess::PixelMean;
    let fitted = preprocess.fit(&*data_set(image.shape()), image.shape(), &Workers::new(1).unwrap()).unwrap();
    let smaller = view(Span::whole(5), Span::whole(6), false);
    let rendered = Normalizer::render(&fitted, &image, &smaller, &mut Scratch::default(), &mut [0.0; 90]);
    assert!(rendered.unwrap_err().to_string().contains("3x5x6"));
}
