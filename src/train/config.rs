//! What a training run does, as its TOML file says it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sidenote_index::Metric;

use super::atlas::RefreshSchedule;
use super::tune_section::TuneSection;
use crate::adapter::Method;
use crate::error::{Error, Result};
use crate::model::t5::T5Config;
use crate::model::{DecoderConfig, Initialisation, Precision, RetroConfig};
use crate::reader::Templates;
use crate::retriever::Ranking;
use crate::task::{Mode, Permutations, Task};

/// The kind of model that a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A plain decoder.
    Lm,
    /// A decoder with chunked cross-attention, from scratch.
    Retro,
    /// Chunked cross-attention added to any decoder, which stays as it is (RETRO's section 4.2).
    Retrofit,
    /// An encoder-decoder of T5's kind, from scratch or from a `base`, all of whose weights are trained.
    T5,
    /// An encoder that finds passages, from a `base`: on `pairs`, or on crops of the index's text.
    Retriever,
    /// A reader and its retriever together, on `examples` or on the index's text.
    Atlas,
    /// Any decoder or encoder-decoder, from a `base`: on instances of tasks, whole or by an adapter.
    Tune,
}

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What to train.
    pub kind: Kind,
    /// Folder for the model, checkpoints, metrics and the curve.
    pub out: PathBuf,
    /// Index whose chunk store is the training text and whose chunks are the neighbours. Kind "retriever" may have
    /// `pairs` instead.
    #[serde(default, skip_serializing_if = "nowhere")]
    pub index: PathBuf,
    /// Lines of JSON with `query`, `positive` and, where there are any, `negatives`; kind "retriever".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<PathBuf>,
    /// Neighbours of the training text's chunks, made by `sidenote neighbours`; kinds "retro" and "retrofit".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<PathBuf>,
    /// Held-out text with its neighbours, made by `sidenote neighbours --queries`; of kind "retriever" a file of pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<PathBuf>,
    /// Plain model to freeze and add RETRO's layers to, for kind "retrofit"; for "t5" and "retriever" the model to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Checkpoint of the same kind of run to go on from, optimiser and all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continue_from: Option<PathBuf>,
    /// The decoder, unless `base` gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSection>,
    /// RETRO's layers; kinds "retro" and "retrofit".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retro: Option<RetroSection>,
    /// The encoder-decoder, unless `base` gives it; kind "t5".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t5: Option<T5Section>,
    /// How pairs are told apart; kind "retriever".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriever: Option<RetrieverSection>,
    /// What to learn to predict, by weight; every token after those before it where there is nothing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objectives: Vec<ObjectiveSection>,
    /// What tasks are learnt, and how; kind "tune".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tune: Option<TuneSection>,
    /// What is added to the model, which stays as it is; all its weights are trained where this is left out. Kind "tune".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Method>,
    /// Contexts of the batch that count as predictions beside the vocabulary; kind "lm".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trime: Option<TrimeSection>,
    /// Lines to learn from, as `sidenote eval qa` reads them; kind "atlas".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<PathBuf>,
    /// What a reader and its retriever do together; kind "atlas".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atlas: Option<AtlasSection>,
    /// How to train.
    pub training: TrainingSection,
}

/// A reader and its retriever (Atlas).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AtlasSection {
    /// What is learnt: "qa", "multiple-choice", "fact-checking" or "kilt" from lines of `examples`; "section", "masked" or "prefix"
    /// from the index's own text.
    pub task: AtlasTask,
    /// Orders of the options of multiple choice, each of which is an example.
    pub permutations: Permutations,
    /// Where passages come from: "retrieve" from the index, "given-passages" with the lines of `examples`, or "closed-book" for a
    /// reader that answers without any.
    pub mode: Mode,
    /// What the retriever learns from the reader; nothing where it is left out, and then any index serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<RetrieverLoss>,
    /// Only the encoder of the queries learns, so that the index never is stale.
    pub query_side: bool,
    /// When the index is encoded again, such as "0-1000:500,1000-:2000"; never where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<RefreshSchedule>,
    /// Steps that are taken while the index is encoded again, after which it comes into use; with 0 they wait for it.
    pub refresh_lag: usize,
    /// Passages a question, K.
    pub passages: usize,
    /// So many are retrieved and encoded anew, and the best K of them read; 0 for no such thing.
    pub rerank: usize,
    /// Questions a batch.
    pub batch: usize,
    /// What ranks passages for a retriever that does not learn.
    pub ranking: Ranking,
    /// What the retriever's scores are divided by; where it is left out 0.05 for cosines, 0.01 for inner products (over the root of
    /// the width).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_temperature: Option<f64>,
    /// What the reader's preference is divided by.
    pub target_temperature: f64,
    /// The retriever's share of the learning rate.
    pub retriever_rate: f64,
    /// Most tokens of an answer that are learnt.
    pub target_tokens: usize,
    /// What the reader reads.
    pub templates: Templates,
}

