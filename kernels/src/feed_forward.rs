//! The feed-forward half of a block in one operation.

use candle_core::{D, Result, Tensor, bail};

use crate::activation::{Activation, gated, gated_backward, gated_forward};
use crate::autograd::{View, fusible, record};
use crate::backward::gradient;
use crate::linear::{linear, linear_add, product, product_back, weight_gradient};
use crate::parallel::{for_pieces, for_pieces2};

/// `residual + (activation(x gate^T) * x up^T) down^T`, a gated feed-forward layer that ends in the residual stream
/// (Shazeer 2020, <https://arxiv.org/abs/2002.05202>, equations 5 and 6).
///
/// `x` is `[.., in]`, `gate` and `up` are `[inner, in]`, `down` is `[out, inner]`, `residual` and the result `[..,
/// out]`; all five inputs get gradients. The two products of `x` are kept for the backward pass; what goes into
/// `down` is made from them again.
///
/// # Errors
/// When the shapes do not fit together.
pub fn gated_feed_forward(
    x: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    down: &Tensor,
    residual: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    let input = x.dim(D::Minus1)?;
    let (output, inner) = down.dims2()?;
    let mut shape = x.dims().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = output;
    if gate.dims() != [inner, input] || up.dims() != gate.dims() || residual.dims() != shape {
        bail!(
            "gated_feed_forward: x {:?}, gate {:?}, up {:?}, down {:?} and residual {:?} do not fit together; \
             expected [.., in], twice [inner, in], [out, inner] and [.., out]",
            x.dims(),
            gate.dims(),
            up.dims(),
            down.dims(),
            residual.dims()
        );
    }
    if !fusible(&[x, gate, up, down, residual]) {
        let inner = gated(&linear(x, gate)?, &linear(x, up)?, activation)?;
        return linear_add(&inner, down, residual);
    }
    let (x, gate, up, down) = (x.contiguous()?, gate.contiguous()?, up.contiguous()?, down.contiguous()?);
    let rows: usize = x.dims()[..x.rank() - 1].iter().product();
    let (into, from) = ([rows, input, inner], [rows, inner, output]);
    let product_with = |weight: &Tensor| -> Result<Vec<f32>> {
        let mut out = vec![0f32; rows * inner];
        product(&View::of(&x)?, &View::of(weight)?, into, &mut out, false);
        Ok(out)
    };
    let (gates, ups) = (product_with(&gate)?, product_with(&up)?);
    let mut out = View::of(&residual.contiguous()?)?.to_vec();
    product(&hidden(activation, &gates, &ups), &View::of(&down)?, from, &mut out, true);

    let [x_in, gate_in, up_in, down_in] = [&x, &gate, &up, &down].map(Tensor::clone);
    record(&[&x, &gate, &up, &down, residual], out, shape, move |_, grad| {
        let (x, dy) = (View::of(&x_in)?, View::of(grad)?);
        let mut dup = hidden(activation, &gates, &ups);
        let ddown = weight_gradient(&dy, &dup, from, &down_in)?;
        // First the gradient of what goes into `down`, then that of the gate.
        let mut dgate = vec![0f32; rows * inner];
        product_back(&dy, &View::of(&down_in)?, from, &mut dgate, false);
        for_pieces2(&mut dgate, &mut dup, 1, |at, dgate, dup| {
            let (gates, ups) = (&gates[at..][..dup.len()], &ups[at..][..dup.len()]);
            back_in_place(activation, gates, ups, dgate, dup);
        });
        let dx = if x_in.track_op() {
            let mut dx = vec![0f32; rows * input];
            product_back(&dgate, &View::of(&gate_in)?, into, &mut dx, false);
            product_back(&dup, &View::of(&up_in)?, into, &mut dx, true);
            gradient(dx, &x_in)?
        } else {
            None
        };
        let dgate = weight_gradient(&dgate, &x, into, &gate_in)?;
        let dup = weight_gradient(&dup, &x, into, &up_in)?;
        Ok(vec![dx, dgate, dup, ddown, Some(grad.clone())])
    })
}

/// What goes into the last layer.
fn hidden(activation: Activation, gates: &[f32], ups: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; gates.len()];
    for_pieces(&mut out, 1, |at, out| {
        gated_forward(activation, &gates[at..][..out.len()], &ups[at..][..out.len()], out);
    });
    out
}

/// [`gated_backward`] where `dgate` holds the gradient that comes in.
fn back_in_place(activation: Activation, gates: &[f32], ups: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    const PIECE: usize = 1024;
    let mut grad = [0f32; PIECE];
    let inputs = gates.chunks(PIECE).zip(ups.chunks(PIECE));
    let outputs = dgate.chunks_mut(PIECE).zip(dup.chunks_mut(PIECE));
    for ((gates, ups), (dgate, dup)) in inputs.zip(outputs) {
        let grad = &mut grad[..dgate.len()];
        grad.copy_from_slice(dgate);
        gated_backward(activation, gates, ups, grad, dgate, dup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn gated_feed_forward_is_right() {
        for (shape, inner, output) in
            [(&[1usize, 1][..], 1, 1), (&[2, 3, 2], 3, 2), (&[2, 67, 33], 129, 20), (&[40, 64], 1030, 64)]
        {
            let input = *shape.last().unwrap();
            let mut out_shape = shape.to_vec();
            *out_shape.last_mut().unwrap() = output;
            let inputs = [
                random(shape, 1),
                random(&[inner, input], 2),
                random(&[inner, input], 3),
                random(&[output, inner], 4),
                random(&out_shape, 5),
            ];
            for activation in [Activation::Silu, Activation::Gelu] {
                let op = |t: &[Tensor]| gated_feed_forward(&t[0], &t[1], &t[2], &t[3], &t[4], activation);
                if inner < 10 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 2e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
        let x = |shape: &[usize]| random(shape, 1);
        let run = |down: &[usize], residual: &[usize]| {
            let (gate, down, residual) = (x(&[5, 3]), x(down), x(residual));
            gated_feed_forward(&x(&[2, 3]), &gate, &gate, &down, &residual, Activation::Silu)
        };
        assert!(run(&[4, 5], &[2, 4]).is_ok());
        assert!(run(&[4, 6], &[2, 4]).is_err());
        assert!(run(&[4, 5], &[2, 3]).is_err());
    }
}
