//! An encoder's folder whose weights are others: the files that say how it is used come along.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::artefact::{self, sync_dir};
use crate::error::{Error, Result};
use crate::sealed;

/// Ends of names of files that hold weights.
const WEIGHT_FILES: [&str; 9] = ["safetensors", "bin", "pt", "pth", "onnx", "gguf", "h5", "msgpack", "ot"];

/// The files of an encoder's folder that are not weights, and those of its modules, by their names from there.
pub(super) fn settings(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    read_below(folder, Path::new(""), &mut files)?;
    Ok(files)
}

fn read_below(folder: &Path, below: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
    let dir = folder.join(below);
    for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
        let entry = entry.map_err(Error::io(&dir))?;
        let (name, path) = (below.join(entry.file_name()), entry.path());
        let text = entry.file_name().to_string_lossy().into_owned();
        let is_weights = WEIGHT_FILES.iter().any(|end| text.ends_with(&format!(".{end}")))
            || text.ends_with(".index.json")
            || text == artefact::MANIFEST;
        // A module's folder, such as 1_Pooling; others hold the weights in other formats.
        let is_module = || text.split_once('_').is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        // Through links, as in the hub's cache.
        let kind = fs::metadata(&path).map_err(Error::io(&path))?;
        if kind.is_dir() && below.as_os_str().is_empty() && is_module() {
            read_below(folder, &name, files)?;
        } else if kind.is_file() && !is_weights {
            files.push((name, fs::read(&path).map_err(Error::io(path))?));
        }
    }
    Ok(())
}

const WHAT: &str = "an encoder";

/// That there is no `dir` yet, as [`write`] needs it.
pub(crate) fn check_new(dir: &Path) -> Result<()> {
    sealed::check_new(dir, WHAT)
}

/// Writes the new folder `dir`, which appears whole or not at all: `settings`, and what `weights` adds.
pub(super) fn write(
    dir: &Path,
    settings: &[(PathBuf, Vec<u8>)],
    weights: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    sealed::write_folder(dir, WHAT, |dir| {
        for (name, bytes) in settings {
            let path = dir.join(name);
            let folder = path.parent().unwrap_or(dir);
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
            fs::write(&path, bytes).map_err(Error::io(path))?;
        }
        weights(dir)?;
        sync_all(dir)
    })
}

/// Syncs every file and folder below `dir`.
fn sync_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        match path.is_dir() {
            true => sync_all(&path)?,
            false => {
                let synced: io::Result<()> = fs::File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(Error::io(path))?;
            }
        }
    }
    Ok(sync_dir(dir)?)
}