impl Default for AtlasSection {
    fn default() -> Self {
        Self {
            task: AtlasTask::default(),
            permutations: Permutations::default(),
            mode: Mode::default(),
            loss: None,
            query_side: false,
            refresh: None,
            refresh_lag: 0,
            passages: 5,
            rerank: 0,
            batch: 4,
            ranking: Ranking::default(),
            score_temperature: None,
            target_temperature: 0.1,
            retriever_rate: 0.1,
            target_tokens: 64,
            templates: Templates::default(),
        }
    }
}

/// What a reader and its retriever learn together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtlasTask {
    /// Questions with short answers.
    #[default]
    Qa,
    /// Questions with options.
    MultipleChoice,
    /// Claims.
    FactChecking,
    /// Lines in KILT's format.
    Kilt,
    /// A section's text from its title and heading.
    Section,
    /// The words in the gaps of a passage.
    Masked,
    /// The second half of a passage from its first.
    Prefix,
}

impl AtlasTask {
    /// The task whose lines are read; none where examples come from the index's text.
    pub fn of_lines(self) -> Option<Task> {
        match self {
            Self::Qa => Some(Task::Qa),
            Self::MultipleChoice => Some(Task::MultipleChoice),
            Self::FactChecking => Some(Task::FactChecking),
            Self::Kilt => Some(Task::Kilt),
            Self::Section | Self::Masked | Self::Prefix => None,
        }
    }
}

/// How a retriever learns from a reader: see [`loss`](super::atlas::loss).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetrieverLoss {
    /// Perplexity distillation.
    Pdist,
    /// The likelihood with the passage as what is not known, of whole answers.
    Emdr2,
    /// The same of each token by itself.
    Emdr2Token,
    /// Attention distillation.
    Adist,
    /// Leave-one-out perplexity distillation.
    Loop,
}

/// Training with memories (TRIME).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimeSection {
    /// "local", "long" or "external".
    pub memory: TrimeKind,
    /// With the external memory: the share of batches in which the local one counts too.
    #[serde(default = "tenth")]
    pub local_rate: f64,
}

/// What a token sees of its batch while it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrimeKind {
    /// The tokens before it in its own sequence.
    Local,
    /// Those of the earlier sequences of its document as well; a batch is consecutive sequences.
    Long,
    /// All tokens of other documents' sequences; a batch is sequences with the same words, by BM25.
    External,
}

/// The decoder's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Width d.
    pub hidden_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layers; 8/3 d, rounded up to 32, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Longest sequence, in tokens.
    #[serde(default = "default_positions")]
    pub max_positions: usize,
}

fn default_positions() -> usize {
    1024
}

impl ModelSection {
    /// The decoder for a vocabulary of `vocab_size` tokens.
    pub fn decoder(&self, vocab_size: usize) -> DecoderConfig {
        DecoderConfig {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self
                .intermediate_size
                .unwrap_or_else(|| (self.hidden_size * 8).div_ceil(3).next_multiple_of(32)),
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            max_position_embeddings: self.max_positions,
            tie_word_embeddings: true,
            ..DecoderConfig::llama()
        }
        .with_usual_heads()
    }
}

/// How an encoder learns to tell what belongs together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrieverSection {
    /// Queries a batch. The passages of the others are what each query's own is told from.
    pub batch: usize,
    /// Of a pair's `negatives` so many are used; they count for all queries of the batch.
    pub negatives: usize,
    /// What scores are divided by; where it is left out 0.05 for cosines and 1 for inner products.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Whether the temperature is learnt from there, as between CLIP's towers.
    pub learn_temperature: bool,
    /// Whether queries are looked for among queries as well (CLIP's loss).
    pub symmetric: bool,
    /// Passages of earlier batches that each query's own is told from as well; 0 for none. Passages are encoded by a second encoder
    /// then, which follows the one that learns (Contriever's MoCo).
    pub queue: usize,
    /// What that encoder keeps of itself at every step.
    pub momentum: f64,
}

