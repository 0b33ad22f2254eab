//! Crop and scale in one pass: what of an image a view does not show is not scaled.
//!
//! The filter is the triangle of Pillow's `BILINEAR`, antialiased when shrinking; like Pillow's
//! `resize` with a box it looks beyond the part that is shown, as far as the image goes. A crate
//! with the same filter (`fast_image_resize`) rounds weights and the rows between the two steps to
//! integers: it would change the bits that runs on folders have had so far. This file is all there
//! is to replace.

use resnet_graph::Shape;

use super::Image;

/// A stretch of an image's rows or columns and what it becomes: `len` pixels of `step` image pixels
/// each, the first beginning at `start`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Where it begins, in image pixels from the first one's edge.
    pub start: f64,
    /// Image pixels that one pixel of the result covers: 1 keeps the size, 2 halves it.
    pub step: f64,
    /// Pixels of the result.
    pub len: usize,
}

impl Span {
    /// All of `len` pixels, as they are.
    pub const fn whole(len: usize) -> Self {
        Self { start: 0.0, step: 1.0, len }
    }

    /// `len` pixels of `step` image pixels each, around the middle of `of` image pixels.
    pub fn centred(of: usize, step: f64, len: usize) -> Self {
        Self { start: (of as f64 - step * len as f64) / 2.0, step, len }
    }
}

/// Scales the part of `image` in `rows` and `columns`: along rows, then along columns. Fills `out`
/// with `[channels, rows.len, columns.len]`; neither span nor the image may be empty.
///
/// `narrow` is memory for the rows that are needed, already as narrow as the result.
pub(crate) fn resample(image: &Image, rows: Span, columns: Span, narrow: &mut Vec<f32>, out: &mut Vec<u8>) {
    let Shape { channels, height, width } = image.shape();
    let (down, across) = (taps(height, rows), taps(width, columns));
    let first = down.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end = down.iter().map(Taps::end).max().unwrap_or(0);
    let mut row = vec![0.0; columns.len];
    out.clear();
    out.reserve(channels * rows.len * columns.len);
    for plane in image.pixels().chunks_exact(height * width) {
        narrow.clear();
        for input in plane[first * width..end * width].chunks_exact(width) {
            narrow.extend(across.iter().map(|taps| taps.mix(input)));
        }
        for taps in &down {
            row.fill(0.0);
            let inputs = narrow[(taps.first - first) * columns.len..].chunks_exact(columns.len);
            for (weight, input) in taps.weights.iter().zip(inputs) {
                for (sum, value) in row.iter_mut().zip(input) {
                    *sum += weight * value;
                }
            }
            out.extend(row.iter().map(|sum: &f32| sum.round() as u8));
        }
    }
}

/// The input pixels that make one output pixel.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }

    fn mix(&self, input: &[u8]) -> f32 {
        let pixels = &input[self.first..self.end()];
        self.weights.iter().zip(pixels).fold(0.0, |sum, (weight, &pixel)| sum + weight * f32::from(pixel))
    }
}

/// The weights of a triangle that is as wide as two output pixels (or two input pixels, when
/// enlarging). Beyond the edges of the `inputs` pixels is what is at the edge.
fn taps(inputs: usize, span: Span) -> Vec<Taps> {
    let support = span.step.max(1.0);
    let tap = |output: usize| {
        let centre = span.start + (output as f64 + 0.5) * span.step;
        let centre = centre.clamp(0.5, inputs as f64 - 0.5);
        let first = ((centre - support).floor().max(0.0) as usize).min(inputs - 1);
        let end = ((centre + support).ceil().max(0.0) as usize).clamp(first + 1, inputs);
        let weight = |input: usize| (1.0 - (input as f64 + 0.5 - centre).abs() / support).max(0.0);
        let total: f64 = (first..end).map(weight).sum();
        Taps { first, weights: (first..end).map(|input| (weight(input) / total) as f32).collect() }
    };
    (0..span.len).map(tap).collect()
}
