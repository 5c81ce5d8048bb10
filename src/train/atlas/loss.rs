//! What a retriever learns from a reader (Izacard et al. 2022, <https://arxiv.org/abs/2208.03299>, section 2.2).
//!
//! All losses are those of one question with K passages. `scores` `[K]` are the retriever's, which get gradients; what the reader
//! says comes as numbers, so that nothing flows back to it. A batch's loss is the mean over its questions.

use candle_core::{D, Tensor};

use crate::error::Result;

/// What scores are divided by before they are compared: a lower temperature is a sharper distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperatures {
    /// τ_g, of the reader's preference.
    pub target: f64,
    /// τ_s, of the retriever's scores.
    pub scores: f64,
}

/// Perplexity distillation (PDist): `KL(p ‖ p_retr)` where `p_k` is as `exp(ℓ_k / τ_g)`, ℓ_k the mean log-likelihood of the
/// answer's tokens given passage k alone.
pub fn perplexity_distillation(likelihoods: &[Vec<f64>], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    let means: Vec<f64> = likelihoods.iter().map(|tokens| mean(tokens)).collect();
    divergence(&means, scores, t)
}

/// Leave-one-out perplexity distillation (LOOP): as PDist, ℓ_k being minus the mean log-likelihood of the answer given all passages
/// but k. What is missed most is best.
pub fn leave_one_out(likelihoods: &[Vec<f64>], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    let means: Vec<f64> = likelihoods.iter().map(|tokens| -mean(tokens)).collect();
    divergence(&means, scores, t)
}

/// Attention distillation (ADist): `KL(p ‖ p_retr)` where `p_k` is as `exp(A_k / τ_g)`, A_k what the answer takes of passage k:
/// attention's weight times the length of the value, summed over the passage's tokens, as a mean over layers, heads and the
/// answer's tokens.
pub fn attention_distillation(taken: &[f64], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    divergence(taken, scores, t)
}

/// End-to-end training of a document reader and retriever (EMDR²; Sachan et al. 2021, <https://arxiv.org/abs/2106.05346>, equation
/// 4): `-ln Σ_k p_LM(a | q, d_k) p_retr(d_k | q)`, the passage being what is not known.
pub fn expectation(likelihoods: &[Vec<f64>], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    let sums: Vec<f64> = likelihoods.iter().map(|tokens| tokens.iter().sum()).collect();
    marginal(&sums, scores, t)
}

/// EMDR² as the public code of Atlas computes it: the same for each token of the answer by itself, as a mean over the tokens.
pub fn expectation_per_token(likelihoods: &[Vec<f64>], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    let tokens = likelihoods.first().map_or(0, Vec::len);
    let mut sum = scores.detach().zeros_like()?.sum_all()?;
    for token in 0..tokens {
        let of_token: Vec<f64> = likelihoods.iter().map(|tokens| tokens[token]).collect();
        sum = (sum + marginal(&of_token, scores, t)?)?;
    }
    Ok((sum / tokens.max(1) as f64)?)
}

fn mean(tokens: &[f64]) -> f64 {
    tokens.iter().sum::<f64>() / tokens.len().max(1) as f64
}

/// `KL(softmax(preference / τ_g) ‖ softmax(scores / τ_s))`.
fn divergence(preference: &[f64], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    let highest = preference.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = preference.iter().map(|x| ((x - highest) / t.target).exp()).collect();
    let total: f64 = powers.iter().sum();
    let p: Vec<f64> = powers.iter().map(|power| power / total).collect();
    let negentropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum();
    let weights = p.iter().map(|p| *p as f32).collect::<Vec<_>>();
    let weights = Tensor::from_vec(weights, scores.dims(), scores.device())?;
    let crossed = (log_softmax(scores, t.scores)? * weights)?.sum_all()?;
    Ok((crossed.neg()? + negentropy)?)
}

/// `-ln Σ_k exp(likelihood_k) softmax(scores / τ_s)_k`.
fn marginal(likelihoods: &[f64], scores: &Tensor, t: Temperatures) -> Result<Tensor> {
    let likelihoods = likelihoods.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let likelihoods = Tensor::from_vec(likelihoods, scores.dims(), scores.device())?;
    Ok(log_sum_exp(&(log_softmax(scores, t.scores)? + likelihoods)?)?.squeeze(0)?.neg()?)
}

/// `ln softmax(scores / temperature)` of `[K]`.
fn log_softmax(scores: &Tensor, temperature: f64) -> Result<Tensor> {
    let scores = (scores / temperature)?;
    Ok(scores.broadcast_sub(&log_sum_exp(&scores)?)?)
}

