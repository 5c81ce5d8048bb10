//! Directories that are whole or absent: the one way that Sidenote keeps things on disk.
//!
//! An artefact is a directory with a `manifest.json` beside its data files. The manifest names
//! each data file, its length and its BLAKE3 hash, so an artefact can be checked end to end
//! ([`verify`]) and opened without reading more than the manifest ([`open`]).
//!
//! Data files carry a piece of their own hash in their name (`vectors.1f0c9a7be2d4.f32`), are
//! written under a temporary name, synced, and renamed; the manifest is renamed into place last.
//! A crash at any moment therefore leaves the old artefact or the new one, never a mixture, even
//! when one is written over the other. What a crash leaves behind are files that no manifest
//! names; the next [`Writer::commit`] with data files of the same names removes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;

pub(crate) mod error;

pub use error::{ArtefactError, Versions};

/// Name of the manifest inside every artefact directory.
pub const MANIFEST: &str = "manifest.json";
const TEMPORARY: &str = "tmp";
/// Length of the piece of its hash in a data file's name.
const HASH: usize = 12;
/// Bytes that are hashed at a time, by all threads.
const HASHED: usize = 4 << 20;

/// One data file of an artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name of the file inside the artefact's directory.
    pub file: String,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 hash of the content, in hexadecimal.
    pub blake3: String,
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the directory holds, such as `"vector-index"`.
    pub kind: String,
    /// Version of this kind's format.
    pub format_version: u32,
    /// Program and version that wrote it.
    pub written_by: String,
    /// What is particular to the kind: shapes, counts, the identity of what it was made from.
    pub meta: serde_json::Value,
    /// Data files by the name that the code knows them by.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Hash over everything in the artefact: kind, version, meta and every file's hash. Two
    /// artefacts with the same identity hold the same bytes.
    pub fn identity(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.kind.as_bytes());
        hasher.update(&self.format_version.to_le_bytes());
        hasher.update(self.meta.to_string().as_bytes());
        for (name, entry) in &self.files {
            hasher.update(name.as_bytes());
            hasher.update(entry.blake3.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_string()
    }

    /// Reads `meta` as the kind's own type.
    pub fn meta_as<T: serde::de::DeserializeOwned>(&self, dir: &Path) -> Result<T, ArtefactError> {
        serde_json::from_value(self.meta.clone())
            .map_err(|e| ArtefactError::BadManifest { path: dir.join(MANIFEST), why: format!("meta: {e}") })
    }

    /// Path of the data file known as `name`.
    pub fn path(&self, dir: &Path, name: &str) -> Result<PathBuf, ArtefactError> {
        let entry = self.files.get(name).ok_or_else(|| ArtefactError::BadManifest {
            path: dir.join(MANIFEST),
            why: format!("names no file {name:?}"),
        })?;
        Ok(dir.join(&entry.file))
    }
}

/// Writes an artefact: hand out temporary files, then [`commit`](Writer::commit).
pub struct Writer {
    dir: PathBuf,
    kind: String,
    format_version: u32,
    names: Vec<String>,
    kept: BTreeMap<String, FileEntry>,
}

/// Commits the artefact `manifest` in `dir` again with another `meta`; its data files stay as they are.
pub fn recommit(
    dir: &Path,
    manifest: &Manifest,
    format_version: u32,
    meta: serde_json::Value,
) -> Result<Manifest, ArtefactError> {
    let mut writer = Writer::create(dir, &manifest.kind, format_version)?;
    for (name, entry) in &manifest.files {
        writer.keep(name, entry.clone());
    }
    writer.commit(meta)
}

