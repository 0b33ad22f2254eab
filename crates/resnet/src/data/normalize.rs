//! From pixels to what a network sees: `(x / 255 - mean) / std`.

use rayon::prelude::*;
use resnet_graph::Shape;
use serde::{Deserialize, Serialize};

use super::image::Image;
use super::source::{Dataset, about};
use super::view::{Framing, Scratch, View};
use super::workers::Workers;
use crate::{Error, Result, StateDict, Tensor};

/// How pixels are normalised: the choice, as it stands in a recipe. [`fit`](Preprocess::fit) makes
/// the [`Normalizer`] that does it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Preprocess {
    /// Subtracts the mean image of the training set: "per-pixel mean subtracted" (section 4.2). The
    /// paper gives no scale; pixels are taken as 0 to 1 and not divided further, as the common
    /// reproductions do, so that one learning rate suits this and the other kinds.
    #[default]
    PixelMean,
    /// Subtracts a mean and divides by a standard deviation for each channel.
    Channel {
        /// Mean of each channel, of pixels from 0 to 1; computed from the training set when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mean: Option<Vec<f32>>,
        /// Standard deviation of each channel; computed from the training set when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        std: Option<Vec<f32>>,
    },
    /// Subtracts from each image the mean of all its own values.
    ImageMean,
}

impl Preprocess {
    /// Works out the statistics that are not given from the images of `train`, as an evaluation
    /// sees them on a canvas of `shape`: the network's input.
    ///
    /// # Errors
    /// When an image cannot be read, when there is none, when the images cannot be brought into
    /// that shape, or when given statistics do not fit its channels.
    pub fn fit(&self, train: &dyn Dataset, shape: Shape, workers: &Workers) -> Result<Normalizer> {
        if let Some(normalizer) = self.without_images(shape)? {
            return Ok(normalizer);
        }
        let sums = Sums::of(train, shape, workers)?;
        let Self::Channel { mean, std } = self else {
            return Normalizer::new(shape, Mean::Pixel(sums.pixel_mean()), vec![1.0; shape.channels]);
        };
        let (fitted_mean, fitted_std) = sums.channel_mean_std();
        let (mean, std) = (mean.clone().unwrap_or(fitted_mean), std.clone().unwrap_or(fitted_std));
        Normalizer::new(shape, Mean::Channel(mean), std)
    }

    /// The normalizer for images of `shape`, where no statistics are left to compute from images.
    ///
    /// # Errors
    /// When given statistics do not fit the images' channels.
    pub fn without_images(&self, shape: Shape) -> Result<Option<Normalizer>> {
        let (mean, std) = match self {
            Self::Channel { mean: Some(mean), std: Some(std) } => (Mean::Channel(mean.clone()), std.clone()),
            Self::ImageMean => (Mean::Image, vec![1.0; shape.channels]),
            Self::PixelMean | Self::Channel { .. } => return Ok(None),
        };
        Normalizer::new(shape, mean, std).map(Some)
    }
}

/// Exact sums over a data set: integers, so the order of the images does not matter.
struct Sums {
    shape: Shape,
    images: usize,
    /// Sum of each pixel, `[channels, height, width]`.
    pixels: Vec<u64>,
    /// Sum of the squares of each channel.
    squares: Vec<u64>,
}

impl Sums {
    fn of(dataset: &dyn Dataset, shape: Shape, workers: &Workers) -> Result<Self> {
        if dataset.is_empty() {
            return Err(Error::Config("there is no training image to compute a mean from".into()));
        }
        let framing = Framing::of(dataset, shape)?;
        let start = || (Self::new(shape), Image::default(), Scratch::default());
        let add = |(mut sums, mut image, mut scratch): (Self, Image, Scratch), index| -> Result<_> {
            dataset.read(index, &mut image)?;
            let framed = framing.view(image.shape(), shape).frame(&image, &mut scratch);
            sums.add(framed.map_err(about(dataset, index))?);
            Ok((sums, image, scratch))
        };
        workers.run(|| {
            let parts = (0..dataset.len()).into_par_iter().try_fold(start, add);
            parts.map(|part| part.map(|(sums, ..)| sums)).try_reduce(|| Self::new(shape), |a, b| Ok(a.merge(b)))
        })
    }

    fn new(shape: Shape) -> Self {
        Self { shape, images: 0, pixels: vec![0; shape.len()], squares: vec![0; shape.channels] }
    }

