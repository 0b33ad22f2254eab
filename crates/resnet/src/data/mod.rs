//! What goes in: data sets, views, normalisation, batches.
//!
//! The journey of an image, a room a step:
//!
//! 1. [`open`] finds a data set by name or path: two [`Dataset`]s in [`Splits`] (`source/`).
//! 2. Its loader draws the order of an epoch from (seed, epoch) (`loader`, `random`).
//! 3. [`Dataset::read`] gives the image at its own size, decoded where it is a file
//!    (`image/decode`).
//! 4. [`Framing`] says how an evaluation sees it on the network's canvas (`view/framing`).
//! 5. [`Augment`] varies that [`View`] for training, drawn from (seed, epoch, index)
//!    (`view/augment`).
//! 6. The part that is seen is cropped and scaled in one pass (`image/resample`) onto the canvas
//!    (`view`).
//! 7. The [`Normalizer`], which a [`Preprocess`] fitted on the training images, makes it numbers
//!    (`normalize`).
//! 8. It lands in its place in a [`Batch`], on any of the [`Workers`], ahead of the step
//!    (`loader`).
//!
//! A data set knows no view, and a view no data set: `view/` and `image/` import nothing of
//! `source/` but the trait.

mod fingerprint;
mod image;
mod loader;
mod normalize;
mod random;
mod source;
mod view;
mod workers;

pub use fingerprint::{Fingerprint, Identity};
pub use image::{Image, Span};
pub use loader::{Batch, Batches, Loader, Shard};
pub use normalize::{Normalizer, Preprocess};
pub use source::{Dataset, Images, OpenOptions, Splits, Subset, fetch, names, open, split, synthetic};
pub use view::{Augment, Framing, Scratch, View};
pub use workers::Workers;