impl Default for RetrieverSection {
    fn default() -> Self {
        Self {
            batch: 32,
            negatives: 1,
            temperature: None,
            learn_temperature: false,
            symmetric: false,
            queue: 0,
            momentum: 0.9995,
        }
    }
}

impl RetrieverSection {
    /// What scores under `metric` are divided by, at first where it is learnt.
    pub fn temperature(&self, metric: Metric) -> f64 {
        self.temperature.unwrap_or(if metric == Metric::Cosine { 0.05 } else { 1.0 })
    }
}

fn nowhere(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// The shape of an encoder-decoder like T5 v1.1, with gated GELU and an output head of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Section {
    /// Width d.
    pub hidden_size: usize,
    /// Blocks of the encoder, and of the decoder.
    pub layers: usize,
    /// Attention heads, of d / heads numbers each.
    pub heads: usize,
    /// Width inside the feed-forward layers; 8/3 d, rounded up to 32, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Share of the numbers that are dropped in training; T5 v1.1 was pre-trained without.
    #[serde(default)]
    pub dropout: f32,
}

impl T5Section {
    /// The model for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// A shape that no network can have.
    pub fn config(&self, vocab_size: usize) -> Result<T5Config> {
        let inner = (self.hidden_size * 8).div_ceil(3).next_multiple_of(32);
        T5Config::from_json(&serde_json::json!({
            "model_type": "t5",
            "vocab_size": vocab_size,
            "d_model": self.hidden_size,
            "d_kv": self.hidden_size / self.heads.max(1),
            "d_ff": self.intermediate_size.unwrap_or(inner),
            "num_layers": self.layers,
            "num_heads": self.heads,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": false,
            "dropout_rate": self.dropout,
        }))
    }
}

/// RETRO's layers; what is left out is chosen for the decoder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetroSection {
    /// Neighbours a chunk, k.
    pub neighbours: Option<usize>,
    /// Decoder blocks with chunked cross-attention, from 1.
    pub layers: Option<Vec<usize>>,
    /// Heads of the chunked cross-attention.
    pub heads: Option<usize>,
    /// Width of such a head.
    pub head_dim: Option<usize>,
    /// Width of the neighbour encoder, d'.
    pub encoder_hidden_size: Option<usize>,
    /// Width inside its feed-forward layers.
    pub encoder_intermediate_size: Option<usize>,
    /// Its heads.
    pub encoder_heads: Option<usize>,
    /// Its layers.
    pub encoder_layers: Option<usize>,
    /// Its layers that attend to the decoder's chunk, from 1.
    pub encoder_cross_layers: Option<Vec<usize>>,
    /// "random" or "copy"; where it is left out, "copy" on a decoder that stays as it is, and "random" from scratch.
    pub initialisation: Option<Initialisation>,
    /// Whether what is added starts at nothing, behind a gate.
    pub gate: Option<bool>,
}

