//! Finds a data set by name or path.

use std::path::{Path, PathBuf};

use super::cifar::Layout;
use super::fetch::{Progress, SOURCES, cache_folder, fetch};
use super::{Splits, folder, idx, synthetic};
use crate::{Error, Result};

/// What [`open`] needs to know besides the name.
#[derive(Clone)]
pub struct OpenOptions<'a> {
    /// Folder that downloads are kept in; by default [`cache_folder`].
    pub cache: Option<PathBuf>,
    /// Told how far a download is.
    pub progress: &'a dyn Fn(Progress),
}

impl Default for OpenOptions<'_> {
    fn default() -> Self {
        Self { cache: None, progress: &|_| {} }
    }
}

/// The data sets that have a name.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(synthetic::NAME).chain(SOURCES.iter().map(|source| source.name))
}

/// Opens a data set: a name (`synthetic`; `cifar10`, `cifar100` and `fashion-mnist`, which are downloaded
/// on first use), or a folder, whose format is recognised from what is in it: CIFAR-10 or CIFAR-100 in
/// binary or Python layout, MNIST-like IDX files, or folders of PNG and JPEG images named by class.
///
/// # Errors
/// When there is no such data set, or its files are missing, truncated or wrong.
pub fn open(spec: &str, options: &OpenOptions) -> Result<Splits> {
    if spec == synthetic::NAME {
        return synthetic::splits(0, synthetic::TRAIN_IMAGES, synthetic::TEST_IMAGES);
    }
    match SOURCES.iter().find(|source| source.name == spec) {
        Some(source) => {
            let cache = options.cache.clone().map_or_else(cache_folder, Ok)?;
            open_folder(&fetch(source, &cache, options.progress)?)
        }
        None if Path::new(spec).is_dir() => open_folder(Path::new(spec)),
        None => {
            let names: Vec<&str> = names().collect();
            Err(Error::Config(format!("there is no data set `{spec}`: expected {} or a folder", names.join(", "))))
        }
    }
}

fn open_folder(path: &Path) -> Result<Splits> {
    if let Some(layout) = Layout::of(path) {
        layout.open(path)
    } else if idx::is_here(path) {
        idx::open(path)
    } else if folder::is_here(path) {
        folder::open(path)
    } else {
        Err(Error::format(
            path,
            "no data set is recognised here: expected CIFAR-10 or CIFAR-100 files, IDX files, or a folder of images \
             for each class",
        ))
    }
}
