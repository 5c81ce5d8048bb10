//! What is measured while something is trained.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measurement {
    /// Steps done.
    pub step: usize,
    /// Targets read so far.
    pub tokens: u64,
    /// Seconds spent training so far, measurements and checkpoints not counted.
    pub seconds: f64,
    /// Mean negative log likelihood of the training text since the last line, nats a token; none where all steps were left out.
    pub loss: Option<f64>,
    /// Norm of the last gradient before clipping; none where it was not finite.
    pub gradient_norm: Option<f64>,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Steps left out so far because a gradient was not finite.
    pub skipped_steps: usize,
    /// Mean negative log likelihood of held-out text, nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
    /// The same of what else is held out and reported apart, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out_losses: BTreeMap<String, f64>,
}
