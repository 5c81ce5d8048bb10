//! What passages are ranked by: chosen by who searches, and remembered by a model that learnt from what was found.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What passages are ranked by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Ranking {
    /// The encoder's vectors, by its metric.
    #[default]
    Vectors,
    /// Their words, by BM25.
    Words,
    /// Both, by reciprocal rank fusion of the first hundred.
    Hybrid,
}

impl Ranking {
    /// Both, or vectors alone.
    pub fn hybrid(hybrid: bool) -> Self {
        if hybrid { Self::Hybrid } else { Self::Vectors }
    }

    /// Whether it is the vectors, as where nothing is said.
    pub fn is_vectors(&self) -> bool {
        *self == Self::Vectors
    }
}

impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vectors => "vectors",
            Self::Words => "words",
            Self::Hybrid => "hybrid",
        })
    }
}
