//! The quickstart's third job: a plain decoder and RETRO on it, measured on held-out text beside
//! the controls that make the comparison honest.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use serde_json::{Map, Value, json};

use super::assets::Files;
use crate::corpus::{OnError, Store};
use crate::error::{Error, Result};
use crate::eval::overlap::{filtered_bits, overlap};
use crate::eval::perplexity::{self, Neighbourhood, Scores, shuffled};
use crate::model::{Initialisation, LanguageModel, Trainable};
use crate::progress::Progress;
use crate::retriever::neighbours::{Neighbours, precompute, tokens_of};
use crate::retriever::{Ranking, Retriever};
use crate::train::config::{Kind, ModelSection, RetroSection, TrainConfig, TrainingSection};
use crate::train::{self, Curve, Outcome, checkpoint_folder, plot};

/// Neighbours over which overlap is taken, as in the paper.
const OVERLAP_NEIGHBOURS: usize = 10;
/// Width of the decoder.
const WIDTH: usize = 128;

/// Sizes of the run.
pub struct Settings {
    /// Tokens a chunk.
    pub chunk_tokens: usize,
    /// Neighbours a chunk.
    pub neighbours: usize,
    plain_steps: usize,
    decay_steps: usize,
    retro_steps: usize,
}

impl Settings {
    pub fn new(short: bool) -> Self {
        let (plain_steps, decay_steps, retro_steps) = if short { (70, 20, 25) } else { (480, 120, 130) };
        Self { chunk_tokens: 64, neighbours: 2, plain_steps, decay_steps, retro_steps }
    }

    fn training(&self, steps: usize, decay_steps: usize, learning_rate: f64, seed: u64) -> TrainingSection {
        TrainingSection {
            learning_rate,
            warmup_steps: (steps / 10).min(50),
            decay_steps,
            evaluate_every: 100,
            checkpoint_every: 100,
            seed,
            ..TrainingSection::of(steps)
        }
    }

    fn plain(&self, seed: u64, index: &Path, out: &Path) -> TrainConfig {
        TrainConfig {
            kind: Kind::Lm,
            out: out.join("plain"),
            index: index.into(),
            pairs: None,
            neighbours: None,
            held_out: Some(out.join("held-out")),
            base: None,
            continue_from: None,
            model: Some(ModelSection {
                hidden_size: WIDTH,
                layers: 4,
                heads: 4,
                intermediate_size: None,
                max_positions: 1024,
            }),
            retro: None,
            t5: None,
            retriever: None,
            examples: None,
            atlas: None,
            objectives: Vec::new(),
            tune: None,
            adapter: None,
            trime: None,
            training: self.training(self.plain_steps, self.decay_steps, 3e-3, seed),
        }
    }

    fn retro(&self, seed: u64, index: &Path, out: &Path) -> TrainConfig {
        TrainConfig {
            kind: Kind::Retrofit,
            out: out.join("retro"),
            neighbours: Some(out.join("neighbours")),
            base: Some(out.join("plain").join("model")),
            model: None,
            retro: Some(RetroSection {
                neighbours: Some(self.neighbours),
                layers: Some(vec![4]),
                heads: Some(1),
                head_dim: Some(WIDTH),
                encoder_hidden_size: Some(2 * WIDTH),
                encoder_intermediate_size: Some(WIDTH),
                encoder_heads: Some(8),
                encoder_layers: Some(1),
                encoder_cross_layers: None,
                initialisation: Some(Initialisation::Copy),
                gate: None,
            }),
            training: self.training(self.retro_steps, self.retro_steps / 4, 1e-3, seed),
            ..self.plain(seed, index, out)
        }
    }

    /// The plain run made longer by `steps` steps: it goes on from where its learning rate began
    /// to fall, so that it is one run of that length and not a short one with an appendix.
    fn plain_longer(&self, steps: usize, seed: u64, index: &Path, out: &Path) -> TrainConfig {
        let mut config = self.plain(seed, index, out);
        config.continue_from = Some(checkpoint_folder(&config.out, config.training.level_steps()));
        config.out = out.join("plain-longer");
        config.training.steps += steps;
        config.model = None;
        config
    }
}

