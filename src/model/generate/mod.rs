//! Continuing a text, token by token, with a cache of what was read and, for RETRO, retrieval at
//! every chunk boundary.

use candle_core::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cache::Cache;
use super::retro::State;
use super::store::{LanguageModel, Network};
use crate::error::{Error, Result};

mod autoregressive;

pub use autoregressive::{Autoregressive, left_padded};

/// How to continue.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// 0 takes the likeliest token each time; higher is more varied.
    pub temperature: f64,
    /// Seed of the choice, where there is one.
    pub seed: u64,
}

/// Finds neighbours for a complete chunk of tokens: at most k token lists `[N; F]`.
pub type Retrieve<'a> = dyn FnMut(&[u32]) -> Result<Vec<Vec<u32>>> + 'a;

/// Continues `prompt` and calls `write` with each new token; `write` says whether to go on. Stops
/// at a token that ends a text. Without `retrieve`, a RETRO model is its base model.
pub fn generate(
    model: &LanguageModel,
    prompt: &[u32],
    sampling: &Sampling,
    mut retrieve: Option<&mut Retrieve<'_>>,
    write: &mut dyn FnMut(u32) -> bool,
) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::setting("prompt", "has no tokens; give at least one word"));
    }
    if sampling.temperature.is_nan() || sampling.temperature < 0.0 {
        return Err(Error::setting("temperature", "must be 0 or more"));
    }
    let decoder = model.network.decoder();
    let longest = decoder.config().max_position_embeddings;
    if prompt.len() >= longest {
        let why = format!("{} tokens, but the model reads at most {longest}", prompt.len());
        return Err(Error::setting("prompt", why));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut text = prompt.to_vec();
    let (mut cache, mut state) = (Cache::default(), State::default());
    let mut unread = 0;
    for _ in 0..sampling.max_tokens.min(longest - prompt.len()) {
        let hidden = match &model.network {
            Network::Retro(retro) if retrieve.is_some() => {
                let m = retro.config().chunk_size;
                let mut find = |chunk: usize| match &mut retrieve {
                    Some(retrieve) => retrieve(&text[chunk * m..(chunk + 1) * m]),
                    None => Ok(Vec::new()),
                };
                retro.read(&text[unread..], &mut state, &mut find)?
            }
            network => {
                let new = Tensor::new(&text[unread..], decoder.device())?.unsqueeze(0)?;
                network.decoder().forward(&new, &mut cache)?
            }
        };
        unread = text.len();
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?;
        let logits = decoder.logits(&last)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let token = choose(&logits, sampling.temperature, &mut rng);
        if model.end_tokens().contains(&token) || !write(token) {
            break;
        }
        text.push(token);
    }
    Ok(())
}

fn choose(logits: &[f32], temperature: f64, rng: &mut ChaCha8Rng) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0);
    if temperature == 0.0 {
        return best as u32;
    }
    let weights: Vec<f64> =
        logits.iter().map(|logit| ((logit - logits[best]) as f64 / temperature).exp()).collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let chosen = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    chosen.unwrap_or(best) as u32
}
