//! Static encoders: one vector per token, summed.

use rayon::prelude::*;
use tokenizers::{ModelWrapper, Tokenizer};

use super::folder::{CONFIG, Files, WEIGHTS, Weights};
use super::wordpiece::WordPiece;
use super::{Encoder, normalise_rows};
use crate::error::{Error, Result};

/// What our own tables call themselves, and model2vec's.
pub(super) const OWN_MODEL_TYPE: &str = "sidenote_static";
pub(super) const MODEL_TYPE: &str = "model2vec";

/// Our tables' tensors: codes `[vocab, dim / 2]`, two numbers a byte, the first in the low half, each
/// from -8 to 7 plus 8; and what to multiply a row by, `[vocab]`.
pub(super) const CODES: &str = "embeddings.int4";
pub(super) const SCALES: &str = "weights";

/// A table of token vectors: a text's vector is the sum of its tokens' vectors, each times its
/// token's weight, scaled to unit length. Unknown tokens count for nothing.
///
/// Reads the folders that [`distill`](super::distill) writes (`"model_type": "sidenote_static"`) and
/// those of model2vec (<https://github.com/MinishLab/model2vec>): `config.json`, `tokenizer.json`, and
/// `model.safetensors` with `embeddings` `[vocab, dim]` and optionally `weights` `[vocab]`.
pub struct StaticEncoder {
    name: String,
    identity: String,
    tokenizer: WordPiece,
    /// Weighted rows `[vocab, dim]`; the unknown token's is zero.
    table: Vec<f32>,
    dim: usize,
}

impl StaticEncoder {
    pub(super) fn read(name: &str, mut files: Files) -> Result<Self> {
        // Says what the table was made from, and so belongs to its identity.
        files.json::<serde_json::Value>(CONFIG)?;
        let tokenizer = files.tokenizer()?;
        let tokens = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let (mut table, dim) = files.weights(|weights| read_table(weights, tokens))?;
        if table.is_empty() || table.iter().any(|x| !x.is_finite()) {
            let why = "the embeddings are empty, or there is NaN or infinity in them";
            return Err(files.fault(WEIGHTS, why));
        }
        if let Some(id) = unknown_token(&tokenizer) {
            table[id as usize * dim..][..dim].fill(0.0);
        }
        let tokenizer = WordPiece::new(tokenizer);
        Ok(Self { name: name.into(), identity: files.identity(), tokenizer, table, dim })
    }
}

/// The weighted rows `[tokens, dim]`, and `dim`.
fn read_table(weights: &Weights, tokens: usize) -> Result<(Vec<f32>, usize)> {
    let width = |name: &str| Ok::<_, Error>(weights.shape(name)?.get(1).copied().unwrap_or(0));
    let (mut table, dim) = if weights.has(CODES) {
        let half = width(CODES)?;
        let codes = weights.bytes(CODES, &[tokens, half])?;
        let number = |code: u8| f32::from(code) - 8.0;
        (codes.iter().flat_map(|byte| [number(byte & 15), number(byte >> 4)]).collect(), 2 * half)
    } else {
        let dim = width("embeddings")?;
        let shape = [tokens, dim];
        let table = match weights.integers("embeddings", &shape)? {
            Some(codes) => codes.into_iter().map(f32::from).collect(),
            None => weights.values("embeddings", &shape)?,
        };
        (table, dim)
    };
    if weights.has(SCALES) {
        for (row, scale) in table.chunks_exact_mut(dim.max(1)).zip(weights.values(SCALES, &[tokens])?) {
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
    Ok((table, dim))
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
            for id in self.tokenizer.encode(text).map_err(|e| Error::Tokenizer(e.to_string()))? {
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
