//! The output layer and its loss in one operation.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible, record};
use crate::composed;
use crate::matrix::{Matrix, Threads, multiply};
use crate::simd::{exp, max, sum, vectorised};

/// How many logits are held at a time: 8 MiB.
const TILE: usize = 2 << 20;

/// The sum of `-log softmax(hidden weight^T)[target]` over the rows whose target is not `ignore`.
///
/// `hidden` is `[tokens, dim]`, `weight` is `[vocabulary, dim]`, `targets` is `[tokens]` as `u32`;
/// the result is a scalar (in nats). `hidden` and `weight` get gradients.
///
/// The fused kernel never holds the logits of all tokens: it goes through them in tiles and, where
/// gradients will be needed, computes these at once while a tile's logits are at hand (as in Liger
/// Kernel, <https://arxiv.org/abs/2410.10989>, section 3.2).
///
/// # Errors
/// When the shapes do not fit together or a target that is not ignored lies outside the vocabulary.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    ignore: Option<u32>,
) -> Result<Tensor> {
    let (tokens, dim) = hidden.dims2()?;
    let (vocabulary, weight_dim) = weight.dims2()?;
    if weight_dim != dim || targets.dims() != [tokens] || targets.dtype() != DType::U32 {
        bail!(
            "linear_cross_entropy: hidden {:?}, weight {:?} and targets {:?} ({:?}) do not fit together; \
             expected [tokens, dim], [vocabulary, dim] and [tokens] as u32",
            hidden.dims(),
            weight.dims(),
            targets.dims(),
            targets.dtype()
        );
    }
    if !fusible(&[hidden, weight]) {
        return composed::linear_cross_entropy(hidden, weight, targets, ignore);
    }
    let targets = targets.to_vec1::<u32>()?;
    let kept = |target: u32| Some(target) != ignore;
    if let Some(row) = targets.iter().position(|&t| kept(t) && t as usize >= vocabulary) {
        bail!(
            "linear_cross_entropy: target {} of row {row} is outside the vocabulary of {vocabulary}",
            targets[row]
        );
    }

    // Only the rows that count.
    let rows: Vec<usize> = (0..tokens).filter(|&row| kept(targets[row])).collect();
    let (hidden, weight) = (hidden.contiguous()?, weight.contiguous()?);
    let mut problem = Problem {
        dim,
        vocabulary,
        dhidden: if hidden.track_op() { Some(vec![0f32; tokens * dim]) } else { None },
        dweight: if weight.track_op() { Some(vec![0f32; vocabulary * dim]) } else { None },
    };
    let loss = problem.run(&View::of(&hidden)?, &View::of(&weight)?, &targets, &rows);

    let tensor = |values: Option<Vec<f32>>, like: &Tensor| match values {
        Some(values) => Tensor::from_vec(values, like.shape(), like.device()).map(Some),
        None => Ok(None),
    };
    let (dhidden, dweight) = (tensor(problem.dhidden, &hidden)?, tensor(problem.dweight, &weight)?);
    record(&[&hidden, &weight], vec![loss as f32], (), move |_, grad| {
        let factor = f64::from(grad.to_scalar::<f32>()?);
        let scaled = |gradient: &Option<Tensor>| match gradient {
            Some(gradient) if factor == 1.0 => Ok(Some(gradient.clone())),
            Some(gradient) => gradient.affine(factor, 0.0).map(Some),
            None => Ok(None),
        };
        Ok(vec![scaled(&dhidden)?, scaled(&dweight)?])
    })
}

struct Problem {
    dim: usize,
    vocabulary: usize,
    dhidden: Option<Vec<f32>>,
    dweight: Option<Vec<f32>>,
}

impl Problem {
    fn run(&mut self, hidden: &[f32], weight: &[f32], targets: &[u32], rows: &[usize]) -> f64 {
        let Self { dim, vocabulary, .. } = *self;
        let weight = Matrix::rows(weight, dim);
        let tile_rows = (TILE / vocabulary.max(1)).clamp(1, rows.len().max(1));
        let mut logits = vec![0f32; tile_rows * vocabulary];
        let mut gathered = Vec::with_capacity(tile_rows * dim);
        let mut scratch = vec![0f32; tile_rows * dim];
        let mut loss = 0f64;
        for rows in rows.chunks(tile_rows) {
            let n = rows.len();
            let logits = &mut logits[..n * vocabulary];
            gathered.clear();
            rows.iter().for_each(|&row| gathered.extend_from_slice(&hidden[row * dim..][..dim]));
            let tile = Matrix::rows(&gathered, dim);
            multiply([n, dim, vocabulary], 1.0, tile, weight.t(), logits, vocabulary, false, Threads::All);

            let losses: Vec<f64> = logits
                .par_chunks_mut(vocabulary)
                .zip(rows)
                .map(|(logits, &row)| cross_entropy(logits, targets[row] as usize))
                .collect();
            loss += losses.iter().sum::<f64>();

            // The logits have become their gradients.
            let dlogits = Matrix::rows(logits, vocabulary);
            if let Some(dhidden) = &mut self.dhidden {
                let out = &mut scratch[..n * dim];
                multiply([n, vocabulary, dim], 1.0, dlogits, weight, out, dim, false, Threads::All);
                for (out, &row) in out.chunks(dim.max(1)).zip(rows) {
                    dhidden[row * dim..][..dim].copy_from_slice(out);
                }
            }
            if let Some(dweight) = &mut self.dweight {
                multiply([vocabulary, n, dim], 1.0, dlogits.t(), tile, dweight, dim, true, Threads::All);
            }
        }
        loss
    }
}

vectorised! {
    /// The negative log likelihood of `target`; turns the logits into the gradient of it.
    fn cross_entropy(logits: &mut [f32], target: usize) -> f64 {
        let highest = max(logits);
        let at_target = logits[target];
        for logit in logits.iter_mut() {
            *logit = exp(*logit - highest);
        }
        let total = sum(logits.len(), |i| logits[i]);
        let inverse = 1.0 / total;
        for logit in logits.iter_mut() {
            *logit *= inverse;
        }
        logits[target] -= 1.0;
        f64::from(highest) + f64::from(total).ln() - f64::from(at_target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    fn targets(tokens: usize, vocabulary: usize) -> Tensor {
        let targets: Vec<u32> =
            (0..tokens).map(|i| if i % 5 == 3 { 1_000_000 } else { (i * 7 % vocabulary) as u32 }).collect();
        Tensor::new(targets, &Device::Cpu).unwrap()
    }

    #[test]
    fn linear_cross_entropy_is_right() {
        for (tokens, dim, vocabulary) in [(1, 1, 1), (5, 3, 7), (131, 33, 259)] {
            let targets = targets(tokens, vocabulary);
            let op = |t: &[Tensor]| linear_cross_entropy(&t[0], &t[1], &targets, Some(1_000_000));
            let inputs = [(random(&[tokens, dim], 1) * 3.0).unwrap(), random(&[vocabulary, dim], 2)];
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}
