//! Images held in memory.

use resnet_graph::Shape;

use super::Dataset;
use crate::{Error, Result};

/// A data set whose pixels are all in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Images {
    shape: Shape,
    classes: Vec<String>,
    labels: Vec<u32>,
    pixels: Vec<u8>,
}

impl Images {
    /// Images of `shape`, one after another in `pixels` (`[images, channels, height, width]`), with the
    /// class of each in `labels` and the name of each class in `classes`.
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
        Ok(Self { shape, classes, labels, pixels })
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

    fn shape(&self) -> Shape {
        self.shape
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    fn read(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        let len = self.shape.len();
        pixels.copy_from_slice(&self.pixels[index * len..][..len]);
        Ok(())
    }
}
