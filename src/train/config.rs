//! What a training run does, as its TOML file says it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{DecoderConfig, Initialisation, RetroConfig};

/// The kind of model that a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A plain decoder.
    Lm,
    /// A decoder with chunked cross-attention, from scratch or on a frozen decoder.
    Retro,
}

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What to train.
    pub kind: Kind,
    /// Folder for the model, checkpoints, metrics and the curve.
    pub out: PathBuf,
    /// Index whose chunk store is the training text and whose chunks are the neighbours.
    pub index: PathBuf,
    /// Neighbours of the training text's chunks, made by `sidenote neighbours`; kind "retro".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<PathBuf>,
    /// Held-out text with its neighbours, made by `sidenote neighbours --queries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<PathBuf>,
    /// Plain model to freeze and add RETRO's layers to; without it everything is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Checkpoint of the same kind of run to go on from, optimiser and all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continue_from: Option<PathBuf>,
    /// The decoder, unless `base` gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSection>,
    /// RETRO's layers; kind "retro".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retro: Option<RetroSection>,
    /// How to train.
    pub training: TrainingSection,
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

/// RETRO's layers; what is left out is the paper's choice for the decoder.
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
    /// "random" or "copy".
    pub initialisation: Option<Initialisation>,
}

impl RetroSection {
    /// Fills in the paper's choices.
    pub fn config(&self, decoder: &DecoderConfig, chunk_size: usize) -> RetroConfig {
        let paper = RetroConfig::for_decoder(decoder, chunk_size);
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
            initialisation: self.initialisation.unwrap_or(paper.initialisation),
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
    /// Tokens a step, padding included.
    #[serde(default = "default_batch_tokens")]
    pub batch_tokens: usize,
    /// Highest learning rate.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from 0.
    #[serde(default)]
    pub warmup_steps: usize,
    /// Steps at the end over which it falls to 0; in between it is constant.
    #[serde(default)]
    pub decay_steps: usize,
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
    /// Seed of the weights and of the order of the text.
    #[serde(default)]
    pub seed: u64,
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
        if t.clip.is_nan() || t.clip <= 0.0 {
            return Err(Error::setting("training.clip", "must be a positive number"));
        }
        if t.weight_decay.is_nan() || t.weight_decay < 0.0 {
            return Err(Error::setting("training.weight_decay", "must be 0 or more"));
        }
        match self.kind {
            Kind::Lm if self.base.is_some() || self.retro.is_some() || self.neighbours.is_some() => {
                Err(Error::setting("kind", "\"lm\" takes no base, neighbours or [retro]; \"retro\" does"))
            }
            Kind::Retro if self.neighbours.is_none() => Err(Error::setting(
                "neighbours",
                "kind = \"retro\" needs it; make it with `sidenote neighbours`",
            )),
            _ if self.base.is_none() && self.model.is_none() && self.continue_from.is_none() => {
                Err(Error::setting("model", "give the decoder's shape in [model], or a base"))
            }
            _ if self.base.is_some() && self.model.is_some() => {
                Err(Error::setting("model", "the base has its own shape; leave [model] out"))
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
    }

    #[test]
    fn a_resolved_configuration_reads_back() {
        let config = read(PLAIN, &[]).unwrap();
        assert_eq!(read(&toml::to_string(&config).unwrap(), &[]).unwrap(), config);
    }
}
