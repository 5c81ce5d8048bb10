//! What an adapter does to a linear layer.

use candle_core::Tensor;
use sidenote_kernels as kernels;

use crate::error::Result;

/// A tensor of an adapter, as it is before training.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name: that of the layer, and what PEFT puts behind it.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What its values are spread around.
    pub mean: f32,
    /// How far.
    pub deviation: f32,
}

/// What an adapter makes of a layer's `y = x W^T + b`.
#[derive(Debug, Clone)]
pub enum Change {
    /// `y + scale x A^T B^T` with A `[rank, in]` and B `[out, rank]`.
    LowRank {
        /// A.
        a: Tensor,
        /// B.
        b: Tensor,
        /// What their product counts.
        scale: f64,
    },
    /// `(x * l) W^T + b` with l `[1, in]`.
    ScaleInput(Tensor),
    /// `y * l` with l `[out, 1]`.
    ScaleOutput(Tensor),
}

impl Change {
    /// The change for a layer that has only some of the rows of `[out, ..]`: `own` takes those out of a tensor.
    ///
    /// # Errors
    /// As `own` has them.
    pub fn rows(&self, own: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::LowRank { a, b, scale } => Self::LowRank { a: a.clone(), b: own(b)?, scale: *scale },
            Self::ScaleInput(l) => Self::ScaleInput(l.clone()),
            Self::ScaleOutput(l) => Self::ScaleOutput(own(l)?),
        })
    }

    /// The layer's output `[.., out]` for `x` `[.., in]`, of which `layer` makes what it did before.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn forward(&self, x: &Tensor, layer: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        Ok(match self {
            Self::LowRank { a, b, scale } => {
                let low = (kernels::linear(x, a)? * *scale)?;
                kernels::linear_add(&low, b, &layer(x)?)?
            }
            Self::ScaleInput(l) => layer(&x.broadcast_mul(&l.flatten_all()?)?)?,
            Self::ScaleOutput(l) => layer(x)?.broadcast_mul(&l.flatten_all()?)?,
        })
    }

    /// The weight `[out, in]` and the bias of a layer that does the same by itself.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn merge(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let weight = match self {
            Self::LowRank { a, b, scale } => (weight + (b.matmul(a)? * *scale)?)?,
            Self::ScaleInput(l) | Self::ScaleOutput(l) => weight.broadcast_mul(l)?,
        };
        let bias = match (self, bias) {
            (Self::ScaleOutput(l), Some(bias)) => Some((bias * l.flatten_all()?)?),
            (_, bias) => bias.cloned(),
        };
        Ok((weight, bias))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Fails when merging forgets the scale, the bias, or which side is scaled.
    #[test]
    fn a_merged_layer_does_the_same() {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (x, w, bias) = (random(&[3, 5]), random(&[4, 5]), random(&[4]));
        let changes = [
            Change::LowRank { a: random(&[2, 5]), b: random(&[4, 2]), scale: 1.5 },
            Change::ScaleInput(random(&[1, 5])),
            Change::ScaleOutput(random(&[4, 1])),
        ];
        let layer = |x: &Tensor, w: &Tensor, b: &Tensor| x.matmul(&w.t()?)?.broadcast_add(b);
        for change in changes {
            let beside = change.forward(&x, |x| Ok(layer(x, &w, &bias)?)).unwrap();
            let (w, b) = change.merge(&w, Some(&bias)).unwrap();
            let merged = layer(&x, &w, &b.unwrap()).unwrap();
            let far = (beside - merged).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5, "{change:?}");
        }
    }
}