impl Writer {
    /// Starts an artefact in `dir`, which is created where it does not exist. Whatever artefact
    /// is there stays readable until [`commit`](Writer::commit).
    pub fn create(dir: &Path, kind: &str, format_version: u32) -> Result<Self, ArtefactError> {
        disk::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            kind: kind.into(),
            format_version,
            names: Vec::new(),
            kept: BTreeMap::new(),
        })
    }

    /// Path to write the data file `name` to (such as `"vectors.f32"`). The same name gives the
    /// same path each time.
    pub fn path(&mut self, name: &str) -> PathBuf {
        if !self.names.iter().any(|n| n == name) {
            self.names.push(name.to_string());
        }
        self.dir.join(format!("{name}.{TEMPORARY}"))
    }

    /// Writes a whole data file from memory.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArtefactError> {
        let path = self.path(name);
        let file = disk::create(&path)?;
        disk::write_all(&file, &path, bytes)
    }

    /// Names a data file of the artefact that is there now in the new one too, as it is: it is
    /// neither read nor written.
    pub fn keep(&mut self, name: &str, entry: FileEntry) {
        self.kept.insert(name.to_string(), entry);
    }

    /// Makes the artefact real: hashes and syncs every file, renames it, swaps the manifest, and
    /// removes what no manifest names any more.
    pub fn commit(self, meta: serde_json::Value) -> Result<Manifest, ArtefactError> {
        let mut files = self.kept;
        let mut renames = Vec::new();
        for name in &self.names {
            let temporary = self.dir.join(format!("{name}.{TEMPORARY}"));
            let written = File::open(&temporary).map_err(ArtefactError::io(&temporary))?;
            let (bytes, hash) = std::thread::scope(|scope| {
                // The disk can begin with what `sync` waits for; should it fail, that says so.
                scope.spawn(|| written.sync_data());
                hash_file(&temporary)
            })?;
            disk::sync(&written, &temporary)?;
            let (stem, extension) = parts_of(name);
            let file = format!("{stem}.{}.{extension}", &hash[..HASH]);
            renames.push((temporary, self.dir.join(&file)));
            files.insert(name.clone(), FileEntry { file, bytes, blake3: hash });
        }
        // After all that takes long: until here, a build that is resumed finds its files.
        renames.iter().try_for_each(|(from, to)| disk::rename(from, to))?;
        sync_dir(&self.dir)?;
        let manifest = Manifest {
            kind: self.kind,
            format_version: self.format_version,
            written_by: concat!("sidenote ", env!("CARGO_PKG_VERSION")).into(),
            meta,
            files,
        };
        let old = read_manifest(&self.dir).ok();
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain JSON");
        write_atomically(&self.dir.join(MANIFEST), text.as_bytes())?;
        sweep(&self.dir, &manifest, old.as_ref());
        Ok(manifest)
    }
}

/// A name without its extensions, and these.
fn parts_of(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, "bin"))
}

/// Removes the data files that were the old artefact's, and those that a crash left before any
/// manifest named them. Failing to remove a file that nothing names harms nobody.
fn sweep(dir: &Path, manifest: &Manifest, old: Option<&Manifest>) {
    let names = || manifest.files.keys().chain(old.iter().flat_map(|old| old.files.keys()));
    let is_ours = |file: &str| {
        let (stem, rest) = parts_of(file);
        let (hash, extension) = parts_of(rest);
        hash.len() == HASH
            && hash.bytes().all(|b| b.is_ascii_hexdigit())
            && names().any(|name| parts_of(name) == (stem, extension))
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(file) = name.to_str() else { continue };
        if is_ours(file) && !manifest.files.values().any(|entry| entry.file == file) {
            let _ = disk::remove_file(&entry.path());
        }
    }
}

/// Opens the artefact in `dir`: reads its manifest and checks kind, version (one that is read, or
/// a range of them) and that every data file is there with the length the manifest states.
/// Contents are checked by [`verify`].
pub fn open(dir: &Path, kind: &str, versions: impl Into<Versions>) -> Result<Manifest, ArtefactError> {
    let manifest = read_manifest(dir)?;
    check(dir, &manifest, kind, versions)?;
    Ok(manifest)
}

/// What [`open`] checks, for a manifest that has been read from `dir` already.
pub(crate) fn check(
    dir: &Path,
    manifest: &Manifest,
    kind: &str,
    versions: impl Into<Versions>,
) -> Result<(), ArtefactError> {
    if manifest.kind != kind {
        return Err(ArtefactError::WrongKind {
            dir: dir.into(),
            found: manifest.kind.clone(),
            wanted: kind.into(),
        });
    }
    let (found, wanted) = (manifest.format_version, versions.into());
    if !wanted.contain(found) {
        return Err(ArtefactError::WrongVersion { dir: dir.into(), found, wanted });
    }
    manifest.files.values().try_for_each(|entry| check_length(dir, entry))
}

/// Reads every byte of the artefact in `dir`, of whatever kind, and reports all that is wrong.
/// An empty list means that it is whole.
pub fn verify(dir: &Path) -> Result<Vec<ArtefactError>, ArtefactError> {
    Ok(problems(dir, &read_manifest(dir)?))
}

