//! Activations, dropout, the rotary embedding, and heads.

use candle_core::{DType, Result, Tensor};

use super::{Gpu, Number, by_dtype, takes};
use crate::{Activation, cuda};

/// See [`crate::activate`].
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    by_dtype!(x, T => gates::<T>(x, None, activation))
}

/// See [`crate::gated`].
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    by_dtype!(gate, T => gates::<T>(gate, Some(up), activation))
}

fn gates<T: Number>(x: &Tensor, up: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let of_up = up.map(|up| gpu.lend::<T>(up)).transpose()?;
    let out = cuda::gated(&gpu.kernels, &gpu.lend::<T>(x)?, of_up.as_ref(), activation)?;
    let inputs: Vec<&Tensor> = [x].into_iter().chain(up).collect();
    let (of, x_in, up_in) = (gpu.clone(), x.clone(), up.cloned());
    gpu.record(&inputs, out, x.shape(), move |_, grad| {
        let up = up_in.as_ref().map(|up| of.lend::<T>(up)).transpose()?;
        let (x, grad) = (of.lend::<T>(&x_in)?, of.lend::<T>(grad)?);
        let (dx, dup) = cuda::gated_backward(&of.kernels, &x, up.as_ref(), &grad, activation)?;
        let mut gradients = vec![of.gradient(dx, &x_in)?];
        if let (Some(dup), Some(up)) = (dup, &up_in) {
            gradients.push(of.gradient(dup, up)?);
        }
        Ok(gradients)
    })
}

/// See [`crate::dropout`].
pub fn dropout(x: &Tensor, rate: f32, seed: u64) -> Result<Tensor> {
    by_dtype!(x, T => dropped::<T>(x, rate, seed))
}

fn dropped<T: Number>(x: &Tensor, rate: f32, seed: u64) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let out = cuda::dropout(&gpu.kernels, &gpu.lend::<T>(x)?, rate, seed)?;
    let (of, x_in) = (gpu.clone(), x.clone());
    gpu.record(&[x], out, x.shape(), move |_, grad| {
        let dx = cuda::dropout(&of.kernels, &of.lend::<T>(grad)?, rate, seed)?;
        Ok(vec![of.gradient(dx, &x_in)?])
    })
}

/// See [`crate::rotary`].
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    by_dtype!(x, T => turn::<T>(x, cos, sin))
}

fn turn<T: Number>(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let (cos, sin) = (cos.detach().to_dtype(DType::F32)?, sin.detach().to_dtype(DType::F32)?);
    let out = cuda::rotary(
        &gpu.kernels,
        &gpu.lend::<T>(x)?,
        &gpu.lend::<f32>(&cos)?,
        &gpu.lend::<f32>(&sin)?,
        false,
    )?;
    let (of, x_in) = (gpu.clone(), x.clone());
    gpu.record(&[x], out, x.shape(), move |_, grad| {
        let (cos, sin) = (of.lend::<f32>(&cos)?, of.lend::<f32>(&sin)?);
        let dx = cuda::rotary(&of.kernels, &of.lend::<T>(grad)?, &cos, &sin, true)?;
        Ok(vec![of.gradient(dx, &x_in)?])
    })
}

/// Whether the kernel can move heads of this width: it moves 16 bytes at a time.
pub fn takes_heads(x: &Tensor, dim: usize) -> bool {
    takes(&[x]) && dim.is_multiple_of(8)
}

/// See [`crate::split_heads`].
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    by_dtype!(x, T => split::<T>(x, [batch, heads, tokens, width / heads]))
}

fn split<T: Number>(x: &Tensor, shape: [usize; 4]) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let out = to_heads::<T>(&gpu, x, shape)?;
    let (of, x_in) = (gpu.clone(), x.clone());
    gpu.record(&[x], out, shape.to_vec(), move |_, grad| {
        Ok(vec![of.gradient(from_heads::<T>(&of, grad, shape)?, &x_in)?])
    })
}

/// See [`crate::merge_heads`].
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = x.dims4()?;
    by_dtype!(x, T => merge::<T>(x, [batch, heads, tokens, dim]))
}

fn merge<T: Number>(x: &Tensor, shape: [usize; 4]) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let out = from_heads::<T>(&gpu, x, shape)?;
    let (of, x_in) = (gpu.clone(), x.clone());
    let [batch, heads, tokens, dim] = shape;
    gpu.record(&[x], out, (batch, tokens, heads * dim), move |_, grad| {
        Ok(vec![of.gradient(to_heads::<T>(&of, grad, shape)?, &x_in)?])
    })
}

/// `x`, `[batch, tokens, heads * dim]`, as `[batch, heads, tokens, dim]`.
fn to_heads<T: Number>(gpu: &Gpu, x: &Tensor, shape: [usize; 4]) -> Result<cuda::Tensor<T>> {
    let [batch, heads, tokens, dim] = shape;
    let x = gpu.lend::<T>(x)?.reshaped(&[batch * tokens, heads * dim]);
    cuda::split_heads(&gpu.kernels, &x, 0, shape)
}

/// `x`, of this shape, `[batch, heads, tokens, dim]`, as `[batch * tokens, heads * dim]`.
fn from_heads<T: Number>(gpu: &Gpu, x: &Tensor, shape: [usize; 4]) -> Result<cuda::Tensor<T>> {
    let [batch, heads, tokens, dim] = shape;
    let out = gpu.kernels.unwritten(&[batch * tokens, heads * dim])?;
    cuda::merge_heads(&gpu.kernels, &gpu.lend::<T>(x)?.reshaped(&shape), &out, 0)?;
    Ok(out)
}
