//! The output layer and TRIME's loss in one operation.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible};
use crate::composed;
use crate::cross_entropy::{scale, sum_of_losses};
use crate::matrix::{Matrix, Threads, multiply};
use crate::simd::{exp, max, sum, vectorised};

/// How many logits and scores are held at a time: 16 MiB.
const TILE: usize = 4 << 20;

/// How many rows go into a tile at most.
const ROWS: usize = 256;

/// The sum of the negative log likelihoods (in nats) of `targets` under an output layer and the memories of other tokens (Zhong,
/// Lei and Chen 2022, <https://arxiv.org/abs/2205.12674>, equation 4): for token `i` of target `w`,
///
/// ```text
/// P(w) = (exp(weight_w . hidden_i) + sum_{j seen, target_j = w} exp(s_ij)) / (sum_v exp(weight_v . hidden_i) + sum_{j seen} exp(s_ij))
/// s_ij = contexts_i . contexts_j / sqrt(dim)
/// ```
///
/// where `sees(i, j)` says whether token `i` has `j` as a memory. `hidden` is `[tokens, dim]`, `weight` `[vocabulary, dim]`,
/// `contexts` `[tokens, any]`; all three get gradients. The result is a scalar.
///
/// # Errors
/// When the shapes do not fit together, or a target lies outside the vocabulary.
pub fn trime_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    contexts: &Tensor,
    targets: &[u32],
    sees: impl Fn(usize, usize) -> bool + Send + Sync + 'static,
) -> Result<Tensor> {
    let (tokens, dim) = hidden.dims2()?;
    let (vocabulary, weight_dim) = weight.dims2()?;
    let (memories, _) = contexts.dims2()?;
    if weight_dim != dim || memories != tokens || targets.len() != tokens {
        bail!(
            "trime_cross_entropy: hidden {:?}, weight {:?}, contexts {:?} and {} targets do not fit together; expected \
             [tokens, dim], [vocabulary, dim], [tokens, any] and a target a token",
            hidden.dims(),
            weight.dims(),
            contexts.dims(),
            targets.len()
        );
    }
    if let Some(row) = targets.iter().position(|&target| target as usize >= vocabulary) {
        bail!(
            "trime_cross_entropy: target {} of row {row} is outside the vocabulary of {vocabulary}",
            targets[row]
        );
    }
    if !fusible(&[hidden, weight, contexts]) {
        return composed::trime_cross_entropy(hidden, weight, contexts, targets, sees);
    }
    let inputs = [hidden.contiguous()?, weight.contiguous()?, contexts.contiguous()?];
    let (owned, targets) = (inputs.clone(), targets.to_vec());
    sum_of_losses(inputs.each_ref(), move || run(&owned, &targets, &sees))
}

/// The sum of the losses, and the gradients of those of `hidden`, `weight` and `contexts` that ask for one.
fn run(
    [hidden, weight, contexts]: &[Tensor; 3],
    targets: &[u32],
    sees: &(impl Fn(usize, usize) -> bool + Sync),
) -> Result<(f64, [Option<Vec<f32>>; 3])> {
    let ((vocabulary, dim), (tokens, width)) = (weight.dims2()?, contexts.dims2()?);
    let zeros = |like: &Tensor| like.track_op().then(|| vec![0f32; like.elem_count()]);
    let (mut dhidden, mut dweight, mut dcontexts) = (zeros(hidden), zeros(weight), zeros(contexts));
    let (hidden, weight, contexts) = (View::of(hidden)?, View::of(weight)?, View::of(contexts)?);
    let (weight, all) = (Matrix::rows(&weight, dim), Matrix::rows(&contexts, width));
    let temper = 1.0 / (width as f32).sqrt();
    let tile = (TILE / (vocabulary + tokens).max(1)).clamp(1, ROWS);
    let mut logits = vec![0f32; tile.min(tokens) * vocabulary];
    let mut scores = vec![0f32; tile.min(tokens) * tokens];
    let mut loss = 0.0;
    for first in (0..tokens).step_by(tile) {
        let rows = tile.min(tokens - first);
        let (logits, scores) = (&mut logits[..rows * vocabulary], &mut scores[..rows * tokens]);
        let own = Matrix::rows(&hidden[first * dim..], dim);
        let own_contexts = Matrix::rows(&contexts[first * width..], width);
        let all_threads = Threads::All;
        multiply([rows, dim, vocabulary], 1.0, own, weight.t(), logits, vocabulary, false, all_threads);
        multiply([rows, width, tokens], temper, own_contexts, all.t(), scores, tokens, false, all_threads);
        let of_rows = logits.par_chunks_mut(vocabulary).zip(scores.par_chunks_mut(tokens)).enumerate();
        let losses: Vec<f64> = of_rows
            .map(|(i, (logits, scores))| {
                let (query, target) = (first + i, targets[first + i]);
                let right = |other: usize| targets[other] == target;
                row(logits, scores, target as usize, |other| sees(query, other), right)
            })
            .collect();
        loss += losses.iter().sum::<f64>();
        // Both hold gradients now.
        let (logits, scores) = (Matrix::rows(logits, vocabulary), Matrix::rows(scores, tokens));
        if let Some(dhidden) = &mut dhidden {
            let out = &mut dhidden[first * dim..];
            multiply([rows, vocabulary, dim], 1.0, logits, weight, out, dim, false, all_threads);
        }
        if let Some(dweight) = &mut dweight {
            multiply([vocabulary, rows, dim], 1.0, logits.t(), own, dweight, dim, true, all_threads);
        }
        if let Some(dcontexts) = &mut dcontexts {
            // A score is a product of two contexts, each of which has its part.
            let own = &mut dcontexts[first * width..];
            multiply([rows, tokens, width], temper, scores, all, own, width, true, all_threads);
            multiply(
                [tokens, rows, width],
                temper,
                scores.t(),
                own_contexts,
                dcontexts,
                width,
                true,
                all_threads,
            );
        }
    }
    Ok((loss, [dhidden, dweight, dcontexts]))
}

