//! `objectives`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One objective of a mixture. For a decoder, what is read and what is written follow each other, and only the latter
/// counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ObjectiveSection {
    /// Every token after those before it.
    Causal {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
    },
    /// The rest after the beginning.
    Prefix {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
    },
    /// Fill in the middle. Its share of the weights is the paper's FIM rate.
    Infilling {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
        /// Whether sequences are transformed, or documents before they are cut into sequences.
        #[serde(default)]
        level: Level,
        /// Share of texts that come suffix first.
        #[serde(default = "half")]
        spm_rate: f64,
        /// The tokens before prefix, suffix and middle.
        #[serde(default = "infilling_tokens")]
        tokens: [String; 3],
    },
    /// T5's span corruption.
    Spans {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
        /// Share of the tokens that are taken out.
        #[serde(default = "density")]
        density: f64,
        /// Mean tokens of a span.
        #[serde(default = "mean_length")]
        mean_length: f64,
        /// What sentinels are called, before their number and `>`.
        #[serde(default = "sentinel")]
        sentinel: String,
    },
    /// AlexaTM's denoising: the whole text after the text with spans dropped.
    Denoising {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
    },
    /// AlexaTM's causal task: the rest after the beginning behind a token that asks for it.
    Continuation {
        /// How often, compared with the others.
        #[serde(default = "unit")]
        weight: f64,
        /// That token.
        #[serde(default = "clm")]
        token: String,
    },
}

/// What infilling is applied to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Each sequence: all three parts are always there.
    #[default]
    Context,
    /// Each document, before it is cut into sequences.
    Document,
}

impl ObjectiveSection {
    /// How often, compared with the others.
    pub fn weight(&self) -> f64 {
        match self {
            Self::Causal { weight }
            | Self::Prefix { weight }
            | Self::Infilling { weight, .. }
            | Self::Spans { weight, .. }
            | Self::Denoising { weight }
            | Self::Continuation { weight, .. } => *weight,
        }
    }

    /// Refuses shares that are none.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let share = |name: &str, value: f64, open: bool| {
            let fits = (0.0..=1.0).contains(&value) && (!open || (value > 0.0 && value < 1.0));
            let why = if open { "must be between 0 and 1" } else { "must be from 0 to 1" };
            if fits { Ok(()) } else { Err(Error::setting(name, why)) }
        };
        if !(self.weight() > 0.0 && self.weight().is_finite()) {
            return Err(Error::setting("objectives.weight", "must be a positive number"));
        }
        match self {
            Self::Infilling { spm_rate, .. } => share("objectives.spm_rate", *spm_rate, false),
            Self::Spans { density, mean_length, .. } => {
                share("objectives.density", *density, true)?;
                match *mean_length >= 1.0 && mean_length.is_finite() {
                    true => Ok(()),
                    false => Err(Error::setting("objectives.mean_length", "must be at least 1")),
                }
            }
            _ => Ok(()),
        }
    }
}

fn unit() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn density() -> f64 {
    0.15
}

fn mean_length() -> f64 {
    3.0
}

fn infilling_tokens() -> [String; 3] {
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"].map(String::from)
}

fn sentinel() -> String {
    "<extra_id_".into()
}

fn clm() -> String {
    "[CLM]".into()
}
