//! Rotary position embedding.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::heads::split_heads;
use crate::parallel::for_pieces;
use crate::simd::vectorised;

/// Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>, equation 34) in the
/// order of Llama and Hugging Face: component `i` turns together with component `i + half`, where `2 half` is
/// `dim`, or less where only the first components of a head turn.
///
/// `x` is `[batch, heads, tokens, dim]` and gets a gradient; `cos` and `sin` are constants,
/// `[tokens, half]`, or `[batch, tokens, half]` where sequences have positions of their own.
///
/// # Errors
/// When the shapes do not fit together.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, _, tokens, dim) = x.dims4()?;
    check_angles("rotary", [batch, tokens, dim], cos, sin)?;
    on_gpu!(crate::gpu::takes(&[x]) && crate::gpu::takes(&[cos, sin]) && cos.device().same_device(x.device())
        => crate::gpu::rotary(x, cos, sin));
    if !fusible(&[x, cos, sin]) {
        return composed::rotary(x, cos, sin);
    }
    let (x, cos, sin) = (x.contiguous()?, cos.detach().contiguous()?, sin.detach().contiguous()?);
    let out = turn(&x, &cos, &sin, 1.0)?;
    let input = x.clone();
    record(&[&x], out, x.shape().clone(), move |_, grad| {
        // The inverse of a turn is its transpose.
        Ok(vec![gradient(turn(grad, &cos, &sin, -1.0)?, &input)?])
    })
}

/// [`crate::split_heads`] and [`rotary`] in one: `[batch, tokens, heads * dim]` to `[batch, heads, tokens, dim]`,
/// turned. `x` gets a gradient.
///
/// # Errors
/// When `heads` does not divide the width or the angles do not fit.
pub fn rotary_heads(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    if !fusible(&[x, cos, sin]) || heads == 0 || width % heads != 0 {
        return rotary(&split_heads(x, heads)?, cos, sin);
    }
    let dim = width / heads;
    check_angles("rotary_heads", [batch, tokens, dim], cos, sin)?;
    let (x, cos, sin) = (x.contiguous()?, cos.detach().contiguous()?, sin.detach().contiguous()?);
    let sizes = [batch, tokens, heads, dim];
    let out = split_and_turn(&View::of(&x)?, (&cos, &sin), sizes, false)?;
    let input = x.clone();
    record(&[&x], out, (batch, heads, tokens, dim), move |_, grad| {
        Ok(vec![gradient(split_and_turn(&View::of(grad)?, (&cos, &sin), sizes, true)?, &input)?])
    })
}

/// Cosines and sines must fit heads of `dim`.
pub(crate) fn check_angles(
    name: &str,
    [batch, tokens, dim]: [usize; 3],
    cos: &Tensor,
    sin: &Tensor,
) -> Result<()> {
    let half = *cos.dims().last().unwrap_or(&0);
    let fits = cos.dims() == [tokens, half] || cos.dims() == [batch, tokens, half];
    if !dim.is_multiple_of(2) || half > dim / 2 || !fits || sin.dims() != cos.dims() {
        bail!(
            "{name}: {batch} times {tokens} tokens in heads of {dim}, so cos and sin are [tokens, half] or [batch, \
             tokens, half] with half at most {dim} / 2, not {:?} and {:?}",
            cos.dims(),
            sin.dims()
        );
    }
    Ok(())
}

/// Splits heads and turns; `back` turns back and merges them. The sizes are batch, tokens, heads and dim.
pub(crate) fn split_and_turn(
    x: &[f32],
    (cos, sin): (&Tensor, &Tensor),
    [_, tokens, heads, dim]: [usize; 4],
    back: bool,
) -> Result<Vec<f32>> {
    let half = *cos.dims().last().unwrap_or(&0);
    let mut out = vec![0f32; x.len()];
    let (cos, sin) = (View::of(cos)?, View::of(sin)?);
    let (cos, sin) = (&cos[..], &sin[..]);
    for_pieces(&mut out, dim, |at, out| {
        for (row, out) in (at / dim.max(1)..).zip(out.chunks_exact_mut(dim.max(1))) {
            // Where this row comes from, and its token.
            let (sequence, row) = (row / (tokens * heads), row % (tokens * heads));
            let (token, from) = match back {
                false => (row % tokens, row % tokens * heads + row / tokens),
                true => (row / heads, row % heads * tokens + row / heads),
            };
            let x = &x[(sequence * tokens * heads + from) * dim..][..dim];
            // Sequences share their angles or have their own.
            let angle = (sequence * tokens + token) * half % cos.len().max(1);
            let (cos, sin) = (&cos[angle..][..half], &sin[angle..][..half]);
            turn_rows(x, cos, sin, 0, [dim, half], if back { -1.0 } else { 1.0 }, out);
        }
    });
    Ok(out)
}

fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) -> Result<Vec<f32>> {
    let (_, heads, tokens, dim) = x.dims4()?;
    let (own, half) = (cos.rank() == 3, *cos.dims().last().unwrap_or(&0));
    let mut out = vec![0f32; x.elem_count()];
    let (x, cos, sin) = (View::of(x)?, View::of(cos)?, View::of(sin)?);
    let (x, cos, sin) = (&x[..], &cos[..], &sin[..]);
    for_pieces(&mut out, dim, |at, out| {
        let first = at / dim.max(1) % tokens.max(1);
        if !own {
            return turn_rows(&x[at..][..out.len()], cos, sin, first, [dim, half], direction, out);
        }
        for (row, out) in (at / dim.max(1)..).zip(out.chunks_exact_mut(dim.max(1))) {
            let angle = (row / (heads * tokens) * tokens + row % tokens) * half;
            let (cos, sin) = (&cos[angle..][..half], &sin[angle..][..half]);
            turn_rows(&x[row * dim..][..dim], cos, sin, 0, [dim, half], direction, out);
        }
    });
    Ok(out)
}

