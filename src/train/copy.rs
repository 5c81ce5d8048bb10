//! The copy initialisation's part that depends on data: queries by least squares, an output that tells the copied
//! embeddings apart, then the strength of copying by trying some on training text.

use std::fmt;

use candle_core::{Tensor, Var};
use sidenote_kernels as kernels;

use crate::error::{Error, Result};
use crate::model::batch::{Batch, IGNORE};
use crate::model::retro::Retro;
use crate::model::retro::copy::MatchingPairs;
use crate::model::{Retrieved, RetroConfig};

/// Where the tries start.
const FIRST: Try = Try { sharpness: 16.0, sink: 0.4, strength: 0.1 };
/// Sharpness of the attention that is tried: the score of a perfect match.
const SHARPNESS: [f32; 3] = [10.0, 16.0, 24.0];
/// Height of the sink that is tried, as a part of a perfect match's score.
const SINK: [f32; 4] = [0.2, 0.3, 0.4, 0.6];
/// Size of what is copied that is tried, relative to the decoder's state. A pretrained decoder's logits move by several nats
/// where a tenth is added to its last states, a small one's by far less.
const STRENGTH: [f32; 6] = [0.03, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Batches on which the tries are compared.
const TRIED_ON: usize = 2;
/// Added to the diagonal of the normal equations, as a part of its mean.
const RIDGE: f64 = 1e-3;
/// The same of the values' second moments, which the output inverts.
const VALUE_RIDGE: f64 = 1.0;

/// How the layers copy.
#[derive(Clone, Copy, PartialEq)]
struct Try {
    sharpness: f32,
    sink: f32,
    strength: f32,
}

/// What was found.
pub struct Fit {
    /// Loss of the frozen base on the batches, nats a token.
    pub loss_without: f64,
    /// Loss with the copying that was chosen.
    pub loss_with: f64,
    chosen: Try,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Try { sharpness, sink, strength } = self.chosen;
        write!(
            f,
            "training loss {:.3} without, {:.3} with (sharpness {sharpness}, sink {sink}, strength {strength})",
            self.loss_without, self.loss_with
        )
    }
}

