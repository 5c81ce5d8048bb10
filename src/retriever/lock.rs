//! Shim until index's Lock lands.
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::path::Path;
#[derive(Debug)]
pub(super) struct Lock(File);
impl Lock {
    pub fn acquire(dir: &Path) -> Result<Self> {
        let path = dir.join("writer.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Error::file(dir, "another process is writing here"))
            }
            Err(std::fs::TryLockError::Error(e)) => Err(Error::io(path)(e)),
        }
    }
}
