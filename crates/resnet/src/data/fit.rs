//! Makes images fit a network's input: zero padding and grey to colour.

use std::cell::RefCell;
use std::sync::Arc;

use resnet_graph::Shape;

use super::Dataset;
use crate::{Error, Result};

/// `dataset` in the shape a network takes; the data set itself when it already has it.
///
/// Smaller images are centred on black, as is common for the 28x28 digits and clothes, whose own
/// background is black. One channel is repeated to as many as the network takes.
///
/// # Errors
/// When images are larger than the input, or have another number of channels that is not one.
pub fn fit(dataset: Arc<dyn Dataset>, input: Shape) -> Result<Arc<dyn Dataset>> {
    let shape = dataset.shape();
    if shape == input {
        return Ok(dataset);
    }
    if shape.channels != input.channels && shape.channels != 1 {
        return Err(Error::Config(format!(
            "the images have {} channels, but the network takes {}",
            shape.channels, input.channels
        )));
    }
    if shape.height > input.height || shape.width > input.width {
        return Err(Error::Config(format!("the images ({shape}) are larger than the network's input ({input})")));
    }
    Ok(Arc::new(Fitted { dataset, shape: input }))
}

struct Fitted {
    dataset: Arc<dyn Dataset>,
    shape: Shape,
}

thread_local! {
    /// An image before it is fitted; kept, as every read needs one.
    static ORIGINAL: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Fitted {
    fn place(&self, original: &[u8], pixels: &mut [u8]) {
        let from = self.dataset.shape();
        let top = (self.shape.height - from.height) / 2;
        let left = (self.shape.width - from.width) / 2;
        pixels.fill(0);
        for (c, plane) in pixels.chunks_exact_mut(self.shape.height * self.shape.width).enumerate() {
            let source = if from.channels == 1 { 0 } else { c };
            let original = &original[source * from.height * from.width..][..from.height * from.width];
            for (row, target) in
                original.chunks_exact(from.width).zip(plane.chunks_exact_mut(self.shape.width).skip(top))
            {
                target[left..left + from.width].copy_from_slice(row);
            }
        }
    }
}

impl Dataset for Fitted {
    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn classes(&self) -> &[String] {
        self.dataset.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.dataset.label(index)
    }

    fn read(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        // Taken out, so that a fitted data set of a fitted one finds the cell free.
        let mut original = ORIGINAL.take();
        original.resize(self.dataset.shape().len(), 0);
        let read = self.dataset.read(index, &mut original);
        if read.is_ok() {
            self.place(&original, pixels);
        }
        ORIGINAL.set(original);
        read
    }
}
