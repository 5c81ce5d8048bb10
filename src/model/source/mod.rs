//! A checkpoint, whatever its format, in transformers' terms: `config.json`, tensors by name, a
//! tokenizer.
//!
//! Nothing is read before it is asked for: files are memory-mapped, and a tensor is copied out of
//! them when it is taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::Value;

use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

mod blocks;
mod folder;
mod safetensors;

pub use blocks::{BlockKind, Blocks};

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
    fn end_tokens(&self) -> Vec<u32>;
}

/// An opened checkpoint.
pub struct Source {
    path: PathBuf,
    checkpoint: Box<dyn Checkpoint>,
    /// What was not taken, and how the checkpoint calls it.
    left: BTreeMap<String, String>,
}

impl Source {
    /// Opens the checkpoint called `name`: a folder in Hugging Face's layout.
    ///
    /// # Errors
    /// Names the file, and the field or tensor in it, that is missing or cannot be read.
    pub fn open(name: impl AsRef<Path>) -> Result<Self> {
        let path = name.as_ref().to_path_buf();
        let checkpoint = Box::new(folder::Folder::open(&path)?);
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

    /// Tokens at which generation ends, as the checkpoint says; empty if it does not say.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.checkpoint.end_tokens()
    }

    /// An error about the checkpoint's tensors.
    pub fn fault(&self, why: impl Into<String>) -> Error {
        Error::file(self.weights(), why)
    }
}
