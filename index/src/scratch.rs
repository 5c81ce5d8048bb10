//! Files that a build needs on its way and no index holds: page cache and disk instead of memory of
//! the program's own. They lie in the index's directory, and what has its final name is whole, so
//! a build that was killed can go on behind it. To sync them would take as long as a tenth of the
//! build, and most are gone again before the system writes them out; so their names say since
//! which start of the system they have been there, and after another start they are made anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;

use crate::artefact::{ArtefactError, write_atomically};
use crate::disk;

/// What these files' names end with; a part of a name that only builds use.
const ENDING: &str = ".scratch";
/// What follows it while a file is written.
const PART: &str = ".part";
/// What the build was started with, and how many rows are surely on disk.
const JOURNAL: &str = "journal";

/// The scratch files of an index that is being built.
pub(crate) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Those in `dir`, which need not exist.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// Where the file `name` is, once it is whole.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{}{ENDING}", since()))
    }

    /// Where the file `name` is, which whoever writes it has to sync.
    pub fn synced_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{ENDING}"))
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The path of the file `name`, which `write` makes where it is not there.
    pub fn make(
        &self,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), ArtefactError>,
    ) -> Result<PathBuf, ArtefactError> {
        let path = self.path(name);
        if path.exists() {
            return Ok(path);
        }
        let part = self.dir.join(format!("{name}{ENDING}{PART}"));
        write(&part)?;
        disk::rename(&part, &path)?;
        Ok(path)
    }

    /// Removes the files called `name`, or `name` with a number behind it. What cannot be removed
    /// takes room and does no harm.
    pub fn remove(&self, name: &str) {
        self.sweep(|file| file == name || file.rsplit_once('-').is_some_and(|(stem, _)| stem == name));
    }

    /// Removes all of them, whole or not.
    pub fn clear(&self) {
        // The journal first: without it, nobody takes the rest for something to go on with.
        self.remove(JOURNAL);
        self.sweep(|_| true);
    }

    /// Removes all but the rows and the journal.
    pub fn forget_work(&self, rows: &str) {
        self.sweep(|file| file != JOURNAL && file != rows);
    }

    fn sweep(&self, goes: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(file) = name.to_str() else { continue };
            let Some(file) = file.strip_suffix(PART).unwrap_or(file).strip_suffix(ENDING) else { continue };
            if goes(file.split_once('.').map_or(file, |(name, _)| name)) {
                let _ = disk::remove_file(&entry.path());
            }
        }
    }

    /// What the journal says; none where there is none.
    pub fn journal<T: DeserializeOwned>(&self) -> Result<Option<T>, ArtefactError> {
        let path = self.synced_path(JOURNAL);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| ArtefactError::BadManifest { path, why: format!("{e}; build anew") }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ArtefactError::io(path)(e)),
        }
    }

    /// Writes the journal: all of it or, after a crash, the one before.
    pub fn note(&self, journal: &impl serde::Serialize) -> Result<(), ArtefactError> {
        let text = serde_json::to_string(journal).expect("a journal is plain JSON");
        write_atomically(&self.synced_path(JOURNAL), text.as_bytes())
    }
}

/// The start of the system, in a few letters; where it does not tell, that of this program.
fn since() -> &'static str {
    static SINCE: OnceLock<String> = OnceLock::new();
    SINCE.get_or_init(|| match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.chars().filter(char::is_ascii_hexdigit).take(12).collect(),
        Err(_) => format!("p{}", std::process::id()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_another_start_of_the_system_is_made_anew_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::of(dir.path());
        let old = dir.path().join(format!("near-0.0123456789ab{ENDING}"));
        fs::write(&old, b"old").unwrap();
        assert!(!scratch.is_there("near-0"));
        let write =
            |text: &'static str| move |path: &Path| fs::write(path, text).map_err(ArtefactError::io(path));
        let path = scratch.make("near-0", write("new")).unwrap();
        assert_eq!(scratch.make("near-0", write("newer")).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        scratch.remove("near");
        assert!(!path.exists() && !old.exists());
    }
}
