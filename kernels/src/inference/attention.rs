//! Attention within one text.

use crate::matrix::{Matrix, Threads, multiply};
use crate::simd::{add, exp, max, sum, vectorised};

/// How many queries are worked on at a time.
const BLOCK: usize = 112;

/// A bias that depends on a head and on how far the key lies from the query: for head `h`, query `i` and key `j`
/// it is `values[h * width + j + centre - i]`.
#[derive(Clone, Copy, Debug)]
pub struct Offsets<'a> {
    /// `[heads, width]`.
    pub values: &'a [f32],
    /// Distances that there are values for.
    pub width: usize,
    /// Where distance 0 lies.
    pub centre: usize,
}

/// Attention of each token of one text to all of them, `softmax(scale * q k^T + bias) v` in every head (Vaswani et
/// al. 2017, <https://arxiv.org/abs/1706.03762>, equation 1).
///
/// `qkv` is `[tokens, 3 * heads * dim]`: the queries of all heads, then the keys, then the values. `out` is
/// `[tokens, heads * dim]`. `scores` is room that is used again from text to text.
///
/// # Panics
/// When the slices do not have these sizes, or there are more tokens than the bias has distances for.
pub fn attend(
    qkv: &[f32],
    heads: usize,
    dim: usize,
    scale: f32,
    bias: Option<Offsets>,
    out: &mut [f32],
    scores: &mut Vec<f32>,
) {
    let hidden = heads * dim;
    if hidden == 0 {
        return;
    }
    let tokens = out.len() / hidden;
    assert_eq!([qkv.len(), out.len()], [3 * tokens * hidden, tokens * hidden], "queries, keys and values");
    if tokens == 0 {
        return;
    }
    for head in 0..heads {
        let part = |which: usize| Matrix::rows(&qkv[which * hidden + head * dim..], 3 * hidden);
        for first in (0..tokens).step_by(BLOCK) {
            let rows = BLOCK.min(tokens - first);
            scores.resize(rows * tokens, 0.0);
            let q = Matrix::rows(&qkv[first * 3 * hidden + head * dim..], 3 * hidden);
            multiply([rows, dim, tokens], scale, q, part(1).t(), scores, tokens, false, Threads::One);
            for (i, row) in scores.chunks_exact_mut(tokens).enumerate() {
                if let Some(Offsets { values, width, centre }) = bias {
                    add(row, &values[head * width..][..width][centre - (first + i)..][..tokens]);
                }
                softmax(row);
            }
            let out = &mut out[first * hidden + head * dim..];
            multiply(
                [rows, tokens, dim],
                1.0,
                Matrix::rows(scores, tokens),
                part(2),
                out,
                hidden,
                false,
                Threads::One,
            );
        }
    }
}

vectorised! {
    fn softmax(scores: &mut [f32]) {
        let highest = max(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - highest);
        }
        let scale = 1.0 / sum(scores.len(), |i| scores[i]);
        scores.iter_mut().for_each(|score| *score *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_matches_that_in_f64() {
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 253.0 - 2.0).collect()
        };
        for [tokens, heads, dim] in [
            [1, 1, 1],
            [5, 3, 7],
            [33, 2, 32],
            [66, 3, 32],
            [130, 2, 64],
            [250, 1, 16],
            [20, 5, 3],
            [17, 2, 100],
        ] {
            let hidden = heads * dim;
            let (qkv, distances) = (values(3 * tokens * hidden, 1), values(heads * 2 * 260, 2));
            for bias in [None, Some(Offsets { values: &distances, width: 520, centre: 260 })] {
                let mut out = vec![0.0; tokens * hidden];
                attend(&qkv, heads, dim, 0.3, bias, &mut out, &mut Vec::new());
                let at = |token: usize, which: usize, head: usize, i: usize| {
                    f64::from(qkv[token * 3 * hidden + which * hidden + head * dim + i])
                };
                for head in 0..heads {
                    for query in 0..tokens {
                        let mut weights: Vec<f64> = (0..tokens)
                            .map(|key| {
                                let dot: f64 =
                                    (0..dim).map(|i| at(query, 0, head, i) * at(key, 1, head, i)).sum();
                                let bias = bias.map_or(0.0, |_| distances[head * 520 + key + 260 - query]);
                                (f64::from(0.3f32) * dot + f64::from(bias)).exp()
                            })
                            .collect();
                        let total: f64 = weights.iter().sum();
                        weights.iter_mut().for_each(|weight| *weight /= total);
                        for i in 0..dim {
                            let exact: f64 = (0..tokens).map(|key| weights[key] * at(key, 2, head, i)).sum();
                            let error = (f64::from(out[query * hidden + head * dim + i]) - exact).abs();
                            assert!(
                                error < 3e-5,
                                "[{tokens}, {heads}, {dim}] at {query}, {head}, {i}: off by {error}"
                            );
                        }
                    }
                }
            }
        }
    }
}
