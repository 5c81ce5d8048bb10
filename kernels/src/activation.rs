//! Activation functions.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{View, fusible, gradient, record};
use crate::composed;
use crate::parallel::{for_pieces, for_pieces2};
use crate::simd::{exp, sigmoid, vectorised};

/// `silu(gate) * up` (Shazeer 2020, <https://arxiv.org/abs/2002.05202>, equation 6).
///
/// Both inputs have the same shape and both get gradients.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("swiglu: gate is {:?} but up is {:?}", gate.dims(), up.dims());
    }
    if !fusible(&[gate, up]) {
        return composed::swiglu(gate, up);
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut out = vec![0f32; gate.elem_count()];
    {
        let (gate, up) = (View::of(&gate)?, View::of(&up)?);
        let (gate, up) = (&gate[..], &up[..]);
        for_pieces(&mut out, 1, |at, out| {
            swiglu_forward(&gate[at..][..out.len()], &up[at..][..out.len()], out)
        });
    }
    let shape = gate.shape().clone();
    let (gate_in, up_in) = (gate.clone(), up.clone());
    record(&[&gate, &up], out, shape, move |_, grad| {
        let mut dgate = vec![0f32; gate_in.elem_count()];
        let mut dup = vec![0f32; gate_in.elem_count()];
        {
            let (gate, up, grad) = (View::of(&gate_in)?, View::of(&up_in)?, View::of(grad)?);
            let (gate, up, grad) = (&gate[..], &up[..], &grad[..]);
            for_pieces2(&mut dgate, &mut dup, 1, |at, dgate, dup| {
                let n = dgate.len();
                swiglu_backward(&gate[at..][..n], &up[at..][..n], &grad[at..][..n], dgate, dup);
            });
        }
        Ok(vec![gradient(dgate, &gate_in)?, gradient(dup, &up_in)?])
    })
}

/// Gaussian error linear unit in the exact form, `x * (1 + erf(x / sqrt(2))) / 2`
/// (Hendrycks and Gimpel 2016, <https://arxiv.org/abs/1606.08415>, equation 1); fused, to an absolute
/// error below `1e-6` per unit of `x`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !fusible(&[x]) {
        return composed::gelu(x);
    }
    let x = x.contiguous()?;
    let mut out = vec![0f32; x.elem_count()];
    {
        let x = View::of(&x)?;
        let x = &x[..];
        for_pieces(&mut out, 1, |at, out| gelu_forward(&x[at..][..out.len()], out));
    }
    let shape = x.shape().clone();
    let x_in = x.clone();
    record(&[&x], out, shape, move |_, grad| {
        let mut dx = vec![0f32; x_in.elem_count()];
        {
            let (x, grad) = (View::of(&x_in)?, View::of(grad)?);
            let (x, grad) = (&x[..], &grad[..]);
            for_pieces(&mut dx, 1, |at, dx| gelu_backward(&x[at..][..dx.len()], &grad[at..][..dx.len()], dx));
        }
        Ok(vec![gradient(dx, &x_in)?])
    })
}

vectorised! {
    fn swiglu_forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((gate, up), out) in gate.iter().zip(up).zip(out) {
            *out = gate * sigmoid(*gate) * up;
        }
    }

    fn swiglu_backward(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let n = gate.len();
        let (up, grad, dgate, dup) = (&up[..n], &grad[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let sigmoid = sigmoid(gate[i]);
            dgate[i] = grad[i] * up[i] * sigmoid * (1.0 + gate[i] * (1.0 - sigmoid));
            dup[i] = grad[i] * gate[i] * sigmoid;
        }
    }

    fn gelu_forward(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.iter().zip(out) {
            *out = x * normal(*x).0;
        }
    }

    fn gelu_backward(x: &[f32], grad: &[f32], dx: &mut [f32]) {
        for ((x, grad), dx) in x.iter().zip(grad).zip(dx) {
            let (distribution, density) = normal(*x);
            *dx = grad * (distribution + x * density);
        }
    }
}

/// The distribution function of the standard normal and its density, by Abramowitz and Stegun 7.1.26
/// (absolute error of the former below `1e-7`).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const DENSITY_AT_ZERO: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * HALF_ROOT * x.abs());
    let p = 1.061_405_4 * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY_AT_ZERO * bell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn swiglu_is_right() {
        let op = |t: &[Tensor]| swiglu(&t[0], &t[1]);
        assert_gradients_are_slopes(&[random(&[3, 5], 1), random(&[3, 5], 2)], op);
        for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
            let inputs = [(random(shape, 1) * 20.0).unwrap(), random(shape, 2)];
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn gelu_is_right() {
        let op = |t: &[Tensor]| gelu(&t[0]);
        assert_gradients_are_slopes(&[(random(&[7, 5], 1) * 3.0).unwrap()], op);
        for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
            let inputs = [(random(shape, 1) * 8.0).unwrap()];
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}
