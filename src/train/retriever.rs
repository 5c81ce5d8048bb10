//! An encoder that learns what belongs together: from pairs of queries and passages, or from crops of the same text.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::checkpoint;
use super::config::{RetrieverSection, TrainConfig};
use super::contrastive::info_nce;
use super::epochs::Epochs;
use super::queue::Queue;
use super::steps::Learner;
use crate::corpus::Store;
use crate::encoder::TrainableEncoder;
use crate::error::{Error, Result};
use crate::model::Dropout;
use crate::retriever::open_store;

/// Shares of a text that a crop may have, and of its words that are left out (Contriever, section 3.1).
const CROP: [f64; 2] = [0.05, 0.5];
const DELETED: f64 = 0.1;
/// Words of a crop, at least.
const LEAST: usize = 4;

/// The logarithm of what scores are multiplied by, in a checkpoint, and the most that it becomes where it is learnt (CLIP, section
/// 2.5).
const LOG_SCALE: &str = "log_scale";
const MOST_SCALE: f32 = 100.0;

/// See [the module](self).
pub struct RetrieverLearner<'a> {
    config: &'a TrainConfig,
    section: RetrieverSection,
    encoder: TrainableEncoder,
    /// The weights that are trained: the encoder's, and the temperature's where it is learnt.
    variables: Vec<(String, Var)>,
    /// The logarithm of what scores are multiplied by.
    log_scale: Var,
    queue: Option<Queue>,
    text: Text,
    held_out: Vec<Pair>,
    epochs: Epochs,
}

/// What is learnt from.
enum Text {
    /// Queries with passages that answer them.
    Pairs(Vec<Pair>),
    /// Two crops of the same text belong together (Izacard et al. 2022, <https://arxiv.org/abs/2112.09118>, section 3.1).
    Crops {
        store: Store,
        /// The documents that were not deleted.
        live: Vec<usize>,
    },
}

impl Text {
    fn len(&self) -> usize {
        match self {
            Self::Pairs(pairs) => pairs.len(),
            Self::Crops { live, .. } => live.len(),
        }
    }
}

/// A line of the file of pairs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Pair {
    query: String,
    positive: String,
    /// Passages that look right and are not.
    #[serde(default)]
    negatives: Vec<String>,
}

/// Token ids of queries, and of passages: first each query's own, then negatives.
pub struct Batch {
    queries: Vec<Vec<u32>>,
    passages: Vec<Vec<u32>>,
    /// Vectors of the passages, and of earlier ones, where there is a queue.
    keys: Option<Tensor>,
}

impl<'a> RetrieverLearner<'a> {
    /// Opens what `config` names; the encoder is that of the checkpoint `start`, where there is one.
    ///
    /// # Errors
    /// Names the setting, file or line that is missing or cannot be.
    pub fn open(config: &'a TrainConfig, start: Option<&Path>, device: &Device) -> Result<Self> {
        let name = start.or(config.base.as_deref());
        let name =
            name.and_then(Path::to_str).ok_or_else(|| Error::setting("base", "give an encoder's folder"))?;
        let encoder = TrainableEncoder::load(name, device)?;
        let text = match &config.pairs {
            Some(file) => Text::Pairs(read_pairs(file)?),
            None => {
                let store = open_store(&config.index)?;
                let live = (0..store.documents()).filter(|&d| store.document_is_live(d)).collect();
                Text::Crops { store, live }
            }
        };
        let held_out = config.held_out.as_deref().map(read_pairs).transpose()?.unwrap_or_default();
        let section = config.retriever.clone().unwrap_or_default();
        let state = start.map(checkpoint::load_learner).transpose()?.unwrap_or_default();
        let queue = match section.queue {
            0 => None,
            size => Some(Queue::open(name, size, section.momentum, &state, device)?),
        };
        let log_scale = match state.get(LOG_SCALE).filter(|_| section.learn_temperature) {
            Some(learnt) => Var::from_tensor(&learnt.to_device(device)?)?,
            None => Var::new(-(section.temperature(encoder.metric()).ln() as f32), device)?,
        };
        let mut variables = encoder.variables().to_vec();
        variables.extend(section.learn_temperature.then(|| (LOG_SCALE.to_string(), log_scale.clone())));
        let texts = text.len();
        if section.queue > 0 && section.queue >= texts {
            let why = format!(
                "{}, but there are only {texts} texts to learn from, which would be told from themselves",
                section.queue
            );
            return Err(Error::setting("retriever.queue", why));
        }
        if texts < section.batch {
            let why = format!("{}, but there are only {texts} texts to learn from", section.batch);
            return Err(Error::setting("retriever.batch", why));
        }
        let epochs = Epochs::new(config.training.seed, texts, section.batch);
        Ok(Self { config, section, encoder, variables, log_scale, queue, text, held_out, epochs })
    }

    fn pair(&self, number: usize, rng: &mut ChaCha8Rng) -> Pair {
        match &self.text {
            Text::Pairs(pairs) => pairs[number].clone(),
            Text::Crops { store, live } => {
                let chunks = store.chunks_of(live[number]).map(|chunk| store.chunk(chunk).text);
                let text = chunks.collect::<Vec<_>>().join(" ");
                Pair { query: crop(&text, rng), positive: crop(&text, rng), negatives: Vec::new() }
            }
        }
    }

