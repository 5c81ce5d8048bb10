//! What the decoder and RETRO are put together from.

use candle_core::Tensor;
use sidenote_kernels as kernels;

use super::weights::{Start, Weights};
use crate::error::Result;

/// `x W^T` without bias; W is `[out, in]`.
pub struct Linear {
    weight: Tensor,
}

impl Linear {
    /// Takes the weight `name.weight`.
    pub fn new(w: &mut Weights, name: &str, input: usize, output: usize, start: Start) -> Result<Self> {
        Ok(Self { weight: w.get(&format!("{name}.weight"), (output, input), start)? })
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(x, &self.weight)?)
    }

    /// `residual + x W^T`; `[.., in]` and `[.., out]` to `[.., out]`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear_add(x, &self.weight, residual)?)
    }
}

/// `x / rms(x) * g` (Zhang and Sennrich 2019).
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Takes the weight `name.weight`, which starts at 1.
    pub fn new(w: &mut Weights, name: &str, dim: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: w.get(&format!("{name}.weight"), dim, Start::Constant(1.0))?, eps })
    }

    /// `[.., dim]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::rms_norm(x, &self.weight, self.eps)?)
    }
}

/// SwiGLU feed-forward layer (Shazeer 2020): `down(silu(gate(x)) * up(x))`.
pub struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    /// Takes `name.gate_proj`, `name.up_proj` and `name.down_proj`; `down` starts as told.
    pub fn new(w: &mut Weights, name: &str, dim: usize, inner: usize, down: Start) -> Result<Self> {
        let start = Start::Normal((dim as f32).powf(-0.5));
        Ok(Self {
            gate: Linear::new(w, &format!("{name}.gate_proj"), dim, inner, start.clone())?,
            up: Linear::new(w, &format!("{name}.up_proj"), dim, inner, start)?,
            down: Linear::new(w, &format!("{name}.down_proj"), inner, dim, down)?,
        })
    }

    /// `residual +` what it makes of `x`, both `[.., dim]`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.down.forward_add(&kernels::swiglu(&self.gate.forward(x)?, &self.up.forward(x)?)?, residual)
    }
}

/// A learned bias for every head and distance between query and key, the relative position of
/// RETRO's own attentions. (The paper uses Transformer-XL's sinusoidal form.)
pub struct RelativeBias {
    table: Tensor,
}

impl RelativeBias {
    /// Takes `name`, `[heads, distances]`.
    pub fn new(w: &mut Weights, name: &str, heads: usize, distances: usize, start: Start) -> Result<Self> {
        Ok(Self { table: w.get(name, (heads, distances), start)? })
    }

    /// The columns of the table for each query and key, `[queries, keys]`.
    pub fn columns(
        &self,
        queries: usize,
        keys: usize,
        distance: impl Fn(usize, usize) -> usize,
    ) -> Result<Tensor> {
        let columns: Vec<u32> = (0..queries)
            .flat_map(|i| (0..keys).map(move |j| (i, j)))
            .map(|(i, j)| distance(i, j) as u32)
            .collect();
        Ok(Tensor::from_vec(columns, (queries, keys), self.table.device())?)
    }

    /// The bias as the attention takes it; `columns` are those of [`columns`](Self::columns).
    pub fn over<'a>(&'a self, columns: &'a Tensor) -> Option<kernels::RelativeBias<'a>> {
        Some(kernels::RelativeBias { table: &self.table, buckets: columns })
    }
}
