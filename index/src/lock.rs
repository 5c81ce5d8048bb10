//! The right to write in a folder, held by one at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::IndexError;
use crate::artefact::ArtefactError;

/// Name of the file that is locked; it is empty, stays where it is, and means nothing by itself.
const LOCK: &str = "writer.lock";

/// The right to write in a folder: one [`Lock`] at a time, in this process or any other on the
/// machine. It ends when it is dropped or when its process ends, however that comes about, for
/// the operating system holds it (`flock`, `LockFileEx`). Readers need none.
#[derive(Debug)]
pub struct Lock {
    /// Closing the file gives the lock back.
    _file: File,
}

impl Lock {
    /// Takes the right to write in `dir`, which must exist, without waiting for it.
    ///
    /// # Errors
    /// [`IndexError::Locked`] while somebody else holds it; a folder that cannot be written.
    pub fn acquire(dir: &Path) -> Result<Self, IndexError> {
        let path = dir.join(LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(ArtefactError::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(IndexError::Locked { dir: dir.into() }),
            Err(TryLockError::Error(cause)) => Err(ArtefactError::Io { path, cause }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_even_in_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path()).unwrap();
        let error = Lock::acquire(dir.path()).unwrap_err();
        assert!(matches!(&error, IndexError::Locked { dir: d } if d == dir.path()), "{error}");
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
        drop(first);
        Lock::acquire(dir.path()).unwrap();
        let absent = Lock::acquire(&dir.path().join("absent")).unwrap_err();
        assert!(matches!(absent, IndexError::Artefact(ArtefactError::Io { .. })), "{absent}");
    }
}