    /// Tokens of pairs; those of which a side has none are left out.
    fn batch(&self, pairs: &[Pair]) -> Result<Batch> {
        let all: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        let queries = self.encoder.tokenize_queries(&all)?;
        let own: Vec<&str> = pairs.iter().map(|pair| pair.positive.as_str()).collect();
        let passages = self.encoder.tokenize(&own)?;
        let (queries, mut passages): (Vec<_>, Vec<_>) = queries
            .into_iter()
            .zip(passages)
            .filter(|(query, own)| !query.is_empty() && !own.is_empty())
            .unzip();
        let wrong = pairs.iter().flat_map(|pair| pair.negatives.iter().take(self.section.negatives));
        let wrong: Vec<&str> = wrong.map(String::as_str).collect();
        passages.extend(self.encoder.tokenize(&wrong)?.into_iter().filter(|ids| !ids.is_empty()));
        Ok(Batch { queries, passages, keys: None })
    }

    /// The sum of the losses of a batch's queries.
    fn nats(&self, batch: &Batch, dropout: Option<Dropout>) -> Result<Tensor> {
        let encode = |texts: &[Vec<u32>], part: u64| {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            self.encoder.forward(&texts, dropout.map(|dropout| dropout.part(part)))
        };
        let queries = encode(&batch.queries, 0)?;
        let passages = match &batch.keys {
            Some(keys) => keys.clone(),
            None => encode(&batch.passages, 1)?,
        };
        info_nce(&queries, &passages, &self.log_scale.exp()?, self.section.symmetric)
    }
}

impl Learner for RetrieverLearner<'_> {
    type Batch = Batch;

    fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    fn parameters(&self) -> usize {
        self.encoder.variables().iter().map(|(_, variable)| variable.elem_count()).sum()
    }

    fn read(&mut self, number: usize) -> Result<Batch> {
        let (numbers, mut rng) = self.epochs.batch(number);
        let pairs: Vec<Pair> = numbers.iter().map(|number| self.pair(*number, &mut rng)).collect();
        let mut batch = self.batch(&pairs)?;
        if let Some(queue) = self.queue.as_mut().filter(|_| !batch.passages.is_empty()) {
            batch.keys = Some(queue.keys(&batch.passages)?);
        }
        Ok(batch)
    }

    fn targets(&self, batch: &Batch) -> usize {
        batch.queries.len()
    }

    fn loss(&self, batch: Batch, number: usize) -> Result<Tensor> {
        let rate = self.encoder.dropout_rate();
        let dropout = Dropout::new(rate, self.config.training.seed).part(number as u64);
        self.nats(&batch, (rate > 0.0).then_some(dropout))
    }

    fn stepped(&mut self) -> Result<()> {
        if self.section.learn_temperature {
            let log_scale = self.log_scale.to_scalar::<f32>()?;
            if log_scale > MOST_SCALE.ln() {
                self.log_scale.set(&Tensor::new(MOST_SCALE.ln(), self.log_scale.device())?)?;
            }
        }
        self.queue.as_ref().map_or(Ok(()), |queue| queue.follow(self.encoder.variables()))
    }

    fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = self.queue.as_ref().map(Queue::state).transpose()?.unwrap_or_default();
        if self.section.learn_temperature {
            state.insert(LOG_SCALE.into(), self.log_scale.as_tensor().copy()?);
        }
        Ok(state)
    }

    fn held_out(&self) -> Result<Option<f64>> {
        let (mut nats, mut count) = (0.0, 0);
        for pairs in self.held_out.chunks_exact(self.section.batch) {
            let batch = self.batch(pairs)?;
            nats += f64::from(self.nats(&batch, None)?.to_scalar::<f32>()?);
            count += batch.queries.len();
        }
        Ok((count > 0).then(|| nats / count as f64))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.encoder.save_as(dir, self.config.training.precision)
    }
}

/// A stretch of a text's words, some of them left out.
fn crop(text: &str, rng: &mut ChaCha8Rng) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let share = rng.random_range(CROP[0]..CROP[1]);
    let length = ((words.len() as f64 * share) as usize).max(LEAST).min(words.len());
    let first = rng.random_range(0..=words.len() - length);
    let kept: Vec<&str> =
        words[first..first + length].iter().copied().filter(|_| rng.random::<f64>() >= DELETED).collect();
    kept.join(" ")
}

/// Reads a file of pairs, a JSON object a line.
fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut pairs = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(Error::io(path))?;
        if line.trim().is_empty() {
            continue;
        }
        let pair = serde_json::from_str(&line).map_err(|e| {
            Error::file(path, format!("line {}: {e}; a line has \"query\" and \"positive\"", number + 1))
        })?;
        pairs.push(pair);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn crops_are_stretches_of_the_text() {
        let text = (0..200).map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let crop = crop(&text, &mut rng);
            let numbers: Vec<usize> = crop.split(' ').map(|word| word[1..].parse().unwrap()).collect();
            assert!(numbers.is_sorted() && numbers.len() <= 100, "{crop}");
            let span = numbers[numbers.len() - 1] - numbers[0] + 1;
            assert!(numbers.len() as f64 > 0.6 * span as f64, "{crop}");
        }
        assert!(["", "one", "one two"].iter().all(|text| crop(text, &mut rng).len() <= text.len()));
    }
}
