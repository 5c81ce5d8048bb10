//! Normalisation over the last dimension.

use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::parallel::{for_pieces, for_pieces2, rows_per_task};
use crate::simd::{add, sum, vectorised};

/// Root mean square normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`
/// (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>, equation 4).
///
/// `x` is `[.., dim]`, `weight` is `[dim]`; both get gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let dim = check("rms_norm", x, &[weight])?;
    on_gpu!(crate::gpu::takes(&[x, weight]) => crate::gpu::rms_norm(x, weight, eps));
    if !fusible(&[x, weight]) {
        return composed::rms_norm(x, weight, eps);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let mut out = vec![0f32; x.elem_count()];
    {
        let (x, weight) = (View::of(&x)?, View::of(&weight)?);
        let (x, weight) = (&x[..], &weight[..]);
        for_pieces(&mut out, dim, |at, out| rms_forward(&x[at..][..out.len()], weight, eps, out));
    }
    rms_record(&x, &weight, eps, out)
}

/// The residual stream `x + residual`, and [`rms_norm`] of it, in one pass.
///
/// `x` and `residual` are `[.., dim]`, `weight` is `[dim]`; all three get gradients through both results.
///
/// # Errors
/// When the shapes do not fit together.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let dim = check("add_rms_norm", x, &[weight])?;
    same("add_rms_norm", x, residual)?;
    on_gpu!(crate::gpu::takes(&[x, residual, weight]) => crate::gpu::add_rms_norm(x, residual, weight, eps));
    if !fusible(&[x, residual, weight]) {
        let sum = (x + residual)?;
        let normal = composed::rms_norm(&sum, weight, eps)?;
        return Ok((sum, normal));
    }
    let (x, residual, weight) = (x.contiguous()?, residual.contiguous()?, weight.contiguous()?);
    let (mut total, mut out) = (vec![0f32; x.elem_count()], vec![0f32; x.elem_count()]);
    {
        let (x, residual, weight) = (View::of(&x)?, View::of(&residual)?, View::of(&weight)?);
        let (x, residual, weight) = (&x[..], &residual[..], &weight[..]);
        for_pieces2(&mut total, &mut out, dim, |at, total, out| {
            add_into(&x[at..][..out.len()], &residual[at..][..out.len()], total);
            rms_forward(total, weight, eps, out);
        });
    }
    let total = sum_record(&x, &residual, total)?;
    let normal = rms_record(&total, &weight, eps, out)?;
    Ok((total, normal))
}

/// Puts a sum that is computed already into the graph.
fn sum_record(x: &Tensor, residual: &Tensor, total: Vec<f32>) -> Result<Tensor> {
    record(&[x, residual], total, x.shape().clone(), |_, grad| {
        Ok(vec![Some(grad.clone()), Some(grad.clone())])
    })
}

/// Puts a root mean square norm that is computed already into the graph.
fn rms_record(x: &Tensor, weight: &Tensor, eps: f32, out: Vec<f32>) -> Result<Tensor> {
    let dim = weight.elem_count();
    let (x_in, weight_in) = (x.clone(), weight.clone());
    record(&[x, weight], out, x.shape().clone(), move |_, grad| {
        let mut dx = vec![0f32; x_in.elem_count()];
        let dweight = {
            let (x, weight, grad) = (View::of(&x_in)?, View::of(&weight_in)?, View::of(grad)?);
            let (x, weight, grad) = (&x[..], &weight[..], &grad[..]);
            backward_by_rows(&mut dx, dim, dim, |at, dx, dweight| {
                let n = dx.len();
                rms_backward(&x[at..][..n], weight, &grad[at..][..n], eps, dx, dweight);
            })
        };
        Ok(vec![gradient(dx, &x_in)?, gradient(dweight, &weight_in)?])
    })
}