/// Fits `retro`'s queries and outputs to `batches` and chooses how strongly it copies.
pub fn fit(
    retro: &Retro,
    variables: &[(String, Var)],
    batches: &[(Batch, Option<Retrieved>)],
) -> Result<Fit> {
    let layers = Layers::find(retro.config(), variables)?;
    let mut sums: Vec<Sums> = layers.0.iter().map(|_| Sums::default()).collect();
    for (batch, _) in batches {
        if batch.tokens.dim(1)? < retro.config().neighbour_tokens() {
            continue;
        }
        for (sum, pairs) in sums.iter_mut().zip(retro.matching_pairs(&batch.tokens)?) {
            sum.add(&pairs)?;
        }
    }
    let found = layers.0.iter().zip(&mut sums).map(|(layer, sums)| Copying::solve(layer, sums));
    let found = found.collect::<Result<Vec<_>>>()?;
    let tried_on = &batches[..batches.len().min(TRIED_ON)];
    let with = |a_try: Try| -> Result<f64> {
        for (layer, copying) in layers.0.iter().zip(&found) {
            copying.apply(layer, a_try)?;
        }
        loss(retro, tried_on, true)
    };
    let loss_without = loss(retro, tried_on, false)?;
    let mut tried: Vec<(f64, Try)> = Vec::new();
    // One after another, since they hardly depend on each other; strength twice, on which the most depends.
    let mut choose = |tries: &[Try]| -> Result<(f64, Try)> {
        for &a_try in tries {
            if tried.iter().all(|(_, other)| *other != a_try) {
                tried.push((with(a_try)?, a_try));
            }
        }
        let numbers = tried.iter().filter(|(loss, _)| !loss.is_nan());
        let best = numbers.min_by(|(loss, _), (other, _)| loss.total_cmp(other));
        Ok(best.copied().unwrap_or((f64::INFINITY, FIRST)))
    };
    let (_, best) = choose(&STRENGTH.map(|strength| Try { strength, ..FIRST }))?;
    let (_, best) = choose(&SINK.map(|sink| Try { sink, ..best }))?;
    let (_, best) = choose(&SHARPNESS.map(|sharpness| Try { sharpness, ..best }))?;
    let (loss_with, chosen) = choose(&STRENGTH.map(|strength| Try { strength, ..best }))?;
    with(chosen)?;
    Ok(Fit { loss_without, loss_with, chosen })
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

/// What one layer is solved from.
#[derive(Default)]
struct Sums {
    count: usize,
    /// Width of a state, of a key, and of a value.
    widths: [usize; 3],
    /// Sum of state stateᵀ.
    gram: Vec<f64>,
    /// Sum of state keyᵀ.
    cross: Vec<f64>,
    /// Sum of value valueᵀ.
    moment: Vec<f64>,
    state_sum: Vec<f64>,
    key_sum: Vec<f64>,
    /// Sizes of the states before their norm.
    sizes: Vec<f32>,
}

impl Sums {
    fn add(&mut self, pairs: &MatchingPairs) -> Result<()> {
        let MatchingPairs { states, keys, values, sizes } = pairs;
        let sum = |total: &mut Vec<f64>, of: Tensor| -> Result<()> {
            let of = of.flatten_all()?.to_vec1::<f32>()?;
            total.resize(of.len(), 0.0);
            total.iter_mut().zip(of).for_each(|(total, x)| *total += x as f64);
            Ok(())
        };
        let turned = states.t()?;
        sum(&mut self.gram, turned.matmul(states)?)?;
        sum(&mut self.cross, turned.matmul(keys)?)?;
        sum(&mut self.moment, values.t()?.matmul(values)?)?;
        sum(&mut self.state_sum, states.sum(0)?)?;
        sum(&mut self.key_sum, keys.sum(0)?)?;
        self.widths = [states.dim(1)?, keys.dim(1)?, values.dim(1)?];
        self.count += states.dim(0)?;
        self.sizes.extend(sizes);
        Ok(())
    }

    /// The matrix W `[keys, states]` for which W state is nearest to the key that belongs to it, and how far the score
    /// of a pair that belongs together lies above that of any pair, on average, for heads of `head_dim`.
    fn queries(&self, head_dim: usize) -> Result<(Vec<f32>, f64)> {
        let (n, [inputs, outputs, _]) = (self.count as f64, self.widths);
        // Towards the keys less their mean: a part that all keys share moves no softmax.
        let mut right = self.cross.clone();
        for i in 0..inputs {
            for j in 0..outputs {
                right[i * outputs + j] -= self.state_sum[i] * self.key_sum[j] / n;
            }
        }
        let target = right.clone();
        let mut left = self.gram.clone();
        add_to_diagonal(&mut left, inputs, RIDGE * mean_of_diagonal(&self.gram, inputs, inputs));
        solve_in_place(&mut left, &mut right, inputs, outputs);
        // Mean over pairs of (W state) · (key - mean key) = sum of W ∘ target / n.
        let score: f64 = right.iter().zip(&target).map(|(w, t)| w * t).sum::<f64>() / n;
        let heads = outputs / head_dim;
        let score = score / heads as f64 / (head_dim as f64).sqrt();
        if !(score.is_finite() && score > 0.0) {
            let why = "the decoder's states say nothing about its text";
            return Err(Error::setting("retro.initialisation", why));
        }
        Ok((transposed(&right, inputs, outputs), score))
    }

    /// The output `[width, values]` of a stream of `width` numbers, as long on average as the embeddings that it copies:
    /// the inverse of their second moments, plus as much of the identity as makes it mild. It takes out what embeddings
    /// share (a trained decoder's have a large mean), which would raise the logits of all tokens alike.
    fn output(&self, width: usize) -> Vec<f32> {
        let values = self.widths[2];
        let mean = mean_of_diagonal(&self.moment, values, width).max(f64::MIN_POSITIVE);
        let moment = |i: usize, j: usize| self.moment[i * values + j] / mean;
        let mut left: Vec<f64> = (0..width * width).map(|at| moment(at / width, at % width)).collect();
        add_to_diagonal(&mut left, width, VALUE_RIDGE);
        let mut inverse = vec![0.0; width * width];
        add_to_diagonal(&mut inverse, width, 1.0);
        solve_in_place(&mut left, &mut inverse, width, width);
        // Mean square of what comes out, in parts of what goes in: the trace of O M O over that of M, which is the width.
        let mut square = 0.0;
        for row in inverse.chunks(width) {
            for i in 0..width {
                let moved: f64 = (0..width).map(|j| moment(i, j) * row[j]).sum();
                square += row[i] * moved;
            }
        }
        let scale = (width as f64 / square.max(f64::MIN_POSITIVE)).sqrt();
        let entry = |at: usize| match (at / values, at % values) {
            (i, j) if j < width => (inverse[i * width + j] * scale) as f32,
            _ => 0.0,
        };
        (0..width * values).map(entry).collect()
    }

    /// The size of a usual state. Not their mean square: the first token's is a hundred times as large in many decoders.
    fn state_size(&mut self) -> f64 {
        let middle = self.sizes.len() / 2;
        match self.sizes.is_empty() {
            true => 0.0,
            false => *self.sizes.select_nth_unstable_by(middle, f32::total_cmp).1 as f64,
        }
    }
}

/// How one layer copies, up to its strength.
struct Copying {
    /// A perfect match scores 1.
    queries: Tensor,
    output: Tensor,
    state_size: f64,
}

impl Copying {
    fn solve(layer: &Layer, sums: &mut Sums) -> Result<Self> {
        if sums.count == 0 {
            let why = "the copy initialisation needs sequences of 2 chunks or more";
            return Err(Error::setting("training.chunks", why));
        }
        let (queries, score) = sums.queries(layer.head_dim)?;
        let tensor = |values: Vec<f32>, like: &Var| Tensor::from_vec(values, like.shape(), like.device());
        Ok(Self {
            queries: (tensor(queries, layer.queries)? / score)?,
            output: tensor(sums.output(layer.output.dim(0)?), layer.output)?,
            state_size: sums.state_size(),
        })
    }

    fn apply(&self, layer: &Layer, Try { sharpness, sink, strength }: Try) -> Result<()> {
        layer.queries.set(&(&self.queries * sharpness as f64)?)?;
        layer.output.set(&(&self.output * (strength as f64 * self.state_size))?)?;
        layer.sink.set(&Tensor::full(sharpness * sink, layer.sink.shape(), layer.sink.device())?)?;
        Ok(())
    }
}

fn add_to_diagonal(matrix: &mut [f64], n: usize, more: f64) {
    (0..n).for_each(|i| matrix[i * n + i] += more);
}

/// Of the first `count` entries of the diagonal of an `[n, n]` matrix.
fn mean_of_diagonal(matrix: &[f64], n: usize, count: usize) -> f64 {
    (0..count).map(|i| matrix[i * n + i]).sum::<f64>() / count as f64
}

fn transposed(matrix: &[f64], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| matrix[at % rows * columns + at / rows] as f32).collect()
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
    // Whole rows at a time: row i less what the rows that are solved make of it.
    let mut eliminate = |i: usize, others: std::ops::Range<usize>, factor: &dyn Fn(usize) -> f64| {
        let (before, from) = right.split_at_mut(i * columns);
        let (row, after) = from.split_at_mut(columns);
        for k in others {
            let other = match k < i {
                true => &before[k * columns..],
                false => &after[(k - i - 1) * columns..],
            };
            let factor = factor(k);
            row.iter_mut().zip(other).for_each(|(x, other)| *x -= factor * other);
        }
        row.iter_mut().for_each(|x| *x /= left[i * n + i]);
    };
    for i in 0..n {
        eliminate(i, 0..i, &|k| left[i * n + k]);
    }
    for i in (0..n).rev() {
        eliminate(i, i + 1..n, &|k| left[k * n + i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(states: Vec<[f32; 2]>, keys: Vec<[f32; 3]>, values: Vec<[f32; 3]>) -> MatchingPairs {
        fn matrix<const N: usize>(rows: Vec<[f32; N]>) -> Tensor {
            let shape = (rows.len(), N);
            Tensor::from_vec(rows.into_flattened(), shape, &candle_core::Device::Cpu).unwrap()
        }
        let sizes = states.iter().map(|s| s[0].hypot(s[1])).collect();
        let states = matrix(states);
        MatchingPairs { states, keys: matrix(keys), values: matrix(values), sizes }
    }

    #[test]
    fn least_squares_finds_the_matrix() {
        // key = [2a - b, a + 3b, a], plus a constant that must not matter.
        let key = |[a, b]: &[f32; 2]| [2.0 * a - b + 5.0, a + 3.0 * b - 1.0, *a];
        let mut sums = Sums::default();
        let (mut value, mut states) = (0.3f32, Vec::new());
        for _ in 0..200 {
            value = (value * 3.9 * (1.0 - value)).clamp(0.01, 0.99);
            let (a, b) = (value - 0.5, (value * 7.0).fract() - 0.5);
            states.extend([[a, b], [-a, -b]]);
        }
        for part in states.chunks(150) {
            let keys: Vec<_> = part.iter().map(key).collect();
            sums.add(&pairs(part.to_vec(), keys.clone(), keys)).unwrap();
        }
        let (matrix, score) = sums.queries(3).unwrap();
        for (row, expected) in matrix.chunks(2).zip([[2.0, -1.0], [1.0, 3.0], [1.0, 0.0]]) {
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 0.05, "{matrix:?}");
            }
        }
        assert!(score > 0.0);
    }

    /// Two embeddings that share most of their length, and a state whose size is far from the others'.
    #[test]
    fn the_output_tells_embeddings_apart() {
        let (first, second) = ([3.0f32, 0.5, 0.0], [3.0f32, -0.5, 0.0]);
        let mut sums = Sums::default();
        let states = vec![[1.0, 0.0], [1000.0, 0.0], [0.0, 2.0], [0.0, 1.0]];
        let values = vec![first, second, first, second];
        sums.add(&pairs(states, values.clone(), values)).unwrap();
        let output = sums.output(2);
        let moved = |v: [f32; 3]| [0, 1].map(|i| (0..3).map(|j| output[3 * i + j] * v[j]).sum::<f32>());
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        assert!(cosine(&first, &second) > 0.9);
        assert!(cosine(&moved(first), &moved(second)) < 0.8, "{output:?}");
        let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length(&moved(first)) - length(&first)).abs() < 1e-3, "{output:?}");
        assert_eq!(sums.state_size(), 2.0);
    }
}
