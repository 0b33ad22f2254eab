//! PyTorch's own files (`.pth`, `.pt`, `.th`): a pickle of names and shapes, the values beside it, in a
//! zip archive since PyTorch 1.6 and one after the other before.
//!
//! A pickle is a program. The reader follows only what rebuilds tensors and dictionaries; a call of
//! anything else is noted as an object of unknown contents and never made.

use std::path::Path;

use pytorch_reader::{DType, PytorchReader};

use super::decode::Float;
use super::names;
use crate::{Error, Result, StateDict, Tensor};

/// How much larger than its file the contents may be: tensors may share their values, and an archive
/// may be compressed, but a small file that fills the memory is an attack.
const MAX_GROWTH: u64 = 16;

/// Whether a file that starts with these bytes is meant to be PyTorch's: a zip archive, or a pickle of
/// protocol 2 or later.
pub(super) fn recognise(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.first() == Some(&0x80)
}

/// Reads a network's tensors as `f32`, names as in the file, in the order of names.
///
/// # Errors
/// When the file is cut short, damaged, not a checkpoint, or holds a network of integers; names the
/// file and the tensor.
pub(super) fn read(path: &Path) -> Result<StateDict> {
    let refused = |message: String| Error::format(path, message);
    let file_bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let limit = file_bytes.saturating_mul(MAX_GROWTH);
    check_inflated_size(path, limit)?;
    let reader = PytorchReader::new(path).map_err(|e| refused(format!("not a readable PyTorch file: {e}")))?;
    let nest = names::nest_of(&reader.tensors().keys().map(String::as_str).collect::<Vec<_>>());
    let mut tensors: Vec<_> = reader.into_tensors().into_values().collect();
    tensors.retain(|tensor| tensor.name.starts_with(&nest) && !names::is_ignored(&tensor.name));
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let total = tensors.iter().fold(0u64, |total, tensor| total.saturating_add(tensor.byte_len() as u64));
    if total > limit {
        return Err(refused(format!("its tensors claim {total} bytes, but the file has only {file_bytes}")));
    }
    tensors.iter().map(|tensor| Ok((tensor.name.clone(), decode(path, tensor)?))).collect()
}

/// Refuses an archive that would unpack to more than `limit` bytes, before anything is unpacked.
fn check_inflated_size(path: &Path, limit: u64) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let Ok(archive) = zip::ZipArchive::new(std::io::BufReader::new(file)) else {
        return Ok(()); // of the older kind, or damaged: the reader tells which
    };
    match archive.decompressed_size() {
        Some(bytes) if bytes > u128::from(limit) => {
            Err(Error::format(path, format!("the archive would unpack to {bytes} bytes; at most {limit} are expected")))
        }
        _ => Ok(()),
    }
}

fn decode(path: &Path, tensor: &pytorch_reader::Tensor) -> Result<Tensor> {
    let float = match tensor.dtype() {
        DType::F16 => Float::F16,
        DType::BF16 => Float::BF16,
        DType::F32 => Float::F32,
        DType::F64 => Float::F64,
        other => {
            let message = format!("tensor '{}': expected floating-point values, found {other:?}", tensor.name);
            return Err(Error::format(path, message));
        }
    };
    let bytes = tensor.read().map_err(|error| Error::format(path, error.to_string()))?;
    Tensor::new(tensor.shape().to_vec(), float.decode(&bytes))
        .ok_or_else(|| Error::format(path, format!("tensor '{}': values and shape do not agree", tensor.name)))
}
