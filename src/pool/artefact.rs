//! A pool on disk: an artefact whose data files are lines of instances, in parts.

use std::path::{Path, PathBuf};

use crate::artefact;
use crate::error::Result;

/// Kind and version of the artefact.
pub(super) const KIND: &str = "pool";
pub(super) const VERSION: u32 = 1;

/// Name of part `number`'s file.
pub(super) fn part(number: usize) -> String {
    format!("instances-{number:05}.jsonl")
}

/// The files of lines that the pool at `path` consists of, in their order: those of an artefact, or the file itself.
///
/// # Errors
/// A folder that is no pool, or whose files are not there as they were written.
pub fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let manifest = artefact::open(path, KIND, VERSION)?;
    Ok(manifest.files.keys().map(|name| manifest.path(path, name)).collect::<std::result::Result<_, _>>()?)
}
