//! Folders inside an artefact's directory, each named by what it holds, replaced all at once by
//! the swap of one manifest.

use std::fs;
use std::path::Path;

use crate::artefact::{self, ArtefactError, sync_dir};
use crate::{Error, Result};

/// Length of the piece of an identity in a folder's name.
const ID: usize = 12;

/// Moves the whole artefact in `new` to `dir/<prefix>-<id>` and returns that name. What has this
/// name already is kept where it is whole (it holds the same bytes) and replaced where not.
pub(super) fn place(new: &Path, dir: &Path, prefix: &str, identity: &str) -> Result<String> {
    let name = format!("{prefix}-{}", &identity[..ID.min(identity.len())]);
    let target = dir.join(&name);
    if target.exists() {
        let whole = artefact::read_manifest(&target).is_ok_and(|m| m.identity() == identity)
            && artefact::verify(&target).is_ok_and(|problems| problems.is_empty());
        let gone = if whole { new } else { &target };
        fs::remove_dir_all(gone).map_err(Error::io(gone))?;
        if whole {
            return Ok(name);
        }
    }
    fs::rename(new, &target).map_err(Error::io(&target))?;
    sync_dir(dir)?;
    Ok(name)
}

/// Removes the folders `<prefix>-<id>` in `dir`, and the files `<a prefix of files>-...`, other than those in
/// `keep`: older generations, and what a crash left. Readers of an older generation have what they
/// read mapped or in memory, and go on.
pub(super) fn sweep(dir: &Path, prefixes: &[&str], files: &[&str], keep: &[&str]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if keep.contains(&name.as_str()) {
            continue;
        }
        let id_after = |prefix: &&str| name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
        let ours = prefixes
            .iter()
            .filter_map(id_after)
            .any(|id| id.len() == ID && id.bytes().all(|b| b.is_ascii_hexdigit()));
        if ours {
            remove(&entry.path())?;
        } else if files.iter().find_map(id_after).is_some()
            && entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    Ok(())
}

/// Removes the folder `dir` and all in it, where it exists.
pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir)(e)),
        _ => Ok(()),
    }
}

/// Bytes of all files in `dir` and below.
pub fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Whether there is an artefact of this kind in `dir`. Something else there under a manifest's
/// name is an error, for it must not be written over; an unreadable manifest is taken for ours
/// where something beside it has a name that begins with one of `marks`.
pub(super) fn is_there(dir: &Path, kind: &str, marks: &[&str]) -> Result<bool> {
    if dir.is_file() {
        return Err(Error::file(dir, "this is a file; name a folder to write"));
    }
    match artefact::read_manifest(dir) {
        Ok(manifest) if manifest.kind == kind => Ok(true),
        Ok(manifest) => {
            Err(ArtefactError::WrongKind { dir: dir.into(), found: manifest.kind, wanted: kind.into() }
                .into())
        }
        Err(ArtefactError::Missing { .. }) => Ok(false),
        Err(ArtefactError::BadManifest { .. }) if has_marked(dir, marks) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn has_marked(dir: &Path, marks: &[&str]) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        marks.iter().any(|mark| name.starts_with(mark))
    })
}
