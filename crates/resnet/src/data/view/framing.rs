//! The view without chance: all images of a data set on the canvas that a network takes.

use resnet_graph::Shape;

use super::View;
use crate::data::image::Span;
use crate::data::source::Dataset;
use crate::{Error, Result};

/// How an image comes onto the canvas when nothing is left to chance: what an evaluation sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// At its own size, centred on black; of a larger image the middle. For small images of one
    /// size: the 28x28 digits and clothes have a black background of their own.
    Pad,
    /// The largest centred part of the canvas' aspect ratio, scaled to it. For photographs of any
    /// size.
    Fill,
}

impl Framing {
    /// What suits a data set: [`Pad`](Framing::Pad) where its images have one size, else
    /// [`Fill`](Framing::Fill).
    ///
    /// # Errors
    /// When images are larger than the canvas, or have another number of channels that is not one.
    pub fn of(dataset: &dyn Dataset, canvas: Shape) -> Result<Self> {
        match dataset.shape() {
            Some(shape) if shape.channels != canvas.channels && shape.channels != 1 => Err(Error::Config(format!(
                "the images have {} channels, but the network takes {}",
                shape.channels, canvas.channels
            ))),
            Some(shape) if shape.height > canvas.height || shape.width > canvas.width => {
                Err(Error::Config(format!("the images ({shape}) are larger than the network's input ({canvas})")))
            }
            Some(_) => Ok(Self::Pad),
            None if !matches!(canvas.channels, 1 | 3) => {
                Err(Error::Config(format!("image files are grey or colour: they cannot be seen as {canvas}")))
            }
            None => Ok(Self::Fill),
        }
    }

    /// The view of an image.
    pub fn view(self, image: Shape, canvas: Shape) -> View {
        let ((rows, top), (columns, left)) = match self {
            Self::Pad => (pad(image.height, canvas.height), pad(image.width, canvas.width)),
            Self::Fill => {
                let ratio = |image: usize, canvas: usize| image as f64 / canvas as f64;
                let step = ratio(image.width, canvas.width).min(ratio(image.height, canvas.height));
                let span = |image, canvas| (Span::centred(image, step, canvas), 0);
                (span(image.height, canvas.height), span(image.width, canvas.width))
            }
        };
        View { rows, columns, canvas, top, left, down: 0, right: 0, flip: false }
    }
}

/// Whole pixels from the middle, and how many of the canvas are before them.
fn pad(image: usize, canvas: usize) -> (Span, usize) {
    let len = image.min(canvas);
    (Span { start: ((image - len) / 2) as f64, ..Span::whole(len) }, (canvas - len) / 2)
}