/// The loss of a row that sees some tokens, of which some were followed by its target; its logits and scores become their
/// gradients.
fn row(
    logits: &mut [f32],
    scores: &mut [f32],
    target: usize,
    sees: impl Fn(usize) -> bool,
    right: impl Fn(usize) -> bool,
) -> f64 {
    let mut rights = vec![];
    for (other, score) in scores.iter_mut().enumerate() {
        if !sees(other) {
            *score = f32::NEG_INFINITY;
        } else if right(other) {
            rights.push((other, f64::from(*score)));
        }
    }
    // What is right may be far less likely than the rest, so it has a measure of its own.
    let own = f64::from(logits[target]);
    let highest = rights.iter().fold(own, |highest, (_, score)| highest.max(*score));
    let of_right: f64 = rights.iter().map(|(_, score)| (score - highest).exp()).sum();
    let log_right = highest + ((own - highest).exp() + of_right).ln();

    let highest = max(logits).max(max(scores));
    let all = f64::from(exponentials(logits, highest)) + f64::from(exponentials(scores, highest));
    let share = (1.0 / all) as f32;
    scale(logits, share, 0.0);
    scale(scores, share, 0.0);
    logits[target] -= (own - log_right).exp() as f32;
    for (other, score) in rights {
        scores[other] -= (score - log_right).exp() as f32;
    }
    f64::from(highest) + all.ln() - log_right
}

vectorised! {
    /// Turns numbers into exponentials of what they are less `highest`, and gives their sum.
    fn exponentials(x: &mut [f32], highest: f32) -> f32 {
        for x in x.iter_mut() {
            *x = exp(*x - highest);
        }
        sum(x.len(), |i| x[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// Every third token of those before sees; some see nothing.
    fn sees(query: usize, other: usize) -> bool {
        other < query && !(query + other).is_multiple_of(3) && query % 7 != 5
    }

    #[test]
    fn trime_cross_entropy_is_right() {
        for (tokens, dim, width, vocabulary) in
            [(1, 1, 1, 1), (5, 3, 2, 4), (67, 33, 17, 259), (531, 4, 5, 11)]
        {
            let targets: Vec<u32> = (0..tokens).map(|i| (i * 5 % vocabulary.min(6)) as u32).collect();
            let op = |t: &[Tensor]| trime_cross_entropy(&t[0], &t[1], &t[2], &targets, sees);
            let inputs = [
                (random(&[tokens, dim], 1) * 3.0).unwrap(),
                random(&[vocabulary, dim], 2),
                (random(&[tokens, width], 3) * 2.0).unwrap(),
            ];
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    /// A target far less likely than the rest has a loss and gradients that are finite, and the right ones.
    #[test]
    fn unlikely_targets_are_finite() {
        let hidden = Tensor::new(&[[200f32]], &candle_core::Device::Cpu).unwrap();
        let weight = Tensor::new(&[[1f32], [-1.0]], &candle_core::Device::Cpu).unwrap();
        let op = |t: &[Tensor]| trime_cross_entropy(&t[0], &t[1], &t[0], &[1], |_, _| false);
        let (loss, gradients) = value_and_gradients(&[hidden, weight], candle_core::DType::F32, op);
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 400.0);
        let (loss_again, exact) = value_and_gradients(
            &[
                Tensor::new(&[[200f64]], &candle_core::Device::Cpu).unwrap(),
                Tensor::new(&[[1f64], [-1.0]], &candle_core::Device::Cpu).unwrap(),
            ],
            candle_core::DType::F64,
            op,
        );
        assert_eq!(loss_again.to_scalar::<f64>().unwrap(), 400.0);
        for (gradient, exact) in gradients.iter().zip(&exact) {
            assert!(distance(gradient, exact) < 1e-3);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let [a, b, c] = [random(&[2, 3], 1), random(&[5, 3], 2), random(&[2, 4], 3)];
        assert!(trime_cross_entropy(&a, &b, &c, &[4, 0], sees).is_ok());
        assert!(trime_cross_entropy(&a, &b, &c, &[4], sees).is_err());
        assert!(trime_cross_entropy(&a, &c, &c, &[1, 0], sees).is_err());
        assert!(trime_cross_entropy(&a, &b, &b, &[1, 0], sees).is_err());
        let error = trime_cross_entropy(&a, &b, &c, &[1, 5], sees).unwrap_err().to_string();
        assert!(error.contains("target 5 of row 1"), "{error}");
    }
}
