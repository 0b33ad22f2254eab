//! Writing files so that a reader never sees half of one.

use std::io::{Read, Write};
use std::path::Path;

use crate::{Error, Result};

/// Replaces `path` by what `write` produces: a temporary file beside it, flushed to disk, renamed.
///
/// # Errors
/// When a step fails; `path` is then as it was before.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut std::io::BufWriter<&mut std::fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let replace = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        let mut buffered = std::io::BufWriter::new(file.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        file.as_file().sync_all()?;
        file.persist(path)?;
        // The rename itself survives a power cut only once the folder is on disk.
        #[cfg(unix)]
        std::fs::File::open(folder)?.sync_all()?;
        Ok(())
    };
    replace().map_err(Error::io(path))
}

/// Reads a file that must be `expected` bytes long; checked before memory is taken for it.
///
/// # Errors
/// When it cannot be read or has another size.
pub fn read_exactly(path: &Path, expected: u64) -> Result<Vec<u8>> {
    let wrong = |found| Error::format(path, format!("expected {expected} bytes, found {found}"));
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let found = file.metadata().map_err(Error::io(path))?.len();
    if found != expected {
        return Err(wrong(found));
    }
    let mut bytes = Vec::with_capacity(expected as usize);
    file.take(expected).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 == expected { Ok(bytes) } else { Err(wrong(bytes.len() as u64)) }
}
