//! Parts of a data set: the paper's 45k/5k split.

use std::sync::Arc;

use rand::seq::SliceRandom;
use resnet_graph::Shape;

use super::Dataset;
use crate::data::image::Image;
use crate::data::random::{Purpose, stream};
use crate::{Error, Result};

/// Some images of another data set.
#[derive(Clone)]
pub struct Subset {
    dataset: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Subset {
    /// The images of `dataset` at `indices`, in that order.
    ///
    /// # Errors
    /// When an index is beyond the last image.
    pub fn new(dataset: Arc<dyn Dataset>, indices: Vec<usize>) -> Result<Self> {
        match indices.iter().find(|&&index| index >= dataset.len()) {
            Some(index) => {
                Err(Error::Config(format!("there is no image {index} in a data set of {} images", dataset.len())))
            }
            None => Ok(Self { dataset, indices }),
        }
    }
}

/// Holds `held_out` images back, chosen by `seed`: the others, and those held out. Both keep the order
/// of the data set. The paper holds 5,000 of CIFAR-10's 50,000 training images back for validation
/// (section 4.2).
///
/// # Errors
/// When there are no more than `held_out` images.
pub fn split(dataset: &Arc<dyn Dataset>, held_out: usize, seed: u64) -> Result<(Subset, Subset)> {
    if held_out >= dataset.len() {
        return Err(Error::Config(format!(
            "cannot hold {held_out} of {} images back: none would be left to train on",
            dataset.len()
        )));
    }
    let mut indices: Vec<usize> = (0..dataset.len()).collect();
    indices.shuffle(&mut stream(seed, Purpose::Split, 0, 0));
    let mut rest = indices.split_off(held_out);
    rest.sort_unstable();
    indices.sort_unstable();
    Ok((Subset::new(dataset.clone(), rest)?, Subset::new(dataset.clone(), indices)?))
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn shape(&self) -> Option<Shape> {
        self.dataset.shape()
    }

    fn classes(&self) -> &[String] {
        self.dataset.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.dataset.label(self.indices[index])
    }

    fn origin(&self, index: usize) -> String {
        self.dataset.origin(self.indices[index])
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        self.dataset.read(self.indices[index], image)
    }
}
