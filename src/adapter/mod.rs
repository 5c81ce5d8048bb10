//! Parameter-efficient tuning: what is added to a model that stays as it is, one file a method, in the file format of
//! Hugging Face's PEFT.
//!
//! A network does not know the methods. Its linear layers ask for a [`Change`] by their names, its biases for a value
//! of their own, and its first block for tokens that are no text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

mod bitfit;
mod change;
mod file;
mod ia3;
mod lora;
mod method;
mod prefix;
mod prompt;

pub use bitfit::BitFit;
pub use change::{Change, Part};
pub use file::{CONFIG, Saved, save};
pub use ia3::Ia3;
pub use lora::Lora;
pub use method::{Method, names};
pub use prefix::Prefix;
pub use prompt::{PROMPT, Prompt};

/// An adapter that is to be attached to a model: a method, and its tensors where they were learnt before.
#[derive(Debug)]
pub struct Adapter {
    /// How it changes the model.
    pub method: Method,
    /// The model that it was made for, as its file names it.
    pub base: Option<String>,
    /// The folder that it was read from.
    path: Option<PathBuf>,
    /// By name, without PEFT's `base_model.model.`; empty for one that is not trained yet.
    tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// One that is not trained yet.
    pub fn new(method: Method) -> Self {
        Self { method, base: None, path: None, tensors: BTreeMap::new() }
    }

    /// The folder that it was read from; none for one that is not trained yet.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Names of the tensors that were learnt before.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor that was learnt before.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// What the linear layer `module`, from `input` to `output` numbers, has of it; nothing for most layers.
    pub fn parts(&self, module: &str, input: usize, output: usize) -> Vec<Part> {
        let parts = self.method.parts(module, input, output);
        if self.path.is_none() {
            return if self.method.selects(module) { parts } else { Vec::new() };
        }
        // What was learnt says by itself where it belongs and how large it is.
        let learnt = |mut part: Part| {
            let tensor = self.tensors.get(&part.name)?;
            part.shape = tensor.dims().to_vec();
            Some(part)
        };
        parts.into_iter().filter_map(learnt).collect()
    }
}
