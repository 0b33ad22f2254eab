//! What goes into a training step and what comes out of it.

/// What each image of a batch should be classified as.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// One class for each image.
    Labels(Vec<u32>),
    /// A share of every class for each image, as mixup (arXiv:1710.09412) makes them.
    Soft {
        /// Number of classes.
        classes: usize,
        /// `[images, classes]`; the shares of an image add up to 1.
        shares: Vec<f32>,
    },
}

impl Targets {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Labels(labels) => labels.len(),
            Self::Soft { classes, shares } => shares.len() / (*classes).max(1),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of each image, where each has one.
    pub fn labels(&self) -> Option<&[u32]> {
        match self {
            Self::Labels(labels) => Some(labels),
            Self::Soft { .. } => None,
        }
    }
}

impl Default for Targets {
    fn default() -> Self {
        Self::Labels(Vec::new())
    }
}

impl From<Vec<u32>> for Targets {
    fn from(labels: Vec<u32>) -> Self {
        Self::Labels(labels)
    }
}

/// Which part of a step a batch is: gradients of several batches may be accumulated before the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Whether gradients replace what there is; else they are added.
    pub first: bool,
    /// Share of the step's images that the batch has: what its mean loss is multiplied by.
    pub share: f32,
}

impl Part {
    /// A batch that is a whole step.
    pub const WHOLE: Self = Self { first: true, share: 1.0 };
}

/// What one pass over a batch found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Mean loss over the batch's images.
    pub loss: f32,
    /// Images whose largest logit was their class or, with soft targets, their largest share.
    pub correct: usize,
}

/// What a part of an engine's time goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Laying images out as the engine reads them.
    Load,
    /// Packing changed weights for the convolutions.
    Pack,
    /// Forward pass of a layer.
    Forward,
    /// Loss and its gradient with respect to the logits.
    Loss,
    /// Gradient with respect to a layer's input.
    BackwardInput,
    /// Gradient with respect to a convolution's weights.
    BackwardWeights,
    /// Step of the optimizer.
    Update,
}
