//! Weights that are matrices, in numbers or in blocks.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, QuantisedLinear};

use crate::error::Result;

/// A weight `[out, in]` that inputs are multiplied by, or whose rows are embeddings.
#[derive(Clone)]
pub enum Matrix {
    /// Numbers.
    Dense(Tensor),
    /// Blocks of few bits, as a GGUF file holds them. There are no gradients, and inputs are rounded to 8 bits.
    Quantised(Arc<QuantisedLinear>),
}

impl Matrix {
    /// The device that it is on.
    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(weight) => weight.device(),
            Self::Quantised(weight) => weight.device(),
        }
    }

    /// The number of its values.
    pub fn elem_count(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.elem_count(),
            Self::Quantised(weight) => weight.shape().iter().product(),
        }
    }

    /// All its values in f32: the tensor itself, or a new one.
    pub fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.clone()),
            Self::Quantised(weight) => Ok(weight.weight()?),
        }
    }

    /// `x W^T`; `[.., in]` to `[.., out]`.
    pub fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => kernels::linear(x, weight)?,
            Self::Quantised(weight) => weight.forward(x)?,
        })
    }

    /// `residual + x W^T`; `[.., in]` and `[.., out]` to `[.., out]`.
    pub fn multiply_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => kernels::linear_add(x, weight, residual)?,
            Self::Quantised(weight) => weight.forward_add(x, residual)?,
        })
    }

    /// The rows that `ids` `[..]` name, `[.., in]`.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => kernels::embedding(weight, ids)?,
            Self::Quantised(weight) => weight.rows(ids)?,
        })
    }
}
