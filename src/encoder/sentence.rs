//! Sentence encoders in sentence-transformers' layout: a BERT network, pooled over its tokens.

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

use super::bert::{Bert, Config, MODEL_TYPE};
use super::folder::{CONFIG, Files, TOKENIZER};
use super::{Encoder, normalise_rows};
use crate::error::{Error, Result};

const MODULES: &str = "modules.json";
/// Where sentence-transformers states the longest text, and where since version 6.
const LIMITS: [(&str, &str); 2] =
    [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")];

/// Padded tokens in a batch: enough to keep the matrix products efficient, little enough that
/// the activations stay in the cache.
const BATCH_TOKENS: usize = 2048;

/// A BERT-family sentence encoder (Sentence-BERT, <https://arxiv.org/abs/1908.10084>), read from
/// a folder with `config.json`, `tokenizer.json`, `model.safetensors` and, where it comes from
/// sentence-transformers, `modules.json`, the pooling module's `config.json`, and
/// `sentence_bert_config.json` or `tokenizer_config.json` for the longest text. Without those it pools by the mean, as sentence-transformers does.
///
/// Vectors are those of `SentenceTransformer.encode(normalize_embeddings=True)`, except that a
/// text without a token gives a zero row.
pub struct SentenceEncoder {
    name: String,
    identity: String,
    tokenizer: Tokenizer,
    network: Bert,
    pooling: Pooling,
    dim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pooling {
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
        match files.model_type()?.as_str() {
            MODEL_TYPE => Self::read(name, files),
            other => {
                let why = format!("model_type {other:?} is no sentence encoder; {MODEL_TYPE:?} is");
                Err(files.fault(CONFIG, why))
            }
        }
    }

    pub(super) fn read(name: &str, mut files: Files) -> Result<Self> {
        let config: Config = files.json(CONFIG)?;
        config.check().map_err(|why| files.fault(CONFIG, why))?;
        let pooling = read_pooling(&mut files)?;
        let max_length = read_limit(&mut files)?.min(config.max_position_embeddings);
        let mut tokenizer = files.tokenizer()?;
        let truncation = TruncationParams { max_length, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| files.fault(TOKENIZER, e.to_string()))?;
        let tokens = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if tokens > config.vocab_size {
            let why =
                format!("holds ids up to {}, but {CONFIG} says vocab_size {}", tokens - 1, config.vocab_size);
            return Err(files.fault(TOKENIZER, why));
        }
        let network = files.weights(|weights| Bert::load(&config, weights))?;
        let identity = files.identity();
        Ok(Self { name: name.into(), identity, tokenizer, network, pooling, dim: config.hidden_size })
    }

    /// The tokenizer, truncating to the longest text that the network reads.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids of each text with the special tokens around it; empty where the text has no token.
    fn tokenize(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let ids = |text: &&str| {
            let encoding =
                self.tokenizer.encode_fast(*text, true).map_err(|e| Error::Tokenizer(e.to_string()))?;
            let bare = encoding.get_special_tokens_mask().iter().all(|&special| special == 1);
            Ok(if bare { Vec::new() } else { encoding.get_ids().to_vec() })
        };
        texts.par_iter().map(ids).collect()
    }

    /// Pooled states `[texts, dim]`, not normalised, of texts given as token ids. Empty ones give
    /// zero rows.
    pub(super) fn pool_ids(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>> {
        // Sorted by length, so that a batch holds little padding.
        let mut order: Vec<usize> = (0..texts.len()).filter(|&i| !texts[i].is_empty()).collect();
        order.sort_by_key(|&i| (texts[i].len(), i));
        let mut batches: Vec<&[usize]> = Vec::new();
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            // A batch is padded to its last text, the longest.
            let fits = |n: &usize| n * texts[rest[n - 1]].len() <= BATCH_TOKENS;
            let n = (1..=rest.len()).take_while(fits).last().unwrap_or(1);
            batches.push(&rest[..n]);
            rest = &rest[n..];
        }
        let run = |batch: &&[usize]| {
            let ids: Vec<&[u32]> = batch.iter().map(|&i| texts[i].as_slice()).collect();
            self.pool(&ids, &self.network.forward(&ids)?)
        };
        let pooled: Vec<Vec<f32>> = batches.par_iter().map(run).collect::<Result<_>>()?;
        let mut rows = vec![0f32; texts.len() * self.dim];
        for (batch, values) in batches.iter().zip(&pooled) {
            for (&i, row) in batch.iter().zip(values.chunks_exact(self.dim)) {
                rows[i * self.dim..][..self.dim].copy_from_slice(row);
            }
        }
        Ok(rows)
    }

    /// One row per text out of the states `[batch, tokens, dim]`, looking at real tokens only.
    fn pool(&self, ids: &[&[u32]], states: &Tensor) -> Result<Vec<f32>> {
        let (_, tokens, dim) = states.dims3()?;
        let states = states.flatten_all()?.to_vec1::<f32>()?;
        let mut rows = vec![0f32; ids.len() * dim];
        for ((row, text), states) in
            rows.chunks_exact_mut(dim).zip(ids).zip(states.chunks_exact(tokens * dim))
        {
            match self.pooling {
                Pooling::Cls => row.copy_from_slice(&states[..dim]),
                Pooling::Mean => {
                    for state in states.chunks_exact(dim).take(text.len()) {
                        row.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
                    }
                    row.iter_mut().for_each(|sum| *sum /= text.len() as f32);
                }
            }
        }
        Ok(rows)
    }
}

impl Encoder for SentenceEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let mut rows = self.pool_ids(&self.tokenize(texts)?)?;
        normalise_rows(&mut rows, self.dim);
        Ok(rows)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &str {
        &self.identity
    }
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

/// The pooling that `modules.json` leads to.
fn read_pooling(files: &mut Files) -> Result<Pooling> {
    let Some(modules) = files.json_optional::<Vec<ModuleEntry>>(MODULES)? else {
        return Ok(Pooling::Mean);
    };
    let mut pooling = None;
    for module in &modules {
        // "sentence_transformers.models.Pooling"; later versions have longer paths.
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if module.path.is_empty() => {}
            "Normalize" => {}
            "Pooling" if pooling.is_none() && is_plain(&module.path) => {
                pooling = Some(read_pooling_config(files, &format!("{}/config.json", module.path))?);
            }
            _ => {
                let why = format!(
                    "module {:?} at {:?} is not read here; one Transformer at the top, one Pooling and Normalize are",
                    module.kind, module.path
                );
                return Err(files.fault(MODULES, why));
            }
        }
    }
    pooling.ok_or_else(|| files.fault(MODULES, "names no Pooling module"))
}

/// Whether a path from a file names a plain folder, so that it cannot lead elsewhere.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && path != ".." && !path.contains(['/', '\\'])
}

fn read_pooling_config(files: &mut Files, file: &str) -> Result<Pooling> {
    let config: serde_json::Map<String, serde_json::Value> = files.json(file)?;
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
