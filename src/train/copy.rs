//! The copy initialisation's part that depends on data: queries by least squares, then the
//! strength of copying by trying a few on training text.

use std::fmt;

use candle_core::{Tensor, Var};
use sidenote_kernels as kernels;

use crate::error::{Error, Result};
use crate::model::batch::{Batch, IGNORE};
use crate::model::retro::Retro;
use crate::model::{Retrieved, RetroConfig};

/// Sharpness of the attention that is tried: the score of a perfect match.
const SHARPNESS: [f32; 2] = [10.0, 16.0];
/// Height of the sink that is tried, as a part of a perfect match's score.
const SINK: [f32; 3] = [0.2, 0.4, 0.6];
/// Size of what is copied that is tried, relative to the decoder's state.
const STRENGTH: [f32; 3] = [0.2, 0.5, 1.0];
/// Batches on which the tries are compared.
const TRIED_ON: usize = 2;
/// Added to the diagonal of the normal equations, as a part of its mean.
const RIDGE: f64 = 1e-3;

/// What was found.
pub struct Fit {
    /// Loss of the frozen base on the batches, nats a token.
    pub loss_without: f64,
    /// Loss with the copying that was chosen.
    pub loss_with: f64,
    sharpness: f32,
    sink: f32,
    strength: f32,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "training loss {:.3} without, {:.3} with (sharpness {}, sink {}, strength {})",
            self.loss_without, self.loss_with, self.sharpness, self.sink, self.strength
        )
    }
}

/// Fits `retro`'s queries to `batches` and chooses how strongly it copies.
pub fn fit(
    retro: &Retro,
    variables: &[(String, Var)],
    batches: &[(Batch, Option<Retrieved>)],
) -> Result<Fit> {
    let layers = Layers::find(retro.config(), variables)?;
    let mut sums: Vec<Option<NormalEquations>> = layers.0.iter().map(|_| None).collect();
    let mut state_size = (0.0, 0.0);
    for (batch, _) in batches {
        if batch.tokens.dim(1)? < retro.config().neighbour_tokens() {
            continue;
        }
        for (sum, pairs) in sums.iter_mut().zip(retro.matching_pairs(&batch.tokens)?) {
            let states = pairs.states.to_vec2::<f32>()?;
            let keys = pairs.keys.to_vec2::<f32>()?;
            let sum = sum.get_or_insert_with(|| NormalEquations::new(states[0].len(), keys[0].len()));
            for (state, key) in states.iter().zip(&keys) {
                sum.add(state, key);
            }
            state_size.0 += pairs.state_size;
            state_size.1 += 1.0;
        }
    }
    let mut scales = Vec::new();
    for (layer, sum) in layers.0.iter().zip(&sums) {
        let sum = sum.as_ref().ok_or_else(|| {
            Error::setting("training.chunks", "the copy initialisation needs sequences of 2 chunks or more")
        })?;
        let (matrix, match_score) = sum.solve(layer.head_dim)?;
        scales.push(match_score);
        layer.queries.set(&matrix.to_device(layer.queries.device())?)?;
    }
    let found: Vec<(Tensor, Tensor)> = layers
        .0
        .iter()
        .map(|layer| {
            Ok((layer.queries.as_detached_tensor().copy()?, layer.output.as_detached_tensor().copy()?))
        })
        .collect::<Result<_>>()?;
    let tried_on = &batches[..batches.len().min(TRIED_ON)];
    let state_size = state_size.0 / f64::max(state_size.1, 1.0);
    let apply = |sharpness: f32, sink: f32, strength: f32| -> Result<()> {
        for ((layer, (queries, output)), scale) in layers.0.iter().zip(&found).zip(&scales) {
            layer.queries.set(&(queries * (sharpness as f64 / scale))?)?;
            layer.output.set(&(output * (strength as f64 * state_size))?)?;
            let height = Tensor::full(sharpness * sink, layer.sink.shape(), layer.sink.device())?;
            layer.sink.set(&height)?;
        }
        Ok(())
    };
    let loss_without = loss(retro, tried_on, false)?;
    let mut best = (f64::INFINITY, SHARPNESS[0], SINK[0], STRENGTH[0]);
    for sharpness in SHARPNESS {
        for sink in SINK {
            for strength in STRENGTH {
                apply(sharpness, sink, strength)?;
                let loss = loss(retro, tried_on, true)?;
                if loss < best.0 {
                    best = (loss, sharpness, sink, strength);
                }
            }
        }
    }
    let (loss_with, sharpness, sink, strength) = best;
    apply(sharpness, sink, strength)?;
    Ok(Fit { loss_without, loss_with, sharpness, sink, strength })
}

