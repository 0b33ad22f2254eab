//! The safetensors format: a JSON header of names, shapes and offsets, then the values.
//!
//! Files written here hold `f32` only, carry `format: pt` as PyTorch's own do, and a checksum of every
//! tensor in the entry `crc32`, so that damage is found when they are read. The same state and
//! metadata give the same bytes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata as Header, TensorInfo};
use serde::Serialize;

use super::decode::Float;
use super::{Metadata, Weights, names};
use crate::{Error, Result, StateDict, StateView, Tensor, files};

/// Metadata entries that belong to the file, not to its owner.
const FORMAT: &str = "format";
const CHECKSUMS: &str = "crc32";

/// The format's own limit; also bounds what a damaged length can make us allocate.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Whether a file that starts with these bytes is meant to be safetensors.
pub(super) fn recognise(start: &[u8]) -> bool {
    start.first_chunk().is_some_and(|&n| u64::from_le_bytes(n) <= MAX_HEADER_BYTES) && start.get(8) == Some(&b'{')
}

/// Reads all tensors as `f32`, names and order as in the file, and the metadata they came with.
///
/// Batch norm's integer `num_batches_tracked` is left out: no formula here depends on it.
///
/// # Errors
/// When the file is cut short, damaged, or holds a tensor of integers; names the file and the tensor.
pub fn read(path: &Path) -> Result<Weights> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let file_bytes = file.metadata().map_err(Error::io(path))?.len();
    let (header, header_end) = read_header(path, &mut file, file_bytes)?;
    let mut metadata: Metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    metadata.remove(FORMAT);
    let checksums = parse_checksums(path, metadata.remove(CHECKSUMS))?;
    let mut state = StateDict::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let end = header_end.saturating_add(info.data_offsets.1 as u64);
        if end > file_bytes {
            let message = format!("tensor '{name}' ends at byte {end}, but the file has {file_bytes}: it is cut short");
            return Err(Error::format(path, message));
        }
        let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
        file.read_exact(&mut bytes).map_err(Error::io(path))?;
        if checksums.get(&name).is_some_and(|&sum| sum != crc32fast::hash(&bytes)) {
            return Err(Error::format(path, format!("tensor '{name}' is damaged: its checksum differs")));
        }
        if !names::is_ignored(&name) {
            let tensor = decode(info, &bytes).map_err(|found| {
                Error::format(path, format!("tensor '{name}': expected floating-point values, found {found}"))
            })?;
            state.insert(name, tensor);
        }
    }
    let expected = header_end.saturating_add(header.data_len() as u64);
    if file_bytes != expected {
        let message = format!("expected {expected} bytes, found {file_bytes}: something follows the last tensor");
        return Err(Error::format(path, message));
    }
    Ok(Weights { state, metadata })
}

