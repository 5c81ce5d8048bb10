//! Activation functions.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::parallel::{for_pieces, for_pieces2};
use crate::simd::{exp, sigmoid, vectorised};

/// A function that is applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
    /// `x * (1 + erf(x / sqrt(2))) / 2`, the Gaussian error linear unit in its exact form (Hendrycks and Gimpel
    /// 2016, <https://arxiv.org/abs/1606.08415>, equation 1); fused, to an absolute error below `1e-6` per unit
    /// of `x`.
    Gelu,
    /// The same paper's approximation, `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// `activation(x)`, element by element; `x` gets a gradient.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    on_gpu!(crate::gpu::takes(&[x]) => crate::gpu::activate(x, activation));
    if !fusible(&[x]) {
        return composed::activate(x, activation);
    }
    let x = x.contiguous()?;
    let mut out = vec![0f32; x.elem_count()];
    {
        let x = View::of(&x)?;
        let x = &x[..];
        for_pieces(&mut out, 1, |at, out| forward(activation, &x[at..][..out.len()], out));
    }
    let shape = x.shape().clone();
    let x_in = x.clone();
    record(&[&x], out, shape, move |_, grad| {
        let mut dx = vec![0f32; x_in.elem_count()];
        {
            let (x, grad) = (View::of(&x_in)?, View::of(grad)?);
            let (x, grad) = (&x[..], &grad[..]);
            for_pieces(&mut dx, 1, |at, dx| {
                backward(activation, &x[at..][..dx.len()], &grad[at..][..dx.len()], dx);
            });
        }
        Ok(vec![gradient(dx, &x_in)?])
    })
}

/// `activation(gate) * up`, a gated linear unit (Shazeer 2020, <https://arxiv.org/abs/2002.05202>,
/// equations 5 and 6).
///
/// Both inputs have the same shape and both get gradients.
///
/// # Errors
/// When the shapes differ.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gated: gate is {:?} but up is {:?}", gate.dims(), up.dims());
    }
    on_gpu!(crate::gpu::takes(&[gate, up]) => crate::gpu::gated(gate, up, activation));
    if !fusible(&[gate, up]) {
        return composed::gated(gate, up, activation);
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut out = vec![0f32; gate.elem_count()];
    {
        let (gate, up) = (View::of(&gate)?, View::of(&up)?);
        let (gate, up) = (&gate[..], &up[..]);
        for_pieces(&mut out, 1, |at, out| {
            gated_forward(activation, &gate[at..][..out.len()], &up[at..][..out.len()], out);
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
                gated_backward(activation, &gate[at..][..n], &up[at..][..n], &grad[at..][..n], dgate, dup);
            });
        }
        Ok(vec![gradient(dgate, &gate_in)?, gradient(dup, &up_in)?])
    })
}

/// `silu(gate) * up`: [`gated`] by [`Activation::Silu`].
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(gate, up, Activation::Silu)
}

/// [`activate`] by [`Activation::Gelu`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Gelu)
}

vectorised! {
    fn forward(activation: Activation, x: &[f32], out: &mut [f32]) {
        with_function(activation, Forward { x, up: None, out });
    }

    fn backward(activation: Activation, x: &[f32], grad: &[f32], dx: &mut [f32]) {
        with_function(activation, Backward { x, grad, dx });
    }

    pub fn gated_forward(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        with_function(activation, Forward { x: gate, up: Some(up), out });
    }

    pub fn gated_backward(
        activation: Activation,
        gate: &[f32],
        up: &[f32],
        grad: &[f32],
        dgate: &mut [f32],
        dup: &mut [f32],
    ) {
        with_function(activation, GatedBackward { gate, up, grad, dgate, dup });
    }
}

/// A loop over elements, compiled once for each activation so that none is chosen inside it.
trait Loop {
    /// `function` gives the value and the slope at a point.
    fn run(self, function: impl Fn(f32) -> (f32, f32));
}

#[inline(always)]
fn with_function(activation: Activation, work: impl Loop) {
    match activation {
        Activation::Silu => work.run(silu),
        Activation::Gelu => work.run(gelu_exact),
        Activation::GeluTanh => work.run(gelu_tanh),
        Activation::Relu => work.run(relu),
    }
}