fn loss(retro: &Retro, batches: &[(Batch, Option<Retrieved>)], retrieval: bool) -> Result<f64> {
    let (mut nats, mut scored) = (0.0, 0);
    for (batch, retrieved) in batches {
        let retrieved = retrieved.as_ref().filter(|_| retrieval);
        let hidden = retro.forward(&batch.tokens, retrieved)?.flatten(0, 1)?.detach();
        let sum = kernels::linear_cross_entropy(
            &hidden,
            &retro.base().head()?,
            &batch.targets,
            &kernels::CrossEntropyOptions::ignoring(IGNORE),
        )?;
        nats += sum.to_scalar::<f32>()? as f64;
        scored += batch.scored;
    }
    Ok(nats / scored.max(1) as f64)
}

/// The weights of the retro layers that are fitted.
struct Layers<'a>(Vec<Layer<'a>>);

struct Layer<'a> {
    queries: &'a Var,
    output: &'a Var,
    sink: &'a Var,
    head_dim: usize,
}

impl<'a> Layers<'a> {
    fn find(config: &RetroConfig, variables: &'a [(String, Var)]) -> Result<Self> {
        let find = |name: String| {
            let found = variables.iter().find(|(other, _)| *other == name).map(|(_, variable)| variable);
            found.ok_or_else(|| Error::setting(name, "this tensor is not trained, so it cannot be fitted"))
        };
        let layer = |number: &usize| {
            Ok(Layer {
                queries: find(format!("retro.cca.{number}.q_proj.weight"))?,
                output: find(format!("retro.cca.{number}.o_proj.weight"))?,
                sink: find(format!("retro.cca.{number}.sink"))?,
                head_dim: config.head_dim,
            })
        };
        Ok(Self(config.layers.iter().map(layer).collect::<Result<_>>()?))
    }
}

/// Sums for the least-squares problem: which matrix W makes W state the key that belongs to it?
struct NormalEquations {
    inputs: usize,
    outputs: usize,
    count: usize,
    /// Sum of state stateᵀ.
    gram: Vec<f64>,
    /// Sum of state keyᵀ.
    cross: Vec<f64>,
    /// Sum of the keys, and of their squared lengths.
    key_sum: Vec<f64>,
    key_square: f64,
    state_sum: Vec<f64>,
}

