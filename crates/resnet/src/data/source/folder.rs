//! A folder with a folder of images for each class: an index of files, decoded when they are read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Dataset, Splits, split};
use crate::data::image::{Image, read_file};
use crate::{Error, Result};

/// Names of the folder with test images, the first that is there counts.
const TEST_FOLDERS: [&str; 4] = ["test", "val", "valid", "validation"];

/// Where there is no test folder, one image in so many is held out.
const HELD_OUT: usize = 5;

/// Images in files.
struct ImageFolder {
    classes: Vec<String>,
    images: Vec<(PathBuf, u32)>,
}

/// Whether a folder has folders in it.
pub(super) fn is_here(folder: &Path) -> bool {
    subfolders(folder).is_ok_and(|names| !names.is_empty())
}

/// Opens `folder/train/CLASS/*` and `folder/test/CLASS/*` (or `val`, `valid`, `validation`); or
/// `folder/CLASS/*`, of which every fifth image, chosen at random but always the same, is held out for
/// testing. Labels are the places of the class names in alphabetical order.
///
/// # Errors
/// When a folder cannot be read, a class has no images, or there are test images of an unknown class.
pub(super) fn open(folder: &Path) -> Result<Splits> {
    let name = folder.file_name().map_or("images".into(), |name| name.to_string_lossy().into_owned());
    let train = folder.join("train");
    let (train, test): (Arc<dyn Dataset>, Arc<dyn Dataset>) = if train.is_dir() {
        let test = TEST_FOLDERS.iter().map(|name| folder.join(name)).find(|path| path.is_dir());
        let test = test.ok_or_else(|| {
            Error::format(
                folder,
                format!("expected a folder of test images beside `train`: {}", TEST_FOLDERS.join(", ")),
            )
        })?;
        let classes = subfolders(&train)?;
        check_classes(&test, &classes)?;
        let train = ImageFolder::open(&train, &classes)?;
        (Arc::new(train), Arc::new(ImageFolder::open(&test, &classes)?))
    } else {
        let all: Arc<dyn Dataset> = Arc::new(ImageFolder::open(folder, &subfolders(folder)?)?);
        let (train, test) = split(&all, all.len().div_ceil(HELD_OUT), 0)?;
        (Arc::new(train), Arc::new(test))
    };
    Ok(Splits { name, train, test })
}

fn check_classes(test: &Path, classes: &[String]) -> Result<()> {
    match subfolders(test)?.into_iter().find(|name| !classes.contains(name)) {
        Some(unknown) => Err(Error::format(test.join(unknown), "there is no such class among the training images")),
        None => Ok(()),
    }
}

impl ImageFolder {
    fn open(folder: &Path, classes: &[String]) -> Result<Self> {
        let mut images = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            let folder = folder.join(class);
            // A class may have no test images.
            if !folder.is_dir() {
                continue;
            }
            let files = image_files(&folder)?;
            if files.is_empty() {
                return Err(Error::format(folder, "expected PNG or JPEG images, found none"));
            }
            images.extend(files.into_iter().map(|file| (file, label as u32)));
        }
        Ok(Self { classes: classes.to_vec(), images })
    }
}

/// Names of the folders in a folder, sorted; hidden ones do not count.
fn subfolders(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::format(&path, "a class name must be valid Unicode"))?;
            if !name.starts_with('.') {
                names.push(name.to_owned());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_image = |path: &PathBuf| {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        extension.is_some_and(|extension| ["png", "jpg", "jpeg"].iter().any(|known| extension == *known))
    };
    let mut files: Vec<PathBuf> = entries(folder)?.into_iter().filter(is_image).collect();
    files.sort_unstable();
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    entries.map(|entry| Ok(entry.map_err(Error::io(folder))?.path())).collect()
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.images[index].1
    }

    fn origin(&self, index: usize) -> String {
        self.images[index].0.display().to_string()
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        read_file(&self.images[index].0, image)
    }
}
