//! The contrastive loss of retrievers and of two towers: the right one among many.

use candle_core::{D, Tensor};
use sidenote_kernels as kernels;

use crate::error::Result;

/// InfoNCE (van den Oord et al. 2018, <https://arxiv.org/abs/1807.03748>, equation 4), summed over the queries: the negative
/// log of the softmax of `scale queries keys^T` at each query's own key. `scale` is a scalar, one over the temperature, which may be
/// learnt.
///
/// `queries` is `[n, d]` and `keys` `[m, d]`, of which the first `n` are those of the queries in their order; whatever
/// follows is wrong for all (hard negatives, a queue of earlier keys). With `symmetric` half of the loss is that of finding the query of each of the
/// first `n` keys among the queries, as between two towers (CLIP; Radford et al. 2021, <https://arxiv.org/abs/2103.00020>,
/// figure 3). All inputs get gradients.
pub fn info_nce(queries: &Tensor, keys: &Tensor, scale: &Tensor, symmetric: bool) -> Result<Tensor> {
    let n = queries.dim(0)?;
    let scores = kernels::linear(queries, keys)?.broadcast_mul(scale)?;
    let loss = own_among_all(&scores)?;
    if !symmetric {
        return Ok(loss);
    }
    let back = own_among_all(&scores.narrow(1, 0, n)?.t()?.contiguous()?)?;
    Ok(((loss + back)? / 2.0)?)
}

/// `Σ_i (ln Σ_j exp scores_ij - scores_ii)` of `[n, m]`.
fn own_among_all(scores: &Tensor) -> Result<Tensor> {
    let n = scores.dim(0)?;
    let highest = scores.max_keepdim(D::Minus1)?.detach();
    let sums = scores.broadcast_sub(&highest)?.exp()?.sum(1)?.log()?;
    let own = Tensor::arange(0u32, n as u32, scores.device())?.unsqueeze(1)?;
    let own = (scores.gather(&own, 1)?.squeeze(1)? - highest.squeeze(1)?)?;
    Ok((sums - own)?.sum_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::normal::normal;

    fn scale(temperature: f32) -> Tensor {
        Tensor::new(1.0 / temperature, &Device::Cpu).unwrap()
    }

    fn tensor(name: &str, rows: usize) -> Tensor {
        Tensor::from_vec(normal(1, name, rows * 4, 1.0), (rows, 4), &Device::Cpu).unwrap()
    }

    /// Fails when the temperature multiplies, hard negatives are left out, or the way back looks at them too.
    #[test]
    fn the_loss_written_out() {
        let (queries, keys) = (tensor("q", 3), tensor("k", 5));
        let (q, k) = (queries.to_vec2::<f32>().unwrap(), keys.to_vec2::<f32>().unwrap());
        let temperature = 0.7;
        let score = |i: usize, j: usize| -> f64 {
            q[i].iter().zip(&k[j]).map(|(a, b)| f64::from(a * b)).sum::<f64>() / temperature
        };
        let forth: f64 =
            (0..3).map(|i| (0..5).map(|j| score(i, j).exp()).sum::<f64>().ln() - score(i, i)).sum();
        let back: f64 =
            (0..3).map(|j| (0..3).map(|i| score(i, j).exp()).sum::<f64>().ln() - score(j, j)).sum();
        for (symmetric, expected) in [(false, forth), (true, (forth + back) / 2.0)] {
            let found =
                info_nce(&queries, &keys, &scale(0.7), symmetric).unwrap().to_scalar::<f32>().unwrap();
            assert!((f64::from(found) - expected).abs() < 1e-4, "{symmetric}: {found}, not {expected}");
        }
        // Scores that no exp can hold.
        let found = info_nce(&queries, &keys, &scale(1e-3), false).unwrap().to_scalar::<f32>().unwrap();
        assert!(found.is_finite() && found > 0.0);
    }

    #[test]
    fn gradients_are_slopes() {
        let variables = [&tensor("q", 3), &tensor("k", 5), &scale(0.5)].map(|x| Var::from_tensor(x).unwrap());
        let loss = || info_nce(&variables[0], &variables[1], &variables[2], true).unwrap();
        let gradients = kernels::backward(&loss()).unwrap();
        for variable in &variables {
            let gradient = gradients.get(variable).unwrap();
            let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let start = variable.as_detached_tensor().copy().unwrap();
            let at = |sign: f64| {
                let step = (gradient * (sign * 5e-3 / f64::from(length))).unwrap();
                variable.set(&(&start + step).unwrap()).unwrap();
                f64::from(loss().to_scalar::<f32>().unwrap())
            };
            let slope = ((at(1.0) - at(-1.0)) / 1e-2) as f32;
            variable.set(&start).unwrap();
            assert!(length > 0.05 && (slope - length).abs() < 0.02 * length, "{slope} {length}");
        }
    }
}
