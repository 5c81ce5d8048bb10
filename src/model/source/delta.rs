//! A model that is another one with tensors added, which alone are in its folder: what RETRO-fit makes of a decoder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::ChatTemplate;
use super::folder::{CONFIG, Folder};
use super::{Checkpoint, Source, Stored};
use crate::corpus::{Tokenizer, bytes_of};
use crate::error::{Error, Result};

/// The field of `config.json` that names the model underneath.
pub const BASE_MODEL: &str = "base_model";

/// The model underneath, as `config.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseModel {
    /// As the user called it.
    pub name: PathBuf,
    /// Where it lies, from the folder of the model that stands on it; once read, from the root. Absent for one from
    /// the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Hash over its tensors as they are stored.
    pub blake3: String,
}

impl BaseModel {
    /// The model called `name`, which `source` has opened.
    pub fn of(name: &Path, source: &Source) -> Result<Self> {
        Ok(Self { name: name.into(), path: whole(name), blake3: fingerprint(&*source.checkpoint)? })
    }

    /// What the configuration of a model in the folder `dir` says of it; none of a model that stands alone.
    pub fn read(config: &Value, dir: &Path) -> Result<Option<Self>> {
        let Some(base) = config.get(BASE_MODEL) else { return Ok(None) };
        let base: Self = serde_json::from_value(base.clone())
            .map_err(|e| Error::file(dir.join(CONFIG), format!("{BASE_MODEL}: {e}")))?;
        let beside = base.path.as_ref().and_then(|path| whole(&dir.join(path)));
        Ok(Some(Self { path: beside.or_else(|| whole(&base.name)), ..base }))
    }

    /// The same, as a model in the folder `dir` names it, which need not be there yet.
    pub fn seen_from(&self, dir: &Path) -> Self {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = whole(parent).zip(dir.file_name()).map(|(parent, name)| parent.join(name));
        let path = dir.zip(self.path.as_ref()).map(|(dir, path)| way(&dir, path));
        Self { path, ..self.clone() }
    }
}

/// The path of what is there, from the root and without detours.
fn whole(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// The way from the folder `from` to `to`, both absolute.
fn way(from: &Path, to: &Path) -> PathBuf {
    let (from, to): (Vec<_>, Vec<_>) = (from.components().collect(), to.components().collect());
    let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(Path::new(".."), from.len() - same);
    up.chain(to[same..].iter().map(|part| part.as_ref())).collect()
}

/// Hash over all tensors as they are stored.
fn fingerprint(checkpoint: &dyn Checkpoint) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut names = checkpoint.names();
    names.sort();
    for name in names {
        let stored = checkpoint.read(&name)?;
        hasher.update(format!("{name} {:?} ", stored.shape()).as_bytes());
        match &stored {
            Stored::Blocks(blocks) => {
                hasher.update(format!("{:?}", blocks.kind()).as_bytes()).update(blocks.bytes())
            }
            // Of f16 and bf16 too: widening them loses nothing.
            Stored::Dense(_) => hasher.update(bytes_of(&stored.to_f32()?.flatten_all()?.to_vec1::<f32>()?)),
        };
    }
    Ok(hasher.finalize().to_hex()[..32].to_string())
}

/// Such a model, opened with the one underneath.
pub(super) struct Delta {
    own: Folder,
    base: Box<dyn Checkpoint>,
    config: Value,
}

impl Delta {
    /// What `own`, in the folder `dir`, adds to the model that it names.
    ///
    /// # Errors
    /// When that is not there, or is another one.
    pub fn open(dir: &Path, own: Folder) -> Result<Self> {
        let fault = |why: String| Error::file(dir.join(CONFIG), why);
        let Some(named) = BaseModel::read(own.config(), dir)? else {
            return Err(fault(format!("{BASE_MODEL}: is missing")));
        };
        let name = named.name.display();
        let base = Source::open(named.path.as_ref().unwrap_or(&named.name)).map_err(|e| {
            let was = own.config()[BASE_MODEL]["path"].as_str().unwrap_or_default();
            let hint = "put it back, or write where it is into this field";
            fault(format!("{BASE_MODEL}: this model stands on {name} (from here: {was:?}); {hint}: {e}"))
        })?;
        let found = fingerprint(&*base.checkpoint)?;
        if found != named.blake3 {
            let why = format!(
                "{BASE_MODEL}: this model stands on {name} with the weights {}, but those there are {found}",
                named.blake3
            );
            return Err(fault(why));
        }
        let mut config = base.config().clone();
        if let (Some(all), Some(own)) = (config.as_object_mut(), own.config().as_object()) {
            all.extend(own.clone());
        }
        Ok(Self { own, base: base.checkpoint, config })
    }
}

impl Checkpoint for Delta {
    fn weights(&self) -> &Path {
        self.own.weights()
    }

    fn config(&self) -> &Value {
        &self.config
    }

    fn names(&self) -> Vec<String> {
        [self.base.names(), self.own.names()].concat()
    }

    fn read(&self, name: &str) -> Result<Stored> {
        match self.own.names().iter().any(|own| own == name) {
            true => self.own.read(name),
            false => self.base.read(name),
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        self.base.tokenizer()
    }

    fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        self.base.chat_template()
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.base.end_tokens()
    }

    fn is_ours(&self) -> bool {
        self.base.is_ours()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_between_folders() {
        for (from, to, expected) in [
            ("/runs/retro/model", "/runs/plain/model", "../../plain/model"),
            ("/runs/a", "/runs/a/b.gguf", "b.gguf"),
            ("/x", "/y/z", "../y/z"),
        ] {
            assert_eq!(way(Path::new(from), Path::new(to)), Path::new(expected));
        }
    }
}