/// `[K]` to `[1]`.
fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let highest = x.max_keepdim(D::Minus1)?.detach();
    Ok((x.broadcast_sub(&highest)?.exp()?.sum_keepdim(D::Minus1)?.log()? + highest)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use sidenote_kernels as kernels;

    use super::*;

    const T: Temperatures = Temperatures { target: 0.5, scores: 2.0 };

    fn scores() -> Var {
        Var::new(&[1.0f32, 3.0, -1.0], &Device::Cpu).unwrap()
    }

    /// Two tokens of three passages.
    fn likelihoods() -> Vec<Vec<f64>> {
        vec![vec![-1.0, -3.0], vec![-0.5, -0.5], vec![-2.0, -1.0]]
    }

    fn close(loss: &Tensor, expected: f64) {
        let found = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((found - expected).abs() < 2e-5, "{found}, not {expected}");
    }

    /// Numbers worked out by hand. p_retr is as exp(0.5, 1.5, -0.5): 0.244728, 0.665241, 0.090031.
    #[test]
    fn losses_are_those_worked_out_by_hand() {
        let (scores, likelihoods) = (scores(), likelihoods());
        let retriever = [0.244_728f64, 0.665_241, 0.090_031];
        // Means -2, -0.5, -1.5; over 0.5: -4, -1, -3. p: 0.042010, 0.843795, 0.114195.
        let p = [0.042_010f64, 0.843_795, 0.114_195];
        let kl = |p: &[f64]| p.iter().zip(&retriever).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        close(&perplexity_distillation(&likelihoods, &scores, T).unwrap(), kl(&p));
        close(&perplexity_distillation(&likelihoods, &scores, T).unwrap(), 0.153_740);
        // Without the best passage the answer is likeliest, so that it is missed least: 4, 1, 3 over 0.5.
        let p = [0.705_385f64, 0.035_119, 0.259_496];
        close(&leave_one_out(&likelihoods, &scores, T).unwrap(), kl(&p));
        // 0.2, 0.6, 0.1 over 0.5: exp(0.4, 1.2, 0.2) = 1.491825, 3.320117, 1.221403 of 6.033345.
        let p = [0.247_264f64, 0.550_295, 0.202_442];
        close(&attention_distillation(&[0.2, 0.6, 0.1], &scores, T).unwrap(), kl(&p));
        // e^-4 * 0.244728 + e^-1 * 0.665241 + e^-3 * 0.090031 = 0.253693.
        close(&expectation(&likelihoods, &scores, T).unwrap(), -(0.253_693f64.ln()));
        // Tokens by themselves: each the sum over passages.
        let first =
            (-1f64).exp() * retriever[0] + (-0.5f64).exp() * retriever[1] + (-2f64).exp() * retriever[2];
        let second =
            (-3f64).exp() * retriever[0] + (-0.5f64).exp() * retriever[1] + (-1f64).exp() * retriever[2];
        close(&expectation_per_token(&likelihoods, &scores, T).unwrap(), -(first.ln() + second.ln()) / 2.0);
        // One passage leaves nothing to choose.
        let one = Tensor::new(&[7.0f32], &Device::Cpu).unwrap();
        close(&perplexity_distillation(&[vec![-3.0]], &one, T).unwrap(), 0.0);
        close(&expectation(&[vec![-1.0, -2.0]], &one, T).unwrap(), 3.0);
    }

    /// The gradient of a divergence is (p_retr - p) / τ_s, and falls on the scores alone: a batch's mean over its questions does not
    /// depend on K, as the public code's does.
    #[test]
    fn gradients_point_to_what_the_reader_prefers() {
        let scores = scores();
        let loss = perplexity_distillation(&likelihoods(), &scores, T).unwrap();
        let gradient = kernels::backward(&loss).unwrap().get(&scores).unwrap().to_vec1::<f32>().unwrap();
        let expected =
            [0.244_728 - 0.042_010, 0.665_241 - 0.843_795, 0.090_031 - 0.114_195].map(|x: f64| x / 2.0);
        for (found, expected) in gradient.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{gradient:?}");
        }
        type Loss = fn(&[Vec<f64>], &Tensor, Temperatures) -> Result<Tensor>;
        for loss in [perplexity_distillation as Loss, leave_one_out, expectation, expectation_per_token] {
            let value = |at: &[f32]| {
                let at = Tensor::new(at, &Device::Cpu).unwrap();
                f64::from(loss(&likelihoods(), &at, T).unwrap().to_scalar::<f32>().unwrap())
            };
            let gradient = kernels::backward(&loss(&likelihoods(), &scores, T).unwrap()).unwrap();
            let gradient = gradient.get(&scores).unwrap().to_vec1::<f32>().unwrap();
            for (k, slope) in gradient.iter().enumerate() {
                let at = |step: f32| {
                    let mut at = [1.0f32, 3.0, -1.0];
                    at[k] += step;
                    value(&at)
                };
                let found = (at(0.05) - at(-0.05)) / 0.1;
                assert!((found - f64::from(*slope)).abs() < 1e-3, "{found} {slope}");
            }
        }
    }

    #[test]
    fn extremes_are_numbers() {
        let sharp = Temperatures { target: 1e-3, scores: 1e-3 };
        let scores = Tensor::new(&[900.0f32, -900.0, 0.0], &Device::Cpu).unwrap();
        for loss in [
            perplexity_distillation(&likelihoods(), &scores, sharp).unwrap(),
            leave_one_out(&likelihoods(), &scores, sharp).unwrap(),
            expectation(&[vec![-800.0], vec![-900.0], vec![-1e4]], &scores, sharp).unwrap(),
        ] {
            assert!(loss.to_scalar::<f32>().unwrap().is_finite());
        }
    }
}
