//! What a training run does, as its TOML file says it: a file here for each of its sections.

mod atlas;
mod model;
mod objective;
mod overrides;
mod refresh;
mod retriever;
mod retro;
mod training;
mod trime;
mod tune;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adapter::Method;
use crate::error::{Error, Result};
use crate::model::Precision;
use crate::task::Mode;

pub use atlas::{AtlasSection, AtlasTask, RetrieverLoss};
pub use model::{ModelSection, T5Section};
pub use objective::{Level, ObjectiveSection};
pub use refresh::RefreshSchedule;
pub use retriever::RetrieverSection;
pub use retro::RetroSection;
pub use training::{OptimiserKind, Schedule, TrainingSection};
pub use trime::{TrimeKind, TrimeSection};
pub use tune::{FormatSection, Learn, MixBy, Mixing, SplitSection, TuneLoss, TuneSection, Within};

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
    /// Neighbours of the training text's chunks, made by `sidenote neighbours`; kinds "retro" and "retrofit". Those of a text of
    /// their own (`--queries`) have that learnt in place of the index's: a base that has read the index's text many times has
    /// nothing to look up for it.
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

fn nowhere(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

impl TrainConfig {
    /// Reads the TOML file at `path`, with `overrides` such as `training.steps=100` on top.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| Error::file(path, e.to_string().trim_end()))?;
        for one in overrides {
            overrides::set(&mut table, one)?;
        }
        let config: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| Error::file(path, e.to_string().trim_end()))?;
        config.check()?;
        Ok(config)
    }

    /// The settings without the files and folders that are named beside the sections.
    pub fn without_places(&self) -> Self {
        Self {
            out: PathBuf::new(),
            index: PathBuf::new(),
            pairs: None,
            neighbours: None,
            held_out: None,
            base: None,
            continue_from: None,
            examples: None,
            ..self.clone()
        }
    }

    /// Refuses settings that contradict each other.
    pub fn check(&self) -> Result<()> {
        let t = &self.training;
        t.check()?;
        self.objectives.iter().try_for_each(ObjectiveSection::check)?;
        if matches!(self.kind, Kind::Retro | Kind::Retrofit)
            && self.objectives.iter().any(|objective| !matches!(objective, ObjectiveSection::Causal { .. }))
        {
            let why = "a model that reads neighbours takes only \"causal\": they belong to chunks, which must stay where they are";
            return Err(Error::setting("objectives", why));
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
        if section.learn_temperature && self.training.precision != Precision::F32 {
            return fault(
                "retriever.learn_temperature",
                "steps of it are lost in 16 bits; leave training.precision out",
            );
        }
        section.check()
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
        section.check()?;
        let retrieves = section.mode == Mode::Retrieve;
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
        Ok(())
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
        assert!(error(&["training.chunks=9223372036854775807"]).contains("training.chunks"));
        assert!(error(&["training.weight_decay=inf"]).contains("weight_decay"));
        assert!(error(&["training.accumulate=0"]).contains("training.accumulate"));
        assert!(error(&["training.accumulate=1000000000000"]).contains("training.accumulate"));
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
