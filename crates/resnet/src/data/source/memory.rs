//! Images held in memory.

use resnet_graph::Shape;

use super::Dataset;
use crate::data::image::Image;
use crate::{Error, Result};

/// A data set whose pixels are all in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Images {
    shape: Shape,
    classes: Vec<String>,
    labels: Vec<u32>,
    pixels: Vec<u8>,
    /// Where they came from: the index after the last one of each file, and its name.
    files: Vec<(usize, String)>,
}

impl Images {
    /// Images of `shape`, one after another in `pixels` (`[images, channels, height, width]`), with
    /// the class of each in `labels` and the name of each class in `classes`.
    ///
    /// # Errors
    /// When the number of pixels does not match, or a label has no class.
    pub fn new(shape: Shape, classes: Vec<String>, labels: Vec<u32>, pixels: Vec<u8>) -> Result<Self> {
        if shape.is_empty() || shape.len().checked_mul(labels.len()) != Some(pixels.len()) {
            return Err(Error::Config(format!(
                "{} labels and {} bytes of pixels do not make {shape} images",
                labels.len(),
                pixels.len()
            )));
        }
        if let Some((index, label)) = labels.iter().enumerate().find(|&(_, &label)| label as usize >= classes.len()) {
            return Err(Error::Config(format!(
                "image {index} has label {label}, but there are {} classes",
                classes.len()
            )));
        }
        Ok(Self { shape, classes, labels, pixels, files: Vec::new() })
    }

    /// Says which files the images came from, in order: the name of each and how many it held.
    pub fn from_files(mut self, files: impl IntoIterator<Item = (String, usize)>) -> Self {
        let mut end = 0;
        let ends = files.into_iter().map(|(name, images)| {
            end = images.saturating_add(end);
            (end, name)
        });
        self.files = ends.collect();
        self
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Images({} of {}, {} classes)", self.labels.len(), self.shape, self.classes.len())
    }
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn shape(&self) -> Option<Shape> {
        Some(self.shape)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// `image 17 of train.bin`, counted from 0.
    fn origin(&self, index: usize) -> String {
        let file = self.files.partition_point(|&(end, _)| end <= index);
        let first = file.checked_sub(1).map_or(0, |before| self.files[before].0);
        match self.files.get(file) {
            Some((_, name)) => format!("image {} of {name}", index - first),
            None => format!("image {index}"),
        }
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        let len = self.shape.len();
        image.reshape(self.shape).copy_from_slice(&self.pixels[index * len..][..len]);
        Ok(())
    }
}
