//! `[retriever]`.

use serde::{Deserialize, Serialize};
use sidenote_index::Metric;

use crate::error::{Error, Result};

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

    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        if self.batch < 2 {
            return fault(
                "retriever.batch",
                "must be at least 2: a passage is told from those of other queries",
            );
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return fault("retriever.momentum", "must be at least 0 and less than 1");
        }
        if self.queue > 0 && self.symmetric {
            return fault(
                "retriever.queue",
                "passages of a queue have no queries to be found; leave symmetric out",
            );
        }
        match self.temperature {
            Some(temperature) if !(temperature > 0.0 && temperature.is_finite()) => {
                fault("retriever.temperature", "must be a positive number")
            }
            _ => Ok(()),
        }
    }
}