vectorised! {
    /// Turns consecutive rows, the first of which is at token `first`.
    fn turn_rows(
        x: &[f32],
        cos: &[f32],
        sin: &[f32],
        first: usize,
        sizes: [usize; 2],
        direction: f32,
        out: &mut [f32],
    ) {
        let [dim, half] = sizes;
        if half == 0 {
            out.copy_from_slice(x);
            return;
        }
        let tokens = cos.len() / half;
        for (row, (x, out)) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let token = (first + row) % tokens;
            let (cos, sin) = (&cos[token * half..][..half], &sin[token * half..][..half]);
            let (x1, x2) = x.split_at(half);
            let (out1, out2) = out.split_at_mut(half);
            let ((x2, rest), (out2, out_rest)) = (x2.split_at(half), out2.split_at_mut(half));
            out_rest.copy_from_slice(rest);
            for i in 0..half {
                let sin = direction * sin[i];
                out1[i] = x1[i] * cos[i] - x2[i] * sin;
                out2[i] = x2[i] * cos[i] + x1[i] * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn rotary_is_right() {
        for (batch, heads, tokens, dim) in [(1, 1, 1, 2), (2, 3, 5, 6), (2, 3, 41, 32)] {
            let angles = (random(&[tokens, dim / 2], 5) * 4.0).unwrap();
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let op = |t: &[Tensor]| rotary(&t[0], &cos.to_dtype(t[0].dtype())?, &sin.to_dtype(t[0].dtype())?);
            let inputs = [random(&[batch, heads, tokens, dim], 1)];
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn sequences_may_have_positions_of_their_own() {
        for (batch, tokens, heads, dim) in [(1, 1, 1, 2), (3, 5, 2, 6), (2, 41, 3, 32)] {
            let angles = (random(&[batch, tokens, dim / 2], 5) * 4.0).unwrap();
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let cast = |x: &Tensor, like: &Tensor| x.to_dtype(like.dtype());
            let inputs = [random(&[batch, heads, tokens, dim], 1)];
            assert_matches_f64(&inputs, 1e-6, |t| rotary(&t[0], &cast(&cos, &t[0])?, &cast(&sin, &t[0])?));
            let wide = [random(&[batch, tokens, heads * dim], 1)];
            assert_matches_f64(&wide, 1e-6, |t| {
                rotary_heads(&t[0], heads, &cast(&cos, &t[0])?, &cast(&sin, &t[0])?)
            });
            // Each sequence as if it were alone.
            let together = rotary(&inputs[0], &cos, &sin).unwrap();
            for i in 0..batch {
                let (x, cos, sin) = (inputs[0].get(i).unwrap(), cos.get(i).unwrap(), sin.get(i).unwrap());
                let alone = rotary(&x.unsqueeze(0).unwrap(), &cos, &sin).unwrap();
                assert_eq!(distance(&alone, &together.narrow(0, i, 1).unwrap()), 0.0);
            }
        }
        let (x, angles) = (random(&[2, 3, 8], 1), random(&[3, 3, 4], 1));
        assert!(rotary_heads(&x, 1, &angles, &angles).is_err());
    }

    #[test]
    fn heads_are_turned_as_they_are_split() {
        for (batch, tokens, heads, dim) in [(1, 1, 1, 2), (2, 5, 3, 6), (2, 41, 5, 32)] {
            let angles = (random(&[tokens, dim / 2], 5) * 4.0).unwrap();
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let cast = |x: &Tensor, like: &Tensor| x.to_dtype(like.dtype());
            let op = |t: &[Tensor]| rotary_heads(&t[0], heads, &cast(&cos, &t[0])?, &cast(&sin, &t[0])?);
            let inputs = [random(&[batch, tokens, heads * dim], 1)];
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
        let (x, angles) = (random(&[1, 3, 8], 1), random(&[3, 2], 1));
        assert!(rotary_heads(&x, 3, &angles, &angles).is_err());
        assert!(rotary_heads(&x, 4, &angles, &angles).is_err());
    }

    #[test]
    fn the_rest_of_a_head_stays() {
        for (batch, tokens, heads, dim, half) in
            [(1, 1, 1, 4, 1), (2, 5, 3, 10, 2), (2, 41, 5, 32, 12), (1, 2, 1, 4, 0)]
        {
            for shape in [vec![tokens, half], vec![batch, tokens, half]] {
                let angles = (random(&shape, 5) * 4.0).unwrap();
                let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
                let cast = |x: &Tensor, like: &Tensor| x.to_dtype(like.dtype());
                let split = |t: &[Tensor]| rotary(&t[0], &cast(&cos, &t[0])?, &cast(&sin, &t[0])?);
                let wide =
                    |t: &[Tensor]| rotary_heads(&t[0], heads, &cast(&cos, &t[0])?, &cast(&sin, &t[0])?);
                let inputs = [random(&[batch, heads, tokens, dim], 1)];
                let flat = [random(&[batch, tokens, heads * dim], 1)];
                if tokens < 10 {
                    assert_gradients_are_slopes(&inputs, split);
                    assert_gradients_are_slopes(&flat, wide);
                }
                assert_matches_f64(&inputs, 1e-6, split);
                assert_matches_f64(&flat, 1e-6, wide);
                let rest = |x: &Tensor| x.narrow(3, 2 * half, dim - 2 * half).unwrap();
                assert_eq!(distance(&rest(&split(&inputs).unwrap()), &rest(&inputs[0])), 0.0);
            }
        }
    }
}
