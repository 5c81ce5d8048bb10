//! Folders of files under their own names, as other programs want them: written whole or not at all, and with a manifest
//! that every byte can be checked against.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;

use crate::artefact::{self, FileEntry, Manifest};
use crate::error::{Error, Result};

/// Writes the new folder `dir`, which appears whole or not at all: `fill` is given the folder that becomes it. `what` is
/// what it holds, such as "a model".
///
/// # Errors
/// A folder that is there already, a full disk; what `fill` reports.
pub(crate) fn write_folder(dir: &Path, what: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    check_new(dir, what)?;
    let temporary = beside(dir, ".tmp");
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(Error::io(&temporary))?;
    }
    fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
    fill(&temporary)?;
    fs::rename(&temporary, dir).map_err(Error::io(dir))?;
    Ok(artefact::sync_dir(dir.parent().unwrap_or(Path::new(".")))?)
}

/// The path beside `path` whose name has `end` behind it, whether or not `path` is written with a slash behind it.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

/// Writes tensors as a safetensors file.
///
/// # Errors
/// A full disk.
pub(crate) fn write_tensors<K: AsRef<str> + Ord + Display>(
    path: &Path,
    tensors: &HashMap<K, Tensor>,
) -> Result<()> {
    // The library's file is for its owner alone, whatever the umask says of others.
    let usual =
        fs::File::create(path).and_then(|file| file.metadata()).map_err(Error::io(path))?.permissions();
    candle_core::safetensors::save(tensors, path).map_err(|e| Error::file(path, e.to_string()))?;
    fs::set_permissions(path, usual).map_err(Error::io(path))
}

/// That there is no `dir` yet, as [`write_folder`] needs it: to be asked before long work whose result goes there.
///
/// # Errors
/// A folder that is there already.
pub(crate) fn check_new(dir: &Path, what: &str) -> Result<()> {
    match dir.exists() {
        true => Err(Error::file(dir, format!("already exists; {what} is never written over another"))),
        false => Ok(()),
    }
}

/// Syncs the files `names` of the folder `dir` and writes a manifest over them.
pub(crate) fn seal(
    dir: &Path,
    kind: &str,
    format_version: u32,
    meta: &impl Serialize,
    names: &[&str],
) -> Result<()> {
    let mut files = BTreeMap::new();
    for name in names {
        let path = dir.join(name);
        fs::File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        let (bytes, blake3) = artefact::hash_file(&path)?;
        files.insert(name.to_string(), FileEntry { file: name.to_string(), bytes, blake3 });
    }
    let path = dir.join(artefact::MANIFEST);
    let failed = |e: serde_json::Error| Error::file(&path, e.to_string());
    let manifest = Manifest {
        kind: kind.into(),
        format_version,
        written_by: concat!("sidenote ", env!("CARGO_PKG_VERSION")).into(),
        meta: serde_json::to_value(meta).map_err(failed)?,
        files,
    };
    let text = serde_json::to_string_pretty(&manifest).map_err(failed)?;
    Ok(artefact::write_atomically(&path, text.as_bytes())?)
}

/// Reads every byte of a folder that has a manifest; one from elsewhere has none.
///
/// # Errors
/// Another kind or version of folder; the first file that is not what its manifest says.
pub(crate) fn check(dir: &Path, kind: &str, format_version: u32) -> Result<()> {
    if !dir.join(artefact::MANIFEST).exists() {
        return Ok(());
    }
    artefact::open(dir, kind, format_version)?;
    match artefact::verify(dir)?.into_iter().next() {
        Some(problem) => Err(problem.into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_may_be_named_with_a_slash_and_its_weights_are_for_whom_its_other_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/");
        write_folder(&path, "a model", |dir| {
            fs::write(dir.join("config.json"), "{}").map_err(Error::io(dir))?;
            let tensor = Tensor::zeros(2, candle_core::DType::F32, &candle_core::Device::Cpu)?;
            write_tensors(&dir.join("weights"), &HashMap::from([("a", tensor)]))
        })
        .unwrap();
        let permissions = |name: &str| fs::metadata(path.join(name)).unwrap().permissions();
        assert_eq!(permissions("weights"), permissions("config.json"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