impl RetroSection {
    /// Fills in the paper's choices for a decoder from scratch or one that stays as it is, or, where the layers start by copying,
    /// what is best for that; which is how they start on a decoder that stays unless this says otherwise
    /// (benches/quality/retrofit.md).
    pub fn config(&self, decoder: &DecoderConfig, chunk_size: usize, frozen: bool) -> RetroConfig {
        let (paper, start) = match frozen {
            true => (RetroConfig::for_frozen(decoder, chunk_size), Initialisation::Copy),
            false => (RetroConfig::for_decoder(decoder, chunk_size), Initialisation::Random),
        };
        let start = self.initialisation.unwrap_or(start);
        let paper = paper.starting(start, decoder);
        RetroConfig {
            chunk_size,
            neighbours: self.neighbours.unwrap_or(paper.neighbours),
            layers: self.layers.clone().unwrap_or(paper.layers),
            heads: self.heads.unwrap_or(paper.heads),
            head_dim: self.head_dim.unwrap_or(paper.head_dim),
            encoder_hidden_size: self.encoder_hidden_size.unwrap_or(paper.encoder_hidden_size),
            encoder_intermediate_size: self
                .encoder_intermediate_size
                .unwrap_or(paper.encoder_intermediate_size),
            encoder_heads: self.encoder_heads.unwrap_or(paper.encoder_heads),
            encoder_layers: self.encoder_layers.unwrap_or(paper.encoder_layers),
            encoder_cross_layers: self.encoder_cross_layers.clone().unwrap_or(paper.encoder_cross_layers),
            initialisation: start,
            gate: self.gate.unwrap_or(paper.gate),
        }
    }
}

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSection {
    /// Steps of the optimiser.
    pub steps: usize,
    /// Chunks a sequence.
    #[serde(default = "default_chunks")]
    pub chunks: usize,
    /// Tokens a batch, padding included.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Batches a step, whose gradients are added up: as if the batch were so much larger, in the memory of one.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Where it is not 0, activations are kept for so many blocks at a time, and computed again for the others: less
    /// memory, a third more work. Kinds "lm" and "tune" of decoders.
    #[serde(default)]
    pub recompute: usize,
    /// "f32" or "bf16": what the weights that are trained are rounded to wherever they are read, and saved as, and what the
    /// operands of a step's products with weights are rounded to, which processors with AMX multiply faster (on a GPU
    /// weights alone are rounded).
    /// Products are summed in f32, and steps add up in f32, beside the optimiser's state.
    #[serde(default)]
    pub precision: Precision,
    /// "adamw" or "adafactor".
    #[serde(default)]
    pub optimiser: OptimiserKind,
    /// Highest learning rate.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from 0.
    #[serde(default)]
    pub warmup_steps: usize,
    /// How it goes on from there: "constant", "linear", "cosine" or "inverse-sqrt".
    #[serde(default)]
    pub schedule: Schedule,
    /// Steps at the end over which a constant rate falls.
    #[serde(default)]
    pub decay_steps: usize,
    /// What it falls to, as a share of the highest.
    #[serde(default)]
    pub final_rate: f64,
    /// AdamW's weight decay.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradient.
    #[serde(default = "default_clip")]
    pub clip: f64,
    /// Steps between measurements on held-out text.
    #[serde(default = "default_every")]
    pub evaluate_every: usize,
    /// Steps between checkpoints.
    #[serde(default = "default_every")]
    pub checkpoint_every: usize,
    /// Latest checkpoints that are kept. The one with the lowest held-out loss is kept as well, and the one where the
    /// rate begins to fall.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
    /// Seed of the weights and of the order of the text.
    #[serde(default)]
    pub seed: u64,
}

/// How weights follow their gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimiserKind {
    /// AdamW (Loshchilov and Hutter 2019).
    #[default]
    AdamW,
    /// Adafactor without a first moment (Shazeer and Stern 2018): hardly any memory; the learning rate is in units of
    /// each weight's own size, as T5 was trained with.
    Adafactor,
}

/// The learning rate after it has risen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Level, and over `decay_steps` at the end in a straight line down. A run can be made longer afterwards.
    #[default]
    Constant,
    /// In a straight line down to the last step.
    Linear,
    /// Along half a cosine down to the last step.
    Cosine,
    /// As one over the root of the step, from `warmup_steps` on (T5's, with warmup_steps = 10000).
    InverseSqrt,
}

/// One objective of a mixture. For a decoder, what is read and what is written follow each other, and only the latter
/// counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ObjectiveSection {
    /// Every token after those before it.
    Causal {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
    },
    /// The rest after the beginning.
    Prefix {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
    },
    /// Fill in the middle. Its share of the weights is the paper's FIM rate.
    Infilling {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
        /// Whether sequences are transformed, or documents before they are cut into sequences.
        #[serde(default)]
        level: Level,
        /// Share of texts that come suffix first.
        #[serde(default = "half")]
        spm_rate: f64,
        /// The tokens before prefix, suffix and middle.
        #[serde(default = "infilling_tokens")]
        tokens: [String; 3],
    },
    /// T5's span corruption.
    Spans {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
        /// Share of the tokens that are taken out.
        #[serde(default = "density")]
        density: f64,
        /// Mean tokens of a span.
        #[serde(default = "mean_length")]
        mean_length: f64,
        /// What sentinels are called, before their number and `>`.
        #[serde(default = "sentinel")]
        sentinel: String,
    },
    /// AlexaTM's denoising: the whole text after the text with spans dropped.
    Denoising {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
    },
    /// AlexaTM's causal task: the rest after the beginning behind a token that asks for it.
    Continuation {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
        /// That token.
        #[serde(default = "clm")]
        token: String,
    },
}

/// What infilling is applied to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Each sequence: all three parts are always there.
    #[default]
    Context,
    /// Each document, before it is cut into sequences.
    Document,
}

impl ObjectiveSection {
    /// How often, compared with the others.
    pub fn weight(&self) -> f64 {
        match self {
            Self::Causal { weight }
            | Self::Prefix { weight }
            | Self::Infilling { weight, .. }
            | Self::Spans { weight, .. }
            | Self::Denoising { weight }
            | Self::Continuation { weight, .. } => *weight,
        }
    }

