//! Sentence encoders in sentence-transformers' layout: a transformer, pooled over its tokens.

use rayon::prelude::*;
use sidenote_index::Metric;
use sidenote_kernels::inference::Threads;
use tokenizers::Tokenizer;

use super::config::{Family, MODEL_TYPES};
use super::folder::{CONFIG, Files};
use super::network::{Network, Scratch};
use super::settings::{Pooling, Settings};
use super::{Encoder, normalise_rows};
use crate::error::Result;

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
/// `encode_query`, except that a text without a token gives a zero row, and that a prompt called `passage` or `corpus`
/// is put before documents where none is called `document` (sentence-transformers then puts none). They are not normalised, and compared by
/// the inner product, where no `modules.json` says how they were meant (Contriever), or where it names no Normalize
/// and the prompts' file `"dot"` as `similarity_fn_name`. A vector depends on its text alone, to the
/// last bit where the processor has AVX-512: not on what it is encoded with, nor on the number of threads.
pub struct SentenceEncoder {
    name: String,
    identity: String,
    settings: Settings,
    network: Network,
    dim: usize,
}

/// The family of BERT's that the files are of.
pub(super) fn family_of(files: &Files) -> Result<Family> {
    let kind = files.model_type()?;
    Family::of(&kind).ok_or_else(|| {
        let known = MODEL_TYPES.map(|(name, _)| name);
        files.fault(CONFIG, format!("model_type {kind:?} is no sentence encoder; {known:?} are"))
    })
}

impl SentenceEncoder {
    /// Reads the encoder in the folder `name`.
    pub fn open(name: &str) -> Result<Self> {
        let files = Files::open(name)?;
        let family = family_of(&files)?;
        Self::read(name, files, family)
    }

    pub(super) fn read(name: &str, mut files: Files, family: Family) -> Result<Self> {
        let (config, settings) = Settings::of_bert(&mut files, family)?;
        let network = files.weights(|weights| Network::load(&config, weights))?;
        let identity = files.identity();
        Ok(Self { name: name.into(), identity, settings, network, dim: config.hidden })
    }

    /// The tokenizer, truncating to the longest text that the network reads.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.settings.tokenizer
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
        match self.settings.pooling {
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
        let mut rows = self.pool_ids(&self.settings.tokenize(prompt, texts)?)?;
        if self.settings.metric == Metric::Cosine {
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
        self.encode_after(&self.settings.prompts.document, texts)
    }

    fn encode_queries(&self, texts: &[&str]) -> Result<Vec<f32>> {
        self.encode_after(&self.settings.prompts.query, texts)
    }

    fn metric(&self) -> Metric {
        self.settings.metric
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &str {
        &self.identity
    }
}
