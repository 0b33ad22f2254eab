//! Reading files that are no larger than expected, and writing them so that nobody sees half of one.

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
        let mut file = temporary_file(folder)?;
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

/// How the names of files begin that are not yet what they are to be.
const UNFINISHED: &str = ".unfinished-";

/// Removes what writers that were killed have left in `folder`. No other may be at work there.
///
/// # Errors
/// When the folder cannot be read or a file not be removed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}

/// A file to be renamed: with the permissions of any new file, where temporary ones are private.
fn temporary_file(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask
    builder.tempfile_in(folder)
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

/// Reads a file that may be `most` bytes long.
///
/// # Errors
/// When it cannot be read or is larger.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > most {
        return Err(Error::format(path, format!("expected at most {most} bytes, found more")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, |file| file.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |file| {
            file.write_all(b"half of")?;
            Err(std::io::Error::other("no space"))
        });
        assert!(failed.unwrap_err().to_string().contains("no space"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        write_atomically(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        std::fs::write(folder.path().join("plain"), "").unwrap();
        write_atomically(&folder.path().join("atomic"), |_| Ok(())).unwrap();
        assert_eq!(mode(&folder.path().join("atomic")), mode(&folder.path().join("plain")));
    }
}