    fn check(&self) -> Result<()> {
        let share = |name: &str, value: f64, open: bool| {
            let fits = (0.0..=1.0).contains(&value) && (!open || (value > 0.0 && value < 1.0));
            let why = if open { "must be between 0 and 1" } else { "must be from 0 to 1" };
            if fits { Ok(()) } else { Err(Error::setting(name, why)) }
        };
        if !(self.weight() > 0.0 && self.weight().is_finite()) {
            return Err(Error::setting("objectives.weight", "must be a positive number"));
        }
        match self {
            Self::Infilling { spm_rate, .. } => share("objectives.spm_rate", *spm_rate, false),
            Self::Spans { density, mean_length, .. } => {
                share("objectives.density", *density, true)?;
                match *mean_length >= 1.0 && mean_length.is_finite() {
                    true => Ok(()),
                    false => Err(Error::setting("objectives.mean_length", "must be at least 1")),
                }
            }
            _ => Ok(()),
        }
    }
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn tenth() -> f64 {
    0.1
}

fn unit() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn density() -> f64 {
    0.15
}

fn mean_length() -> f64 {
    3.0
}

fn infilling_tokens() -> [String; 3] {
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"].map(String::from)
}

fn sentinel() -> String {
    "<extra_id_".into()
}

fn clm() -> String {
    "[CLM]".into()
}

fn default_chunks() -> usize {
    4
}

fn default_batch_tokens() -> usize {
    2048
}

fn default_learning_rate() -> f64 {
    1e-3
}

fn default_weight_decay() -> f64 {
    0.1
}

fn default_clip() -> f64 {
    1.0
}

fn default_every() -> usize {
    200
}

impl TrainingSection {
    /// `steps` steps with everything else as it is where the file leaves it out.
    pub fn of(steps: usize) -> Self {
        Self {
            steps,
            chunks: default_chunks(),
            batch_tokens: default_batch_tokens(),
            accumulate: 1,
            recompute: 0,
            precision: Precision::default(),
            optimiser: OptimiserKind::default(),
            learning_rate: default_learning_rate(),
            warmup_steps: 0,
            schedule: Schedule::default(),
            decay_steps: 0,
            final_rate: 0.0,
            weight_decay: default_weight_decay(),
            clip: default_clip(),
            evaluate_every: default_every(),
            checkpoint_every: default_every(),
            keep_checkpoints: 2,
            seed: 0,
        }
    }

