//! A folder in Hugging Face's layout: `config.json`, `tokenizer.json`, weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chat::ChatTemplate;
use super::{Checkpoint, Stored, safetensors, torch};
use crate::artefact;
use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

pub(super) const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
pub(crate) const SENTENCEPIECE: &str = "spiece.model";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
const TORCH_WEIGHTS: &str = "pytorch_model.bin";
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";

pub(super) struct Folder {
    folder: PathBuf,
    config: Value,
    generation: Value,
    weights: PathBuf,
    files: Files,
}

enum Files {
    Safetensors(safetensors::Files),
    Torch(torch::Files),
}

impl Folder {
    /// The model in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let all = [WEIGHTS, WEIGHTS_INDEX, TORCH_WEIGHTS, TORCH_INDEX].map(|name| folder.join(name));
        let weights = all.iter().find(|path| path.exists()).unwrap_or(&all[0]);
        Self::with_weights(folder, weights)
    }

    /// The model in `folder` with these of its weights.
    pub fn with_weights(folder: &Path, weights: &Path) -> Result<Self> {
        let config = folder.join(CONFIG);
        let config = json(&config)?.ok_or_else(|| {
            Error::io(config)(io::Error::new(io::ErrorKind::NotFound, "the file is missing; a model has one"))
        })?;
        let generation = json(&folder.join(GENERATION_CONFIG))?.unwrap_or_default();
        let name = weights.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let path = weights.to_path_buf();
        let files = match (name.contains(".safetensors"), name.ends_with(".index.json")) {
            (true, false) => Files::Safetensors(safetensors::Files::single(path)?),
            (true, true) => Files::Safetensors(safetensors::Files::sharded(weights)?),
            (false, false) => Files::Torch(torch::Files::single(path)?),
            (false, true) => Files::Torch(torch::Files::sharded(weights)?),
        };
        Ok(Self { folder: folder.to_path_buf(), config, generation, weights: weights.to_path_buf(), files })
    }
}

impl Checkpoint for Folder {
    fn weights(&self) -> &Path {
        &self.weights
    }

    fn config(&self) -> &Value {
        &self.config
    }

    fn names(&self) -> Vec<String> {
        match &self.files {
            Files::Safetensors(files) => files.names(),
            Files::Torch(files) => files.names(),
        }
    }

    fn read(&self, name: &str) -> Result<Stored> {
        match &self.files {
            Files::Safetensors(files) => files.read(name),
            Files::Torch(files) => files.read(name),
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let (path, old) = (self.folder.join(TOKENIZER), self.folder.join(SENTENCEPIECE));
        if path.exists() || !old.exists() {
            return Tokenizer::open(&path);
        }
        // T5 states how many sentinels come after the pieces; 100 where it does not.
        let settings = json(&self.folder.join(TOKENIZER_CONFIG))?.unwrap_or_default();
        let extra_ids = settings["extra_ids"].as_u64().unwrap_or(100).min(1 << 16) as usize;
        let model = fs::read(&old).map_err(Error::io(&old))?;
        Tokenizer::from_sentencepiece(&model, extra_ids).map_err(|e| Error::file(&old, e.to_string()))
    }

    fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let path = self.folder.join(TOKENIZER_CONFIG);
        let config = json(&path)?.unwrap_or_default();
        let alone = self.folder.join(CHAT_TEMPLATE);
        let (path, template) = match fs::read_to_string(&alone) {
            Ok(template) => (alone, Some(template)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (path, template(&config["chat_template"])),
            Err(e) => return Err(Error::io(alone)(e)),
        };
        let Some(template) = template else { return Ok(None) };
        let [bos, eos] = ["bos_token", "eos_token"].map(|name| token(&config[name]));
        ChatTemplate::new(&template, bos, eos).map(Some).map_err(|e| Error::file(path, e.to_string()))
    }

    fn is_ours(&self) -> bool {
        self.folder.join(artefact::MANIFEST).exists()
    }

    fn end_tokens(&self) -> Vec<u32> {
        let said = [&self.generation, &self.config].map(|json| ids(&json["eos_token_id"]));
        said.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
    }
}

/// The template, or the one called "default" among several.
fn template(value: &Value) -> Option<String> {
    let named = |named: &&Value| named["name"] == "default";
    match value {
        Value::Array(several) => several.iter().find(named)?["template"].as_str().map(String::from),
        value => value.as_str().map(String::from),
    }
}

/// A token as its text, or as an object that says more.
fn token(value: &Value) -> Option<String> {
    value.as_str().or(value["content"].as_str()).map(String::from)
}

/// One token id or several.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}

/// Reads a JSON file that may be absent.
fn json(path: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| Error::file(path, e.to_string()))
}
