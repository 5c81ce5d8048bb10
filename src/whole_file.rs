//! A file of lines that appears under its name only when it is complete.

use std::fmt::Arguments;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::artefact::{check_replaceable, sync_dir};
use crate::error::{Error, Result};

/// See [the module](self).
pub(crate) struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
}

impl WholeFile {
    /// Starts a file that shall be called `path`.
    ///
    /// # Errors
    /// A path that is no name for a file, or at which there is a folder, a link or a device.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::file(path, "this is no name for a file to write"))?
            .to_string_lossy();
        check_replaceable(path)?;
        let temporary = path.with_file_name(format!(".{name}.tmp.{}", std::process::id()));
        let file = File::create(&temporary).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), temporary, writer: BufWriter::new(file) })
    }

    /// What it shall be called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line.
    ///
    /// # Errors
    /// A full disk.
    pub fn line(&mut self, line: Arguments<'_>) -> Result<()> {
        writeln!(self.writer, "{line}").map_err(Error::io(&self.path))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io(&self.path))?;
        self.writer.get_ref().sync_all().map_err(Error::io(&self.path))?;
        fs::rename(&self.temporary, &self.path).map_err(Error::io(&self.path))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(sync_dir(folder.unwrap_or(Path::new(".")))?)
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        drop(WholeFile::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut whole = WholeFile::create(&path).unwrap();
        whole.line(format_args!("one")).unwrap();
        assert!(!path.exists());
        whole.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(WholeFile::create(dir.path()).is_err());
        let link = dir.path().join("link");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("elsewhere", &link).unwrap();
            assert!(WholeFile::create(&link).is_err(), "a link, as /dev/stdout is, must not be replaced");
            assert!(link.is_symlink());
        }
        assert!(WholeFile::create(&dir.path().join("none").join("out")).is_err());
    }
}
