//! Which images there are: data sets on disk, downloaded, drawn or in memory, and parts of them.

mod cifar;
pub mod fetch;
mod folder;
mod idx;
mod memory;
mod open;
mod pickle;
mod subset;
pub mod synthetic;

use std::sync::Arc;

use resnet_graph::Shape;

use super::image::Image;
use crate::{Error, Result};

pub use memory::Images;
pub use open::{OpenOptions, names, open};
pub use subset::{Subset, split};

/// Labelled images, read by index; from any thread. An index beyond the last image panics.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is no image.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of every image, where all are known to have one.
    fn shape(&self) -> Option<Shape> {
        None
    }

    /// Name of each class, by label.
    fn classes(&self) -> &[String];

    /// Class of an image.
    fn label(&self, index: usize) -> u32;

    /// Where an image came from, for people: its path, or `image 17 of train.bin`.
    fn origin(&self, index: usize) -> String;

    /// Reads an image at its own size into `image`, whose memory is used again.
    ///
    /// # Errors
    /// When its file cannot be read or decoded; the message names it.
    fn read(&self, index: usize, image: &mut Image) -> Result<()>;
}

/// Says which image an error is about; for `map_err`.
pub(super) fn about(dataset: &dyn Dataset, index: usize) -> impl FnOnce(Error) -> Error {
    move |error| Error::Config(format!("{}: {error}", dataset.origin(index)))
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
