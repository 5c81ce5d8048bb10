//! Layers that multiply by a weight.

use candle_core::{D, Result, Tensor, bail};

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::{accumulate, gradient};
use crate::composed;
use crate::matrix::{Matrix, Threads, multiply};

/// `x weight^T`, a linear layer without bias.
///
/// `x` is `[.., in]`, `weight` is `[out, in]`, the result `[.., out]`; both inputs get gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    maybe_add(x, weight, None)
}

/// `residual + x weight^T`: a linear layer that ends in the residual stream.
///
/// `x` is `[.., in]`, `weight` is `[out, in]`, `residual` and the result `[.., out]`; all three inputs get
/// gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_add(x: &Tensor, weight: &Tensor, residual: &Tensor) -> Result<Tensor> {
    maybe_add(x, weight, Some(residual))
}

/// [`linear_add`] where there is a residual, else [`linear()`].
pub(crate) fn maybe_add(x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let input = x.dim(D::Minus1)?;
    let (output, weight_input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = output;
    if weight_input != input || residual.is_some_and(|residual| residual.dims() != shape) {
        bail!(
            "linear: x {:?}, weight {:?} and residual {:?} do not fit together; expected [.., in], [out, in] \
             and [.., out]",
            x.dims(),
            weight.dims(),
            residual.map(Tensor::dims)
        );
    }
    let inputs: Vec<&Tensor> = [Some(x), Some(weight), residual].into_iter().flatten().collect();
    on_gpu!(crate::gpu::takes(&inputs) => crate::gpu::linear(x, weight, residual));
    if !fusible(&inputs) {
        let product = composed::linear(x, weight)?;
        return residual.map_or(Ok(product.clone()), |residual| residual + product);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let rows: usize = x.dims()[..x.rank() - 1].iter().product();
    let mut out = match residual {
        Some(residual) => View::of(&residual.contiguous()?)?.to_vec(),
        None => vec![0f32; rows * output],
    };
    let sizes = [rows, input, output];
    product(&View::of(&x)?, &View::of(&weight)?, sizes, &mut out, residual.is_some());
    let (x_in, weight_in) = (x.clone(), weight.clone());
    record(&inputs, out, shape, move |_, grad| {
        let dy = View::of(grad)?;
        let dx = input_gradient(&dy, sizes, &x_in, &weight_in)?;
        let dweight = weight_gradient(&dy, &View::of(&x_in)?, sizes, &weight_in)?;
        Ok(vec![dx, dweight, Some(grad.clone())])
    })
}

/// `out = x weight^T`, or `out += x weight^T`; the sizes are those of `x`, `[rows, input]`, and the output's width.
pub(crate) fn product(
    x: &[f32],
    weight: &[f32],
    [rows, input, output]: [usize; 3],
    out: &mut [f32],
    add: bool,
) {
    let (x, weight) = (Matrix::rows(x, input), Matrix::rows(weight, input));
    multiply([rows, input, output], 1.0, x, weight.t(), out, output, add, Threads::All);
}

/// The gradient of a [`product`]'s input, `dx = dy weight`, or `dx += dy weight`.
pub(crate) fn product_back(
    dy: &[f32],
    weight: &[f32],
    [rows, input, output]: [usize; 3],
    dx: &mut [f32],
    add: bool,
) {
    let (dy, weight) = (Matrix::rows(dy, output), Matrix::rows(weight, input));
    multiply([rows, output, input], 1.0, dy, weight, dx, input, add, Threads::All);
}

/// [`product_back`] as the gradient of the tensor `x`, if it asks for one.
pub(crate) fn input_gradient(
    dy: &[f32],
    sizes: [usize; 3],
    x: &Tensor,
    weight: &Tensor,
) -> Result<Option<Tensor>> {
    if !x.track_op() {
        return Ok(None);
    }
    let mut dx = vec![0f32; x.elem_count()];
    product_back(dy, &View::of(weight)?, sizes, &mut dx, false);
    gradient(dx, x)
}

/// The gradient of a [`product`]'s weight, `dy^T x`, if it asks for one.
pub(crate) fn weight_gradient(
    dy: &[f32],
    x: &[f32],
    [rows, input, output]: [usize; 3],
    weight: &Tensor,
) -> Result<Option<Tensor>> {
    accumulate(weight, |there| {
        let add = there.is_some();
        let mut dweight = there.unwrap_or_else(|| vec![0f32; output * input]);
        let (dy, x) = (Matrix::rows(dy, output).t(), Matrix::rows(x, input));
        multiply([output, rows, input], 1.0, dy, x, &mut dweight, input, add, Threads::All);
        dweight
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn linear_is_right() {
        for (shape, output) in
            [(&[1usize, 1][..], 1), (&[3, 5, 7], 2), (&[2, 67, 33], 129), (&[300, 64], 70), (&[7], 3)]
        {
            let input = *shape.last().unwrap();
            let mut out_shape = shape.to_vec();
            *out_shape.last_mut().unwrap() = output;
            let inputs = [random(shape, 1), random(&[output, input], 2), random(&out_shape, 3)];
            let plain = |t: &[Tensor]| linear(&t[0], &t[1]);
            let adding = |t: &[Tensor]| linear_add(&t[0], &t[1], &t[2]);
            if input * output < 50 {
                assert_gradients_are_slopes(&inputs[..2], plain);
                assert_gradients_are_slopes(&inputs, adding);
            }
            assert_matches_f64(&inputs[..2], 1e-5, plain);
            assert_matches_f64(&inputs, 1e-5, adding);
            assert_same_on_any_number_of_threads(&inputs, adding);
        }
        // Nothing to add up is zero.
        let nothing = linear_add(&random(&[2, 0], 1), &random(&[5, 0], 1), &random(&[2, 5], 1)).unwrap();
        assert_eq!(distance(&nothing, &random(&[2, 5], 1)), 0.0);
        assert!(linear(&random(&[2, 3], 1), &random(&[5, 4], 1)).is_err());
        assert!(linear_add(&random(&[2, 3], 1), &random(&[5, 3], 1), &random(&[2, 4], 1)).is_err());
    }
}
