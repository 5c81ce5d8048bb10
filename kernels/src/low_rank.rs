//! A linear layer with a low-rank matrix beside its weight.

use candle_core::{D, Result, Tensor, bail};

use crate::autograd::{View, fusible, record};
use crate::backward::gradient;
use crate::linear::{linear, linear_add, maybe_add, product, product_back, weight_gradient};
use crate::matrix::{Matrix, Threads, multiply};

/// `x weight^T + scale x a^T b^T`, and `residual` where there is one: a layer with LoRA's matrices (Hu et al. 2021,
/// <https://arxiv.org/abs/2106.09685>, equation 3).
///
/// `x` is `[.., in]`, `weight` is `[out, in]`, `a` is `[rank, in]`, `b` is `[out, rank]`, `residual` and the result `[..,
/// out]`; all inputs get gradients. Of what is between `a` and `b`, `[.., rank]` is kept for the backward pass.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_low_rank(
    x: &Tensor,
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let input = x.dim(D::Minus1)?;
    let ((output, weight_input), (rank, a_input)) = (weight.dims2()?, a.dims2()?);
    let mut shape = x.dims().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = output;
    let fits = residual.is_none_or(|residual| residual.dims() == shape);
    if weight_input != input || a_input != input || b.dims() != [output, rank] || !fits {
        bail!(
            "linear_low_rank: x {:?}, weight {:?}, a {:?}, b {:?} and residual {:?} do not fit together; expected \
             [.., in], [out, in], [rank, in], [out, rank] and [.., out]",
            x.dims(),
            weight.dims(),
            a.dims(),
            b.dims(),
            residual.map(Tensor::dims)
        );
    }
    let inputs: Vec<&Tensor> = [x, weight, a, b].into_iter().chain(residual).collect();
    if !fusible(&inputs) {
        return linear_add(&(linear(x, a)? * scale)?, b, &maybe_add(x, weight, residual)?);
    }
    let (x, weight, a, b) = (x.contiguous()?, weight.contiguous()?, a.contiguous()?, b.contiguous()?);
    let rows: usize = x.dims()[..x.rank() - 1].iter().product();
    let (whole, into, from) = ([rows, input, output], [rows, input, rank], [rows, rank, output]);
    let mut out = match residual {
        Some(residual) => View::of(&residual.contiguous()?)?.to_vec(),
        None => vec![0f32; rows * output],
    };
    product(&View::of(&x)?, &View::of(&weight)?, whole, &mut out, residual.is_some());
    let mut low = vec![0f32; rows * rank];
    scaled(scale, &View::of(&x)?, Matrix::rows(&View::of(&a)?, input).t(), into, &mut low);
    product(&low, &View::of(&b)?, from, &mut out, true);

    let [x_in, weight_in, a_in, b_in] = [&x, &weight, &a, &b].map(Tensor::clone);
    let inputs: Vec<&Tensor> = [&x, &weight, &a, &b].into_iter().chain(residual).collect();
    record(&inputs, out, shape, move |_, grad| {
        let (x, dy) = (View::of(&x_in)?, View::of(grad)?);
        let mut dlow = vec![0f32; rows * rank];
        scaled(scale, &dy, Matrix::rows(&View::of(&b_in)?, rank), [rows, output, rank], &mut dlow);
        let dx = if x_in.track_op() {
            let mut dx = vec![0f32; rows * input];
            product_back(&dy, &View::of(&weight_in)?, whole, &mut dx, false);
            product_back(&dlow, &View::of(&a_in)?, into, &mut dx, true);
            gradient(dx, &x_in)?
        } else {
            None
        };
        let dweight = weight_gradient(&dy, &x, whole, &weight_in)?;
        let da = weight_gradient(&dlow, &x, into, &a_in)?;
        let db = weight_gradient(&dy, &low, from, &b_in)?;
        Ok(vec![dx, dweight, da, db, Some(grad.clone())])
    })
}

/// `out = scale x matrix`, the sizes those of the product.
fn scaled(scale: f64, x: &[f32], matrix: Matrix, sizes: [usize; 3], out: &mut [f32]) {
    multiply(sizes, scale as f32, Matrix::rows(x, sizes[1]), matrix, out, sizes[2], false, Threads::All);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn linear_low_rank_is_right() {
        for (shape, output, rank) in
            [(&[1usize, 1][..], 1, 1), (&[2, 3, 4], 3, 2), (&[2, 67, 33], 129, 8), (&[300, 64], 70, 20)]
        {
            let input = *shape.last().unwrap();
            let mut out_shape = shape.to_vec();
            *out_shape.last_mut().unwrap() = output;
            let inputs = [
                random(shape, 1),
                random(&[output, input], 2),
                random(&[rank, input], 3),
                random(&[output, rank], 4),
                random(&out_shape, 5),
            ];
            let alone = |t: &[Tensor]| linear_low_rank(&t[0], &t[1], &t[2], &t[3], 1.5, None);
            let adding = |t: &[Tensor]| linear_low_rank(&t[0], &t[1], &t[2], &t[3], 0.5, Some(&t[4]));
            if input * output < 50 {
                assert_gradients_are_slopes(&inputs[..4], alone);
                assert_gradients_are_slopes(&inputs, adding);
            }
            assert_matches_f64(&inputs[..4], 1e-5, alone);
            assert_matches_f64(&inputs, 1e-5, adding);
            assert_same_on_any_number_of_threads(&inputs, adding);
        }
        let run = |a: &[usize], b: &[usize], residual: &[usize]| {
            let (x, weight, residual) = (random(&[2, 3], 1), random(&[5, 3], 1), random(residual, 1));
            linear_low_rank(&x, &weight, &random(a, 1), &random(b, 1), 1.0, Some(&residual))
        };
        assert!(run(&[4, 3], &[5, 4], &[2, 5]).is_ok());
        assert!(run(&[4, 2], &[5, 4], &[2, 5]).is_err());
        assert!(run(&[4, 3], &[5, 3], &[2, 5]).is_err());
        assert!(run(&[4, 3], &[5, 4], &[2, 4]).is_err());
    }

    /// A frozen weight gets no gradient, and the others get theirs.
    #[test]
    fn a_frozen_weight_has_no_gradient() {
        let var = |shape: &[usize], seed| candle_core::Var::from_tensor(&random(shape, seed)).unwrap();
        let (x, weight, a, b) = (random(&[9, 4], 1), random(&[6, 4], 2), var(&[2, 4], 3), var(&[6, 2], 4));
        let loss = linear_low_rank(&x, &weight, &a, &b, 2.0, None).unwrap().sqr().unwrap().sum_all().unwrap();
        let gradients = crate::backward(&loss).unwrap();
        assert!(gradients.get(&weight).is_none());
        for of in [&a, &b] {
            assert!(distance(gradients.get(of).unwrap(), &of.zeros_like().unwrap()) > 0.1);
        }
    }
}
