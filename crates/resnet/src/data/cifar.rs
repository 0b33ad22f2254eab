//! CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009),
//! in the binary layout: records of one or two label bytes and 3x32x32 pixels.

use std::path::Path;
use std::sync::Arc;

use resnet_native::Shape;

use super::{Images, Splits};
use crate::files::read_exactly;
use crate::{Error, Result};

const SHAPE: Shape = Shape::new(3, 32, 32);

const CIFAR10_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The files of one data set in one layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    name: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// Images in each training file, and in the test file.
    images: [usize; 2],
    /// Bytes of label before an image's pixels; the last one is the class.
    label_bytes: usize,
    /// The file of class names, one a line; absent where they are always the same.
    class_names: Option<&'static str>,
}

const CIFAR10: Layout = Layout {
    name: "cifar10",
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: "test_batch.bin",
    images: [10_000, 10_000],
    label_bytes: 1,
    class_names: None,
};

/// The first label byte is one of 20 superclasses, the second one of the 100 classes.
const CIFAR100: Layout = Layout {
    name: "cifar100",
    train: &["train.bin"],
    test: "test.bin",
    images: [50_000, 10_000],
    label_bytes: 2,
    class_names: Some("fine_label_names.txt"),
};

impl Layout {
    /// The layout that a folder has at least one file of.
    pub fn of(folder: &Path) -> Option<Self> {
        let has = |layout: &Layout| layout.train.iter().chain([&layout.test]).any(|file| folder.join(file).is_file());
        [CIFAR10, CIFAR100].into_iter().find(has)
    }
}

/// Reads a folder in a layout.
///
/// # Errors
/// When a file is missing, has another size, or holds a label without class.
pub(super) fn open(folder: &Path, layout: Layout) -> Result<Splits> {
    let classes = classes(folder, layout)?;
    let [train_images, test_images] = layout.images;
    let train = read(folder, layout, layout.train, train_images, &classes)?;
    let test = read(folder, layout, &[layout.test], test_images, &classes)?;
    Ok(Splits { name: layout.name.into(), train: Arc::new(train), test: Arc::new(test) })
}

fn classes(folder: &Path, layout: Layout) -> Result<Vec<String>> {
    let Some(file) = layout.class_names else {
        return Ok(CIFAR10_CLASSES.map(Into::into).to_vec());
    };
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect();
    if names.len() != 100 {
        return Err(Error::format(path, format!("expected 100 class names, found {}", names.len())));
    }
    Ok(names)
}

fn read(folder: &Path, layout: Layout, files: &[&str], images: usize, classes: &[String]) -> Result<Images> {
    let record_len = layout.label_bytes + SHAPE.len();
    let mut labels = Vec::with_capacity(files.len() * images);
    let mut pixels = Vec::with_capacity(files.len() * images * SHAPE.len());
    for file in files {
        let path = folder.join(file);
        let bytes = read_exactly(&path, (images * record_len) as u64)?;
        for (index, record) in bytes.chunks_exact(record_len).enumerate() {
            let (label, image) = record.split_at(layout.label_bytes);
            let label = label[layout.label_bytes - 1];
            if usize::from(label) >= classes.len() {
                return Err(Error::format(
                    path,
                    format!("image {index} has label {label}, expected less than {}", classes.len()),
                ));
            }
            labels.push(u32::from(label));
            pixels.extend_from_slice(image);
        }
    }
    Images::new(SHAPE, classes.to_vec(), labels, pixels)
}
