//! CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009),
//! in the binary and the Python layout of the official archives.

use std::path::Path;
use std::sync::Arc;

use resnet_graph::Shape;

use super::pickle::Pickle;
use super::{Images, Splits};
use crate::files::{read_at_most, read_exactly};
use crate::{Error, Result};

const SHAPE: Shape = Shape::new(3, 32, 32);

const CIFAR10_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The files of one data set in one layout.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    name: &'static str,
    train: &'static [&'static str],
    /// Images in each of the training files.
    train_images: usize,
    test: &'static str,
    encoding: Encoding,
    classes: Classes,
}

#[derive(Clone, Copy)]
enum Encoding {
    /// Records of some label bytes, the last of which is the class, and the pixels.
    Binary { label_bytes: usize },
    /// A pickled dict of an array `data` and a list of labels of this name.
    Python { labels: &'static str },
}

#[derive(Clone, Copy)]
enum Classes {
    Cifar10,
    /// A text file of 100 lines.
    Lines(&'static str),
    /// A pickled dict with a list of this name.
    Pickled(&'static str, &'static str),
}

const TEST_IMAGES: usize = 10_000;

const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "cifar10",
        train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
        train_images: 10_000,
        test: "test_batch.bin",
        encoding: Encoding::Binary { label_bytes: 1 },
        classes: Classes::Cifar10,
    },
    Layout {
        name: "cifar10",
        train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        train_images: 10_000,
        test: "test_batch",
        encoding: Encoding::Python { labels: "labels" },
        classes: Classes::Cifar10,
    },
    Layout {
        name: "cifar100",
        train: &["train.bin"],
        train_images: 50_000,
        test: "test.bin",
        // The first byte is one of 20 superclasses.
        encoding: Encoding::Binary { label_bytes: 2 },
        classes: Classes::Lines("fine_label_names.txt"),
    },
    Layout {
        name: "cifar100",
        train: &["train"],
        train_images: 50_000,
        test: "test",
        encoding: Encoding::Python { labels: "fine_labels" },
        classes: Classes::Pickled("meta", "fine_label_names"),
    },
];

impl Layout {
    /// The layout that a folder has at least one file of.
    pub fn of(folder: &Path) -> Option<Self> {
        let has = |layout: &Self| layout.train.iter().chain([&layout.test]).any(|file| folder.join(file).is_file());
        LAYOUTS.into_iter().find(has)
    }

    /// Reads a folder in this layout.
    ///
    /// # Errors
    /// When a file is missing, has another size, or holds a label without class.
    pub fn open(&self, folder: &Path) -> Result<Splits> {
        let classes = self.classes.read(folder)?;
        let train = self.read(folder, self.train, self.train_images, &classes)?;
        let test = self.read(folder, &[self.test], TEST_IMAGES, &classes)?;
        Ok(Splits { name: self.name.into(), train: Arc::new(train), test: Arc::new(test) })
    }

    fn read(&self, folder: &Path, files: &[&str], images: usize, classes: &[String]) -> Result<Images> {
        let mut labels = Vec::with_capacity(files.len() * images);
        let mut pixels = Vec::with_capacity(files.len() * images * SHAPE.len());
        for file in files {
            let path = folder.join(file);
            let start = labels.len();
            match self.encoding {
                Encoding::Binary { label_bytes } => {
                    read_binary(&path, images, label_bytes, &mut labels, &mut pixels)?;
                }
                Encoding::Python { labels: key } => read_python(&path, images, key, &mut labels, &mut pixels)?,
            }
            let wrong = labels[start..].iter().enumerate().find(|&(_, &label)| label as usize >= classes.len());
            if let Some((index, label)) = wrong {
                let message = format!("image {index} has label {label}, expected less than {}", classes.len());
                return Err(Error::format(path, message));
            }
        }
        let origins = files.iter().map(|&file| (file.to_owned(), images));
        Ok(Images::new(SHAPE, classes.to_vec(), labels, pixels)?.from_files(origins))
    }
}

fn read_binary(
    path: &Path,
    images: usize,
    label_bytes: usize,
    labels: &mut Vec<u32>,
    pixels: &mut Vec<u8>,
) -> Result<()> {
    let record_len = label_bytes + SHAPE.len();
    let bytes = read_exactly(path, (images * record_len) as u64)?;
    for record in bytes.chunks_exact(record_len) {
        labels.push(u32::from(record[label_bytes - 1]));
        pixels.extend_from_slice(&record[label_bytes..]);
    }
    Ok(())
}

fn read_python(path: &Path, images: usize, key: &str, labels: &mut Vec<u32>, pixels: &mut Vec<u8>) -> Result<()> {
    // An image takes its pixels, a file name and a label or two: 3104 bytes in the official files.
    let bytes = read_at_most(path, images as u64 * 4096)?;
    let pickle = Pickle::read(&bytes).map_err(|wrong| Error::format(path, wrong))?;
    let missing = |what| Error::format(path, format!("expected a dict with {what}"));

    let data = pickle.entry(pickle.root(), "data").and_then(|data| pickle.byte_matrix(data));
    let (rows, columns, data) = data.ok_or_else(|| missing("an array `data` of bytes".into()))?;
    if (rows, columns) != (images, SHAPE.len()) {
        let message = format!("expected `data` of {images} x {}, found {rows} x {columns}", SHAPE.len());
        return Err(Error::format(path, message));
    }
    let found = pickle.entry(pickle.root(), key).and_then(|list| pickle.list(list));
    let found = found.ok_or_else(|| missing(format!("a list `{key}`")))?;
    if found.len() != images {
        return Err(Error::format(path, format!("expected {images} `{key}`, found {}", found.len())));
    }
    for (index, &label) in found.iter().enumerate() {
        let label = pickle.int(label).and_then(|label| u32::try_from(label).ok());
        labels.push(label.ok_or_else(|| Error::format(path, format!("image {index} has no label that is a number")))?);
    }
    pixels.extend_from_slice(&data);
    Ok(())
}

impl Classes {
    fn read(self, folder: &Path) -> Result<Vec<String>> {
        let (file, names) = match self {
            Self::Cifar10 => return Ok(CIFAR10_CLASSES.map(Into::into).to_vec()),
            Self::Lines(file) => (file, lines(&folder.join(file))?),
            Self::Pickled(file, key) => (file, pickled_names(&folder.join(file), key)?),
        };
        if names.len() != 100 {
            let message = format!("expected 100 class names, found {}", names.len());
            return Err(Error::format(folder.join(file), message));
        }
        Ok(names)
    }
}

/// Far more than 100 names take.
const MAX_NAMES_BYTES: u64 = 1 << 20;

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = read_at_most(path, MAX_NAMES_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect())
}

fn pickled_names(path: &Path, key: &str) -> Result<Vec<String>> {
    let bytes = read_at_most(path, MAX_NAMES_BYTES)?;
    let pickle = Pickle::read(&bytes).map_err(|wrong| Error::format(path, wrong))?;
    let names = pickle.entry(pickle.root(), key).and_then(|list| pickle.list(list)).and_then(|list| {
        list.iter().map(|&name| Some(String::from_utf8_lossy(pickle.bytes(name)?).into_owned())).collect()
    });
    names.ok_or_else(|| Error::format(path, format!("expected a dict with a list of names `{key}`")))
}
