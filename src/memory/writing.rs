//! A datastore while text is written: kNN-LM as the generator takes it.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;
use sidenote_kernels::log_sum_exp;

use super::datastore::{Interpolation, TokenMemory, shares};
use crate::error::Result;
use crate::model::generate::Autoregressive;
use crate::model::{Cache, Decoder, LanguageModel};

/// A decoder and a datastore of its contexts, which predict together: `p = (1 - λ) p_network + λ p_datastore`
/// (Khandelwal et al. 2020, equation 3).
///
/// What it calls hidden states, `[.., 2 d]`, are the decoder's with the contexts beside them; its logits are the logarithms of p.
pub struct RememberingWriter<'a> {
    decoder: &'a Decoder,
    memory: &'a TokenMemory,
    interpolation: &'a Interpolation,
}

impl<'a> RememberingWriter<'a> {
    /// `model`, without neighbours, with `memory` read as `interpolation` says.
    ///
    /// # Errors
    /// A memory of another model, or of what a RETRO model makes of neighbours.
    pub fn new(
        model: &'a LanguageModel,
        memory: &'a TokenMemory,
        interpolation: &'a Interpolation,
    ) -> Result<Self> {
        memory.check_model(&model.identity()?, false)?;
        Ok(Self { decoder: model.network.decoder(), memory, interpolation })
    }
}

impl Autoregressive for RememberingWriter<'_> {
    type State = Cache;

    fn vocab_size(&self) -> usize {
        self.decoder.vocab_size()
    }

    fn longest(&self) -> usize {
        self.decoder.longest()
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(Cache, Tensor)> {
        self.decoder.start_with(prompts, |tokens, cache| self.read(tokens, cache))
    }

    fn read(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (hidden, contexts) = self.decoder.forward_with_contexts(tokens, cache)?;
        Ok(Tensor::cat(&[hidden, contexts], D::Minus1)?)
    }

    fn logits(&self, both: &Tensor) -> Result<Tensor> {
        let d = both.dim(1)? / 2;
        let logits = self.decoder.logits(&both.narrow(1, 0, d)?.contiguous()?)?.to_dtype(DType::F32)?;
        let shape = logits.shape().clone();
        let mut logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let contexts: Vec<f32> = both.narrow(1, d, d)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let found = self.memory.neighbours(&contexts, self.interpolation.k)?;
        logits.par_chunks_mut(self.vocab_size()).zip(&found).for_each(|(logits, neighbours)| {
            let nearest = neighbours.first().map_or(f64::INFINITY, |n| n.distance);
            let lambda = self.interpolation.lambda_at(nearest);
            let of_network = ((1.0 - lambda).ln() - f64::from(log_sum_exp(logits))) as f32;
            logits.iter_mut().for_each(|logit| *logit += of_network);
            for (token, share) in shares(neighbours, self.interpolation.temperature) {
                let logit = &mut logits[token as usize];
                *logit = (f64::from(*logit).exp() + lambda * share).ln() as f32;
            }
        });
        Ok(Tensor::from_vec(logits, shape, both.device())?)
    }

    fn pick(&self, cache: &Cache, rows: &[usize]) -> Result<Cache> {
        cache.pick(rows)
    }
}