    /// Steps before the learning rate begins to fall. A checkpoint is kept there, from which the run
    /// can be made longer.
    pub fn level_steps(&self) -> usize {
        self.steps - self.decay_steps
    }
}

impl TrainConfig {
    /// Reads the TOML file at `path`, with `overrides` such as `training.steps=100` on top.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| Error::file(path, e.to_string().trim_end()))?;
        for one in overrides {
            set(&mut table, one)?;
        }
        let config: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| Error::file(path, e.to_string().trim_end()))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses settings that contradict each other.
    pub fn check(&self) -> Result<()> {
        let t = &self.training;
        let positive = [
            ("training.steps", t.steps),
            ("training.chunks", t.chunks),
            ("training.batch_tokens", t.batch_tokens),
            ("training.accumulate", t.accumulate),
            ("training.keep_checkpoints", t.keep_checkpoints),
            ("training.evaluate_every", t.evaluate_every),
            ("training.checkpoint_every", t.checkpoint_every),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::setting(*name, "must be at least 1"));
        }
        if t.warmup_steps + t.decay_steps > t.steps {
            let why = format!("with training.decay_steps more than training.steps ({})", t.steps);
            return Err(Error::setting("training.warmup_steps", why));
        }
        if !(t.learning_rate > 0.0 && t.learning_rate.is_finite()) {
            return Err(Error::setting("training.learning_rate", "must be a positive number"));
        }
        if t.decay_steps > 0 && t.schedule != Schedule::Constant {
            let why = "belongs to schedule = \"constant\"; the other schedules fall by themselves";
            return Err(Error::setting("training.decay_steps", why));
        }
        if !(0.0..=1.0).contains(&t.final_rate) {
            return Err(Error::setting(
                "training.final_rate",
                "is a share of the learning rate, from 0 to 1",
            ));
        }
        self.objectives.iter().try_for_each(ObjectiveSection::check)?;
        if matches!(self.kind, Kind::Retro | Kind::Retrofit)
            && self.objectives.iter().any(|objective| !matches!(objective, ObjectiveSection::Causal { .. }))
        {
            let why = "a model that reads neighbours takes only \"causal\": they belong to chunks, which must stay where they are";
            return Err(Error::setting("objectives", why));
        }
        if t.recompute > 0 && (!matches!(self.kind, Kind::Lm | Kind::Tune) || self.trime.is_some()) {
            let why = "belongs to kind = \"lm\" without [trime] and to \"tune\"";
            return Err(Error::setting("training.recompute", why));
        }
        if let Some(trime) = &self.trime {
            if self.kind != Kind::Lm || !self.objectives.is_empty() {
                let why = "belongs to kind = \"lm\" without other objectives";
                return Err(Error::setting("trime", why));
            }
            if !(0.0..=1.0).contains(&trime.local_rate) {
                return Err(Error::setting("trime.local_rate", "must be from 0 to 1"));
            }
        }
        if t.clip.is_nan() || t.clip <= 0.0 {
            return Err(Error::setting("training.clip", "must be a positive number"));
        }
        if t.weight_decay.is_nan() || t.weight_decay < 0.0 {
            return Err(Error::setting("training.weight_decay", "must be 0 or more"));
        }
        let needs = |given: bool, name: &'static str, why: &str| match given {
            true => Ok(()),
            false => Err(Error::setting(name, why)),
        };
        let tunes = self.kind == Kind::Tune;
        needs(tunes || self.tune.is_none(), "tune", "belongs to kind = \"tune\"")?;
        needs(tunes || self.adapter.is_none(), "adapter", "belongs to kind = \"tune\"")?;
        if tunes {
            return self.check_tune();
        }
        let retrieves = self.kind == Kind::Retriever;
        needs(retrieves || self.pairs.is_none(), "pairs", "belongs to kind = \"retriever\"")?;
        needs(retrieves || self.retriever.is_none(), "retriever", "belongs to kind = \"retriever\"")?;
        if self.kind == Kind::Atlas {
            return self.check_atlas();
        }
        needs(
            self.pairs.is_some() || !nowhere(&self.index),
            "index",
            "give the index whose text is learnt from",
        )?;
        if retrieves {
            return self.check_retriever();
        }
        let given = self.examples.is_none() && self.atlas.is_none();
        needs(given, "atlas", "belongs with `examples` to kind = \"atlas\"")?;
        needs(self.t5.is_none() || self.kind == Kind::T5, "t5", "belongs to kind = \"t5\"")?;
        if self.kind == Kind::T5 {
            return self.check_t5();
        }
        if self.kind == Kind::Lm {
            let plain = self.base.is_none() && self.retro.is_none() && self.neighbours.is_none();
            needs(
                plain,
                "kind",
                "\"lm\" takes no base, neighbours or [retro]; \"retro\" and \"retrofit\" do",
            )?;
        } else {
            let why = "\"retro\" and \"retrofit\" need it; make it with `sidenote neighbours`";
            needs(self.neighbours.is_some(), "neighbours", why)?;
        }
        if self.kind == Kind::Retrofit {
            let why = "kind = \"retrofit\" needs the plain model that RETRO's layers are added to";
            needs(self.base.is_some(), "base", why)?;
            return needs(self.model.is_none(), "model", "the base has its own shape; leave [model] out");
        }
        let why = "belongs to kind = \"retrofit\"; \"retro\" trains a decoder of its own";
        needs(self.base.is_none(), "base", why)?;
        let given = self.model.is_some() || self.continue_from.is_some();
        needs(given, "model", "give the decoder's shape in [model]")
    }

    fn check_tune(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        let others = [
            self.model.is_some(),
            self.retro.is_some(),
            self.t5.is_some(),
            self.retriever.is_some(),
            self.pairs.is_some(),
            self.neighbours.is_some(),
            !nowhere(&self.index),
            !self.objectives.is_empty(),
        ];
        if others.contains(&true) {
            return fault("kind", "\"tune\" takes a base, [tune] and [adapter], and no index or objectives");
        }
        if self.base.is_none() {
            return fault("base", "give the model to tune");
        }
        match &self.tune {
            Some(section) => section.check()?,
            None => return fault("tune", "give the files of instances: [tune] data = [\"pool.jsonl\"]"),
        }
        self.adapter.as_ref().map_or(Ok(()), Method::check)
    }

    fn check_retriever(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        let others =
            [self.model.is_some(), self.retro.is_some(), self.t5.is_some(), self.neighbours.is_some()];
        if others.contains(&true) || !self.objectives.is_empty() {
            return fault("kind", "\"retriever\" takes a base, pairs or an index, and [retriever]");
        }
        if self.base.is_none() {
            return fault("base", "give the encoder to begin with");
        }
        let section = self.retriever.clone().unwrap_or_default();
        if section.batch < 2 {
            return fault(
                "retriever.batch",
                "must be at least 2: a passage is told from those of other queries",
            );
        }
        if !(0.0..1.0).contains(&section.momentum) {
            return fault("retriever.momentum", "must be at least 0 and less than 1");
        }
        if section.queue > 0 && section.symmetric {
            return fault(
                "retriever.queue",
                "passages of a queue have no queries to be found; leave symmetric out",
            );
        }
        if section.learn_temperature && self.training.precision != Precision::F32 {
            return fault(
                "retriever.learn_temperature",
                "steps of it are lost in 16 bits; leave training.precision out",
            );
        }
        match section.temperature {
            Some(temperature) if !(temperature > 0.0 && temperature.is_finite()) => {
                fault("retriever.temperature", "must be a positive number")
            }
            _ => Ok(()),
        }
    }

    fn check_atlas(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        let others =
            [self.model.is_some(), self.retro.is_some(), self.t5.is_some(), self.neighbours.is_some()];
        if others.contains(&true) || !self.objectives.is_empty() {
            return fault("kind", "\"atlas\" takes a base, an index, examples and [atlas]");
        }
        if self.base.is_none() && self.continue_from.is_none() {
            return fault("base", "give the model that reads");
        }
        let section = self.atlas.clone().unwrap_or_default();
        let positive = [
            ("atlas.passages", section.passages),
            ("atlas.batch", section.batch),
            ("atlas.target_tokens", section.target_tokens),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return fault(name, "must be at least 1");
        }
        let retrieves = section.mode == Mode::Retrieve;
        if section.mode == Mode::RetrieveOnly {
            let why = "\"retrieve-only\" reads nothing; \"retrieve\", \"given-passages\" and \"closed-book\" are learnt";
            return fault("atlas.mode", why);
        }
        if !retrieves && (section.loss.is_some() || section.ranking != Ranking::Vectors) {
            return fault("atlas.mode", "loss and ranking belong to what is retrieved; leave them out");
        }
        if !retrieves && section.task.of_lines().is_none() {
            return fault("atlas.mode", "a task on the index's text is one of retrieving");
        }
        if retrieves == nowhere(&self.index) {
            let why = match retrieves {
                true => "give the index whose passages are read, or atlas.mode = \"closed-book\"",
                false => "nothing is retrieved in this atlas.mode; leave the index out",
            };
            return fault("index", why);
        }
        if section.task.of_lines().is_some() != self.examples.is_some() {
            let why = "of \"qa\", \"multiple-choice\", \"fact-checking\" and \"kilt\" give the file; the other tasks take the \
                       index's text";
            return fault("examples", why);
        }
        if self.held_out.is_some() && self.examples.is_none() {
            return fault("held_out", "is a file like `examples`");
        }
        let reals = [
            ("atlas.score_temperature", section.score_temperature.unwrap_or(1.0)),
            ("atlas.target_temperature", section.target_temperature),
            ("atlas.retriever_rate", section.retriever_rate),
        ];
        if let Some((name, _)) = reals.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return fault(name, "must be a positive number");
        }
        if section.rerank > 0 && section.rerank < section.passages {
            return fault("atlas.rerank", "must be at least atlas.passages, or 0");
        }
        let learns = section.loss.is_some();
        if !learns && (section.query_side || section.refresh.is_some() || section.rerank > 0) {
            let why = "query_side, refresh and rerank belong to a retriever that learns; give the loss";
            return fault("atlas.loss", why);
        }
        if learns && section.ranking != Ranking::Vectors {
            return fault("atlas.ranking", "a retriever that learns ranks by vectors");
        }
        if section.query_side && (section.refresh.is_some() || section.rerank > 0) {
            return fault("atlas.query_side", "leaves the index fresh; leave refresh and rerank out");
        }
        if section.refresh_lag > 0 && section.refresh.is_none() {
            return fault("atlas.refresh_lag", "says when a refresh comes into use; give refresh");
        }
        section.templates.check()
    }

    fn check_t5(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        if self.retro.is_some() || self.neighbours.is_some() || self.model.is_some() {
            return fault("kind", "\"t5\" takes [t5] or a base, and no [model], [retro] or neighbours");
        }
        let both = self.base.is_some() && self.t5.is_some();
        if both || (self.base.is_none() && self.t5.is_none() && self.continue_from.is_none()) {
            return fault("t5", "give the model's shape in [t5], or a base that has one");
        }
        let writes = |objective: &ObjectiveSection| {
            !matches!(objective, ObjectiveSection::Causal { .. } | ObjectiveSection::Infilling { .. })
        };
        if self.objectives.is_empty() || !self.objectives.iter().all(writes) {
            let why = "kind = \"t5\" needs some of \"spans\", \"prefix\", \"denoising\" and \"continuation\": something to \
                       read and something to write";
            return fault("objectives", why);
        }
        match &self.t5 {
            Some(section) if !(0.0..1.0).contains(&section.dropout) => {
                fault("t5.dropout", "must be at least 0 and less than 1")
            }
            _ => Ok(()),
        }
    }
}

