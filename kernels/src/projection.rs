//! Linear layers between the width of a model and its attention heads. What lies between the product and the heads
//! is not kept for the backward pass, which makes it again.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{View, fusible, record};
use crate::backward::gradient;
use crate::heads::{exchange, merge_heads, split_heads};
use crate::linear::{input_gradient, linear, linear_add, product, product_back, weight_gradient};
use crate::rotary::{check_angles, rotary_heads, split_and_turn};

/// [`crate::linear`], then [`crate::split_heads`] or, with `angles` (cosines and sines),
/// [`crate::rotary_heads`].
///
/// `x` is `[batch, tokens, in]`, `weight` is `[heads * dim, in]`, the result `[batch, heads, tokens, dim]`; both
/// inputs get gradients, the angles are constants.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_to_heads(
    x: &Tensor,
    weight: &Tensor,
    heads: usize,
    angles: Option<(&Tensor, &Tensor)>,
) -> Result<Tensor> {
    let (batch, tokens, input) = x.dims3()?;
    let (width, weight_input) = weight.dims2()?;
    if weight_input != input || heads == 0 || width % heads != 0 {
        bail!(
            "linear_to_heads: x {:?}, weight {:?} and {heads} heads do not fit together; expected [batch, tokens, \
             in] and [heads * dim, in]",
            x.dims(),
            weight.dims()
        );
    }
    let inputs: Vec<&Tensor> =
        [x, weight].into_iter().chain(angles.into_iter().flat_map(|(cos, sin)| [cos, sin])).collect();
    if !fusible(&inputs) {
        let y = linear(x, weight)?;
        return match angles {
            Some((cos, sin)) => rotary_heads(&y, heads, cos, sin),
            None => split_heads(&y, heads),
        };
    }
    let dim = width / heads;
    let angles = match angles {
        Some((cos, sin)) => {
            check_angles("linear_to_heads", [batch, tokens, dim], cos, sin)?;
            Some((cos.detach().contiguous()?, sin.detach().contiguous()?))
        }
        None => None,
    };
    let sizes = [batch, tokens, heads, dim];
    let split = move |y: &[f32], back: bool| match (&angles, back) {
        (Some((cos, sin)), _) => split_and_turn(y, (cos, sin), sizes, back),
        (None, false) => Ok(exchange(y, tokens, heads, dim)),
        (None, true) => Ok(exchange(y, heads, tokens, dim)),
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let product_sizes = [batch * tokens, input, width];
    let mut y = vec![0f32; batch * tokens * width];
    product(&View::of(&x)?, &View::of(&weight)?, product_sizes, &mut y, false);
    let out = split(&y, false)?;
    let (x_in, weight_in) = (x.clone(), weight.clone());
    record(&[&x, &weight], out, (batch, heads, tokens, dim), move |_, grad| {
        let dy = split(&View::of(grad)?, true)?;
        let dx = input_gradient(&dy, product_sizes, &x_in, &weight_in)?;
        Ok(vec![dx, weight_gradient(&dy, &View::of(&x_in)?, product_sizes, &weight_in)?])
    })
}

/// [`crate::merge_heads`], then [`crate::linear_add`].
///
/// `x` is `[batch, heads, tokens, dim]`, `weight` is `[out, heads * dim]`, `residual` and the result `[batch, tokens,
/// out]`; all three inputs get gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_from_heads(x: &Tensor, weight: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = x.dims4()?;
    let (output, width) = weight.dims2()?;
    if width != heads * dim || residual.dims() != [batch, tokens, output] {
        bail!(
            "linear_from_heads: x {:?}, weight {:?} and residual {:?} do not fit together; expected [batch, heads, \
             tokens, dim], [out, heads * dim] and [batch, tokens, out]",
            x.dims(),
            weight.dims(),
            residual.dims()
        );
    }
    if !fusible(&[x, weight, residual]) {
        return linear_add(&merge_heads(x)?, weight, residual);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let sizes = [batch * tokens, width, output];
    let mut out = View::of(&residual.contiguous()?)?.to_vec();
    product(&exchange(&View::of(&x)?, heads, tokens, dim), &View::of(&weight)?, sizes, &mut out, true);
    let (x_in, weight_in) = (x.clone(), weight.clone());
    record(&[&x, &weight, residual], out, residual.shape().clone(), move |_, grad| {
        let dy = View::of(grad)?;
        let merged = exchange(&View::of(&x_in)?, heads, tokens, dim);
        let dweight = weight_gradient(&dy, &merged, sizes, &weight_in)?;
        let dx = if x_in.track_op() {
            let mut dmerged = merged;
            product_back(&dy, &View::of(&weight_in)?, sizes, &mut dmerged, false);
            gradient(exchange(&dmerged, tokens, heads, dim), &x_in)?
        } else {
            None
        };
        Ok(vec![dx, dweight, Some(grad.clone())])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// Batch, tokens, heads, dim, and the width of the model.
    const SHAPES: [[usize; 5]; 4] =
        [[1, 1, 1, 2, 1], [2, 3, 2, 4, 3], [2, 67, 3, 6, 33], [1, 130, 5, 32, 70]];

    #[test]
    fn heads_are_projected_to() {
        for [batch, tokens, heads, dim, width] in SHAPES {
            let angles = (random(&[tokens, dim / 2], 5) * 4.0).unwrap();
            let inputs = [random(&[batch, tokens, width], 1), random(&[heads * dim, width], 2)];
            for turned in [false, true] {
                let op = |t: &[Tensor]| {
                    let angles = angles.to_dtype(t[0].dtype())?;
                    let (cos, sin) = (angles.cos()?, angles.sin()?);
                    linear_to_heads(&t[0], &t[1], heads, turned.then_some((&cos, &sin)))
                };
                if tokens < 10 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
        let (x, weight) = (random(&[1, 3, 8], 1), random(&[6, 8], 1));
        let angles = random(&[3, 2], 1);
        assert!(linear_to_heads(&x, &weight, 4, None).is_err());
        assert!(linear_to_heads(&x, &random(&[6, 7], 1), 2, None).is_err());
        assert!(linear_to_heads(&x, &weight, 2, Some((&angles, &angles))).is_err());
    }

    #[test]
    fn heads_are_projected_from() {
        for [batch, tokens, heads, dim, width] in SHAPES {
            let inputs = [
                random(&[batch, heads, tokens, dim], 1),
                random(&[width, heads * dim], 2),
                random(&[batch, tokens, width], 3),
            ];
            let op = |t: &[Tensor]| linear_from_heads(&t[0], &t[1], &t[2]);
            if tokens < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
        let (x, weight) = (random(&[1, 2, 3, 4], 1), random(&[5, 8], 1));
        assert!(linear_from_heads(&x, &weight, &random(&[1, 3, 4], 1)).is_err());
        assert!(linear_from_heads(&x, &random(&[5, 4], 1), &random(&[1, 3, 5], 1)).is_err());
    }
}
