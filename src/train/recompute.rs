//! Backward passes that compute activations again instead of keeping them (Chen et al. 2016, "Training deep nets with
//! sublinear memory cost", <https://arxiv.org/abs/1604.06174>): of a decoder's blocks only what goes into every few of them
//! is kept, for the time of one more forward pass.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use sidenote_kernels as kernels;

use super::steps::{add, gradients_of};
use crate::error::Result;
use crate::model::Decoder;
use crate::model::decoder::Places;

/// What a decoder reads, and where.
pub struct Reading<'a> {
    /// The decoder.
    pub decoder: &'a Decoder,
    /// Token ids, `[batch, tokens]`.
    pub tokens: &'a Tensor,
    /// Their places.
    pub places: &'a Places,
}

/// The loss of a batch, the mean over `targets` targets of a step, and its gradients with regard to `variables`; `loss` makes
/// their sum of the hidden states `[batch, tokens, d]` before the output head. At most `blocks` of the decoder's blocks have their
/// activations in memory at a time.
///
/// # Errors
/// When the device refuses; what `loss` reports.
pub fn gradients(
    reading: &Reading<'_>,
    loss: impl FnOnce(&Tensor) -> Result<Tensor>,
    variables: &[(String, Var)],
    targets: usize,
    blocks: usize,
) -> Result<(f64, GradStore)> {
    let Reading { decoder, tokens, places } = *reading;
    let all = decoder.blocks().len();
    let segments: Vec<_> = (0..all).step_by(blocks).map(|first| first..all.min(first + blocks)).collect();
    // What each segment reads, cut off from what made it.
    let mut inputs = vec![decoder.begin(tokens, places)?.detach()];
    for segment in &segments {
        let read = &inputs[inputs.len() - 1];
        inputs.push(decoder.run_blocks(segment.clone(), read, places)?.detach());
    }

    let last = Var::from_tensor(&inputs.pop().unwrap_or(tokens.clone()))?;
    let loss = loss(&decoder.finish(last.as_tensor())?)?;
    let (value, mut sum) = gradients_of(&loss, targets)?;
    let mut slope = sum.remove(&last);
    drop(loss);

    // From the last segment to the first, and to the embeddings.
    for (segment, read) in segments.iter().zip(inputs).rev() {
        let Some(of_output) = slope.take() else { break };
        let read = Var::from_tensor(&read)?;
        let output = decoder.run_blocks(segment.clone(), read.as_tensor(), places)?;
        let mut of_segment = backward_from(&output, &of_output)?;
        slope = of_segment.remove(&read);
        add(&mut sum, of_segment, variables)?;
    }
    if let Some(of_output) = slope {
        let embedded = decoder.begin(tokens, places)?;
        add(&mut sum, backward_from(&embedded, &of_output)?, variables)?;
    }
    Ok((value, sum))
}

/// The gradients of what has the gradient `slope` with regard to `output`.
fn backward_from(output: &Tensor, slope: &Tensor) -> Result<GradStore> {
    Ok(kernels::backward(&(output * slope.detach())?.sum_all()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use sidenote_kernels::CrossEntropyOptions;

    use super::*;
    use crate::model::batch::IGNORE;
    use crate::model::weights::Weights;
    use crate::model::{Cache, DecoderConfig};

    /// Fails when a segment is run with other places, left out, or its gradients are not added.
    #[test]
    fn gradients_are_those_with_everything_kept() {
        for tied in [true, false] {
            let config = DecoderConfig {
                vocab_size: 31,
                hidden_size: 12,
                intermediate_size: 20,
                num_hidden_layers: 5,
                num_attention_heads: 3,
                num_key_value_heads: 1,
                max_position_embeddings: 32,
                tie_word_embeddings: tied,
                ..DecoderConfig::llama()
            }
            .with_usual_heads();
            let mut weights = Weights::from_seed(3, &Device::Cpu);
            let decoder = Decoder::new(&config, &mut weights).unwrap();
            let variables = weights.finish().1;
            let ids: Vec<u32> = (0..2 * 9u32).map(|i| (i * i * 7 + 3) % 31).collect();
            let mut targets: Vec<u32> = ids.iter().map(|id| (id * 5 + 1) % 31).collect();
            targets[17] = IGNORE;
            let tokens = Tensor::from_vec(ids, (2, 9), &Device::Cpu).unwrap();
            let targets = Tensor::from_vec(targets, 18, &Device::Cpu).unwrap();
            let loss_of = |hidden: &Tensor| {
                let (hidden, head) = (hidden.flatten(0, 1)?, decoder.head()?);
                let options = CrossEntropyOptions::ignoring(IGNORE);
                Ok(kernels::linear_cross_entropy(&hidden, &head, &targets, &options)?)
            };
            let loss = loss_of(&decoder.forward(&tokens, &mut Cache::default()).unwrap()).unwrap();
            let loss = (loss / 17.0).unwrap();
            let kept = kernels::backward(&loss).unwrap();
            for blocks in [1, 2, 3, 9] {
                let places = decoder.places(&Cache::default(), 9).unwrap();
                let reading = Reading { decoder: &decoder, tokens: &tokens, places: &places };
                let (value, again) = gradients(&reading, loss_of, &variables, 17, blocks).unwrap();
                assert!((value - f64::from(loss.to_scalar::<f32>().unwrap())).abs() < 1e-6);
                for (name, variable) in &variables {
                    let of = |store: &GradStore| {
                        store.get(variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                    };
                    let (a, b) = (of(&kept), of(&again));
                    let size = a.iter().map(|x| x.abs()).fold(0.0, f32::max);
                    let gap = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(size > 0.0 && gap <= 1e-5 * size, "{name} by {blocks}: {gap:e} of {size:e}");
                }
            }
        }
    }
}
