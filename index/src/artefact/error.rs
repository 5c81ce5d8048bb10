//! What can be wrong with an artefact on disk.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::MANIFEST;

/// What can be wrong with an artefact on disk.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// The operating system refused.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// There is no artefact here.
    #[error("{}: no {MANIFEST} here; {hint}", dir.display())]
    Missing {
        /// The directory asked for.
        dir: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// The manifest cannot be read.
    #[error("{}: not a readable manifest: {why}", path.display())]
    BadManifest {
        /// The manifest file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory holds an artefact of another kind.
    #[error("{}: this is a {found:?} artefact, but a {wanted:?} is needed here", dir.display())]
    WrongKind {
        /// The directory.
        dir: PathBuf,
        /// The kind its manifest states.
        found: String,
        /// The kind that was asked for.
        wanted: String,
    },
    /// The artefact was written by a version of the format that this program does not read.
    #[error("{}: format version {found}, but this program reads {wanted}; {}", dir.display(), wanted.advice(*found))]
    WrongVersion {
        /// The directory.
        dir: PathBuf,
        /// The version its manifest states.
        found: u32,
        /// The versions this program reads.
        wanted: Versions,
    },
    /// A data file is missing, too short, too long, or its bytes have changed.
    #[error("{}: damaged: {why}; build it again or restore it from a copy", path.display())]
    Damaged {
        /// The data file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl ArtefactError {
    /// Wraps an I/O error with the path that it concerns.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { path, cause }
    }
}

/// The versions of a format that a program reads: one, or a range such as `1..=2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions(RangeInclusive<u32>);

impl Versions {
    pub(super) fn contain(&self, version: u32) -> bool {
        self.0.contains(&version)
    }

    fn advice(&self, found: u32) -> &'static str {
        match found > *self.0.end() {
            true => "a newer Sidenote wrote it: use that one, or build it again",
            false => "build it again",
        }
    }
}

impl From<u32> for Versions {
    fn from(version: u32) -> Self {
        Self(version..=version)
    }
}

impl From<RangeInclusive<u32>> for Versions {
    fn from(versions: RangeInclusive<u32>) -> Self {
        Self(versions)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => write!(f, "version {first}"),
            (first, last) => write!(f, "versions {first} to {last}"),
        }
    }
}
