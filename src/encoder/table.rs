//! Static encoders: one vector per token, summed.

use rayon::prelude::*;
use tokenizers::{ModelWrapper, Tokenizer};

use super::folder::{CONFIG, Files, WEIGHTS};
use super::{Encoder, normalise_rows};
use crate::error::{Error, Result};

pub(super) const MODEL_TYPE: &str = "model2vec";

/// A table of token vectors: a text's vector is the mean of its tokens' vectors, each times its
/// token's weight, scaled to unit length (model2vec, <https://github.com/MinishLab/model2vec>, whose
/// folders this reads). Unknown tokens count for nothing.
///
/// The folder holds `config.json` with `"model_type": "model2vec"`, `tokenizer.json`, and
/// `model.safetensors` with `embeddings` `[vocab, dim]` (floating point or I8) and optionally
/// `weights` `[vocab]`, which for I8 rows is weight and quantisation step in one.
pub struct StaticEncoder {
    name: String,
    identity: String,
    tokenizer: Tokenizer,
    /// Weighted rows `[vocab, dim]`; the unknown token's is zero.
    table: Vec<f32>,
    dim: usize,
}

impl StaticEncoder {
    pub(super) fn read(name: &str, mut files: Files) -> Result<Self> {
        files.json::<serde_json::Value>(CONFIG)?; // states what it was made from, which makes it another encoder
        let tokenizer = files.tokenizer()?;
        let tokens = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let (mut table, dim) = files.weights(|weights| {
            let dim = weights.shape("embeddings")?.get(1).copied().unwrap_or(0);
            let mut table = weights.values("embeddings", &[tokens, dim])?;
            if weights.has("weights") {
                let weights = weights.values("weights", &[tokens])?;
                for (row, weight) in table.chunks_exact_mut(dim.max(1)).zip(weights) {
                    row.iter_mut().for_each(|x| *x *= weight);
                }
            }
            Ok((table, dim))
        })?;
        if table.is_empty() || table.iter().any(|x| !x.is_finite()) {
            let why = "tensors \"embeddings\" and \"weights\" give an empty table, or NaN or infinity in it";
            return Err(files.fault(WEIGHTS, why));
        }
        if let Some(id) = unknown_token(&tokenizer) {
            table[id as usize * dim..][..dim].fill(0.0);
        }
        Ok(Self { name: name.into(), identity: files.identity(), tokenizer, table, dim })
    }
}

fn unknown_token(tokenizer: &Tokenizer) -> Option<u32> {
    let token = match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => &model.unk_token,
        ModelWrapper::WordLevel(model) => &model.unk_token,
        ModelWrapper::BPE(model) => model.unk_token.as_ref()?,
        ModelWrapper::Unigram(_) => "<unk>",
    };
    tokenizer.token_to_id(token)
}

impl Encoder for StaticEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let mut rows = vec![0f32; texts.len() * self.dim];
        rows.par_chunks_exact_mut(self.dim).zip(texts).try_for_each(|(row, text)| {
            let encoding =
                self.tokenizer.encode_fast(*text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
            for &id in encoding.get_ids() {
                let token = &self.table[id as usize * self.dim..][..self.dim];
                row.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
            }
            Ok::<_, Error>(())
        })?;
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
