//! The global norm of gradients, and clipping by it.

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use rayon::prelude::*;

use crate::autograd::{View, fusible, on_gpu};
use crate::simd::vectorised;

/// How many elements one task handles.
const PIECE: usize = 16 * 1024;

/// What one step of an optimiser saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// The Euclidean norm over all gradients, before clipping.
    pub grad_norm: f64,
    /// Whether a gradient held a NaN or an infinity, in which case nothing was changed.
    pub skipped: bool,
}

/// The global norm of an optimiser's gradients, and what they are multiplied by so that it is at most a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clipping {
    norm: f64,
    factor: f64,
}

impl Clipping {
    /// Of the gradients of `vars`, which are scaled down to the norm `clip` where theirs is larger.
    pub(crate) fn of<'a>(
        grads: &GradStore,
        vars: impl Iterator<Item = &'a Var>,
        clip: Option<f64>,
    ) -> Result<Self> {
        let grads: Vec<&Tensor> = vars.filter_map(|var| grads.get(var)).collect();
        let norm = norm(&grads)?;
        let factor = match clip {
            Some(clip) if norm > clip => clip / norm,
            _ => 1.0,
        };
        Ok(Self { norm, factor })
    }

    /// What a step with these gradients sees.
    pub fn stats(&self) -> StepStats {
        StepStats { grad_norm: self.norm, skipped: !self.norm.is_finite() }
    }

    /// What gradients are multiplied by; none where one of them holds a NaN or an infinity.
    pub(crate) fn factor(&self) -> Option<f64> {
        self.norm.is_finite().then_some(self.factor)
    }
}

fn norm(grads: &[&Tensor]) -> Result<f64> {
    on_gpu!(crate::gpu::takes(grads) => crate::gpu::norm(grads));
    let mut square = 0f64;
    for grad in grads {
        square += squared_norm(grad)?;
    }
    Ok(square.sqrt())
}

pub(crate) fn squared_norm(grad: &Tensor) -> Result<f64> {
    if !fusible(&[grad]) {
        return grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    }
    let grad = grad.contiguous()?;
    let grad = View::of(&grad)?;
    let squares: Vec<f64> = grad.par_chunks(PIECE).map(sum_of_squares).collect();
    Ok(squares.iter().sum())
}

vectorised! {
    /// In `f64`, for the square of a large `f32` may be infinite.
    fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0f64; 8];
        let (whole, rest) = x.as_chunks::<8>();
        for chunk in whole {
            for lane in 0..8 {
                lanes[lane] += f64::from(chunk[lane]) * f64::from(chunk[lane]);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}
