//! How a text is written.

use crate::error::{Error, Result};

/// Texts that are written at once for a prompt, at most.
const MOST_TEXTS: usize = 1 << 16;

/// How to go on from a prompt. The default takes the likeliest token each time.
///
/// Logits are changed in the order of transformers: repetition penalty, choices, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// 0 takes the likeliest token each time; otherwise logits are divided by it and a token is drawn.
    pub temperature: f64,
    /// Only the k likeliest tokens are drawn from (Fan et al. 2018); 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability (Holtzman et al. 2020, equation 2); 1 for all.
    pub top_p: f64,
    /// Only tokens at least this times as probable as the likeliest (Nguyen et al. 2024); 0 for all.
    pub min_p: f64,
    /// Logits of tokens of the prompt and the text are divided by it where positive and multiplied where negative
    /// (Keskar et al. 2019, section 4.1); 1 for none.
    pub repetition_penalty: f64,
    /// Sequences that beam search goes on with at a time; 1 for no beam search.
    pub beams: usize,
    /// In beam search a text's log-probability is divided by its number of tokens to this power.
    pub length_penalty: f64,
    /// Texts a prompt: drawn independently, or the best of the beams.
    pub samples: usize,
    /// Seed of the draws. What is drawn depends on it, the prompt and the number of the sample alone.
    pub seed: u64,
    /// Strings that end a text, which then goes up to there, as soon as one is complete. They are found wherever they
    /// lie on tokens.
    pub stop: Vec<String>,
    /// Where not empty, the text is one of these.
    pub choices: Vec<String>,
    /// Log-probabilities of what was written are given, with so many of the likeliest alternatives.
    pub logprobs: Option<usize>,
    /// Most sequences at a time.
    pub batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_tokens: 64,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            beams: 1,
            length_penalty: 1.0,
            samples: 1,
            seed: 0,
            stop: Vec::new(),
            choices: Vec::new(),
            logprobs: None,
            batch: 8,
        }
    }
}

impl Options {
    /// Refuses what no text can be written with.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, why: &str| Err(Error::setting(name, why));
        if !(0.0..=1e6).contains(&self.temperature) {
            return refuse("temperature", "must be 0 or more, and at most 1e6");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top-p", "must be more than 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min-p", "must be from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse("repetition-penalty", "must be more than 0; 1 is no penalty");
        }
        if !self.length_penalty.is_finite() {
            return refuse("length-penalty", "must be a number");
        }
        if self.samples == 0 {
            return refuse("n", "must be at least 1");
        }
        if self.beams == 0 {
            return refuse("beams", "must be at least 1; 1 is no beam search");
        }
        for (name, many) in [("n", self.samples), ("beams", self.beams)] {
            if many > MOST_TEXTS {
                return refuse(name, &format!("{many} texts are held at once; at most {MOST_TEXTS}"));
            }
        }
        if self.batch == 0 {
            return refuse("batch", "must be at least 1");
        }
        if self.beams > 1 && self.temperature > 0.0 {
            return refuse("beams", "beam search draws nothing; leave the temperature at 0");
        }
        if self.beams > 1 && self.samples > self.beams {
            return refuse("n", "beam search gives at most as many texts as it has beams");
        }
        if self.beams == 1 && self.samples > 1 && self.temperature == 0.0 {
            return refuse(
                "n",
                "temperature 0 gives the same text each time; give a temperature or more beams",
            );
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "is empty, which is found everywhere");
        }
        if !self.choices.is_empty() && !self.stop.is_empty() {
            return refuse("stop", "has no effect where the text is one of given choices; leave one out");
        }
        Ok(())
    }
}