struct Forward<'a> {
    x: &'a [f32],
    up: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Loop for Forward<'_> {
    #[inline(always)]
    fn run(self, function: impl Fn(f32) -> (f32, f32)) {
        match self.up {
            None => self.out.iter_mut().zip(self.x).for_each(|(out, x)| *out = function(*x).0),
            Some(up) => {
                for ((out, x), up) in self.out.iter_mut().zip(self.x).zip(up) {
                    *out = function(*x).0 * up;
                }
            }
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    grad: &'a [f32],
    dx: &'a mut [f32],
}

impl Loop for Backward<'_> {
    #[inline(always)]
    fn run(self, function: impl Fn(f32) -> (f32, f32)) {
        for ((dx, x), grad) in self.dx.iter_mut().zip(self.x).zip(self.grad) {
            *dx = grad * function(*x).1;
        }
    }
}

struct GatedBackward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    grad: &'a [f32],
    dgate: &'a mut [f32],
    dup: &'a mut [f32],
}

impl Loop for GatedBackward<'_> {
    #[inline(always)]
    fn run(self, function: impl Fn(f32) -> (f32, f32)) {
        let Self { gate, up, grad, dgate, dup } = self;
        let n = gate.len();
        let (up, grad, dgate, dup) = (&up[..n], &grad[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let (value, slope) = function(gate[i]);
            dgate[i] = grad[i] * up[i] * slope;
            dup[i] = grad[i] * value;
        }
    }
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let sigmoid = sigmoid(x);
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

/// The distribution function of the standard normal is taken by Abramowitz and Stegun 7.1.26 (absolute error
/// below `1e-7`).
#[inline(always)]
fn gelu_exact(x: f32) -> (f32, f32) {
    const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const DENSITY_AT_ZERO: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * HALF_ROOT * x.abs());
    let p = 1.061_405_4 * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * bell;
    let distribution = if x < 0.0 { tail } else { 1.0 - tail };
    (x * distribution, distribution + x * DENSITY_AT_ZERO * bell)
}

/// `(1 + tanh(y)) / 2` is the sigmoid of `2 y`.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const TWICE_ROOT: f32 = 1.595_769; // 2 sqrt(2 / pi)
    const CUBE: f32 = 0.044_715;
    let sigmoid = sigmoid(TWICE_ROOT * x * (1.0 + CUBE * x * x));
    let inner_slope = TWICE_ROOT * (1.0 + 3.0 * CUBE * x * x);
    (x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * inner_slope)
}

/// NaN stays NaN.
#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    if x <= 0.0 { (0.0, 0.0) } else { (x, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    const ALL: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

    #[test]
    fn activations_are_right() {
        for activation in ALL {
            let op = |t: &[Tensor]| activate(&t[0], activation);
            assert_gradients_are_slopes(&[(random(&[7, 5], 1) * 3.0).unwrap()], op);
            for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
                let inputs = [(random(shape, 1) * 8.0).unwrap()];
                assert_matches_f64(&inputs, 1e-6, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
    }

    #[test]
    fn gated_units_are_right() {
        for activation in ALL {
            let op = |t: &[Tensor]| gated(&t[0], &t[1], activation);
            assert_gradients_are_slopes(&[random(&[3, 5], 1), random(&[3, 5], 2)], op);
            for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
                let inputs = [(random(shape, 1) * 20.0).unwrap(), random(shape, 2)];
                assert_matches_f64(&inputs, 1e-6, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
            assert!(gated(&random(&[2, 3], 1), &random(&[3, 2], 1), activation).is_err());
        }
    }

    /// Far from zero the functions are straight lines, without a NaN on the way.
    #[test]
    fn far_out_they_are_straight() {
        let x = Tensor::new(&[-1e6f32, -300.0, 300.0, 1e6], &candle_core::Device::Cpu).unwrap();
        for activation in ALL {
            let (value, gradients) =
                value_and_gradients(std::slice::from_ref(&x), x.dtype(), |t| activate(&t[0], activation));
            let value = value.to_vec1::<f32>().unwrap();
            assert!(value[..2].iter().all(|v| v.abs() < 1e-6) && value[2..] == [300.0, 1e6], "{value:?}");
            assert!(gradients[0].to_vec1::<f32>().unwrap().iter().all(|g| g.is_finite()));
        }
    }
}
