//! What the files of a sentence encoder say besides its weights, in sentence-transformers' layout.

use rayon::prelude::*;
use serde::Deserialize;
use sidenote_index::Metric;
use tokenizers::{Tokenizer, TruncationParams};

use super::config::{Config, Family};
use super::folder::{CONFIG, Files};
use crate::error::{Error, Result};

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
/// Where sentence-transformers states the longest text, and where since version 6.
const LIMITS: [(&str, &str); 2] =
    [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")];

/// A sentence encoder, but for its network.
pub(super) struct Settings {
    /// Truncates to the longest text that the network reads.
    pub tokenizer: Tokenizer,
    pub pooling: Pooling,
    pub prompts: Prompts,
    pub metric: Metric,
}

/// What is put before a text, as the model was trained with.
#[derive(Default)]
pub(super) struct Prompts {
    pub query: String,
    pub document: String,
    /// Whether the model was trained for the inner product; not a prompt, but in their file.
    by_inner_product: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pooling {
    Mean,
    Cls,
}

#[derive(Deserialize)]
struct ModuleEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

impl Settings {
    /// Reads those of a model of this family of BERT's.
    pub fn of_bert(files: &mut Files, family: Family) -> Result<(Config, Self)> {
        let config = files.json(CONFIG)?;
        let config = Config::read(family, &config).map_err(|why| files.fault(CONFIG, why))?;
        let Modules { pooling, normalised, dense } = read_modules(files)?;
        if let Some(folder) = dense.first() {
            let why = format!("the Dense module at {folder:?} is read only after a T5 encoder");
            return Err(files.fault(MODULES, why));
        }
        let prompts = read_prompts(files)?;
        let metric = match normalised {
            Some(true) => Metric::Cosine,
            Some(false) if !prompts.by_inner_product => Metric::Cosine,
            _ => Metric::InnerProduct,
        };
        let max_length = read_limit(files)?.min(config.tokens);
        let tokenizer = truncating(files.tokenizer()?, max_length, files)?;
        let settings = Self { tokenizer, pooling, prompts, metric };
        settings.check_vocabulary(files, config.vocab_size)?;
        Ok((config, settings))
    }

    /// Reads those of a model over a T5 encoder, and the folders of the Dense modules after its pooling.
    pub fn of_t5(files: &mut Files) -> Result<(Self, Vec<String>)> {
        let Modules { pooling, normalised, dense } = read_modules(files)?;
        if pooling != Pooling::Mean {
            return Err(
                files.fault(CONFIG, "a T5 encoder has no first token to pool by; mean pooling is read")
            );
        }
        let _: serde_json::Value = files.json(CONFIG)?;
        let max_length = read_limit(files)?;
        let tokenizer = truncating(files.t5_tokenizer()?, max_length, files)?;
        let metric = if normalised == Some(true) { Metric::Cosine } else { Metric::InnerProduct };
        Ok((Self { tokenizer, pooling, prompts: Prompts::default(), metric }, dense))
    }

    /// Refuses a tokenizer with ids that a network of `rows` words does not have.
    pub fn check_vocabulary(&self, files: &Files, rows: usize) -> Result<()> {
        match self.tokenizer.get_vocab(true).into_values().max() {
            Some(largest) if largest as usize >= rows => {
                let why = format!("holds ids up to {largest}, but {CONFIG} says vocab_size {rows}");
                Err(files.fault(files.tokenizer_file(), why))
            }
            _ => Ok(()),
        }
    }

    /// Ids of each text after its prompt, with the special tokens around it; empty where the text has no token.
    pub fn tokenize(&self, prompt: &str, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let ids = |text: &&str| {
            let fault = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
            let encode = |text: &str| self.tokenizer.encode_fast(text, true).map_err(fault);
            let encoding = encode(text)?;
            if encoding.get_special_tokens_mask().iter().all(|&special| special == 1) {
                return Ok(Vec::new());
            }
            let encoding = if prompt.is_empty() { encoding } else { encode(&format!("{prompt}{text}"))? };
            Ok(encoding.get_ids().to_vec())
        };
        texts.par_iter().map(ids).collect()
    }
}

fn truncating(mut tokenizer: Tokenizer, max_length: usize, files: &Files) -> Result<Tokenizer> {
    let truncation = TruncationParams { max_length, ..Default::default() };
    let fault = |e: tokenizers::Error| files.fault(files.tokenizer_file(), e.to_string());
    tokenizer.with_truncation(Some(truncation)).map_err(fault)?;
    Ok(tokenizer)
}

/// The longest text in tokens, special ones included; very large where nothing states it.
fn read_limit(files: &mut Files) -> Result<usize> {
    for (file, key) in LIMITS {
        let settings: Option<serde_json::Value> = files.json_optional(file)?;
        // Tokenizers without a limit state 1e30, hence the way over f64.
        let Some(limit) = settings.as_ref().and_then(|s| s.get(key)).and_then(|l| l.as_f64()) else {
            continue;
        };
        if limit < 3.0 {
            return Err(files.fault(file, format!("{key} {limit} leaves no room for text")));
        }
        return Ok(limit as usize);
    }
    Ok(usize::MAX)
}

/// The prompts for queries and for documents, by the names that sentence-transformers knows them under.
fn read_prompts(files: &mut Files) -> Result<Prompts> {
    #[derive(Deserialize)]
    struct Settings {
        #[serde(default)]
        prompts: std::collections::BTreeMap<String, String>,
        default_prompt_name: Option<String>,
        similarity_fn_name: Option<String>,
    }
    let Some(Settings { prompts, default_prompt_name, similarity_fn_name }) = files.json_optional(PROMPTS)?
    else {
        return Ok(Prompts::default());
    };
    if let Some(name) = default_prompt_name.as_ref().filter(|name| !prompts.contains_key(*name)) {
        return Err(files.fault(PROMPTS, format!("default_prompt_name {name:?} is not one of the prompts")));
    }
    let prompt = |names: &[&str]| {
        let default = default_prompt_name.as_deref();
        let found = names.iter().copied().chain(default).find_map(|name| prompts.get(name));
        found.cloned().unwrap_or_default()
    };
    Ok(Prompts {
        query: prompt(&["query"]),
        document: prompt(&["document", "passage", "corpus"]),
        by_inner_product: matches!(similarity_fn_name.as_deref(), Some("dot" | "dot_product")),
    })
}

/// What `modules.json` puts after the network.
struct Modules {
    pooling: Pooling,
    /// Whether vectors are made of unit length; unknown without that file.
    normalised: Option<bool>,
    /// Folders of Dense modules after the pooling.
    dense: Vec<String>,
}

/// The modules that `modules.json` leads to.
fn read_modules(files: &mut Files) -> Result<Modules> {
    let Some(modules) = files.json_optional::<Vec<ModuleEntry>>(MODULES)? else {
        return Ok(Modules { pooling: Pooling::Mean, normalised: None, dense: Vec::new() });
    };
    let (mut pooling, mut normalised, mut dense) = (None, false, Vec::new());
    for module in &modules {
        // "sentence_transformers.models.Pooling"; later versions have longer paths.
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if module.path.is_empty() => {}
            "Normalize" => normalised = true,
            "Pooling" if pooling.is_none() && is_plain(&module.path) => {
                pooling = Some(read_pooling_config(files, &format!("{}/config.json", module.path))?);
            }
            "Dense" if pooling.is_some() && !normalised && is_plain(&module.path) => {
                dense.push(module.path.clone());
            }
            _ => {
                let why = format!(
                    "module {:?} at {:?} is not read here; one Transformer at the top, one Pooling, Dense and \
                     Normalize are, in this order",
                    module.kind, module.path
                );
                return Err(files.fault(MODULES, why));
            }
        }
    }
    let pooling = pooling.ok_or_else(|| files.fault(MODULES, "names no Pooling module"))?;
    Ok(Modules { pooling, normalised: Some(normalised), dense })
}

/// Whether a path from a file names a plain folder, so that it cannot lead elsewhere.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && path != ".." && !path.contains(['/', '\\'])
}

fn read_pooling_config(files: &mut Files, file: &str) -> Result<Pooling> {
    let config: serde_json::Map<String, serde_json::Value> = files.json(file)?;
    if config.get("include_prompt").and_then(|include| include.as_bool()) == Some(false) {
        return Err(
            files.fault(file, "include_prompt is false; pooling that leaves out the prompt is not read here")
        );
    }
    // Either one name, or a flag per mode; several modes set would be concatenated.
    let mut modes: Vec<&str> = config
        .iter()
        .filter(|(_, value)| value.as_bool() == Some(true))
        .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
        .collect();
    modes.extend(config.get("pooling_mode").and_then(|mode| mode.as_str()));
    match modes.as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        other => Err(files.fault(file, format!("pooling {other:?} is not read here; mean or cls is"))),
    }
}
