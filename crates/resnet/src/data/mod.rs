//! What goes in: datasets, preprocessing, augmentation, batches.

use std::sync::Arc;

use resnet_native::Shape;

use crate::Result;

/// Labelled images, read by index; from any thread.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is no image.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape every image is given in.
    fn shape(&self) -> Shape;

    /// Name of each class, by label.
    fn classes(&self) -> &[String];

    /// Class of an image.
    fn label(&self, index: usize) -> u32;

    /// Reads an image's pixels into `pixels`, `[channels, height, width]`, `shape().len()` bytes.
    ///
    /// # Errors
    /// When its file cannot be read or decoded; the message names it.
    fn read(&self, index: usize, pixels: &mut [u8]) -> Result<()>;
}

/// A data set's two parts.
#[derive(Clone)]
pub struct Splits {
    /// Name for logs and titles (`cifar10`).
    pub name: String,
    /// Images to learn from.
    pub train: Arc<dyn Dataset>,
    /// Images to measure on.
    pub test: Arc<dyn Dataset>,
}
