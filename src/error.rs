//! What can go wrong in the library, always naming the file, line, field or id at fault.

use std::io;
use std::path::PathBuf;

use sidenote_index::IndexError;
use sidenote_index::artefact::ArtefactError;

/// Result of the library's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The library's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A line of an input file cannot be used.
    #[error("{}:{line}: {why}", path.display())]
    Line {
        /// The input file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A whole input file cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The input file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// A setting has a value that cannot be used.
    #[error("{name}: {why}")]
    Setting {
        /// The option or configuration key, as the user writes it.
        name: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Two artefacts do not belong together.
    #[error("{what} do not match: {left} here, {right} there; {hint}")]
    Mismatch {
        /// What was compared, in the plural ("encoders").
        what: String,
        /// One side.
        left: String,
        /// The other side.
        right: String,
        /// What to do.
        hint: String,
    },
    /// The user asked to stop; what was done is kept and can be resumed.
    #[error("interrupted; {0}")]
    Interrupted(String),
    /// An artefact is missing, damaged, or of another kind.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// The nearest-neighbour index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Arithmetic on tensors failed.
    #[error("tensor: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl Error {
    /// Wraps an I/O error with the path that it concerns.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }

    /// A file that cannot be used.
    pub fn file(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::File { path: path.into(), why: why.into() }
    }

    /// A line of a file that cannot be used; lines count from 1.
    pub fn line(path: impl Into<PathBuf>, line: u64, why: impl Into<String>) -> Self {
        Self::Line { path: path.into(), line, why: why.into() }
    }

    /// A setting that cannot be used.
    pub fn setting(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), why: why.into() }
    }
}
