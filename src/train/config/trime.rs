//! `[trime]`.

use serde::{Deserialize, Serialize};

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

fn tenth() -> f64 {
    0.1
}