/// Applies `a.b=value`; the value is TOML, or a string where it is not.
fn set(table: &mut toml::Table, setting: &str) -> Result<()> {
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| Error::setting("--set", format!("{setting:?} is not key=value")))?;
    let value = match format!("v = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("v"),
        Err(_) => None,
    };
    let value = value.unwrap_or_else(|| toml::Value::String(setting[path.len() + 1..].to_string()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut at = table;
    for key in keys {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry
            .as_table_mut()
            .ok_or_else(|| Error::setting("--set", format!("{key:?} in {path:?} is not a section")))?;
    }
    at.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"
        kind = "lm"
        out = "o"
        index = "i"
        [model]
        hidden_size = 8
        layers = 1
        heads = 2
        [training]
        steps = 10
    "#;

    fn read(text: &str, overrides: &[&str]) -> Result<TrainConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        TrainConfig::read(&path, &overrides.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn overrides_win_over_the_file() {
        let config = read(PLAIN, &["training.steps=7", "out=elsewhere", "training.clip=0.5"]).unwrap();
        assert_eq!(config.training.steps, 7);
        assert_eq!(config.out, PathBuf::from("elsewhere"));
        assert_eq!(config.training.clip, 0.5);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |overrides: &[&str]| read(PLAIN, overrides).unwrap_err().to_string();
        assert!(error(&["training.stepz=7"]).contains("stepz"));
        assert!(error(&["kind=retro"]).contains("neighbours"));
        assert!(error(&["training.steps=0"]).contains("training.steps"));
        assert!(error(&["training.warmup_steps=11"]).contains("warmup_steps"));
        assert!(error(&["nonsense"]).contains("key=value"));
        assert!(error(&["base=b"]).contains("kind"));
        assert!(error(&["training.accumulate=0"]).contains("training.accumulate"));
        assert!(error(&["training.schedule=cosine", "training.decay_steps=2"]).contains("decay_steps"));
        assert!(error(&["training.schedule=wavy"]).contains("wavy"));
        assert!(error(&["training.precision=f8"]).contains("f8"));
        let objective = |text: &str| error(&[&format!("objectives=[{text}]")]);
        assert!(objective("{kind = \"infilling\", spm_rate = 2.0}").contains("spm_rate"));
        assert!(objective("{kind = \"spans\", density = 0.0}").contains("density"));
        assert!(objective("{kind = \"spans\", mean_length = 0.5}").contains("mean_length"));
        assert!(objective("{kind = \"causal\", weight = 0}").contains("weight"));
        assert!(objective("{kind = \"causal\", spm_rate = 0.5}").contains("spm_rate"));
        assert!(objective("{kind = \"guessing\"}").contains("guessing"));
    }

    #[test]
    fn a_resolved_configuration_reads_back() {
        let config = read(PLAIN, &[]).unwrap();
        assert_eq!(config.training, TrainingSection::of(10));
        assert_eq!(read(&toml::to_string(&config).unwrap(), &[]).unwrap(), config);
        let mixture =
            "objectives=[{kind = \"causal\"}, {kind = \"infilling\", weight = 2.5, level = \"document\"}]";
        let config =
            read(PLAIN, &[mixture, "training.schedule=inverse-sqrt", "training.optimiser=adafactor"])
                .unwrap();
        assert_eq!(config.objectives[1].weight(), 2.5);
        assert_eq!(read(&toml::to_string(&config).unwrap(), &[]).unwrap(), config);
    }
}
