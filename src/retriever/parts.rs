//! An unfinished build: the parts of the work that are done, kept so that it can be resumed.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::generation::remove;
use super::meta::Settings;
use crate::artefact::{self, Manifest, Writer, write_atomically};
use crate::corpus::{Block, Document, bytes_of, read_numbers};
use crate::{Error, Result};

const KIND: &str = "index-part";
const VERSION: u32 = 1;
const VECTORS: &str = "vectors.f32";
const SETTINGS: &str = "settings.json";

/// A hash over documents in order.
#[derive(Default)]
pub(super) struct CorpusHash(blake3::Hasher);

impl CorpusHash {
    pub fn add(&mut self, document: &Document) {
        let section = document.section.as_deref().unwrap_or_default();
        for field in [&document.id, &document.title, section, &document.source, &document.text] {
            self.0.update(&(field.len() as u64).to_le_bytes());
            self.0.update(field.as_bytes());
        }
    }

    /// The hash of what was added so far.
    pub fn value(&self) -> String {
        self.0.finalize().to_hex()[..32].to_string()
    }
}

/// What a part's manifest says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PartMeta {
    /// Documents in this part.
    pub documents: usize,
    /// Chunks in this part.
    pub chunks: usize,
    /// Hash over all documents up to the end of this part.
    pub corpus: String,
}

/// The folder of an unfinished build.
pub(super) struct Unfinished {
    dir: PathBuf,
}

impl Unfinished {
    /// The unfinished build of the index `out`, which need not exist. Clears away what a crash left
    /// of one that did finish.
    pub fn of(out: &Path) -> Result<Self> {
        let build = Self { dir: out.join("build") };
        remove(&build.finished())?;
        Ok(build)
    }

    /// Where a finished build goes to be removed: a crash in the middle of removing a folder leaves
    /// some of it, which must not be taken for an unfinished build.
    fn finished(&self) -> PathBuf {
        self.dir.with_file_name("build-finished")
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The settings that the build was started with; `None` where there is no unfinished build, or
    /// one that did not get through its first part.
    pub fn settings(&self) -> Result<Option<Settings>> {
        let path = self.dir.join(SETTINGS);
        match fs::read(&path) {
            Ok(text) => {
                let settings = serde_json::from_slice(&text).map_err(|e| {
                    Error::file(&path, format!("not the settings of a build: {e}; remove its folder"))
                })?;
                Ok(self.part(0).is_some().then_some(settings))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // A crash can leave the folder empty or with a half-written temporary file.
                let strange = fs::read_dir(&self.dir)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .find(|entry| !entry.file_name().to_string_lossy().starts_with(SETTINGS));
                match strange {
                    None => Ok(None),
                    Some(_) => Err(Error::file(
                        &self.dir,
                        "this folder is needed for the build, but something else is in it; choose another --out",
                    )),
                }
            }
            Err(e) => Err(Error::io(&path)(e)),
        }
    }

    /// Begins a build.
    pub fn begin(&self, settings: &Settings) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let text = serde_json::json!(settings).to_string();
        Ok(write_atomically(&self.dir.join(SETTINGS), text.as_bytes())?)
    }

    /// The whole parts, in order, up to the first one that is missing or damaged; later ones are
    /// removed.
    pub fn parts(&self) -> Result<Vec<PartMeta>> {
        let mut parts = Vec::new();
        while let Some(part) = self.part(parts.len()) {
            parts.push(part);
        }
        for entry in fs::read_dir(&self.dir).map_err(Error::io(&self.dir))? {
            let entry = entry.map_err(Error::io(&self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("part-").and_then(|n| n.parse::<usize>().ok());
            if number.is_some_and(|number| number >= parts.len()) {
                remove(&entry.path())?;
            }
        }
        Ok(parts)
    }

    fn part(&self, number: usize) -> Option<PartMeta> {
        let dir = self.part_dir(number);
        let manifest = artefact::open(&dir, KIND, VERSION).ok()?;
        let whole = artefact::verify(&dir).ok()?.is_empty();
        whole.then(|| manifest.meta_as(&dir).ok()).flatten()
    }

    /// Keeps part `number`: all of it or, after a crash, none.
    pub fn keep(&self, number: usize, block: &Block, vectors: &[f32], meta: &PartMeta) -> Result<()> {
        let mut writer = Writer::create(&self.part_dir(number), KIND, VERSION)?;
        block.write(&mut writer)?;
        writer.write(VECTORS, bytes_of(vectors))?;
        writer.commit(serde_json::json!(meta))?;
        Ok(())
    }

    /// Reads part `number` back.
    pub fn read(&self, number: usize) -> Result<(Block, Vec<f32>)> {
        let dir = self.part_dir(number);
        let manifest: Manifest = artefact::open(&dir, KIND, VERSION)?;
        Ok((Block::read(&dir, &manifest)?, read_numbers(&manifest.path(&dir, VECTORS)?)?))
    }

    fn part_dir(&self, number: usize) -> PathBuf {
        self.dir.join(format!("part-{number:06}"))
    }

    /// Removes the build.
    pub fn remove(&self) -> Result<()> {
        if self.dir.exists() {
            fs::rename(&self.dir, self.finished()).map_err(Error::io(&self.dir))?;
        }
        remove(&self.finished())
    }
}
