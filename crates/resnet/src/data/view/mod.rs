//! How an image is seen: which part of it, how large, where on the canvas, mirrored or not.
//!
//! A [`View`] is plain data, and all of it happens in one pass: the part is scaled onto the canvas
//! ([`frame`](View::frame)), then every row of the canvas is normalised, moved and mirrored at once
//! ([`Normalizer::render`](super::Normalizer::render)). Changes of colour belong between the two,
//! in the row being normalised. [`Framing`] is the view without chance, for evaluation; [`Augment`]
//! varies it for training, as drawn from seed, epoch and index.

mod augment;
mod framing;

use resnet_graph::Shape;

use super::image::{Image, Span, resample};
use crate::{Error, Result};

pub use augment::Augment;
pub use framing::Framing;

/// One way to see one image.
///
/// A random resized crop is a pair of spans, scale augmentation is another, and the ten crops are
/// ten views that differ in where their spans begin and in `flip`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Which rows of the image are seen, and as how many.
    pub rows: Span,
    /// Which columns of the image are seen, and as how many.
    pub columns: Span,
    /// What the network takes, `[channels, height, width]`. One channel is repeated to as many as
    /// there are here; three become one by their luma (ITU-R BT.601).
    pub canvas: Shape,
    /// Rows of the canvas above the image; where it does not reach is black.
    pub top: usize,
    /// Columns of the canvas left of the image.
    pub left: usize,
    /// The canvas is moved up by so many rows after normalisation; what comes in is 0, the mean.
    pub down: isize,
    /// The canvas is moved left by so many columns.
    pub right: isize,
    /// Whether it is then mirrored left to right.
    pub flip: bool,
}

/// Memory that one view after another is drawn in.
#[derive(Default)]
pub struct Scratch {
    narrow: Vec<f32>,
    scaled: Vec<u8>,
    framed: Vec<u8>,
}

impl View {
    /// The part of `image` on its canvas, before it is moved and mirrored: pixels `[channels,
    /// height, width]`.
    ///
    /// # Errors
    /// When nothing is to be seen, or the image's channels do not fit the canvas.
    pub fn frame<'a>(&self, image: &'a Image, scratch: &'a mut Scratch) -> Result<&'a [u8]> {
        let shape = image.shape();
        let seen = Shape::new(shape.channels, self.rows.len, self.columns.len);
        if shape.is_empty() || seen.is_empty() || self.canvas.is_empty() {
            return Err(Error::Config(format!("an image of {shape} cannot be seen as {seen} on {}", self.canvas)));
        }
        if !matches!((shape.channels, self.canvas.channels), (1, _) | (3, 1)) && shape.channels != self.canvas.channels
        {
            let (found, expected) = (shape.channels, self.canvas.channels);
            return Err(Error::Config(format!("the image has {found} channels, but the network takes {expected}")));
        }
        let Scratch { narrow, scaled, framed } = scratch;
        let whole = self.rows == Span::whole(shape.height) && self.columns == Span::whole(shape.width);
        let scaled = if whole {
            image.pixels()
        } else {
            resample(image, self.rows, self.columns, narrow, scaled);
            scaled
        };
        if seen == self.canvas && (self.top, self.left) == (0, 0) {
            return Ok(scaled);
        }
        framed.clear();
        framed.resize(self.canvas.len(), 0);
        self.place(scaled, seen, framed);
        Ok(framed)
    }

    /// Puts what is seen on a black canvas.
    fn place(&self, pixels: &[u8], seen: Shape, canvas: &mut [u8]) {
        let plane = |channel: usize| &pixels[channel * seen.pixels()..][..seen.pixels()];
        for (channel, canvas) in canvas.chunks_exact_mut(self.canvas.pixels()).enumerate() {
            let rows = canvas.chunks_exact_mut(self.canvas.width).skip(self.top).take(seen.height);
            for (y, row) in rows.enumerate() {
                let row = row.get_mut(self.left..).unwrap_or_default();
                let at = y * seen.width;
                let at = at..at + seen.width.min(row.len());
                let row = &mut row[..at.len()];
                if self.canvas.channels == 1 && seen.channels == 3 {
                    let colours = [0, 1, 2].map(|colour| &plane(colour)[at.clone()]);
                    for (x, grey) in row.iter_mut().enumerate() {
                        *grey = luma(colours.map(|colour| colour[x]));
                    }
                } else {
                    row.copy_from_slice(&plane(if seen.channels == 1 { 0 } else { channel })[at]);
                }
            }
        }
    }

    /// Moves and mirrors one plane of the canvas into `out`, row by row:
    /// `out(y, x) = plane(y + down, x + right)`, zero beyond the edges, then mirrored. `convert` gets
    /// the first pixel's index in the plane and as many outputs as there are pixels in a stretch.
    pub(super) fn moved_rows(&self, out: &mut [f32], mut convert: impl FnMut(usize, &mut [f32])) {
        let Shape { height, width, .. } = self.canvas;
        let left = self.right.min(0).unsigned_abs().min(width);
        let right = width - self.right.max(0).unsigned_abs().min(width);
        for (y, row) in out.chunks_exact_mut(width).enumerate() {
            let source = y.checked_add_signed(self.down).filter(|&y| y < height);
            match source {
                Some(source) if left < right => {
                    row[..left].fill(0.0);
                    row[right..].fill(0.0);
                    let first = source * width + left.saturating_add_signed(self.right);
                    convert(first, &mut row[left..right]);
                }
                _ => row.fill(0.0),
            }
            if self.flip {
                row.reverse();
            }
        }
    }
}

/// As Pillow's conversion to grey.
fn luma(pixel: [u8; 3]) -> u8 {
    let weighted = [19595, 38470, 7471].iter().zip(pixel).map(|(weight, value)| weight * u32::from(value));
    ((weighted.sum::<u32>() + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(down: isize, right: isize, flip: bool) -> Vec<f32> {
        let canvas = Shape::new(1, 2, 3);
        let view = View { down, right, flip, ..Framing::Pad.view(canvas, canvas) };
        let plane = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut out = vec![-1.0; 6];
        view.moved_rows(&mut out, |first, row| row.copy_from_slice(&plane[first..][..row.len()]));
        out
    }

    #[test]
    fn a_view_is_moved_padded_with_zero_and_mirrored() {
        assert_eq!(moved(0, 0, false), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(moved(0, 0, true), [3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
        assert_eq!(moved(1, 1, false), [5.0, 6.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(moved(-1, -1, false), [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        assert_eq!(moved(-1, 2, true), [0.0, 0.0, 0.0, 0.0, 0.0, 3.0]);
        assert_eq!(moved(0, 7, false), [0.0; 6]);
        assert_eq!(moved(0, -7, false), [0.0; 6]);
    }
}