/// What [`verify`] reports, for a manifest that has been read from `dir` already.
pub(crate) fn problems(dir: &Path, manifest: &Manifest) -> Vec<ArtefactError> {
    let mut problems = Vec::new();
    for entry in manifest.files.values() {
        let path = dir.join(&entry.file);
        let problem = check_length(dir, entry).and_then(|()| {
            let (_, hash) = hash_file(&path)?;
            if hash == entry.blake3 {
                return Ok(());
            }
            let why = format!("content hash {hash}, but the manifest says {}", entry.blake3);
            Err(ArtefactError::Damaged { path: path.clone(), why })
        });
        problems.extend(problem.err());
    }
    problems
}

/// Reads the manifest of the artefact in `dir`, of whatever kind.
pub fn read_manifest(dir: &Path) -> Result<Manifest, ArtefactError> {
    let path = dir.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let hint = match dir.exists() {
                true => {
                    "it is not a finished Sidenote artefact (an unfinished one can be continued with --resume)"
                }
                false => "the directory does not exist",
            };
            return Err(ArtefactError::Missing { dir: dir.into(), hint: hint.into() });
        }
        Err(e) => return Err(ArtefactError::io(path)(e)),
    };
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|e| ArtefactError::BadManifest { path: path.clone(), why: e.to_string() })?;
    for entry in manifest.files.values() {
        // A manifest may come from anywhere; its names must not lead out of the directory, nor to
        // the manifest, which would be removed with the old files at the next commit.
        let mut parts = Path::new(&entry.file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
            && !entry.file.contains(['/', '\\'])
            && entry.file != MANIFEST;
        if !plain {
            let why = format!("{:?} is not the name of a data file in this directory", entry.file);
            return Err(ArtefactError::BadManifest { path, why });
        }
    }
    Ok(manifest)
}

fn check_length(dir: &Path, entry: &FileEntry) -> Result<(), ArtefactError> {
    let path = dir.join(&entry.file);
    let found = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ArtefactError::Damaged { path, why: "the file is missing".into() });
        }
        Err(e) => return Err(ArtefactError::io(path)(e)),
    };
    if found != entry.bytes {
        let why = format!("{found} bytes, but the manifest says {}", entry.bytes);
        return Err(ArtefactError::Damaged { path, why });
    }
    Ok(())
}

/// Length and BLAKE3 hash (hexadecimal) of a file.
pub fn hash_file(path: &Path) -> Result<(u64, String), ArtefactError> {
    let mut file = File::open(path).map_err(ArtefactError::io(path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; HASHED];
    let mut bytes = 0u64;
    loop {
        let n = file.read(&mut buffer).map_err(ArtefactError::io(path))?;
        if n == 0 {
            return Ok((bytes, hasher.finalize().to_hex().to_string()));
        }
        hasher.update_rayon(&buffer[..n]);
        bytes += n as u64;
    }
}

/// Writes `bytes` to `path` so that a crash leaves the old content or the new: a temporary file
/// beside it, synced, then renamed, then the directory synced.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ArtefactError> {
    check_replaceable(path)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".");
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let file = disk::create(&temporary)?;
    disk::write_all(&file, &temporary, bytes)?;
    disk::sync(&file, &temporary)?;
    drop(file);
    disk::rename(&temporary, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Refuses a path at which there is anything but a file. Renaming a file into its place would
/// remove it, be it a link or a device: `/dev/null` would be gone.
pub fn check_replaceable(path: &Path) -> Result<(), ArtefactError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            let why = match metadata.is_dir() {
                true => "this is a folder; name a file to write",
                false => "this is a link or a device; name a file to write",
            };
            Err(ArtefactError::io(path)(io::Error::other(why)))
        }
        _ => Ok(()),
    }
}

