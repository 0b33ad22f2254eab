//! The library's error: every message names the file or field and says what was expected.

use std::path::{Path, PathBuf};

use crate::ClassMismatch;
use crate::StateMismatch;

/// What can go wrong, worded for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file's contents are not what they should be.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// A file could not be downloaded.
    #[error("{url}: {message}")]
    Fetch {
        /// Its address.
        url: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A name, setting or combination that means nothing.
    #[error("{0}")]
    Config(String),
    /// Tensors do not fit the network.
    #[error(transparent)]
    State(#[from] StateMismatch),
    /// Data have other classes than the network was trained on.
    #[error(transparent)]
    Classes(#[from] ClassMismatch),
    /// The engine could not run.
    #[error(transparent)]
    Engine(#[from] resnet_native::Error),
    /// Training cannot go on.
    #[error("{0}")]
    Training(String),
}

/// Result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with its path; for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { path, source }
    }

    /// A file whose contents are wrong.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_owned(), message: message.into() }
    }
}
