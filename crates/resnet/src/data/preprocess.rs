//! From pixels to what a network sees: `(x / 255 - mean) / std`.

use resnet_graph::Shape;
use serde::{Deserialize, Serialize};

use super::augment::Placement;
use super::{Dataset, Images};
use crate::{Error, Result, StateDict, Tensor};

/// How pixels are normalised: the choice, as it stands in a recipe. [`fit`](Preprocess::fit) makes the
/// [`Normalizer`] that does it.
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
    /// Works out the statistics that are not given from the images of `train`.
    ///
    /// # Errors
    /// When an image cannot be read, when there is none, or when given statistics do not fit the
    /// images' channels.
    pub fn fit(&self, train: &dyn Dataset) -> Result<Normalizer> {
        let shape = train.shape();
        let ones = vec![1.0; shape.channels];
        match self {
            Self::PixelMean => {
                let mean = Sums::of(train)?.pixel_mean();
                Normalizer::new(shape, Mean::Pixel(mean), ones)
            }
            Self::Channel { mean: Some(mean), std: Some(std) } => {
                Normalizer::new(shape, Mean::Channel(mean.clone()), std.clone())
            }
            Self::Channel { mean, std } => {
                let sums = Sums::of(train)?;
                let (fitted_mean, fitted_std) = sums.channel_mean_std();
                let mean = mean.clone().unwrap_or(fitted_mean);
                Normalizer::new(shape, Mean::Channel(mean), std.clone().unwrap_or(fitted_std))
            }
            Self::ImageMean => Normalizer::new(shape, Mean::Image, ones),
        }
    }
}

impl Preprocess {
    /// The normalizer for images of `shape`, where no statistics are left to compute from images.
    ///
    /// # Errors
    /// When given statistics do not fit the images' channels.
    pub fn without_images(&self, shape: Shape) -> Result<Option<Normalizer>> {
        match self {
            Self::PixelMean | Self::Channel { mean: None, .. } | Self::Channel { std: None, .. } => Ok(None),
            Self::Channel { .. } | Self::ImageMean => {
                self.fit(&Images::new(shape, Vec::new(), Vec::new(), Vec::new())?).map(Some)
            }
        }
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
    fn of(dataset: &dyn Dataset) -> Result<Self> {
        if dataset.is_empty() {
            return Err(Error::Config("there is no training image to compute a mean from".into()));
        }
        let shape = dataset.shape();
        let mut sums =
            Self { shape, images: dataset.len(), pixels: vec![0; shape.len()], squares: vec![0; shape.channels] };
        let mut image = vec![0; shape.len()];
        for index in 0..dataset.len() {
            dataset.read(index, &mut image)?;
            for (sum, &x) in sums.pixels.iter_mut().zip(&image) {
                *sum += u64::from(x);
            }
            for (square, plane) in sums.squares.iter_mut().zip(image.chunks_exact(shape.height * shape.width)) {
                *square += plane.iter().map(|&x| u64::from(x) * u64::from(x)).sum::<u64>();
            }
        }
        Ok(sums)
    }

    fn pixel_mean(&self) -> Vec<f32> {
        self.pixels.iter().map(|&sum| (sum as f64 / self.images as f64 / 255.0) as f32).collect()
    }

    fn channel_mean_std(&self) -> (Vec<f32>, Vec<f32>) {
        let plane = self.shape.height * self.shape.width;
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

/// Turns pixels into what a network sees, with fixed statistics. They belong to the trained network:
/// save them with it ([`state`](Normalizer::state)).
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

    /// Shape of the images it takes and gives.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The statistics: `preprocess.mean` of `[channels, height, width]` or `[channels]` (absent when
    /// each image's own mean is subtracted) and `preprocess.std` of `[channels]`.
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

    /// Normalises one image, `[channels, height, width]`.
    ///
    /// # Panics
    /// When `pixels` or `out` is not one image long.
    pub fn apply(&self, pixels: &[u8], out: &mut [f32]) {
        self.place(pixels, Placement::default(), out);
    }

    /// Normalises one image and shows the part of it that `placement` says. Statistics stay aligned
    /// with the image, not with the crop; what lies beyond its edges is 0, the mean.
    pub(super) fn place(&self, pixels: &[u8], placement: Placement, out: &mut [f32]) {
        assert_eq!((pixels.len(), out.len()), (self.shape.len(), self.shape.len()), "one image of {}", self.shape);
        let plane = self.shape.height * self.shape.width;
        let image_mean = match self.mean {
            Mean::Image => pixels.iter().map(|&x| u64::from(x)).sum::<u64>() as f32 / pixels.len() as f32 / 255.0,
            _ => 0.0,
        };
        for (c, (pixels, out)) in pixels.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).enumerate() {
            let std = self.std[c];
            // The order of operations is torchvision's, so that the numbers are, too.
            let scaled = |x: u8, mean: f32| (f32::from(x) / 255.0 - mean) / std;
            placement.rows(self.shape, out, |first, row| {
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
