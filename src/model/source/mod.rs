//! A checkpoint, whatever its format, in transformers' terms: `config.json`, tensors by name, a
//! tokenizer.
//!
//! Nothing is read before it is asked for: files are memory-mapped, and a tensor is copied out of
//! them when it is taken.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::Value;

use crate::corpus::Tokenizer;
use crate::error::{Error, Result};
use crate::hub;

mod blocks;
mod chat;
mod delta;
mod folder;
mod gguf;
mod llama2c;
mod safetensors;
#[cfg(test)]
mod tests;
mod torch;
mod vocabulary;

pub use blocks::{BlockKind, Blocks};
pub use chat::{ChatTemplate, Message};
pub use delta::{BASE_MODEL, BaseModel};
pub(crate) use folder::{SENTENCEPIECE, TOKENIZER_CONFIG};

/// A tensor as its file holds it.
#[derive(Debug, Clone)]
pub enum Stored {
    /// Numbers, on the CPU and in the file's own type.
    Dense(Tensor),
    /// Blocks of a few bits a number, as GGUF files have them.
    Blocks(Blocks),
}

impl Stored {
    /// The shape, in PyTorch's order: the last dimension is contiguous.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Blocks(blocks) => blocks.shape(),
        }
    }

    /// The numbers as f32, on the CPU.
    pub fn to_f32(&self) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor.to_dtype(DType::F32)?),
            Self::Blocks(blocks) => blocks.dequantise(),
        }
    }
}

/// What every format gives.
trait Checkpoint: Send + Sync {
    /// The file to name when a tensor is at fault.
    fn weights(&self) -> &Path;
    fn config(&self) -> &Value;
    fn names(&self) -> Vec<String>;
    /// The tensor `name`, which is one of `names`.
    fn read(&self, name: &str) -> Result<Stored>;
    fn tokenizer(&self) -> Result<Tokenizer>;
    fn chat_template(&self) -> Result<Option<ChatTemplate>>;
    fn end_tokens(&self) -> Vec<u32>;
    /// Whether it was made by this program, which trains on documents that begin where another ends.
    fn is_ours(&self) -> bool {
        false
    }
}

/// An opened checkpoint.
pub struct Source {
    path: PathBuf,
    checkpoint: Box<dyn Checkpoint>,
    /// What was not taken, and how the checkpoint calls it.
    left: BTreeMap<String, String>,
}

impl Source {
    /// Opens the checkpoint called `name`: a folder in Hugging Face's layout, a file in GGUF,
    /// safetensors, PyTorch's or llama2.c's format, or what [`hub::resolve`] finds.
    ///
    /// # Errors
    /// Names the file, and the field or tensor in it, that is missing or cannot be read.
    pub fn open(name: impl AsRef<Path>) -> Result<Self> {
        let path = hub::resolve(name.as_ref())?;
        let checkpoint = open(&path)?;
        let left = checkpoint.names().into_iter().map(|name| (name.clone(), name)).collect();
        Ok(Self { path, checkpoint, left })
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds the tensors (the index, where there are several).
    pub fn weights(&self) -> &Path {
        self.checkpoint.weights()
    }

    /// The content of `config.json` in transformers' terms, whatever the format.
    pub fn config(&self) -> &Value {
        self.checkpoint.config()
    }

    /// Names of the tensors in transformers' terms, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.checkpoint.names();
        names.sort();
        names
    }

    /// Names of the tensors that were not taken, sorted.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    /// The tensor `name`, read now; `None` if there is none, or it was taken before.
    pub fn take(&mut self, name: &str) -> Result<Option<Stored>> {
        let called = self.left.remove(name);
        called.map(|called| self.checkpoint.read(&called)).transpose()
    }

    /// The tensor `name`, which stays to be taken; `None` if there is none, or it was taken before.
    pub fn peek(&self, name: &str) -> Result<Option<Stored>> {
        self.left.get(name).map(|called| self.checkpoint.read(called)).transpose()
    }

    /// Whether the tensor `name` is there to be taken.
    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// From now on, the tensor `from` is to be taken under the name `to`; no effect where there is none.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(called) = self.left.remove(from) {
            self.left.insert(to.to_string(), called);
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.checkpoint.tokenizer()
    }

    /// How conversations look as text, where the checkpoint says.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        self.checkpoint.chat_template()
    }

    /// Tokens at which generation ends, as the checkpoint says; empty if it does not say.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.checkpoint.end_tokens()
    }

    /// The model underneath, of one that is stored as what it adds to another.
    pub fn base_model(&self) -> Result<Option<BaseModel>> {
        BaseModel::read(self.config(), &self.path)
    }

    /// Whether it was made by this program, which trains on documents that begin where another ends.
    pub fn is_ours(&self) -> bool {
        self.checkpoint.is_ours()
    }

    /// An error about the checkpoint's tensors.
    pub fn fault(&self, why: impl Into<String>) -> Error {
        Error::file(self.weights(), why)
    }
}

/// Opens what is at `path`, by what it looks like.
fn open(path: &Path) -> Result<Box<dyn Checkpoint>> {
    if path.is_dir() {
        return match only_gguf(path)? {
            Some(file) => open(&file),
            None => {
                let folder = folder::Folder::open(path)?;
                match folder.config().get(BASE_MODEL) {
                    Some(_) => Ok(Box::new(delta::Delta::open(path, folder)?)),
                    None => Ok(Box::new(folder)),
                }
            }
        };
    }
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(64).read_to_end(&mut start)).map_err(Error::io(path))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if start.starts_with(b"GGUF") {
        Ok(Box::new(gguf::Gguf::open(path)?))
    } else if path.extension().is_some_and(|end| end == "safetensors") || start.starts_with(b"PK") {
        Ok(Box::new(folder::Folder::with_weights(parent, path)?))
    } else if llama2c::Llama2c::looks_like(&start) {
        Ok(Box::new(llama2c::Llama2c::open(path)?))
    } else {
        let why = "not a checkpoint that is read here: a folder, or a file in GGUF, safetensors, PyTorch's or llama2.c's format";
        Err(Error::file(path, why))
    }
}

/// The GGUF file of a folder that has one, and no `config.json`.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    if folder.join(folder::CONFIG).exists() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_some_and(|end| end == "gguf") {
            found.push(path);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(Error::file(folder, format!("holds {n} GGUF files; name one of them"))),
    }
}
