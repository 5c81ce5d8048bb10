//! `[training]`.

use serde::{Deserialize, Serialize};
use sidenote_kernels as kernels;

use crate::error::{Error, Result};
use crate::model::Precision;

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
    /// memory, a third more work. Not with prompt and prefix tuning of decoders.
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

    /// What networks keep for a step's backward pass.
    pub fn activations(&self) -> kernels::Activations {
        match self.recompute {
            0 => kernels::Activations::Kept,
            blocks => kernels::Activations::Recomputed(blocks),
        }
    }

    /// Steps before the learning rate begins to fall. A checkpoint is kept there, from which the run
    /// can be made longer.
    pub fn level_steps(&self) -> usize {
        self.steps - self.decay_steps
    }

    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("training.steps", self.steps),
            ("training.chunks", self.chunks),
            ("training.batch_tokens", self.batch_tokens),
            ("training.accumulate", self.accumulate),
            ("training.keep_checkpoints", self.keep_checkpoints),
            ("training.evaluate_every", self.evaluate_every),
            ("training.checkpoint_every", self.checkpoint_every),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::setting(*name, "must be at least 1"));
        }
        if self.chunks > LARGEST_CHUNKS {
            let why = format!("{} is more than any model reads; at most {LARGEST_CHUNKS}", self.chunks);
            return Err(Error::setting("training.chunks", why));
        }
        if self.accumulate > MOST_BATCHES {
            let why = format!("{} batches a step are held at once; at most {MOST_BATCHES}", self.accumulate);
            return Err(Error::setting("training.accumulate", why));
        }
        if self.warmup_steps.saturating_add(self.decay_steps) > self.steps {
            let why = format!("with training.decay_steps more than training.steps ({})", self.steps);
            return Err(Error::setting("training.warmup_steps", why));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Err(Error::setting("training.learning_rate", "must be a positive number"));
        }
        if self.decay_steps > 0 && self.schedule != Schedule::Constant {
            let why = "belongs to schedule = \"constant\"; the other schedules fall by themselves";
            return Err(Error::setting("training.decay_steps", why));
        }
        if !(0.0..=1.0).contains(&self.final_rate) {
            return Err(Error::setting(
                "training.final_rate",
                "is a share of the learning rate, from 0 to 1",
            ));
        }
        if self.clip.is_nan() || self.clip <= 0.0 {
            return Err(Error::setting("training.clip", "must be a positive number"));
        }
        if !self.weight_decay.is_finite() || self.weight_decay < 0.0 {
            return Err(Error::setting("training.weight_decay", "must be a number, 0 or more"));
        }
        Ok(())
    }
}

/// Chunks of a sequence, at most.
const LARGEST_CHUNKS: usize = 1 << 20;
/// Batches of a step, at most: their tokens are all in memory.
const MOST_BATCHES: usize = 1 << 16;

fn one() -> usize {
    1
}

fn two() -> usize {
    2
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
