//! A folder in Hugging Face's layout: `config.json`, `tokenizer.json`, weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::safetensors::Files;
use super::{Checkpoint, Stored};
use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const SENTENCEPIECE: &str = "spiece.model";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

pub(super) struct Folder {
    folder: PathBuf,
    config: Value,
    generation: Value,
    weights: PathBuf,
    files: Files,
}

impl Folder {
    pub fn open(folder: &Path) -> Result<Self> {
        let config = folder.join(CONFIG);
        let config = json(&config)?.ok_or_else(|| {
            Error::io(config)(io::Error::new(io::ErrorKind::NotFound, "the file is missing; a model has one"))
        })?;
        let generation = json(&folder.join(GENERATION_CONFIG))?.unwrap_or_default();
        let (single, index) = (folder.join(WEIGHTS), folder.join(WEIGHTS_INDEX));
        let (weights, files) = match !single.exists() && index.exists() {
            true => (index.clone(), Files::sharded(&index)?),
            false => (single.clone(), Files::single(single)?),
        };
        Ok(Self { folder: folder.to_path_buf(), config, generation, weights, files })
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
        self.files.names()
    }

    fn read(&self, name: &str) -> Result<Stored> {
        self.files.read(name)
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

    fn end_tokens(&self) -> Vec<u32> {
        let said = [&self.generation, &self.config].map(|json| ids(&json["eos_token_id"]));
        said.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
    }
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