/// Layer normalisation over the last dimension:
/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` with the biased variance
/// (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>).
///
/// `x` is `[.., dim]`, `weight` and `bias` are `[dim]`; all three get gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let dim = check("layer_norm", x, &[weight, bias])?;
    on_gpu!(crate::gpu::takes(&[x, weight, bias]) => crate::gpu::layer_norm(x, weight, bias, eps));
    if !fusible(&[x, weight, bias]) {
        return composed::layer_norm(x, weight, bias, eps);
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let mut out = vec![0f32; x.elem_count()];
    {
        let (x, weight, bias) = (View::of(&x)?, View::of(&weight)?, View::of(&bias)?);
        let (x, weight, bias) = (&x[..], &weight[..], &bias[..]);
        for_pieces(&mut out, dim, |at, out| layer_forward(&x[at..][..out.len()], weight, bias, eps, out));
    }
    layer_record(&x, &weight, &bias, eps, out)
}

/// The residual stream `x + residual`, and [`layer_norm`] of it, in one pass.
///
/// `x` and `residual` are `[.., dim]`, `weight` and `bias` are `[dim]`; all four get gradients through both
/// results.
///
/// # Errors
/// When the shapes do not fit together.
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let dim = check("add_layer_norm", x, &[weight, bias])?;
    same("add_layer_norm", x, residual)?;
    on_gpu!(crate::gpu::takes(&[x, residual, weight, bias])
        => crate::gpu::add_layer_norm(x, residual, weight, bias, eps));
    if !fusible(&[x, residual, weight, bias]) {
        let sum = (x + residual)?;
        let normal = composed::layer_norm(&sum, weight, bias, eps)?;
        return Ok((sum, normal));
    }
    let (x, residual) = (x.contiguous()?, residual.contiguous()?);
    let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
    let (mut total, mut out) = (vec![0f32; x.elem_count()], vec![0f32; x.elem_count()]);
    {
        let (x, residual) = (View::of(&x)?, View::of(&residual)?);
        let (weight, bias) = (View::of(&weight)?, View::of(&bias)?);
        let (x, residual, weight, bias) = (&x[..], &residual[..], &weight[..], &bias[..]);
        for_pieces2(&mut total, &mut out, dim, |at, total, out| {
            add_into(&x[at..][..out.len()], &residual[at..][..out.len()], total);
            layer_forward(total, weight, bias, eps, out);
        });
    }
    let total = sum_record(&x, &residual, total)?;
    let normal = layer_record(&total, &weight, &bias, eps, out)?;
    Ok((total, normal))
}

/// Puts a layer norm that is computed already into the graph.
fn layer_record(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32, out: Vec<f32>) -> Result<Tensor> {
    let dim = weight.elem_count();
    let (x_in, weight_in, bias_in) = (x.clone(), weight.clone(), bias.clone());
    record(&[x, weight, bias], out, x.shape().clone(), move |_, grad| {
        let mut dx = vec![0f32; x_in.elem_count()];
        let mut dweight = {
            let (x, weight, grad) = (View::of(&x_in)?, View::of(&weight_in)?, View::of(grad)?);
            let (x, weight, grad) = (&x[..], &weight[..], &grad[..]);
            backward_by_rows(&mut dx, dim, 2 * dim, |at, dx, sums| {
                let n = dx.len();
                let (dweight, dbias) = sums.split_at_mut(dim);
                layer_backward(&x[at..][..n], weight, &grad[at..][..n], eps, dx, dweight, dbias);
            })
        };
        let dbias = dweight.split_off(dim);
        Ok(vec![gradient(dx, &x_in)?, gradient(dweight, &weight_in)?, gradient(dbias, &bias_in)?])
    })
}

fn same(op: &str, x: &Tensor, residual: &Tensor) -> Result<()> {
    if x.dims() != residual.dims() {
        bail!("{op}: x is {:?} but the residual is {:?}", x.dims(), residual.dims());
    }
    Ok(())
}

/// The last dimension of `x`, which the parameters must have too.
fn check(op: &str, x: &Tensor, parameters: &[&Tensor]) -> Result<usize> {
    let dim = x.dim(D::Minus1)?;
    for parameter in parameters {
        if parameter.dims() != [dim] {
            bail!("{op}: x is {:?}, so a parameter is [{dim}], not {:?}", x.dims(), parameter.dims());
        }
    }
    Ok(dim)
}

/// Runs `work(first element, piece of dx, sums)` over pieces of rows and adds up the `sums`, `width`
/// numbers each, in the order of the pieces.
fn backward_by_rows(
    dx: &mut [f32],
    dim: usize,
    width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let piece = rows_per_task(dim) * dim.max(1);
    let mut partial = vec![0f32; dx.len().div_ceil(piece) * width];
    if width > 0 {
        let pieces = dx.par_chunks_mut(piece).zip(partial.par_chunks_mut(width));
        pieces.enumerate().for_each(|(i, (dx, sums))| work(i * piece, dx, sums));
    }
    let mut total = vec![0f32; width];
    partial.chunks(width.max(1)).for_each(|sums| add(&mut total, sums));
    total
}

vectorised! {
    fn add_into(x: &[f32], y: &[f32], out: &mut [f32]) {
        for ((x, y), out) in x.iter().zip(y).zip(out) {
            *out = x + y;
        }
    }

    fn rms_forward(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let dim = weight.len();
        if dim == 0 {
            return;
        }
        for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let scale = 1.0 / (sum(dim, |i| x[i] * x[i]) / dim as f32 + eps).sqrt();
            for i in 0..dim {
                out[i] = x[i] * scale * weight[i];
            }
        }
    }

    fn rms_backward(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, dx: &mut [f32], dweight: &mut [f32]) {
        let dim = weight.len();
        let dweight = &mut dweight[..dim];
        for ((x, grad), dx) in x.chunks_exact(dim).zip(grad.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
            let scale = 1.0 / (sum(dim, |i| x[i] * x[i]) / dim as f32 + eps).sqrt();
            let along = sum(dim, |i| grad[i] * weight[i] * x[i]) / dim as f32 * scale * scale;
            for i in 0..dim {
                dx[i] = scale * (grad[i] * weight[i] - x[i] * along);
                dweight[i] += grad[i] * x[i] * scale;
            }
        }
    }

    fn layer_forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let dim = weight.len();
        if dim == 0 {
            return;
        }
        let bias = &bias[..dim];
        for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let (mean, scale) = mean_and_scale(x, eps);
            for i in 0..dim {
                out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
            }
        }
    }

    fn layer_backward(
        x: &[f32],
        weight: &[f32],
        grad: &[f32],
        eps: f32,
        dx: &mut [f32],
        dweight: &mut [f32],
        dbias: &mut [f32],
    ) {
        let dim = weight.len();
        let (dweight, dbias) = (&mut dweight[..dim], &mut dbias[..dim]);
        for ((x, grad), dx) in x.chunks_exact(dim).zip(grad.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
            let (mean, scale) = mean_and_scale(x, eps);
            let level = sum(dim, |i| grad[i] * weight[i]) / dim as f32;
            let along = sum(dim, |i| grad[i] * weight[i] * (x[i] - mean)) / dim as f32 * scale * scale;
            for i in 0..dim {
                dx[i] = scale * (grad[i] * weight[i] - level - (x[i] - mean) * along);
                dweight[i] += grad[i] * (x[i] - mean) * scale;
                dbias[i] += grad[i];
            }
        }
    }
}

#[inline(always)]
fn mean_and_scale(x: &[f32], eps: f32) -> (f32, f32) {
    let dim = x.len();
    let mean = sum(dim, |i| x[i]) / dim as f32;
    let variance = sum(dim, |i| (x[i] - mean) * (x[i] - mean)) / dim as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn rms_norm_is_right() {
        let op = |t: &[Tensor]| rms_norm(&t[0], &t[1], 1e-5);
        assert_gradients_are_slopes(&[random(&[2, 3, 5], 1), random(&[5], 2)], op);
        for dim in [1, 7, 64, 129] {
            let inputs = [random(&[3, 43, dim], 1), random(&[dim], 2)];
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn layer_norm_is_right() {
        let op = |t: &[Tensor]| layer_norm(&t[0], &t[1], &t[2], 1e-5);
        assert_gradients_are_slopes(&[random(&[2, 3, 5], 1), random(&[5], 2), random(&[5], 3)], op);
        for dim in [2, 7, 64, 129] {
            let inputs = [random(&[3, 43, dim], 1), random(&[dim], 2), random(&[dim], 3)];
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    /// Both results, so that gradients come in through both.
    fn side_by_side((sum, normal): (Tensor, Tensor)) -> Result<Tensor> {
        Tensor::cat(&[sum, normal], D::Minus1)
    }

    #[test]
    fn norms_after_residuals_are_right() {
        let rms = |t: &[Tensor]| side_by_side(add_rms_norm(&t[0], &t[1], &t[2], 1e-5)?);
        let layer = |t: &[Tensor]| side_by_side(add_layer_norm(&t[0], &t[1], &t[2], &t[3], 1e-5)?);
        for dim in [2, 7, 64, 129] {
            let inputs =
                [random(&[2, 43, dim], 1), random(&[2, 43, dim], 4), random(&[dim], 2), random(&[dim], 3)];
            assert_matches_f64(&inputs[..3], 1e-5, rms);
            assert_matches_f64(&inputs, 1e-5, layer);
            assert_same_on_any_number_of_threads(&inputs[..3], rms);
            assert_same_on_any_number_of_threads(&inputs, layer);
        }
        let inputs = [random(&[3, 5], 1), random(&[3, 5], 4), random(&[5], 2), random(&[5], 3)];
        assert_gradients_are_slopes(&inputs[..3], rms);
        assert_gradients_are_slopes(&inputs, layer);
        assert!(add_rms_norm(&inputs[0], &random(&[3, 4], 1), &inputs[2], 1e-5).is_err());
    }
}
