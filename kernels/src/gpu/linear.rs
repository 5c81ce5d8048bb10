//! Linear layers.

use candle_core::{Result, Tensor};

use super::{Gpu, Number, by_dtype, rows};
use crate::cuda;

/// See [`crate::linear`] and, with a residual, [`crate::linear_add`].
pub fn linear(x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    by_dtype!(x, T => product::<T>(x, weight, residual))
}

fn product<T: Number>(x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = output;
    let out = {
        let of_residual = residual.map(|residual| {
            Ok::<_, candle_core::Error>(gpu.lend::<T>(residual)?.reshaped(&rows(residual, output)))
        });
        let x = gpu.lend::<T>(x)?.reshaped(&rows(x, input));
        cuda::linear(&gpu.kernels, &x, &gpu.lend::<T>(weight)?, of_residual.transpose()?.as_ref())?
    };
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(residual).collect();
    let (of, x_in, weight_in) = (gpu.clone(), x.clone(), weight.clone());
    gpu.record(&inputs, out, shape, move |_, grad| {
        let dy = of.lend::<T>(grad)?.reshaped(&rows(grad, output));
        let mut gradients = vec![None, None, Some(grad.clone())];
        if x_in.track_op() {
            let dx = cuda::linear_input_gradient(&of.kernels, &of.lend::<T>(&weight_in)?, &dy, None)?;
            gradients[0] = of.gradient(dx, &x_in)?;
        }
        if weight_in.track_op() {
            let x = of.lend::<T>(&x_in)?.reshaped(&rows(&x_in, input));
            gradients[1] = of.gradient(cuda::linear_weight_gradient(&of.kernels, &x, &dy)?, &weight_in)?;
        }
        Ok(gradients)
    })
}