/// The checked header, and where it ends in the file.
fn read_header(path: &Path, file: &mut std::fs::File, file_bytes: u64) -> Result<(Header, u64)> {
    if file_bytes < 8 {
        return Err(Error::format(path, format!("not a safetensors file: {file_bytes} bytes")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(Error::io(path))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(Error::format(path, format!("not a safetensors file: it claims a header of {length} bytes")));
    }
    let end = 8 + length;
    if end > file_bytes {
        let message = format!("the header ends at byte {end}, but the file has {file_bytes}: it is cut short");
        return Err(Error::format(path, message));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(Error::io(path))?;
    let header = serde_json::from_slice(&json)
        .map_err(|error| Error::format(path, format!("the safetensors header is not valid: {error}")))?;
    Ok((header, end))
}

fn parse_checksums(path: &Path, json: Option<String>) -> Result<BTreeMap<String, u32>> {
    let Some(json) = json else { return Ok(BTreeMap::new()) };
    serde_json::from_str(&json).map_err(|error| Error::format(path, format!("metadata '{CHECKSUMS}': {error}")))
}

/// The values as `f32`, or the type they have instead of a floating-point one.
fn decode(info: &TensorInfo, bytes: &[u8]) -> Result<Tensor, Dtype> {
    let float = match info.dtype {
        Dtype::F16 => Float::F16,
        Dtype::BF16 => Float::BF16,
        Dtype::F32 => Float::F32,
        Dtype::F64 => Float::F64,
        other => return Err(other),
    };
    Tensor::new(info.shape.clone(), float.decode(bytes)).ok_or(info.dtype)
}

/// Replaces `path` by a file of these tensors and this metadata.
///
/// # Errors
/// As [`write_view`].
pub fn write(path: &Path, state: &StateDict, metadata: &Metadata) -> Result<()> {
    write_view(path, &state.view(), metadata)
}

/// Replaces `path` by a file of tensors that lie elsewhere. They are read twice, for their checksums and
/// their values, and never copied whole: a file of any size takes no memory to write.
///
/// # Errors
/// When the file cannot be written; what was there stays then.
pub fn write_view(path: &Path, state: &StateView<'_>, metadata: &Metadata) -> Result<()> {
    let unwritable = |error: serde_json::Error| Error::format(path, error.to_string());
    let (mut tensors, mut checksums, mut start) = (BTreeMap::new(), BTreeMap::new(), 0);
    for (name, tensor) in state {
        let data_offsets = (start, start + size_of_val(tensor.data()));
        start = data_offsets.1;
        tensors.insert(name.as_str(), TensorInfo { dtype: Dtype::F32, shape: tensor.shape().to_vec(), data_offsets });
        checksums.insert(name.as_str(), checksum(tensor.data()));
    }
    if tensors.len() < state.len() {
        return Err(Error::format(path, "two tensors to write have the same name"));
    }
    let mut metadata = metadata.clone();
    metadata.insert(FORMAT.into(), "pt".into());
    metadata.insert(CHECKSUMS.into(), serde_json::to_string(&checksums).map_err(unwritable)?);
    let header = encode_header(&WrittenHeader { metadata, tensors }).map_err(unwritable)?;
    if header.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::format(path, format!("the format takes headers of at most {MAX_HEADER_BYTES} bytes")));
    }
    files::write_atomically(path, |file| {
        file.write_all(&header)?;
        state.iter().try_for_each(|(_, tensor)| in_pieces(tensor.data(), |bytes| file.write_all(bytes)))
    })
}

fn checksum(values: &[f32]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    let Ok(()) = in_pieces(values, |bytes| {
        sum.update(bytes);
        Ok::<_, std::convert::Infallible>(())
    });
    sum.finalize()
}

/// The values as bytes of a file, a few thousand at a time.
fn in_pieces<E>(values: &[f32], mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut bytes = [[0; size_of::<f32>()]; 4096];
    for piece in values.chunks(bytes.len()) {
        for (bytes, value) in bytes.iter_mut().zip(piece) {
            *bytes = value.to_le_bytes();
        }
        take(bytes[..piece.len()].as_flattened())?;
    }
    Ok(())
}

/// What goes into the header, with every map in an order of its own: the crate's writer keeps metadata
/// in a hash map, whose order changes from run to run.
#[derive(Serialize)]
struct WrittenHeader<'a> {
    #[serde(rename = "__metadata__")]
    metadata: Metadata,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// Length and JSON, padded with spaces so that the values start at a multiple of 8.
fn encode_header(header: &WrittenHeader<'_>) -> serde_json::Result<Vec<u8>> {
    let mut json = serde_json::to_vec(header)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Weights {
        let tensor = |shape: &[usize], data: &[f32]| Tensor::new(shape.to_vec(), data.to_vec()).expect("sizes agree");
        let state = [
            ("fc.weight".to_string(), tensor(&[2, 3], &[1.0, -2.5, 0.0, f32::MIN_POSITIVE, 3.0, f32::INFINITY])),
            ("fc.bias".to_string(), tensor(&[2], &[0.1, -0.2])),
            ("scalar".to_string(), tensor(&[], &[7.0])),
            ("empty".to_string(), tensor(&[0, 4], &[])),
        ];
        let metadata = [("model", "resnet20"), ("zebra", "1"), ("step", "12")];
        Weights {
            state: state.into_iter().collect(),
            metadata: metadata.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
        }
    }

    fn written() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights.safetensors");
        let Weights { state, metadata } = sample();
        write(&path, &state, &metadata).expect("written");
        (folder, path)
    }

    #[test]
    fn a_file_gives_back_what_was_written_in_the_same_order() {
        let (_folder, path) = written();
        let found = read(&path).expect("readable");
        assert_eq!(found, sample());
        assert!(found.state.iter().map(|(name, _)| name).eq(sample().state.iter().map(|(name, _)| name)));
    }

    #[test]
    fn the_same_state_gives_the_same_bytes() {
        let (_a, first) = written();
        let (_b, second) = written();
        assert_eq!(std::fs::read(first).expect("readable"), std::fs::read(second).expect("readable"));
    }

    #[test]
    fn a_tensor_of_several_pieces_is_written_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights.safetensors");
        let values: Vec<f32> = (0..10_001).map(|index| index as f32).collect();
        let tensor = Tensor::new(vec![10_001], values).expect("sizes agree");
        let state = StateDict::from_iter([("a".to_string(), tensor)]);
        write(&path, &state, &Metadata::new()).expect("written");
        assert_eq!(read(&path).expect("readable").state, state);
    }

    #[test]
    fn a_name_stands_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights.safetensors");
        let tensor = Tensor::full(vec![2], 1.0);
        let twice = vec![("a".to_string(), tensor.view()), ("a".to_string(), tensor.view())];
        let message = write_view(&path, &twice, &Metadata::new()).expect_err("twice").to_string();
        assert!(message.contains("the same name") && !path.exists(), "{message}");
    }

    #[test]
    fn a_file_cut_short_anywhere_is_refused_with_its_name() {
        let (_folder, path) = written();
        let bytes = std::fs::read(&path).expect("readable");
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).expect("written");
            let message = read(&path).expect_err("cut short").to_string();
            assert!(message.contains("weights.safetensors"), "{message}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
        let message = read(&path).expect_err("cut short").to_string();
        assert!(message.contains("tensor 'scalar'"), "{message}");
    }

    #[test]
    fn a_changed_value_is_refused_with_its_tensor() {
        let (_folder, path) = written();
        let mut bytes = std::fs::read(&path).expect("readable");
        let last = bytes.len() - 5; // the last byte of fc.bias, before the one of `scalar`
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let message = read(&path).expect_err("damaged").to_string();
        assert!(message.contains("tensor 'fc.bias' is damaged"), "{message}");
    }

    #[test]
    fn bytes_after_the_last_tensor_are_refused() {
        let (_folder, path) = written();
        let mut bytes = std::fs::read(&path).expect("readable");
        bytes.push(0);
        std::fs::write(&path, &bytes).expect("written");
        assert!(read(&path).expect_err("longer").to_string().contains("follows the last tensor"));
    }
}