/// Makes renames and new files in `dir` survive a power cut. A no-op where the system cannot
/// open directories.
pub fn sync_dir(dir: &Path) -> Result<(), ArtefactError> {
    disk::sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_one(dir: &Path, content: &[u8]) -> Manifest {
        let mut writer = Writer::create(dir, "test", 1).unwrap();
        writer.write("data.bin", content).unwrap();
        writer.commit(serde_json::json!({"n": content.len()})).unwrap()
    }

    #[test]
    fn round_trip_and_verify() {
        let dir = tempfile::tempdir().unwrap();
        let written = write_one(dir.path(), b"hello");
        assert_eq!(open(dir.path(), "test", 1).unwrap(), written);
        assert!(verify(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_flipped_byte_is_found_by_verify_and_a_short_file_by_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_one(dir.path(), b"hello").path(dir.path(), "data.bin").unwrap();
        fs::write(&path, b"hellp").unwrap();
        assert!(open(dir.path(), "test", 1).is_ok());
        assert_eq!(verify(dir.path()).unwrap().len(), 1);
        fs::write(&path, b"hell").unwrap();
        assert!(matches!(open(dir.path(), "test", 1), Err(ArtefactError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(open(dir.path(), "test", 1), Err(ArtefactError::Damaged { .. })));
    }

    #[test]
    fn an_unfinished_rewrite_leaves_the_old_artefact() {
        let dir = tempfile::tempdir().unwrap();
        let old = write_one(dir.path(), b"old");
        let mut writer = Writer::create(dir.path(), "test", 1).unwrap();
        writer.write("data.bin", b"new, but never committed").unwrap();
        drop(writer);
        assert_eq!(open(dir.path(), "test", 1).unwrap(), old);
        assert!(verify(dir.path()).unwrap().is_empty());
        let new = write_one(dir.path(), b"new");
        assert_ne!(new.identity(), old.identity());
        assert!(!old.path(dir.path(), "data.bin").unwrap().exists(), "old file not removed");
    }

    #[test]
    fn a_kept_file_is_named_again_as_it_is_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let old = write_one(dir.path(), b"hello");
        // What a crash leaves between the renaming of a data file and the swap of the manifest.
        let left = dir.path().join("data.0123456789ab.bin");
        fs::write(&left, b"left").unwrap();
        let foreign = dir.path().join("data.of-the-user.bin");
        fs::write(&foreign, b"mine").unwrap();
        let mut writer = Writer::create(dir.path(), "test", 1).unwrap();
        writer.keep("data.bin", old.files["data.bin"].clone());
        writer.write("more.bin", b"more").unwrap();
        let new = writer.commit(serde_json::json!({})).unwrap();
        assert_eq!(new.files["data.bin"], old.files["data.bin"]);
        assert!(verify(dir.path()).unwrap().is_empty());
        assert!(!left.exists() && foreign.exists());
        let mut writer = Writer::create(dir.path(), "test", 1).unwrap();
        writer.keep("more.bin", new.files["more.bin"].clone());
        writer.commit(serde_json::json!({})).unwrap();
        assert!(!old.path(dir.path(), "data.bin").unwrap().exists(), "not removed though not kept");
        assert!(verify(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_range_of_versions_is_read_and_the_error_names_it() {
        let dir = tempfile::tempdir().unwrap();
        for version in [1, 2, 3] {
            Writer::create(dir.path(), "test", version).unwrap().commit(serde_json::json!({})).unwrap();
            assert_eq!(open(dir.path(), "test", 1..=2).is_ok(), version < 3);
        }
        let error = open(dir.path(), "test", 1..=2).unwrap_err().to_string();
        assert!(error.contains("version 3") && error.contains("versions 1 to 2"), "{error}");
        assert!(error.contains("newer"), "{error}");
        assert!(!open(dir.path(), "test", 4).unwrap_err().to_string().contains("newer"));
    }

    #[test]
    fn other_kinds_versions_and_escaping_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_one(dir.path(), b"x");
        assert!(matches!(open(dir.path(), "other", 1), Err(ArtefactError::WrongKind { .. })));
        assert!(matches!(open(dir.path(), "test", 2), Err(ArtefactError::WrongVersion { .. })));
        let text = fs::read_to_string(dir.path().join(MANIFEST)).unwrap();
        let file = &read_manifest(dir.path()).unwrap().files["data.bin"].file;
        for bad in ["../data.bin", "/data.bin", "..", ".", "", "a/b", MANIFEST] {
            fs::write(dir.path().join(MANIFEST), text.replace(file.as_str(), bad)).unwrap();
            assert!(matches!(read_manifest(dir.path()), Err(ArtefactError::BadManifest { .. })), "{bad:?}");
        }
        fs::write(dir.path().join(MANIFEST), "{").unwrap();
        assert!(matches!(read_manifest(dir.path()), Err(ArtefactError::BadManifest { .. })));
    }
}
