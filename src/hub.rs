//! Names of models: a folder or file, else what the Hugging Face cache has, else what the hub has.
//!
//! The environment variables are those of Python's `huggingface_hub`: `HF_HUB_CACHE` or `HF_HOME`
//! (where the cache is), `HF_ENDPOINT`, `HF_TOKEN`, and `HF_HUB_OFFLINE`, with which no network is
//! tried.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};

use crate::error::{Error, Result};

/// Files of a model besides its weights, of which it has some.
const FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
];

/// Weights, the best kind first: one file, or the index of several.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Where models are looked for.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Folder with `models--ORG--NAME` folders in it.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// Whom to be there.
    pub token: Option<String>,
    /// Whether to try no network.
    pub offline: bool,
}

/// The folder or file of the model called `name`, as the environment says where to look.
///
/// # Errors
/// Says where the model was looked for.
pub fn resolve(name: &Path) -> Result<PathBuf> {
    if name.exists() {
        return Ok(name.to_path_buf());
    }
    Hub::from_env().find(name)
}

impl Hub {
    /// What the environment says.
    pub fn from_env() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let base = set("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(Path::new(&set("HOME")?).join(".cache")));
            base.unwrap_or_else(|| ".cache".into()).join("huggingface")
        });
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(home.join("token")).ok());
        let yes = |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Self {
            cache: set("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| home.join("hub")),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }

    /// Finds `ORG/NAME` (a folder), or `ORG/NAME/FILE.gguf`, in the cache or on the hub.
    ///
    /// # Errors
    /// Says where the model was looked for.
    pub fn find(&self, name: &Path) -> Result<PathBuf> {
        let Some((repository, file)) = repository(name) else {
            return Err(Error::file(name, "there is no such folder or file"));
        };
        let cached = Cache::new(self.cache.clone()).repo(Repo::model(repository.clone()));
        let complete = match &file {
            Some(file) => cached.get(file),
            None => cached.get("config.json").and_then(|path| complete(path.parent()?)),
        };
        if let Some(path) = complete {
            return Ok(path);
        }
        let nowhere = format!("there is no such folder or file, {} does not have it", self.cache.display());
        if self.offline {
            return Err(Error::file(name, format!("{nowhere}, and HF_HUB_OFFLINE is set")));
        }
        let failed = |e: ApiError| Error::file(name, format!("{nowhere}, and {} says: {e}", self.endpoint));
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_string())
            .with_token(self.token.clone())
            .with_progress(std::io::stderr().is_terminal())
            .build()
            .map_err(failed)?;
        let repo = api.repo(Repo::model(repository));
        match file {
            Some(file) => repo.get(&file).map_err(failed),
            None => fetch(&repo, name, failed),
        }
    }
}

/// Repository and file that a name means; `None` for what can only be a path.
fn repository(name: &Path) -> Option<(String, Option<String>)> {
    let text = name.to_str()?;
    let parts: Vec<&str> = text.split('/').collect();
    let plain = |part: &&str| {
        let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        letters && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !parts.iter().all(plain) {
        return None;
    }
    match parts.as_slice() {
        // Where there is such a folder here, the rest is a slip of the hand.
        [owner, _] | [owner, _, _] if Path::new(owner).is_dir() => None,
        [owner, model] => Some((format!("{owner}/{model}"), None)),
        [owner, model, file] if file.ends_with(".gguf") => {
            Some((format!("{owner}/{model}"), Some(file.to_string())))
        }
        _ => None,
    }
}

/// `folder`, if all of a model's weights are in it.
fn complete(folder: &Path) -> Option<PathBuf> {
    let has = |name: &str| folder.join(name).exists();
    let weights = WEIGHTS.into_iter().find(|name| has(name))?;
    let whole =
        !weights.ends_with(".index.json") || shards(&folder.join(weights))?.iter().all(|shard| has(shard));
    whole.then(|| folder.to_path_buf())
}

/// The files that an index of weights names.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_str(&fs::read_to_string(index).ok()?).ok()?;
    let files = index["weight_map"].as_object()?.values();
    files.map(|file| Some(file.as_str()?.to_string())).collect()
}

/// Fetches what a model needs; the folder that it is then in.
fn fetch(repo: &ApiRepo, name: &Path, failed: impl Fn(ApiError) -> Error) -> Result<PathBuf> {
    let there: BTreeSet<String> =
        repo.info().map_err(&failed)?.siblings.into_iter().map(|file| file.rfilename).collect();
    let weights = WEIGHTS.into_iter().find(|weights| there.contains(*weights));
    let Some(weights) = weights.filter(|_| there.contains("config.json")) else {
        let gguf: Vec<&str> =
            there.iter().map(String::as_str).filter(|file| file.ends_with(".gguf")).collect();
        return match gguf.as_slice() {
            [] => Err(Error::file(
                name,
                "the hub's model has no config.json with weights in safetensors or PyTorch's format",
            )),
            [file] => repo.get(file).map_err(failed),
            several => {
                let why = format!(
                    "the hub has several GGUF files of it; give {}/FILE with one of: {}",
                    name.display(),
                    several.join(", ")
                );
                Err(Error::file(name, why))
            }
        };
    };
    let path = repo.get(weights).map_err(&failed)?;
    let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
    if weights.ends_with(".index.json") {
        let shards =
            shards(&path).ok_or_else(|| Error::file(&path, "weight_map is missing, or names no files"))?;
        for shard in shards {
            if !there.contains(&shard) {
                return Err(Error::file(&path, format!("names {shard:?}, which the hub does not have")));
            }
            repo.get(&shard).map_err(&failed)?;
        }
    }
    for file in FILES.into_iter().filter(|file| there.contains(*file)) {
        repo.get(file).map_err(&failed)?;
    }
    Ok(folder)
}
