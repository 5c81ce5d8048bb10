//! Between the width of a layer and its attention heads.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::parallel::for_pieces;

/// `[batch, tokens, heads * dim]` to `[batch, heads, tokens, dim]`, contiguous; gets a gradient.
///
/// # Errors
/// When `heads` does not divide the width.
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    if heads == 0 || width % heads != 0 {
        bail!("split_heads: a width of {width} does not split into {heads} heads");
    }
    on_gpu!(crate::gpu::takes_heads(x, width / heads) => crate::gpu::split_heads(x, heads));
    if !fusible(&[x]) {
        return composed::split_heads(x, heads);
    }
    let x = x.contiguous()?;
    let (dim, shape) = (width / heads, (batch, heads, tokens, width / heads));
    let out = exchange(&View::of(&x)?, tokens, heads, dim);
    let input = x.clone();
    record(&[&x], out, shape, move |_, grad| {
        Ok(vec![gradient(exchange(&View::of(grad)?, heads, tokens, dim), &input)?])
    })
}

/// `[batch, heads, tokens, dim]` to `[batch, tokens, heads * dim]`, contiguous; gets a gradient.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = x.dims4()?;
    on_gpu!(crate::gpu::takes_heads(x, dim) => crate::gpu::merge_heads(x));
    if !fusible(&[x]) {
        return composed::merge_heads(x);
    }
    let x = x.contiguous()?;
    let out = exchange(&View::of(&x)?, heads, tokens, dim);
    let input = x.clone();
    record(&[&x], out, (batch, tokens, heads * dim), move |_, grad| {
        Ok(vec![gradient(exchange(&View::of(grad)?, tokens, heads, dim), &input)?])
    })
}

/// `[.., a, b, dim]` to `[.., b, a, dim]`.
pub(crate) fn exchange(x: &[f32], a: usize, b: usize, dim: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    for_pieces(&mut out, dim, |at, out| {
        for (i, out) in out.chunks_exact_mut(dim.max(1)).enumerate() {
            let row = at / dim + i;
            let (outer, j, i) = (row / (a * b), row / a % b, row % a);
            out.copy_from_slice(&x[((outer * a + i) * b + j) * dim..][..dim]);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn heads_are_split_and_merged() {
        for (batch, tokens, heads, dim) in [(1, 1, 1, 1), (2, 5, 3, 4), (3, 67, 5, 33)] {
            let inputs = [random(&[batch, tokens, heads * dim], 1)];
            assert_matches_f64(&inputs, 0.0, |t| split_heads(&t[0], heads));
            assert_same_on_any_number_of_threads(&inputs, |t| split_heads(&t[0], heads));
            let split = split_heads(&inputs[0], heads).unwrap();
            assert_matches_f64(std::slice::from_ref(&split), 0.0, |t| merge_heads(&t[0]));
            assert_eq!(distance(&merge_heads(&split).unwrap(), &inputs[0]), 0.0);
        }
        assert!(split_heads(&random(&[1, 2, 7], 1), 2).is_err());
    }
}
