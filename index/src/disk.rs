//! Changes to the file system, with errors that name the file. Each is a step at which the tests
//! can stop the program as a crash would, and by which they check what was synced before what
//! (`collection::faults`); outside of this crate's own tests a step is nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::artefact::error::ArtefactError;

type Result<T> = std::result::Result<T, ArtefactError>;

/// What is about to be done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    CreateDir,
    Create,
    Write,
    Sync,
    RenameFrom,
    RenameTo,
    SyncDir,
    Remove,
}

#[cfg(not(test))]
#[inline(always)]
fn step(_: Step, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use crate::collection::faults::step;

/// Creates the directory and those above it, where they are missing, to survive a power cut.
pub(crate) fn create_dir_all(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    if !parent.as_os_str().is_empty() {
        create_dir_all(parent)?;
    }
    match step(Step::CreateDir, dir).and_then(|()| fs::create_dir(dir)) {
        Err(cause) if !(cause.kind() == io::ErrorKind::AlreadyExists && dir.is_dir()) => {
            Err(ArtefactError::io(dir)(cause))
        }
        _ => sync_dir(parent),
    }
}

/// Creates the file or empties it.
pub(crate) fn create(path: &Path) -> Result<File> {
    step(Step::Create, path).and_then(|()| File::create(path)).map_err(ArtefactError::io(path))
}

pub(crate) fn write_all(mut file: &File, path: &Path, bytes: &[u8]) -> Result<()> {
    step(Step::Write, path).and_then(|()| file.write_all(bytes)).map_err(ArtefactError::io(path))
}

/// Makes what was written to the file survive a power cut.
pub(crate) fn sync(file: &File, path: &Path) -> Result<()> {
    step(Step::Sync, path).and_then(|()| file.sync_all()).map_err(ArtefactError::io(path))
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    step(Step::RenameFrom, from)
        .and_then(|()| step(Step::RenameTo, to))
        .and_then(|()| fs::rename(from, to))
        .map_err(ArtefactError::io(to))
}

/// Makes renames and new files in `dir` survive a power cut. A no-op where the system cannot
/// open directories.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    step(Step::SyncDir, dir).map_err(ArtefactError::io(dir))?;
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(ArtefactError::io(dir))?;
    }
    Ok(())
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    step(Step::Remove, path).and_then(|()| fs::remove_file(path)).map_err(ArtefactError::io(path))
}

pub(crate) fn remove_dir_all(dir: &Path) -> Result<()> {
    step(Step::Remove, dir).and_then(|()| fs::remove_dir_all(dir)).map_err(ArtefactError::io(dir))
}
