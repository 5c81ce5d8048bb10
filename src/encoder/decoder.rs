//! Vectors out of a decoder: the mean of its last layer's states, weighted by position.

use candle_core::Device;

use super::{Encoder, normalise_rows};
use crate::error::Result;
use crate::model::batch::side_by_side;
use crate::model::{LanguageModel, Trainable};

/// Tokens of a text that are read.
const LONGEST: usize = 512;
/// Tokens that go through the network together, padding included.
const BATCH_TOKENS: usize = 2048;

/// A decoder as an encoder, as RDS+ has it (Ivison et al. 2025, section 3; the weights are SGPT's, Muennighoff 2022, equation
/// 2): the state of token i of t has the weight i / (1 + ... + t), because later tokens have seen more.
pub(super) struct DecoderEncoder {
    name: String,
    identity: String,
    model: LanguageModel,
}

impl DecoderEncoder {
    pub fn read(name: &str) -> Result<Self> {
        let model = LanguageModel::load(name, Trainable::Nothing, &Device::Cpu)?;
        let identity = format!("{} weighted mean of {LONGEST}", model.identity()?);
        Ok(Self { name: name.into(), identity, model })
    }

    /// The vector of each text of a batch, not normalised.
    fn rows(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        // What fills a text up stands behind it, where a decoder does not look.
        let (tokens, _) = side_by_side(texts, &Device::Cpu)?;
        let states = self.model.network.forward(&tokens, None)?;
        let states = states.to_dtype(candle_core::DType::F32)?.to_vec3::<f32>()?;
        Ok(states.iter().zip(texts).map(|(states, text)| weighted_mean(&states[..text.len()])).collect())
    }
}

/// `sum of i h_i / sum of i`, i from 1.
fn weighted_mean(states: &[Vec<f32>]) -> Vec<f32> {
    let mut mean = vec![0f32; states.first().map_or(0, Vec::len)];
    let total = (states.len() * (states.len() + 1) / 2) as f32;
    for (i, state) in states.iter().enumerate() {
        let weight = (i + 1) as f32 / total;
        mean.iter_mut().zip(state).for_each(|(mean, x)| *mean += weight * x);
    }
    mean
}

impl Encoder for DecoderEncoder {
    fn dim(&self) -> usize {
        self.model.network.decoder().config().hidden_size
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let longest = LONGEST.min(self.model.network.decoder().config().max_position_embeddings);
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let mut ids = self.model.tokenizer.encode(text)?.ids;
            if !ids.is_empty() {
                ids.splice(0..0, self.model.start_tokens().iter().copied());
            }
            ids.truncate(longest);
            tokens.push(ids);
        }
        let dim = self.dim();
        let mut rows = vec![0f32; texts.len() * dim];
        // Texts of like length side by side leave little padding; one without a token stays zero.
        let mut order: Vec<usize> = (0..texts.len()).filter(|i| !tokens[*i].is_empty()).collect();
        order.sort_by_key(|i| tokens[*i].len());
        while let Some(last) = order.last() {
            let fit = (BATCH_TOKENS / tokens[*last].len()).clamp(1, order.len());
            let group = order.split_off(order.len() - fit);
            let batch: Vec<&[u32]> = group.iter().map(|i| tokens[*i].as_slice()).collect();
            for (i, row) in group.iter().zip(self.rows(&batch)?) {
                rows[i * dim..(i + 1) * dim].copy_from_slice(&row);
            }
        }
        normalise_rows(&mut rows, dim);
        Ok(rows)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &str {
        &self.identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_states_weigh_more() {
        assert_eq!(weighted_mean(&[vec![6.0, 0.0], vec![0.0, 3.0], vec![2.0, 2.0]]), [2.0, 2.0]);
    }

    #[test]
    fn a_text_has_the_same_vector_in_any_company() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/gguf/llama.gguf");
        let encoder = crate::encoder::load(file).unwrap();
        let texts = ["a", "the moon and the sun", "", "the king lives in the castle by the sea"];
        let together = encoder.encode(&texts).unwrap();
        for (text, row) in texts.iter().zip(together.chunks(encoder.dim())) {
            let alone = encoder.encode(&[text]).unwrap();
            assert!(alone.iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-5), "{text}");
            let length = row.iter().map(|x| x * x).sum::<f32>();
            assert!(if text.is_empty() { length == 0.0 } else { (length - 1.0).abs() < 1e-4 });
        }
    }
}
