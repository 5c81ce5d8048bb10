//! An unfinished build or `add`: the parts of the work that are done, kept so that it can go on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::generation::remove;
use crate::artefact::{self, Manifest, Writer, write_atomically};
use crate::corpus::{Block, Document, bytes_of, read_numbers};
use crate::{Error, Result};

const KIND: &str = "index-part";
/// The second has other documents in a part.
const VERSION: u32 = 2;
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

/// What the manifest of a part of the work says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PartMeta {
    /// Documents read for this part.
    pub documents: usize,
    /// Documents in this part: those read, without those left out on purpose.
    #[serde(default)]
    pub kept: usize,
    /// Chunks in this part.
    pub chunks: usize,
    /// Hash over all documents up to the end of this part.
    pub corpus: String,
}

/// The folder of an unfinished build (`build`) or `add` (`add`).
pub(super) struct Unfinished {
    dir: PathBuf,
}

impl Unfinished {
    /// The unfinished work called `name` on the index `out`, which need not exist. Clears away what
    /// a crash left of work that did finish.
    pub fn of(out: &Path, name: &str) -> Result<Self> {
        let work = Self { dir: out.join(name) };
        remove(&work.finished())?;
        Ok(work)
    }

    /// Where finished work goes to be removed: a crash in the middle of removing a folder leaves
    /// some of it, which must not be taken for unfinished work.
    fn finished(&self) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push("-finished");
        self.dir.with_file_name(name)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The settings that the work was started with; `None` where there is no unfinished work, or
    /// none that got through its first part.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let path = self.dir.join(SETTINGS);
        match fs::read(&path) {
            Ok(text) => {
                let settings = serde_json::from_slice(&text).map_err(|e| {
                    Error::file(&path, format!("not the settings of unfinished work: {e}; remove its folder"))
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
                        "this folder is needed to work in, but something else is in it; remove that or choose another --out",
                    )),
                }
            }
            Err(e) => Err(Error::io(&path)(e)),
        }
    }

    /// Begins the work.
    pub fn begin(&self, settings: &impl Serialize) -> Result<()> {
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

    /// Removes the work.
    pub fn remove(&self) -> Result<()> {
        if self.dir.exists() {
            fs::rename(&self.dir, self.finished()).map_err(Error::io(&self.dir))?;
        }
        remove(&self.finished())
    }
}
