//! What goes in: datasets, preprocessing, augmentation, batches.
//!
//! [`open`] finds a data set by name or path; [`Splits::fit`] brings it into the shape a network takes;
//! a [`Preprocess`] fitted on the training images makes the [`Normalizer`]; a [`Loader`] makes batches.

mod augment;
mod cifar;
mod classes;
pub mod fetch;
mod fingerprint;
mod fit;
mod folder;
mod idx;
mod image;
mod loader;
mod memory;
mod open;
mod pickle;
mod preprocess;
mod random;
mod subset;
pub mod synthetic;

use std::sync::Arc;

use resnet_graph::Shape;

use crate::Result;

pub use augment::Augment;
pub use classes::{ClassMismatch, same_classes};
pub use fingerprint::{Fingerprint, Identity};
pub use fit::fit;
pub use loader::{Batches, Loader};
pub use memory::Images;
pub use open::{OpenOptions, names, open};
pub use preprocess::{Normalizer, Preprocess};
pub use subset::{Subset, split};

/// Labelled images, read by index; from any thread. An index beyond the last image panics.
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

impl Splits {
    /// Both parts in the shape a network takes; see [`fit`].
    ///
    /// # Errors
    /// When the images cannot be made to fit.
    pub fn fit(self, input: Shape) -> Result<Self> {
        Ok(Self { name: self.name, train: fit(self.train, input)?, test: fit(self.test, input)? })
    }
}
