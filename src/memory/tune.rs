//! How much a memory should say, found on text that neither the model nor the memory has seen.

use rayon::prelude::*;
use serde::Serialize;

use super::datastore::{Interpolation, Neighbour, TokenMemory, probability};
use super::mix::Memories;
use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::model::reading::{Neighbourhood, read};
use crate::progress::Progress;

/// Temperatures that are tried, in units of the typical distance.
const TEMPERATURES: [f64; 7] = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0];
/// Numbers of neighbours that are tried, as far as there are so many.
const NEIGHBOURS: [usize; 5] = [4, 16, 64, 256, 1024];
/// Groups of nearest distances that have a share each, where the share is adaptive.
const BINS: usize = 8;
/// Rounds of expectation and maximisation for a share.
const ROUNDS: usize = 60;

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Tuned {
    /// The settings with the highest likelihood.
    pub interpolation: Interpolation,
    /// Whether they are others than before: not where none of those that were tried is better.
    pub better: bool,
    /// Tokens of the text.
    pub tokens: usize,
    /// Mean negative log likelihood without the memory, nats a token.
    pub loss_without: f64,
    /// The same with the memory as it was read before.
    pub loss_before: f64,
    /// The same with the settings with the highest likelihood.
    pub loss_after: f64,
}

/// A token of the text: what it had without the memory, and the memory's neighbours of its context.
struct Looked {
    p: f64,
    token: u32,
    neighbours: Vec<Neighbour>,
}

/// Finds k, the temperature and the memory's share λ, one for all or, with `adaptive`, by the distance of the nearest
/// neighbour, that make `text` likeliest, unless what the memory has makes it likelier. At most `most` of the memory's
/// are tried; `neighbours` are what a RETRO model reads beside the text, which is without retrieval where there are none;
/// `trime` is as in [`Memories`].
///
/// # Errors
/// A model that the memory was not made with; text without a token to predict.
pub fn tune(
    memory: &TokenMemory,
    model: &LanguageModel,
    text: &Store,
    neighbours: Option<&Neighbourhood<'_>>,
    trime: Option<usize>,
    adaptive: bool,
    most: usize,
    progress: Progress,
) -> Result<Tuned> {
    memory.check_model(&model.identity()?, neighbours.is_some())?;
    let before = &memory.meta().interpolation;
    let wanted = most.max(before.k);
    let mut looked = Vec::new();
    let memories = Memories { trime, ..Memories::default() };
    let mut without = memories.reader();
    read(model, text, 0..text.documents(), neighbours, progress, |reading| {
        let nats = without.read(reading, text)?;
        let found = memory.neighbours(&reading.contexts()?, wanted)?;
        let tokens = reading.tokens()?.into_iter().zip(nats).zip(found);
        looked.extend(tokens.map(|((token, nats), neighbours)| Looked {
            p: (-nats).exp(),
            token,
            neighbours,
        }));
        Ok(())
    })?;
    if looked.is_empty() {
        return Err(Error::setting("corpus", "has no text to predict"));
    }
    Ok(fit(&looked, before, adaptive, most))
}

fn fit(looked: &[Looked], before: &Interpolation, adaptive: bool, most: usize) -> Tuned {
    let edges = if adaptive { edges(looked) } else { Vec::new() };
    let sizes: Vec<usize> = NEIGHBOURS.into_iter().filter(|k| *k < most).chain([most]).collect();
    let tries: Vec<_> =
        sizes.iter().flat_map(|k| TEMPERATURES.map(|temperature| (*k, temperature))).collect();
    let bins: Vec<usize> = looked.iter().map(|l| bin_of(l, &edges)).collect();
    let best = tries
        .into_par_iter()
        .map(|(k, temperature)| {
            let remembered: Vec<f64> = looked.iter().map(|l| remembered(l, k, temperature)).collect();
            let mut interpolation =
                Interpolation { k, temperature, lambda: Vec::new(), edges: edges.clone() };
            let mut of_bins = vec![Vec::new(); edges.len() + 1];
            for ((l, remembered), bin) in looked.iter().zip(&remembered).zip(&bins) {
                of_bins[*bin].push((l.p, *remembered));
            }
            interpolation.lambda = of_bins.iter().map(|tokens| share(tokens)).collect();
            let loss = loss(looked, &remembered, &interpolation);
            (loss, interpolation)
        })
        .collect::<Vec<_>>()
        .into_iter()
        .filter(|(loss, _)| !loss.is_nan())
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let as_before: Vec<f64> = looked.iter().map(|l| remembered(l, before.k, before.temperature)).collect();
    let loss_before = loss(looked, &as_before, before);
    let best = best.filter(|(loss, _)| *loss < loss_before);
    let better = best.is_some();
    let (loss_after, interpolation) = best.unwrap_or_else(|| (loss_before, before.clone()));
    Tuned {
        interpolation,
        better,
        tokens: looked.len(),
        loss_without: looked.iter().map(|l| -l.p.ln()).sum::<f64>() / looked.len() as f64,
        loss_before,
        loss_after,
    }
}

