//! `[tune]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::eval::tasks::Item;

/// Instances of tasks, and how they are learnt from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuneSection {
    /// Files of instances, such as `sidenote select` writes, and pools' folders.
    pub data: Vec<PathBuf>,
    /// Of each task so many instances are learnt from, drawn by chance (FLAN's 30,000); all where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_examples: Option<usize>,
    /// How often each task is drawn: "proportional" to its instances, or "uniform".
    pub mixing: Mixing,
    /// With "proportional": so many of a task's instances count at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<usize>,
    /// With "proportional": shares are taken to the power of one over this.
    pub temperature: f64,
    /// What is drawn: a "task", or first a "cluster" of tasks.
    pub by: MixBy,
    /// Of a task, what is drawn as often as any other: an "instance", or a "template" that some are written by.
    pub within: Within,
    /// How questions are asked.
    #[serde(skip_serializing_if = "FormatSection::is_plain")]
    pub formats: FormatSection,
    /// Tasks or clusters that are evaluated afterwards, in capitals or not: an instance of one of them is an error.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_out_clusters: Vec<String>,
    /// Held-out instances of three kinds, each measured apart.
    #[serde(skip_serializing_if = "SplitSection::is_empty")]
    pub splits: SplitSection,
    /// What is learnt of an instance: its "answer"; or, from its own text and the answer, its "instruction" (Flipped Learning).
    pub learn: Learn,
    /// How it is learnt: "lm" alone, or with "length-normalised" and "unlikelihood" as T-Few does, from data with choices.
    pub losses: Vec<TuneLoss>,
    /// Whether the texts of a batch stand one after another in one row, none of which sees another, in place of side by side: nothing
    /// is filled up, and texts of any length come together. Of decoders.
    pub packing: bool,
    /// Most tokens of what is asked; the beginning of a longer one is left out.
    pub max_question_tokens: usize,
    /// Most tokens of an answer, with the one that ends it.
    pub max_answer_tokens: usize,
}

impl Default for TuneSection {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            max_examples: None,
            mixing: Mixing::Proportional,
            cap: None,
            temperature: 1.0,
            by: MixBy::Task,
            within: Within::Instance,
            formats: FormatSection::default(),
            held_out_clusters: Vec::new(),
            splits: SplitSection::default(),
            learn: Learn::Answer,
            losses: vec![TuneLoss::Lm],
            packing: false,
            max_question_tokens: 768,
            max_answer_tokens: 128,
        }
    }
}

impl TuneSection {
    /// What an instance is drawn as a part of.
    pub fn group_of(&self, item: &Item) -> String {
        match self.by {
            MixBy::Task => item.task(),
            MixBy::Cluster => item.instance.cluster.clone().unwrap_or_else(|| item.task()),
        }
    }

    /// Refuses an instance of a task or cluster that is held out, and one that does not say what it is of.
    ///
    /// # Errors
    /// Names the line.
    pub fn check_held_out_clusters(&self, item: &Item) -> Result<()> {
        if self.held_out_clusters.is_empty() {
            return Ok(());
        }
        let Some(cluster) = &item.instance.cluster else {
            let why =
                "names no cluster, so that nobody can tell whether it is held out (tune.held_out_clusters)";
            return Err(item.fault(why));
        };
        // Collections write the same name in capitals or not.
        let own = [cluster.to_lowercase(), item.task().to_lowercase()];
        match self.held_out_clusters.iter().find(|name| own.contains(&name.to_lowercase())) {
            None => Ok(()),
            Some(name) => Err(item.fault(format!(
                "is of {name}, which is held out (tune.held_out_clusters); leave it out of the data"
            ))),
        }
    }

    /// Whether wrong answers are read too.
    pub(crate) fn ranks(&self) -> bool {
        self.losses.iter().any(|loss| *loss != TuneLoss::Lm)
    }

    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let fault = |name: &'static str, why: &str| Err(Error::setting(name, why));
        if self.data.is_empty() {
            return fault("tune.data", "give the files of instances");
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return fault("tune.temperature", "must be a positive number");
        }
        if self.mixing == Mixing::Uniform && (self.cap.is_some() || self.temperature != 1.0) {
            return fault("tune.mixing", "\"uniform\" takes no cap and no temperature");
        }
        if self.max_examples == Some(0) {
            return fault("tune.max_examples", "must be at least 1");
        }
        let formats = &self.formats;
        if !(0.0..=1.0).contains(&formats.few_shot) || formats.shots == 0 {
            return fault("tune.formats", "few_shot is a share from 0 to 1, shots at least 1");
        }
        if formats.few_shot > 0.0 && self.learn == Learn::Instruction {
            return fault(
                "tune.formats.few_shot",
                "shows answered questions; learn = \"instruction\" asks none",
            );
        }
        if formats.chain_of_thought.is_some_and(|share| !(0.0..1.0).contains(&share)) {
            return fault("tune.formats.chain_of_thought", "is a share from 0 to less than 1");
        }
        if self.cap == Some(0) || self.max_question_tokens == 0 || self.max_answer_tokens < 2 {
            return fault(
                "tune",
                "cap and max_question_tokens must be at least 1, max_answer_tokens at least 2",
            );
        }
        if self.losses.is_empty() {
            return fault("tune.losses", "give at least \"lm\"");
        }
        if self.learn == Learn::Instruction && self.losses.contains(&TuneLoss::LengthNormalised) {
            return fault(
                "tune.losses",
                "\"length-normalised\" ranks answers; learn = \"instruction\" has none",
            );
        }
        Ok(())
    }
}

/// How questions are asked, by shares (Flan-PaLM and the Flan Collection: Chung et al. 2022, <https://arxiv.org/abs/2210.11416>;
/// Longpre et al. 2023, <https://arxiv.org/abs/2301.13688>, section 3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatSection {
    /// Share of the instances that come after others of their task and template with their answers; the rest comes alone.
    pub few_shot: f64,
    /// How many others, as far as there is room for them.
    pub shots: usize,
    /// Share of the draws that are chains of thought (instances of the template "chain of thought", as `pool build` makes of FLAN's);
    /// as many as the mixing gives them where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain_of_thought: Option<f64>,
}

impl Default for FormatSection {
    fn default() -> Self {
        Self { few_shot: 0.0, shots: 4, chain_of_thought: None }
    }
}

impl FormatSection {
    fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Files or pools of held-out instances, by kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitSection {
    /// Of categories (clusters) that the data must have nothing of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub categories: Option<PathBuf>,
    /// Of tasks that the data must have nothing of. Measured are those of categories that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<PathBuf>,
    /// Instances that the data must not have. Measured are those of tasks that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<PathBuf>,
}

impl SplitSection {
    /// Whether nothing is held out so.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What of a task is drawn as often as any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Within {
    /// An instance.
    Instance,
    /// A template.
    Template,
}

/// How often each task is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mixing {
    /// As it has instances.
    Proportional,
    /// As often as any other.
    Uniform,
}

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixBy {
    /// A task.
    Task,
    /// A cluster of tasks; a task that is in none is one of its own.
    Cluster,
}

/// What is learnt of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// Its answer, after what is asked.
    Answer,
    /// The instruction, after the instance's own text and the answer. With "unlikelihood" a wrong answer is drawn as well, after
    /// which the instruction shall be unlikely.
    Instruction,
}

/// A loss of T-Few's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TuneLoss {
    /// Of the right answer.
    Lm,
    /// Of the right answer among all.
    LengthNormalised,
    /// Of the wrong answers.
    Unlikelihood,
}
