//! Sentence encoders in sentence-transformers' layout: a transformer, pooled over its tokens.

use rayon::prelude::*;
use serde::Deserialize;
use sidenote_index::Metric;
use sidenote_kernels::inference::Threads;
use tokenizers::{Tokenizer, TruncationParams};

use super::config::{Config, Family, MODEL_TYPES};
use super::folder::{CONFIG, Files, TOKENIZER};
use super::network::{Network, Scratch};
use super::{Encoder, normalise_rows};
use crate::error::{Error, Result};

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
/// Where sentence-transformers states the longest text, and where since version 6.
const LIMITS: [(&str, &str); 2] =
    [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")];

/// Tokens that go through the network together on one core: enough that reading the weights costs nothing beside
/// multiplying with them, little enough that what lies between the layers stays in the core's cache.
const BATCH_TOKENS: usize = 224;

/// A sentence encoder of one of the families of BERT (Sentence-BERT, <https://arxiv.org/abs/1908.10084>), read from
/// a folder with `config.json`, `tokenizer.json`, `model.safetensors` and, where it comes from
/// sentence-transformers, `modules.json`, the pooling module's `config.json`, the prompts in
/// `config_sentence_transformers.json`, and `sentence_bert_config.json` or `tokenizer_config.json` for the longest
/// text. Without those it pools by the mean, as sentence-transformers does.
///
/// Vectors are those of `SentenceTransformer.encode_document(normalize_embeddings=True)` and, for queries,
/// `encode_query`, except that a text without a token gives a zero row. They are not normalised, and compared by
/// the inner product, where no `modules.json` says how they were meant (Contriever), or where it names no Normalize
/// and the prompts' file `"dot"` as `similarity_fn_name`. A vector depends on its text alone, to the
/// last bit where the processor has AVX-512: not on what it is encoded with, nor on the number of threads.
pub struct SentenceEncoder {
    name: String,
    identity: String,
    tokenizer: Tokenizer,
    network: Network,
    pooling: Pooling,
    prompts: Prompts,
    metric: Metric,
    dim: usize,
}

/// What is put before a text, as the model was trained with.
#[derive(Default)]
struct Prompts {
    query: String,
    document: String,
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

impl SentenceEncoder {
    /// Reads the encoder in the folder `name`.
    pub fn open(name: &str) -> Result<Self> {
        let files = Files::open(name)?;
        let kind = files.model_type()?;
        let Some((_, family)) = MODEL_TYPES.into_iter().find(|(name, _)| *name == kind) else {
            let why = format!(
                "model_type {kind:?} is no sentence encoder; {:?} are",
                MODEL_TYPES.map(|(name, _)| name)
            );
            return Err(files.fault(CONFIG, why));
        };
        Self::read(name, files, family)
    }

    pub(super) fn read(name: &str, mut files: Files, family: Family) -> Result<Self> {
        let config = files.json(CONFIG)?;
        let config = Config::read(family, &config).map_err(|why| files.fault(CONFIG, why))?;
        let Modules { pooling, normalised, dense } = read_modules(&mut files)?;
        if let Some(folder) = dense.first() {
            let why = format!("the Dense module at {folder:?} is read only after a T5 encoder");
            return Err(files.fault(MODULES, why));
        }
        let prompts = read_prompts(&mut files)?;
        let metric = match normalised {
            Some(true) => Metric::Cosine,
            Some(false) if !prompts.by_inner_product => Metric::Cosine,
            _ => Metric::InnerProduct,
        };
        let max_length = read_limit(&mut files)?.min(config.tokens);
        let mut tokenizer = files.tokenizer()?;
        let truncation = TruncationParams { max_length, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| files.fault(TOKENIZER, e.to_string()))?;
        let tokens = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if tokens > config.vocab_size {
            let why =
                format!("holds ids up to {}, but {CONFIG} says vocab_size {}", tokens - 1, config.vocab_size);
            return Err(files.fault(TOKENIZER, why));
        }
        let network = files.weights(|weights| Network::load(&config, weights))?;
        let identity = files.identity();
        Ok(Self {
            name: name.into(),
            identity,
            tokenizer,
            network,
            pooling,
            prompts,
            metric,
            dim: config.hidden,
        })
    }

    /// The tokenizer, truncating to the longest text that the network reads.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids of each text after its prompt, with the special tokens around it; empty where the text has no token.
    fn tokenize(&self, prompt: &str, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
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

    /// Pooled states `[texts, dim]`, not normalised, of texts given as token ids. Empty ones give
    /// zero rows.
    pub(super) fn pool_ids(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>> {
        let mut rows = vec![0f32; texts.len() * self.dim];
        let mut batches: Vec<Vec<(&[u32], &mut [f32])>> = Vec::new();
        let mut room = 0;
        for (ids, row) in texts.iter().zip(rows.chunks_exact_mut(self.dim)).filter(|(ids, _)| !ids.is_empty())
        {
            if room < ids.len() || batches.is_empty() {
                batches.push(Vec::new());
                room = BATCH_TOKENS;
            }
            room = room.saturating_sub(ids.len());
            if let Some(batch) = batches.last_mut() {
                batch.push((ids, row));
            }
        }
        // A core computes a batch; the cores share one where there are fewer batches.
        let threads = if batches.len() < rayon::current_num_threads() { Threads::All } else { Threads::One };
        batches.into_par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, batch| {
            let (texts, rows): (Vec<&[u32]>, Vec<&mut [f32]>) = batch.into_iter().unzip();
            let states = self.network.forward(&texts, scratch, threads);
            let mut states = &states[..];
            for (ids, row) in texts.iter().zip(rows) {
                let (own, others) = states.split_at(ids.len() * self.dim);
                self.pool(own, row);
                states = others;
            }
        });
        Ok(rows)
    }

    /// One row out of the states `[tokens, dim]` of a text.
    fn pool(&self, states: &[f32], row: &mut [f32]) {
        match self.pooling {
            Pooling::Cls => row.copy_from_slice(&states[..self.dim]),
            Pooling::Mean => {
                for state in states.chunks_exact(self.dim) {
                    row.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
                }
                let tokens = (states.len() / self.dim) as f32;
                row.iter_mut().for_each(|sum| *sum /= tokens);
            }
        }
    }

    fn encode_after(&self, prompt: &str, texts: &[&str]) -> Result<Vec<f32>> {
        let mut rows = self.pool_ids(&self.tokenize(prompt, texts)?)?;
        if self.metric == Metric::Cosine {
            normalise_rows(&mut rows, self.dim);
        }
        Ok(rows)
    }
}

impl Encoder for SentenceEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        self.encode_after(&self.prompts.document, texts)
    }

    fn encode_queries(&self, texts: &[&str]) -> Result<Vec<f32>> {
        self.encode_after(&self.prompts.query, texts)
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &str {
        &self.identity
    }
}

/// The longest text in tokens, special ones included; very large where nothing states it.
pub(super) fn read_limit(files: &mut Files) -> Result<usize> {
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
pub(super) struct Modules {
    pub pooling: Pooling,
    /// Whether vectors are made of unit length; unknown without that file.
    pub normalised: Option<bool>,
    /// Folders of Dense modules after the pooling.
    pub dense: Vec<String>,
}

/// The modules that `modules.json` leads to.
pub(super) fn read_modules(files: &mut Files) -> Result<Modules> {
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
