//! The IDX files of MNIST (LeCun, Cortes, Burges) and Fashion-MNIST (arXiv:1708.07747), plain or
//! compressed with gzip.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use resnet_graph::Shape;

use super::{Images, Splits};
use crate::{Error, Result};

/// Images and labels of the training and the test set.
const FILES: [[&str; 2]; 2] =
    [["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]];

const FASHION_CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// Far more than any data set of this kind; a compressed file could otherwise claim to hold anything.
const MAX_BYTES: u64 = 1 << 32;

/// Whether a folder has at least one of the files.
pub(super) fn is_here(folder: &Path) -> bool {
    FILES.as_flattened().iter().any(|name| find(folder, name).is_some())
}

/// Reads a folder of IDX files. The files have no class names: where the folder's name says that these
/// are the clothes of Fashion-MNIST, so are the classes; else they are numbers.
///
/// # Errors
/// When a file is missing, is not what its header says, or the numbers of images and labels differ.
pub(super) fn open(folder: &Path) -> Result<Splits> {
    let [train, test] = FILES.map(|files| read(folder, files));
    let (train, test) = (train?, test?);
    let name = folder.file_name().map_or("idx".into(), |name| name.to_string_lossy().into_owned());
    let count = 1 + train.1.iter().chain(&test.1).copied().max().unwrap_or(0);
    let classes: Vec<String> = if count == 10 && name.to_lowercase().contains("fashion") {
        FASHION_CLASSES.map(Into::into).to_vec()
    } else {
        (0..count).map(|class| class.to_string()).collect()
    };
    let images = |(shape, labels, pixels): (Shape, Vec<u32>, Vec<u8>), file: &str| {
        let origin = (file.to_owned(), labels.len());
        Ok::<_, Error>(Images::new(shape, classes.clone(), labels, pixels)?.from_files([origin]))
    };
    let [train, test] = [images(train, FILES[0][0])?, images(test, FILES[1][0])?].map(Arc::new);
    Ok(Splits { name, train, test })
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(name), folder.join(format!("{name}.gz"))].into_iter().find(|path| path.is_file())
}

fn read(folder: &Path, [images, labels]: [&str; 2]) -> Result<(Shape, Vec<u32>, Vec<u8>)> {
    let path = |name: &str| {
        let missing = || Error::format(folder.join(name), "the file is missing, plain and with .gz");
        find(folder, name).ok_or_else(missing)
    };
    let (images, labels) = (path(images)?, path(labels)?);
    let ([count, height, width], pixels) = read_array(&images)?;
    let ([label_count], label_bytes) = read_array(&labels)?;
    if label_count != count {
        return Err(Error::format(labels, format!("expected {count} labels, one for each image, found {label_count}")));
    }
    if height == 0 || width == 0 {
        return Err(Error::format(images, format!("expected images, found {height} rows of {width} pixels")));
    }
    Ok((Shape::new(1, height, width), label_bytes.into_iter().map(u32::from).collect(), pixels))
}

/// Reads an array of bytes of `RANK` dimensions: `0 0 8 RANK`, the big-endian extents, the values.
fn read_array<const RANK: usize>(path: &Path) -> Result<([usize; RANK], Vec<u8>)> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut reader: Box<dyn Read> = match path.extension() {
        Some(extension) if extension == "gz" => Box::new(MultiGzDecoder::new(file)),
        _ => Box::new(file),
    };
    let header_len = 4 + 4 * RANK;
    let header = read_up_to(&mut reader, header_len as u64, path, "header")?;
    let expected = [0, 0, 8, RANK as u8];
    if header[..4] != expected {
        return Err(Error::format(path, format!("expected the IDX start {expected:?}, found {:?}", &header[..4])));
    }
    let mut extents = [0; RANK];
    for (extent, bytes) in extents.iter_mut().zip(header[4..].as_chunks().0) {
        *extent = u32::from_be_bytes(*bytes) as usize;
    }
    let len = extents.iter().try_fold(1u64, |len, &extent| len.checked_mul(extent as u64));
    let len = len.filter(|&len| len <= MAX_BYTES).ok_or_else(|| {
        Error::format(path, format!("its header says {extents:?} values, more than {MAX_BYTES} bytes"))
    })?;
    let values = read_up_to(&mut reader, len, path, "values")?;
    if reader.read(&mut [0]).map_err(Error::io(path))? != 0 {
        return Err(Error::format(path, format!("expected {len} bytes of values, found more")));
    }
    Ok((extents, values))
}

/// Reads exactly `len` bytes; takes memory only as they come.
fn read_up_to(reader: &mut impl Read, len: u64, path: &Path, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let outcome = reader.take(len).read_to_end(&mut bytes);
    if (bytes.len() as u64) < len {
        let reason = outcome.err().map_or(String::new(), |error| format!(": {error}"));
        return Err(Error::format(path, format!("expected {len} bytes of {what}, found {}{reason}", bytes.len())));
    }
    Ok(bytes)
}
