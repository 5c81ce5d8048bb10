//! Weights of few bits.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::{Gpu, Number, by_dtype, rows, takes};
use crate::{BlockKind, composed, cuda};

/// A weight on a GPU as a GGUF file holds it: the part of [`crate::QuantisedLinear`] that depends on the device.
#[derive(Clone)]
pub struct Quantised {
    gpu: Gpu,
    held: Arc<Held>,
    pub kind: BlockKind,
    pub shape: [usize; 2],
}

enum Held {
    Blocks(cuda::QuantisedLinear),
    /// In `f16` or `bf16`.
    Halves(Tensor),
}

impl Quantised {
    /// `bytes` are whole rows of this shape.
    pub fn new(kind: BlockKind, bytes: &[u8], shape: [usize; 2], device: &Device) -> Result<Self> {
        let gpu = Gpu::new(device)?;
        let halves = |dtype| Tensor::from_raw_buffer(bytes, dtype, &shape, device).map(Held::Halves);
        let held = match kind {
            BlockKind::F16 => halves(DType::F16)?,
            BlockKind::BF16 => halves(DType::BF16)?,
            _ => Held::Blocks(cuda::QuantisedLinear::from_blocks(&gpu.kernels, kind, bytes, shape)?),
        };
        Ok(Self { gpu, held: Arc::new(held), kind, shape })
    }

    pub fn bytes(&self) -> usize {
        let [output, input] = self.shape;
        output * (input / self.kind.weights()) * self.kind.bytes()
    }

    /// The rows that `ids` name, all within the weight, in `f32`: `[ids, in]`.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match &*self.held {
            Held::Blocks(weight) => {
                let out = weight.rows::<f32>(&self.gpu.kernels, ids)?;
                self.gpu.tensor(out, (ids.len(), self.shape[1]))
            }
            Held::Halves(weight) => {
                let ids = Tensor::new(ids, weight.device())?;
                weight.index_select(&ids, 0)?.to_dtype(DType::F32)
            }
        }
    }

    /// `x weight^T`; `x` is `[.., in]`, the result `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &*self.held {
            Held::Blocks(weight) if takes(&[x]) => by_dtype!(x, T => self.product::<T>(weight, x)),
            Held::Blocks(_) => {
                let all: Vec<u32> = (0..self.shape[0] as u32).collect();
                composed::linear(x, &self.rows(&all)?.to_dtype(x.dtype())?)
            }
            Held::Halves(weight) => crate::linear(x, &weight.to_dtype(x.dtype())?),
        }
    }

    fn product<T: Number>(&self, weight: &cuda::QuantisedLinear, x: &Tensor) -> Result<Tensor> {
        let [output, input] = self.shape;
        let lent = self.gpu.lend::<T>(x)?.reshaped(&rows(x, input));
        let mut shape = x.dims().to_vec();
        *shape.last_mut().unwrap_or(&mut 0) = output;
        self.gpu.tensor(weight.forward(&self.gpu.kernels, &lent)?, shape)
    }
}

impl fmt::Debug for Quantised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} on a GPU", self.kind, self.shape)
    }
}