/// Trains and measures. Gives `{"perplexity", "bits_per_byte", "held_out", "training"}`.
pub fn run(
    settings: &Settings,
    seed: u64,
    retriever: &Retriever,
    files: &Files,
    out: &Path,
    progress: Progress,
) -> Result<Value> {
    let index = retriever.dir();
    let k = settings.neighbours;
    let clock = Instant::now();
    precompute(retriever, None, k, Ranking::Vectors, &out.join("neighbours"), false, progress)?;
    let neighbour_seconds = clock.elapsed().as_secs_f64();
    let queries = (std::slice::from_ref(&files.held_out), OnError::Fail);
    let held_out = out.join("held-out");
    precompute(
        retriever,
        Some(queries),
        OVERLAP_NEIGHBOURS.max(k),
        Ranking::Vectors,
        &held_out,
        false,
        progress,
    )?;

    let train = |config: TrainConfig, name: &str| -> Result<Outcome> {
        config.check()?;
        let text = toml::to_string(&config).map_err(|e| Error::setting(name, e.to_string()))?;
        let path = out.join(format!("{name}.toml"));
        std::fs::write(&path, text).map_err(Error::io(path))?;
        train::run(&config, &Device::Cpu, false, progress)
    };
    let plain = train(settings.plain(seed, index, out), "plain")?;
    let retro = train(settings.retro(seed, index, out), "retro")?;
    let extra_seconds = retro.seconds + neighbour_seconds;
    let extra_steps = (extra_seconds / plain.seconds * plain.steps as f64).ceil() as usize;
    let longer = train(settings.plain_longer(extra_steps, seed, index, out), "plain-longer")?;
    let stable = settings.plain_steps - settings.decay_steps;
    let branch = plain.measurements.iter().rfind(|m| m.step <= stable).map_or(0, |m| m.tokens);
    let runs = [("plain", &plain, 0), ("plain-longer", &longer, branch), ("retro", &retro, plain.tokens)];
    save_curves(out, &runs)?;

    let neighbours = Neighbours::open_for(&held_out, index)?;
    let text = neighbours.queries()?.ok_or_else(|| Error::file(&held_out, "holds no text of its own"))?;
    let library = retriever.store();
    let others = shuffled(text.chunks(), seed);
    let own = Neighbourhood { of: Box::new(|chunk| tokens_of(library, neighbours.of(chunk))), k };
    let other = Neighbourhood { of: Box::new(|chunk| tokens_of(library, neighbours.of(others[chunk]))), k };
    let score = |model: &Outcome, around: Option<&Neighbourhood<'_>>| {
        let model = LanguageModel::load(&model.model, Trainable::Nothing, &Device::Cpu)?;
        perplexity::score(&model, &text, 0..text.documents(), around, progress)
    };
    let systems = [
        ("plain", score(&plain, None)?),
        ("plain_longer", score(&longer, None)?),
        ("retrieval_on", score(&retro, Some(&own))?),
        ("retrieval_off", score(&retro, None)?),
        ("retrieval_shuffled", score(&retro, Some(&other))?),
    ];
    let overlaps: Vec<f64> = (0..text.chunks())
        .map(|chunk| {
            let near = tokens_of(library, &neighbours.of(chunk)[..OVERLAP_NEIGHBOURS]);
            overlap(text.chunk(chunk).tokens, &near, text.chunk_size())
        })
        .collect();
    Ok(json!({
        "perplexity": by_name(&systems, Scores::perplexity),
        "bits_per_byte": by_name(&systems, Scores::bits_per_byte),
        "held_out": {
            "kinds": kinds(&systems, &overlaps, &text, files),
            "filtered": systems
                .iter()
                .map(|(name, scores)| {
                    let own: Vec<f64> = scores.chunks.iter().map(|score| overlaps[score.chunk]).collect();
                    (name.to_string(), json!(filtered_bits(scores, &own)))
                })
                .collect::<Map<_, _>>(),
        },
        "training": {
            "plain": plain,
            "plain_longer": longer,
            "retro": retro,
            "neighbour_seconds": neighbour_seconds,
            "extra_steps": extra_steps,
            "curve": out.join("curve.svg"),
        },
    }))
}

fn by_name(systems: &[(&str, Scores)], value: fn(&Scores) -> f64) -> Value {
    systems
        .iter()
        .map(|(name, scores)| (name.to_string(), json!(value(scores))))
        .collect::<Map<_, _>>()
        .into()
}

/// The same, apart for ordinary and templated articles, with their overlap.
fn kinds(systems: &[(&str, Scores)], overlaps: &[f64], text: &Store, files: &Files) -> Value {
    let kind_of = |chunk: usize| {
        let id = text.document(text.chunk(chunk).document).id;
        files.kinds.get(id).map_or("ordinary", String::as_str)
    };
    let mut all = Map::new();
    for kind in ["ordinary", "templated"] {
        let of_kind = |scores: &Scores| Scores {
            chunks: scores.chunks.iter().filter(|score| kind_of(score.chunk) == kind).cloned().collect(),
        };
        let apart: Vec<(&str, Scores)> =
            systems.iter().map(|(name, scores)| (*name, of_kind(scores))).collect();
        let own: Vec<f64> = apart[0].1.chunks.iter().map(|score| overlaps[score.chunk]).collect();
        let eighth = own.iter().filter(|overlap| **overlap >= 0.125).count();
        all.insert(
            kind.into(),
            json!({
                "chunks": own.len(),
                "sharing_an_eighth_with_a_neighbour": eighth as f64 / own.len().max(1) as f64,
                "perplexity": by_name(&apart, Scores::perplexity),
                "bits_per_byte": by_name(&apart, Scores::bits_per_byte),
            }),
        );
    }
    all.into()
}

/// Draws the runs, each with the training tokens before it, as one plot, and keeps their measurements together.
fn save_curves(out: &Path, runs: &[(&str, &Outcome, u64)]) -> Result<()> {
    // Each run goes on from the plain one, so its curve starts at what that had read by then.
    let curves: Vec<Curve> = runs
        .iter()
        .map(|(name, run, start)| {
            let mut curve = Curve::held_out(name, &run.measurements);
            curve.points.iter_mut().for_each(|point| point.0 += *start as f64);
            curve
        })
        .collect();
    plot(&out.join("curve.svg"), "held-out loss while training", &curves)?;
    let mut lines = String::new();
    for (name, run, _) in runs {
        for measurement in &run.measurements {
            let mut line = json!(measurement);
            line["run"] = json!(name);
            lines += &format!("{line}\n");
        }
    }
    let path = out.join("curve.jsonl");
    std::fs::write(&path, lines).map_err(Error::io(path))
}