fn remembered(looked: &Looked, k: usize, temperature: f64) -> f64 {
    probability(&looked.neighbours[..k.min(looked.neighbours.len())], temperature, looked.token)
}

fn nearest(looked: &Looked) -> f64 {
    looked.neighbours.first().map_or(f64::INFINITY, |n| n.distance)
}

fn bin_of(looked: &Looked, edges: &[f64]) -> usize {
    edges.partition_point(|edge| *edge < nearest(looked))
}

/// Distances that part the tokens into groups of equal size.
fn edges(looked: &[Looked]) -> Vec<f64> {
    let mut distances: Vec<f64> = looked.iter().map(nearest).filter(|d| d.is_finite()).collect();
    distances.sort_by(f64::total_cmp);
    let at = |bin: usize| distances.get(bin * distances.len() / BINS).copied();
    let mut edges: Vec<f64> = (1..BINS).filter_map(at).collect();
    edges.dedup();
    edges
}

/// The share of the second of two predictions that makes the tokens likeliest (expectation and maximisation; the
/// likelihood has one maximum).
fn share(tokens: &[(f64, f64)]) -> f64 {
    if tokens.is_empty() {
        return 0.0;
    }
    let mut lambda = 0.5;
    for _ in 0..ROUNDS {
        let sum = tokens.iter().map(|(p, remembered)| {
            let both = (1.0 - lambda) * p + lambda * remembered;
            if both > 0.0 { lambda * remembered / both } else { 0.0 }
        });
        lambda = sum.sum::<f64>() / tokens.len() as f64;
    }
    // A token that the memory does not know must stay possible.
    lambda.min(0.999)
}

fn loss(looked: &[Looked], remembered: &[f64], interpolation: &Interpolation) -> f64 {
    let nats = looked.iter().zip(remembered).map(|(l, remembered)| {
        let lambda = interpolation.lambda_at(nearest(l));
        -((1.0 - lambda) * l.p + lambda * remembered).ln()
    });
    nats.sum::<f64>() / looked.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_the_likeliest() {
        let tokens = [(0.5, 0.1), (0.1, 0.6), (0.3, 0.3), (0.2, 0.9)];
        let found = share(&tokens);
        let loss = |lambda: f64| -> f64 {
            tokens.iter().map(|(p, r)| -((1.0 - lambda) * p + lambda * r).ln()).sum()
        };
        for other in (0..=100).map(|i| f64::from(i) / 100.0) {
            assert!(loss(found) <= loss(other) + 1e-6, "{found} {other}");
        }
        assert_eq!(share(&[(0.5, 0.0)]), 0.0);
        assert_eq!(share(&[(0.0, 0.5)]), 0.999);
    }

    /// Near neighbours are right and far ones wrong: only an adaptive share can use both.
    #[test]
    fn an_adaptive_share_trusts_what_is_near() {
        let looked: Vec<Looked> = (0..400)
            .map(|i| {
                let near = i % 2 == 0;
                let distance = if near { 0.1 } else { 5.0 } + f64::from(i) * 1e-4;
                let token = if near { 1 } else { 2 };
                Looked { p: 0.2, token, neighbours: vec![Neighbour { token: 1, distance }] }
            })
            .collect();
        let before = Interpolation::default();
        let (one, adaptive) = (fit(&looked, &before, false, 64), fit(&looked, &before, true, 64));
        assert!(
            one.loss_after <= one.loss_before && adaptive.loss_after < one.loss_after - 0.3,
            "{adaptive:?} {one:?}"
        );
        let lambda = |distance| adaptive.interpolation.lambda_at(distance);
        assert!(lambda(0.1) > 0.9 && lambda(5.02) < 0.1);
        adaptive.interpolation.check().unwrap();
        // Nor is it given up for one share, which is worse, or for itself.
        assert!(adaptive.better);
        for by_distance in [false, true] {
            let again = fit(&looked, &adaptive.interpolation, by_distance, 64);
            assert!(!again.better && again.interpolation == adaptive.interpolation, "{again:?}");
            assert_eq!(again.loss_after, again.loss_before);
        }
    }
}