    fn add(&mut self, image: &[u8]) {
        self.images += 1;
        for (sum, &x) in self.pixels.iter_mut().zip(image) {
            *sum += u64::from(x);
        }
        for (square, plane) in self.squares.iter_mut().zip(image.chunks_exact(self.shape.pixels())) {
            *square += plane.iter().map(|&x| u64::from(x) * u64::from(x)).sum::<u64>();
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.images += other.images;
        let sums = self.pixels.iter_mut().chain(&mut self.squares);
        for (sum, more) in sums.zip(other.pixels.into_iter().chain(other.squares)) {
            *sum += more;
        }
        self
    }

    fn pixel_mean(&self) -> Vec<f32> {
        self.pixels.iter().map(|&sum| (sum as f64 / self.images as f64 / 255.0) as f32).collect()
    }

    fn channel_mean_std(&self) -> (Vec<f32>, Vec<f32>) {
        let plane = self.shape.pixels();
        let count = (self.images * plane) as f64;
        let moments = self.pixels.chunks_exact(plane).zip(&self.squares).map(|(plane, &square)| {
            let mean = plane.iter().sum::<u64>() as f64 / count / 255.0;
            let variance = square as f64 / count / (255.0 * 255.0) - mean * mean;
            // A channel of one value has nothing to scale.
            let std = if variance > 0.0 { variance.sqrt() } else { 1.0 };
            (mean as f32, std as f32)
        });
        moments.unzip()
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Mean {
    /// Of the training set, `[channels, height, width]`.
    Pixel(Vec<f32>),
    /// Of each channel.
    Channel(Vec<f32>),
    /// Of the image itself.
    Image,
}

/// Turns pixels into what a network sees, with fixed statistics. They belong to the trained
/// network: save them with it ([`state`](Normalizer::state)).
#[derive(Clone, Debug, PartialEq)]
pub struct Normalizer {
    shape: Shape,
    mean: Mean,
    std: Vec<f32>,
}

impl Normalizer {
    /// Name of the mean in a [`StateDict`].
    pub const MEAN: &str = "preprocess.mean";
    /// Name of the standard deviation in a [`StateDict`].
    pub const STD: &str = "preprocess.std";

    fn new(shape: Shape, mean: Mean, std: Vec<f32>) -> Result<Self> {
        let (values, expected) = match &mean {
            Mean::Pixel(values) => (values.as_slice(), shape.len()),
            Mean::Channel(values) => (values.as_slice(), shape.channels),
            Mean::Image => (&[][..], 0),
        };
        if values.len() != expected || std.len() != shape.channels {
            return Err(Error::Config(format!(
                "preprocessing has a mean of {} values and a std of {}, but the images are {shape}",
                values.len(),
                std.len()
            )));
        }
        if !values.iter().all(|x| x.is_finite()) || !std.iter().all(|&x| x.is_finite() && x > 0.0) {
            return Err(Error::Config("preprocessing needs finite means and positive standard deviations".into()));
        }
        Ok(Self { shape, mean, std })
    }

    /// Shape of the canvas it normalises: the input of its network.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The statistics: `preprocess.mean` of `[channels, height, width]` or `[channels]` (absent
    /// when each image's own mean is subtracted) and `preprocess.std` of `[channels]`.
    pub fn state(&self) -> StateDict {
        let Shape { channels, height, width } = self.shape;
        let mean = match &self.mean {
            Mean::Pixel(mean) => Tensor::new(vec![channels, height, width], mean.clone()),
            Mean::Channel(mean) => Tensor::new(vec![channels], mean.clone()),
            Mean::Image => None,
        };
        let std = Tensor::new(vec![channels], self.std.clone());
        [(Self::MEAN, mean), (Self::STD, std)]
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.to_owned(), tensor?)))
            .collect()
    }

    /// Takes the statistics back from a state, for images of `shape`; other tensors are left alone.
    ///
    /// # Errors
    /// When the tensors are not what [`state`](Normalizer::state) makes for such images.
    pub fn from_state(shape: Shape, state: &StateDict) -> Result<Self> {
        let Shape { channels, height, width } = shape;
        let std = state.get(Self::STD).ok_or_else(|| Error::Config(format!("the tensor {} is missing", Self::STD)))?;
        let mean = match state.get(Self::MEAN) {
            None => Mean::Image,
            Some(mean) if mean.shape() == [channels, height, width] => Mean::Pixel(mean.data().to_vec()),
            Some(mean) if mean.shape() == [channels] => Mean::Channel(mean.data().to_vec()),
            Some(mean) => {
                return Err(Error::Config(format!(
                    "{} has shape {:?}, which does not fit {shape} images",
                    Self::MEAN,
                    mean.shape()
                )));
            }
        };
        Self::new(shape, mean, std.data().to_vec())
    }

    /// What a network sees of an image: `view` of it, normalised, `[channels, height, width]`.
    ///
    /// # Errors
    /// When the image cannot be seen so ([`View::frame`]), or the view has another canvas than the
    /// normaliser.
    ///
    /// # Panics
    /// When `out` is not one canvas long.
    pub fn render(&self, image: &Image, view: &View, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        if view.canvas != self.shape {
            return Err(Error::Config(format!("a view on {} is not normalised as {}", view.canvas, self.shape)));
        }
        self.place(view.frame(image, scratch)?, view, out);
        Ok(())
    }

    /// Normalises a canvas as `view` moves and mirrors it. Statistics stay aligned with the canvas
    /// as it was before; what lies beyond its edges is 0, the mean.
    fn place(&self, pixels: &[u8], view: &View, out: &mut [f32]) {
        assert_eq!((pixels.len(), out.len()), (self.shape.len(), self.shape.len()), "one image of {}", self.shape);
        let plane = self.shape.pixels();
        let image_mean = match self.mean {
            Mean::Image => pixels.iter().map(|&x| u64::from(x)).sum::<u64>() as f32 / pixels.len() as f32 / 255.0,
            _ => 0.0,
        };
        for (c, (pixels, out)) in pixels.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).enumerate() {
            let std = self.std[c];
            // The order of operations is torchvision's, so that the numbers are, too.
            let scaled = |x: u8, mean: f32| (f32::from(x) / 255.0 - mean) / std;
            view.moved_rows(out, |first, row| {
                let pixels = &pixels[first..][..row.len()];
                match &self.mean {
                    Mean::Pixel(mean) => {
                        let mean = &mean[c * plane + first..][..row.len()];
                        for ((out, &x), &mean) in row.iter_mut().zip(pixels).zip(mean) {
                            *out = scaled(x, mean);
                        }
                    }
                    Mean::Channel(_) | Mean::Image => {
                        let mean = if let Mean::Channel(mean) = &self.mean { mean[c] } else { image_mean };
                        for (out, &x) in row.iter_mut().zip(pixels) {
                            *out = scaled(x, mean);
                        }
                    }
                }
            });
        }
    }
}
