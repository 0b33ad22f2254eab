//! Finds a data set by name or path.

use std::path::Path;

use resnet_native::Shape;

use super::{Splits, cifar, synthetic};
use crate::{Error, Result};

/// What [`open`] needs to know besides the name.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Shape that image files are scaled to: the network's input. Data sets of fixed size ignore it.
    pub input: Shape,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { input: Shape::new(3, 32, 32) }
    }
}

/// Opens a data set: a name (`synthetic`) or a folder, whose format is recognised from the files in it.
///
/// # Errors
/// When there is no such data set, or its files are missing, truncated or wrong.
pub fn open(spec: &str, _options: &OpenOptions) -> Result<Splits> {
    match spec {
        "synthetic" => synthetic::splits(0, synthetic::TRAIN_IMAGES, synthetic::TEST_IMAGES),
        path => open_folder(Path::new(path)),
    }
}

fn open_folder(folder: &Path) -> Result<Splits> {
    folder.metadata().map_err(Error::io(folder))?;
    if let Some(layout) = cifar::Layout::of(folder) {
        return cifar::open(folder, layout);
    }
    Err(Error::format(folder, "no data set is recognised here"))
}
