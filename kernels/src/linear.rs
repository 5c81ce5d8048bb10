//! Layers that multiply by a weight.

use candle_core::{D, Result, Tensor, bail};

use crate::autograd::{View, fusible, gradient, record};
use crate::composed;
use crate::matrix::{Matrix, Threads, multiply};

/// `x weight^T`, a linear layer without bias.
///
/// `x` is `[.., in]`, `weight` is `[out, in]`, the result `[.., out]`; both inputs get gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    run(x, weight, None)
}

/// `residual + x weight^T`: a linear layer that ends in the residual stream.
///
/// `x` is `[.., in]`, `weight` is `[out, in]`, `residual` and the result `[.., out]`; all three inputs get
/// gradients.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_add(x: &Tensor, weight: &Tensor, residual: &Tensor) -> Result<Tensor> {
    run(x, weight, Some(residual))
}

fn run(x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
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
    if !fusible(&inputs) {
        let product = composed::linear(x, weight)?;
        return residual.map_or(Ok(product.clone()), |residual| residual + product);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let rows = x.elem_count() / input.max(1);
    let mut out = match residual {
        Some(residual) => View::of(&residual.contiguous()?)?.to_vec(),
        None => vec![0f32; rows * output],
    };
    {
        let (x, weight) = (View::of(&x)?, View::of(&weight)?);
        let (x, weight) = (Matrix::rows(&x, input), Matrix::rows(&weight, input));
        let sizes = [rows, input, output];
        multiply(sizes, 1.0, x, weight.t(), &mut out, output, residual.is_some(), Threads::All);
    }
    let (x_in, weight_in) = (x.clone(), weight.clone());
    record(&inputs, out, shape, move |_, grad| {
        let (x, weight) = (View::of(&x_in)?, View::of(&weight_in)?);
        let values = View::of(grad)?;
        let dy = Matrix::rows(&values, output);
        let mut gradients = vec![None, None, Some(grad.clone())];
        if x_in.track_op() {
            let mut dx = vec![0f32; rows * input];
            let weight = Matrix::rows(&weight, input);
            multiply([rows, output, input], 1.0, dy, weight, &mut dx, input, false, Threads::All);
            gradients[0] = gradient(dx, &x_in)?;
        }
        if weight_in.track_op() {
            let mut dweight = vec![0f32; output * input];
            let x = Matrix::rows(&x, input);
            multiply([output, rows, input], 1.0, dy.t(), x, &mut dweight, input, false, Threads::All);
            gradients[1] = gradient(dweight, &weight_in)?;
        }
        Ok(gradients)
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
        assert!(linear(&random(&[2, 3], 1), &random(&[5, 4], 1)).is_err());
        assert!(linear_add(&random(&[2, 3], 1), &random(&[5, 3], 1), &random(&[2, 4], 1)).is_err());
    }
}
