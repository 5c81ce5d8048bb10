//! What the networks are put together from.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, Activation, QuantisedLinear};

use super::decoder::{NormConfig, NormKind};
use super::place::Place;
use super::weights::{Start, Weights};
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
    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => kernels::linear(x, weight)?,
            Self::Quantised(weight) => weight.forward(x)?,
        })
    }

    /// `residual + x W^T`; `[.., in]` and `[.., out]` to `[.., out]`.
    fn multiply_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => kernels::linear_add(x, weight, residual)?,
            Self::Quantised(weight) => weight.forward_add(x, residual)?,
        })
    }

    /// The rows that `ids` `[..]` name, `[.., in]`.
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(weight) => kernels::embedding(weight, ids)?,
            Self::Quantised(weight) => weight.rows(ids)?,
        })
    }
}

/// `x W^T + b`, or without the bias; W is `[out, in]`.
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes the weight `name.weight`, without a bias.
    pub fn new(
        w: &mut Weights,
        name: impl Into<Place>,
        input: usize,
        output: usize,
        start: Start,
    ) -> Result<Self> {
        Self::with_bias(w, name, input, output, start, false)
    }

    /// Takes the weight `name.weight` and, with `bias`, `name.bias`, which starts at 0.
    pub fn with_bias(
        w: &mut Weights,
        name: impl Into<Place>,
        input: usize,
        output: usize,
        start: Start,
        bias: bool,
    ) -> Result<Self> {
        let place = name.into();
        let weight = w.matrix(&place.join("weight"), [output, input], start)?;
        let bias = match bias {
            true => Some(w.get(&place.join("bias"), output, Start::Constant(0.0))?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// The product with a weight that is there already, such as a tied embedding table.
    pub fn of(weight: Matrix) -> Self {
        Self { weight, bias: None }
    }

    /// The weight, `[out, in]`.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else { return self.weight.multiply(x) };
        let mut shape = x.dims().to_vec();
        *shape.last_mut().unwrap_or(&mut 0) = bias.elem_count();
        self.weight.multiply_add(x, &bias.broadcast_as(shape)?)
    }

    /// `residual + x W^T + b`; `[.., in]` and `[.., out]` to `[.., out]`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.bias {
            None => self.weight.multiply_add(x, residual),
            Some(bias) => self.weight.multiply_add(x, &residual.broadcast_add(bias)?),
        }
    }
}

/// A table of embeddings, `[rows, d]`.
#[derive(Clone)]
pub struct Embedding {
    table: Matrix,
}

impl Embedding {
    /// Takes the weight `name.weight`.
    pub fn new(
        w: &mut Weights,
        name: impl Into<Place>,
        rows: usize,
        dim: usize,
        start: Start,
    ) -> Result<Self> {
        Ok(Self { table: w.matrix(&name.into().join("weight"), [rows, dim], start)? })
    }

    /// The rows that `ids` `[..]` name, `[.., d]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.table.rows(ids)
    }

    /// The table, `[rows, d]`.
    pub fn table(&self) -> &Matrix {
        &self.table
    }
}

/// A norm of any kind over the last dimension.
pub struct Norm {
    weight: Tensor,
    /// Where the kind has one.
    bias: Option<Tensor>,
    config: NormConfig,
}

impl Norm {
    /// Takes `name.weight` and, where the kind has one, `name.bias`. It starts as one that only scales to size 1.
    pub fn new(w: &mut Weights, name: impl Into<Place>, dim: usize, config: NormConfig) -> Result<Self> {
        let place = name.into();
        let start = match config.kind {
            NormKind::RmsOffset => 0.0,
            _ => 1.0,
        };
        let weight = w.get(&place.join("weight"), dim, Start::Constant(start))?;
        let bias = match config.kind {
            NormKind::Layer => Some(w.get(&place.join("bias"), dim, Start::Constant(0.0))?),
            _ => None,
        };
        Ok(Self { weight, bias, config })
    }

    /// `[.., dim]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let eps = self.config.eps as f32;
        Ok(match (&self.bias, self.config.kind) {
            (Some(bias), _) => kernels::layer_norm(x, &self.weight, bias, eps)?,
            (None, NormKind::RmsOffset) => kernels::rms_norm(x, &(&self.weight + 1.0)?, eps)?,
            (None, _) => kernels::rms_norm(x, &self.weight, eps)?,
        })
    }

    /// The norm of each head of `x` `[batch, tokens, heads * dim]`, to the same shape.
    pub fn forward_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let dim = self.weight.elem_count();
        let heads = x.reshape((batch, tokens, width / dim.max(1), dim))?;
        Ok(self.forward(&heads)?.reshape((batch, tokens, width))?)
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

/// A feed-forward layer: `down(activation(up(x)))` or, gated (Shazeer 2020), `down(activation(gate(x)) * up(x))`.
pub struct FeedForward {
    /// Where there is one.
    pub gate: Option<Linear>,
    /// In.
    pub up: Linear,
    /// Out.
    pub down: Linear,
    /// Between.
    pub activation: Activation,
}

impl FeedForward {
    /// SwiGLU: takes `name.gate_proj`, `name.up_proj` and `name.down_proj`; `down` starts as told.
    pub fn new(w: &mut Weights, name: &str, dim: usize, inner: usize, down: Start) -> Result<Self> {
        let start = Start::Normal((dim as f32).powf(-0.5));
        Ok(Self {
            gate: Some(Linear::new(w, &format!("{name}.gate_proj"), dim, inner, start.clone())?),
            up: Linear::new(w, &format!("{name}.up_proj"), dim, inner, start)?,
            down: Linear::new(w, &format!("{name}.down_proj"), inner, dim, down)?,
            activation: Activation::Silu,
        })
    }

    /// What it makes of `x` `[.., dim]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.inner(x)?)
    }

    /// `residual +` what it makes of `x`, both `[.., dim]`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.down.forward_add(&self.inner(x)?, residual)
    }

    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let up = self.up.forward(x)?;
        Ok(match &self.gate {
            Some(gate) => kernels::gated(&gate.forward(x)?, &up, self.activation)?,
            None => kernels::activate(&up, self.activation)?,
        })
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
