//! How many bits of a trained weight are kept.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use sidenote_kernels as kernels;

use crate::error::Result;

/// What a model's weights are trained as, and saved as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// The upper 16 of them: 8 of the fraction instead of 24.
    Bf16,
}

impl Precision {
    /// In what a step multiplies.
    pub fn of_products(self) -> kernels::Precision {
        match self {
            Self::F32 => kernels::Precision::F32,
            Self::Bf16 => kernels::Precision::Bf16,
        }
    }

    /// `tensor` as it is saved.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn stored(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::F32 => tensor.clone(),
            Self::Bf16 => tensor.to_dtype(DType::BF16)?,
        })
    }

    /// `tensor`, of f32, as it reads after it was saved: each number the nearest that there is, of two the even one.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn rounded(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(self.stored(tensor)?.to_dtype(DType::F32)?)
    }

    /// What `config.json` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}
