//! Steps of the optimisers, and the norm of all gradients.

use candle_core::{Result, Tensor, Var};

use super::{Gpu, Number, by_dtype};
use crate::cuda::{self, Clip, Variable};
use crate::{AdafactorOptions, AdamWOptions};

/// The Euclidean norm over these gradients, of which there is at least one.
pub fn norm(grads: &[&Tensor]) -> Result<f64> {
    by_dtype!(grads[0], T => norm_of::<T>(grads))
}

fn norm_of<T: Number>(grads: &[&Tensor]) -> Result<f64> {
    let gpu = Gpu::of(grads[0])?;
    let lent = grads.iter().map(|grad| gpu.lend::<T>(grad)).collect::<Result<Vec<_>>>()?;
    let lent: Vec<_> = lent.iter().collect();
    let (norm, _) = cuda::clip(&gpu.kernels, &lent, None)?.norm(&gpu.kernels)?;
    Ok(norm.into())
}

fn variable<T: Number>(gpu: &Gpu, var: &Var, master: Option<&Tensor>) -> Result<Variable<T>> {
    let master = master.map(|master| gpu.lend_in_place(master)).transpose()?;
    Ok(Variable { weight: gpu.lend_in_place(var)?, master })
}

/// A step of [`crate::AdamW`], in place, of the variable's copy in `f32` first where it has one: `moments` are those of the gradient and of its square in `f32` after `steps`
/// steps, and `factor` is what clipping leaves of the gradient.
pub fn adamw(
    var: &Var,
    master: Option<&Tensor>,
    grad: &Tensor,
    moments: [&Tensor; 2],
    steps: u32,
    options: &AdamWOptions,
    lr: f64,
    factor: f64,
) -> Result<()> {
    by_dtype!(grad, T => {
        let gpu = Gpu::of(grad)?;
        let [first, second] = moments.map(|moment| gpu.lend_in_place(moment));
        let variable = variable::<T>(&gpu, var, master)?;
        let clip = Clip::to(&gpu.kernels, factor as f32)?;
        cuda::AdamW::from_parts(first?, second?, steps)
            .step(&gpu.kernels, &variable, &gpu.lend(grad)?, &clip, options, lr)
    })
}

/// A step of [`crate::Adafactor`], in place: `row` and `column` are the running means of squares, or `row` those of each
/// number; otherwise as [`adamw`].
pub fn adafactor(
    var: &Var,
    master: Option<&Tensor>,
    grad: &Tensor,
    (row, column): (&Tensor, Option<&Tensor>),
    steps: u32,
    options: &AdafactorOptions,
    lr: f64,
    factor: f64,
) -> Result<()> {
    by_dtype!(grad, T => {
        let gpu = Gpu::of(grad)?;
        let column = column.map(|column| gpu.lend_in_place(column)).transpose()?;
        let variable = variable::<T>(&gpu, var, master)?;
        let clip = Clip::to(&gpu.kernels, factor as f32)?;
        cuda::Adafactor::from_parts(gpu.lend_in_place(row)?, column, var.dims(), steps)
            .step(&gpu.kernels, &variable, &gpu.lend(grad)?, &clip, options, lr)
    })
}
