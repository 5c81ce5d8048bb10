//! Norms.

use candle_core::{Result, Tensor};

use super::{Gpu, Number, by_dtype, rows};
use crate::cuda;

/// See [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    by_dtype!(x, T => Ok(forward::<T>(x, None, weight, None, eps)?.1))
}

/// See [`crate::add_rms_norm`].
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    by_dtype!(x, T => forward::<T>(x, Some(residual), weight, None, eps))
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    by_dtype!(x, T => Ok(forward::<T>(x, None, weight, Some(bias), eps)?.1))
}

/// See [`crate::add_layer_norm`].
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    by_dtype!(x, T => forward::<T>(x, Some(residual), weight, Some(bias), eps))
}

/// The sum, which is `x` where there is no residual, and its norm.
fn forward<T: Number>(
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let gpu = Gpu::of(x)?;
    let sizes = rows(x, weight.elem_count());
    let lent = |tensor: &Tensor| Ok::<_, candle_core::Error>(gpu.lend::<T>(tensor)?.reshaped(&sizes));
    let of_residual = residual.map(lent).transpose()?;
    let (of_x, of_residual, of_weight) = (lent(x)?, of_residual.as_ref(), gpu.lend::<T>(weight)?);
    let found = match bias {
        None => cuda::rms_norm(&gpu.kernels, &of_x, of_residual, &of_weight, eps)?,
        Some(bias) => {
            let of_bias = gpu.lend::<T>(bias)?;
            cuda::layer_norm(&gpu.kernels, &of_x, of_residual, &of_weight, &of_bias, eps)?
        }
    };
    let total = match (found.total, residual) {
        (Some(total), Some(residual)) => gpu.record(&[x, residual], total, x.shape(), |_, grad| {
            Ok(vec![Some(grad.clone()), Some(grad.clone())])
        })?,
        _ => x.clone(),
    };

    let inputs: Vec<&Tensor> = [Some(&total), Some(weight), bias].into_iter().flatten().collect();
    let (of, x_in, weight_in, bias_in) = (gpu.clone(), total.clone(), weight.clone(), bias.cloned());
    let out = gpu.record(&inputs, found.out, x.shape(), move |_, grad| {
        let lent = |tensor: &Tensor| Ok::<_, candle_core::Error>(of.lend::<T>(tensor)?.reshaped(&sizes));
        let (x, grad, weight) = (lent(&x_in)?, lent(grad)?, of.lend::<T>(&weight_in)?);
        let found = match bias_in {
            None => cuda::rms_norm_backward(&of.kernels, &x, &weight, &grad, None, eps)?,
            Some(_) => cuda::layer_norm_backward(&of.kernels, &x, &weight, &grad, None, eps)?,
        };
        let mut gradients = vec![of.gradient(found.x, &x_in)?, of.gradient(found.weight, &weight_in)?];
        if let (Some(found), Some(bias)) = (found.bias, &bias_in) {
            gradients.push(of.gradient(found, bias)?);
        }
        Ok(gradients)
    })?;
    Ok((total, out))
}