impl NormalEquations {
    fn new(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs,
            outputs,
            count: 0,
            gram: vec![0.0; inputs * inputs],
            cross: vec![0.0; inputs * outputs],
            key_sum: vec![0.0; outputs],
            key_square: 0.0,
            state_sum: vec![0.0; inputs],
        }
    }

    fn add(&mut self, state: &[f32], key: &[f32]) {
        self.count += 1;
        for (i, s) in state.iter().enumerate() {
            let s = *s as f64;
            self.state_sum[i] += s;
            for (g, other) in self.gram[i * self.inputs..].iter_mut().zip(state) {
                *g += s * *other as f64;
            }
            for (c, k) in self.cross[i * self.outputs..].iter_mut().zip(key) {
                *c += s * *k as f64;
            }
        }
        for (sum, k) in self.key_sum.iter_mut().zip(key) {
            *sum += *k as f64;
            self.key_square += (*k as f64).powi(2);
        }
    }

    /// The matrix `[outputs, inputs]`, and how far the score of a pair that belongs together lies
    /// above that of any pair, on average, for heads of `head_dim`.
    fn solve(&self, head_dim: usize) -> Result<(Tensor, f64)> {
        let n = self.count as f64;
        // Towards the keys less their mean: a part that all keys share moves no softmax.
        let mut right = self.cross.clone();
        for i in 0..self.inputs {
            for j in 0..self.outputs {
                right[i * self.outputs + j] -= self.state_sum[i] * self.key_sum[j] / n;
            }
        }
        let target = right.clone();
        let mut left = self.gram.clone();
        let ridge =
            RIDGE * (0..self.inputs).map(|i| left[i * self.inputs + i]).sum::<f64>() / self.inputs as f64;
        for i in 0..self.inputs {
            left[i * self.inputs + i] += ridge;
        }
        solve_in_place(&mut left, &mut right, self.inputs, self.outputs);
        // Mean over pairs of (W state) · (key - mean key) = sum of W ∘ target / n.
        let score: f64 = right.iter().zip(&target).map(|(w, t)| w * t).sum::<f64>() / n;
        let heads = self.outputs / head_dim;
        let score = score / heads as f64 / (head_dim as f64).sqrt();
        let mut matrix = vec![0f32; self.inputs * self.outputs];
        for i in 0..self.inputs {
            for j in 0..self.outputs {
                matrix[j * self.inputs + i] = right[i * self.outputs + j] as f32;
            }
        }
        if !(score.is_finite() && score > 0.0) {
            return Err(Error::setting(
                "retro.initialisation",
                "the decoder's states say nothing about its text",
            ));
        }
        Ok((Tensor::from_vec(matrix, (self.outputs, self.inputs), &candle_core::Device::Cpu)?, score))
    }
}

/// Solves `left X = right` by Cholesky's method; `left` `[n, n]` is symmetric and positive
/// definite, `right` `[n, columns]` becomes X.
fn solve_in_place(left: &mut [f64], right: &mut [f64], n: usize, columns: usize) {
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| left[i * n + k] * left[j * n + k]).sum();
            let rest = left[i * n + j] - dot;
            left[i * n + j] =
                if i == j { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / left[j * n + j] };
        }
    }
    for column in 0..columns {
        for i in 0..n {
            let dot: f64 = (0..i).map(|k| left[i * n + k] * right[k * columns + column]).sum();
            right[i * columns + column] = (right[i * columns + column] - dot) / left[i * n + i];
        }
        for i in (0..n).rev() {
            let dot: f64 = (i + 1..n).map(|k| left[k * n + i] * right[k * columns + column]).sum();
            right[i * columns + column] = (right[i * columns + column] - dot) / left[i * n + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_squares_finds_the_matrix() {
        // key = [2a - b, a + 3b, a], plus a constant that must not matter.
        let key = |a: f32, b: f32| [2.0 * a - b + 5.0, a + 3.0 * b - 1.0, a];
        let mut sums = NormalEquations::new(2, 3);
        let mut value = 0.3f32;
        for _ in 0..200 {
            value = (value * 3.9 * (1.0 - value)).clamp(0.01, 0.99);
            let (a, b) = (value - 0.5, (value * 7.0).fract() - 0.5);
            sums.add(&[a, b], &key(a, b));
            sums.add(&[-a, -b], &key(-a, -b));
        }
        let (matrix, score) = sums.solve(3).unwrap();
        let matrix = matrix.to_vec2::<f32>().unwrap();
        for (row, expected) in matrix.iter().zip([[2.0, -1.0], [1.0, 3.0], [1.0, 0.0]]) {
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 0.05, "{matrix:?}");
            }
        }
        assert!(score > 0.0);
    }
}
