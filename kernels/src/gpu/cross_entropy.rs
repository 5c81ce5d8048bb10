//! The output layer and its loss.

use candle_core::{DType, Result, Tensor};

use super::{Gpu, Number, by_dtype};
use crate::{CrossEntropyOptions, cuda};

/// See [`crate::linear_cross_entropy`].
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: Vec<u32>,
    options: CrossEntropyOptions,
) -> Result<Tensor> {
    by_dtype!(hidden, T => loss::<T>(hidden, weight, targets, options))
}

fn loss<T: Number>(
    hidden: &Tensor,
    weight: &Tensor,
    targets: Vec<u32>,
    options: CrossEntropyOptions,
) -> Result<Tensor> {
    let gpu = Gpu::of(hidden)?;
    let result = cuda::linear_cross_entropy(
        &gpu.kernels,
        &gpu.lend::<T>(hidden)?,
        &gpu.lend::<T>(weight)?,
        &targets,
        &options,
    )?;
    let log_total = gpu.tensor(result.log_total, targets.len())?;
    let (of, hidden_in, weight_in) = (gpu.clone(), hidden.clone(), weight.clone());
    gpu.record(&[hidden, weight], result.loss, (), move |loss, grad| {
        let factor = grad.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        let result = cuda::CrossEntropy { loss: of.lend(loss)?, log_total: of.lend(&log_total)? };
        let (dhidden, dweight) = cuda::linear_cross_entropy_backward(
            &of.kernels,
            &of.lend::<T>(&hidden_in)?,
            &of.lend::<T>(&weight_in)?,
            &targets,
            &options,
            &result,
            factor,
        )?;
        Ok(vec![of.gradient(dhidden, &hidden_in)?, of.gradient(dweight, &weight_in)?])
    })
}
