//! `[atlas]`.

use serde::{Deserialize, Serialize};

use super::refresh::RefreshSchedule;
use crate::error::{Error, Result};
use crate::reader::Templates;
use crate::retriever::Ranking;
use crate::task::{Mode, Permutations, Task};

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

impl AtlasSection {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        let positive = [
            ("atlas.passages", self.passages),
            ("atlas.batch", self.batch),
            ("atlas.target_tokens", self.target_tokens),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return fault(name, "must be at least 1");
        }
        let retrieves = self.mode == Mode::Retrieve;
        if self.mode == Mode::RetrieveOnly {
            let why = "\"retrieve-only\" reads nothing; \"retrieve\", \"given-passages\" and \"closed-book\" are learnt";
            return fault("atlas.mode", why);
        }
        if !retrieves && (self.loss.is_some() || self.ranking != Ranking::Vectors) {
            return fault("atlas.mode", "loss and ranking belong to what is retrieved; leave them out");
        }
        if !retrieves && self.task.of_lines().is_none() {
            return fault("atlas.mode", "a task on the index's text is one of retrieving");
        }
        let reals = [
            ("atlas.score_temperature", self.score_temperature.unwrap_or(1.0)),
            ("atlas.target_temperature", self.target_temperature),
            ("atlas.retriever_rate", self.retriever_rate),
        ];
        if let Some((name, _)) = reals.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return fault(name, "must be a positive number");
        }
        if self.rerank > 0 && self.rerank < self.passages {
            return fault("atlas.rerank", "must be at least atlas.passages, or 0");
        }
        let learns = self.loss.is_some();
        if !learns && (self.query_side || self.refresh.is_some() || self.rerank > 0) {
            let why = "query_side, refresh and rerank belong to a retriever that learns; give the loss";
            return fault("atlas.loss", why);
        }
        if learns && self.ranking != Ranking::Vectors {
            return fault("atlas.ranking", "a retriever that learns ranks by vectors");
        }
        if self.query_side && (self.refresh.is_some() || self.rerank > 0) {
            return fault("atlas.query_side", "leaves the index fresh; leave refresh and rerank out");
        }
        if self.refresh_lag > 0 && self.refresh.is_none() {
            return fault("atlas.refresh_lag", "says when a refresh comes into use; give refresh");
        }
        self.templates.check()
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

/// How a retriever learns from a reader: see [`loss`](crate::train::atlas::loss).
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
