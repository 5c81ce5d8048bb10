//! Sentence encoders over a T5 encoder, such as Sentence-T5 (Ni et al. 2022, <https://arxiv.org/abs/2108.08877>)
//! and GTR: pooled by the mean, then usually a Dense module.

use candle_core::Device;
use serde::Deserialize;
use sidenote_index::Metric;

use super::folder::{CONFIG, Files};
use super::settings::Settings;
use super::{Encoder, normalise_rows};
use crate::error::Result;
use crate::model::Source;
use crate::model::t5;

/// Tokens that go through the network together, padding included.
const BATCH_TOKENS: usize = 2048;

/// A T5 encoder with pooling, read from a folder in sentence-transformers' layout, or one of a T5, of which the
/// encoder alone is read; vectors as [`SentenceEncoder`](super::SentenceEncoder) gives them.
pub(super) struct T5Encoder {
    name: String,
    identity: String,
    settings: Settings,
    network: t5::Encoder,
    dense: Vec<Dense>,
    dim: usize,
}

/// A module of sentence-transformers: `activation(W x + b)`.
struct Dense {
    /// `[out, in]`
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    tanh: bool,
    input: usize,
}

impl T5Encoder {
    pub fn read(name: &str, mut files: Files) -> Result<Self> {
        let (settings, dense) = Settings::of_t5(&mut files)?;
        // Into the identity.
        files.weights(|_| Ok(()))?;
        let network = t5::Encoder::from_source(Source::open(name)?, &Device::Cpu)?;
        settings.check_vocabulary(&files, network.config().vocab_size)?;
        let mut dim = network.config().d_model;
        let dense = dense
            .iter()
            .map(|folder| Dense::read(&mut files, folder, &mut dim))
            .collect::<Result<Vec<_>>>()?;
        let identity = files.identity();
        Ok(Self { name: name.into(), identity, settings, network, dense, dim })
    }

    /// The vector of each text of a batch, not normalised.
    fn rows(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let states = self.network.read(texts, None)?.states.to_vec3::<f32>()?;
        let mean = |(states, text): (&Vec<Vec<f32>>, &&[u32])| {
            let mut row = vec![0f32; states[0].len()];
            for state in &states[..text.len()] {
                row.iter_mut().zip(state).for_each(|(sum, x)| *sum += x);
            }
            row.iter_mut().for_each(|sum| *sum /= text.len() as f32);
            self.dense.iter().fold(row, |row, dense| dense.forward(&row))
        };
        Ok(states.iter().zip(texts).map(mean).collect())
    }
}

/// What a Dense module looks like.
pub(super) struct DenseShape {
    pub input: usize,
    pub output: usize,
    pub bias: bool,
    /// Whether its activation is tanh; there is none otherwise.
    pub tanh: bool,
}

impl DenseShape {
    /// Reads the configuration of the module in `folder`, whose input is `dim` wide.
    pub fn read(files: &mut Files, folder: &str, dim: usize) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            in_features: usize,
            out_features: usize,
            bias: bool,
            activation_function: String,
        }
        let file = format!("{folder}/{CONFIG}");
        let Config { in_features: input, out_features: output, bias, activation_function } =
            files.json(&file)?;
        if input != dim || output == 0 {
            return Err(files.fault(&file, format!("{input} to {output} features, but {dim} come in")));
        }
        let tanh = match activation_function.rsplit('.').next().unwrap_or_default() {
            "Identity" => false,
            "Tanh" => true,
            other => return Err(files.fault(&file, format!("activation {other:?} is not read here"))),
        };
        Ok(Self { input, output, bias, tanh })
    }
}

impl Dense {
    /// Reads the module in `folder`, whose input is `dim` wide, and makes `dim` the width of its output.
    fn read(files: &mut Files, folder: &str, dim: &mut usize) -> Result<Self> {
        let DenseShape { input, output, bias, tanh } = DenseShape::read(files, folder, *dim)?;
        *dim = output;
        files.weights_of(folder, |w| {
            let bias = bias.then(|| w.values("linear.bias", &[output])).transpose()?;
            Ok(Self { weight: w.values("linear.weight", &[output, input])?, bias, tanh, input })
        })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.input).enumerate();
        rows.map(|(i, row)| {
            let sum: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
            let sum = sum + self.bias.as_ref().map_or(0.0, |bias| bias[i]);
            if self.tanh { sum.tanh() } else { sum }
        })
        .collect()
    }
}

impl Encoder for T5Encoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let ids = self.settings.tokenize("", texts)?;
        // Sorted by length, so that a batch holds little padding.
        let mut order: Vec<usize> = (0..texts.len()).filter(|&i| !ids[i].is_empty()).collect();
        order.sort_by_key(|&i| (ids[i].len(), i));
        let mut vectors = vec![0f32; texts.len() * self.dim];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            // A batch is padded to its last text, the longest.
            let fits = |n: &usize| n * ids[rest[n - 1]].len() <= BATCH_TOKENS;
            let (batch, others) = rest.split_at((1..=rest.len()).take_while(fits).last().unwrap_or(1));
            let rows = self.rows(&batch.iter().map(|&i| ids[i].as_slice()).collect::<Vec<_>>())?;
            for (&i, row) in batch.iter().zip(rows) {
                vectors[i * self.dim..][..self.dim].copy_from_slice(&row);
            }
            rest = others;
        }
        if self.settings.metric == Metric::Cosine {
            normalise_rows(&mut vectors, self.dim);
        }
        Ok(vectors)
    }

    fn metric(&self) -> Metric {
        self.settings.metric
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &str {
        &self.identity
    }
}
