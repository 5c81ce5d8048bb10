//! What the networks are put together from.

use candle_core::Tensor;
use sidenote_kernels::{self as kernels, Activation, QuantisedLinear};

use super::matrix::Matrix;
use super::place::Place;
use super::weights::{Start, Weights};
use crate::adapter::Change;
use crate::error::Result;

/// `x W^T + b`, or without the bias; W is `[out, in]`.
#[derive(Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
    /// What an adapter does to it while it is trained, and which of that adapter's rows are its own.
    change: Option<(Change, Place)>,
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
            true => Some(w.get(place.join("bias"), output, Start::Constant(0.0))?),
            false => None,
        };
        Self { weight, bias, change: None }.changed(w, &place, [output, input])
    }

    /// The layer with what the adapter, if one is attached, does to it: in the weights themselves where it is not
    /// trained and they are numbers.
    fn changed(self, w: &mut Weights, place: &Place, [output, input]: [usize; 2]) -> Result<Self> {
        let Some(attached) = w.attached() else { return Ok(self) };
        let merges = attached.merges();
        let Some(change) = attached.change(place, input, output)? else { return Ok(self) };
        let own = Place { transposed: false, ..place.clone() };
        let Matrix::Dense(weight) = &self.weight else {
            return Ok(Self { change: Some((change, own)), ..self });
        };
        if !merges {
            return Ok(Self { change: Some((change, own)), ..self });
        }
        let (weight, bias) = change.rows(|whole| own.read(whole))?.merge(weight, self.bias.as_ref())?;
        w.replace(place.join("weight"), Matrix::Dense(weight.clone()));
        if let Some(bias) = &bias {
            w.replace(place.join("bias"), Matrix::Dense(bias.clone()));
        }
        Ok(Self { weight: Matrix::Dense(weight), bias, change: None })
    }

    /// The product with a weight that is there already, such as a tied embedding table.
    pub fn of(weight: Matrix) -> Self {
        Self { weight, bias: None, change: None }
    }

    /// The weight, `[out, in]`.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.change {
            None => self.unchanged(x),
            Some(change) => self.changed_by(change, x, None),
        }
    }

    /// What the layer gives with an adapter, and `residual` added where there is one.
    fn changed_by(
        &self,
        (change, own): &(Change, Place),
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let change = change.rows(|whole| own.read(whole))?;
        if let (Change::LowRank { a, b, scale }, Matrix::Dense(weight), None) =
            (&change, &self.weight, &self.bias)
        {
            return Ok(kernels::linear_low_rank(x, weight, a, b, *scale, residual)?);
        }
        let out = change.forward(x, |x| self.unchanged(x))?;
        match residual {
            Some(residual) => Ok((residual + out)?),
            None => Ok(out),
        }
    }

    /// What the layer gives without its adapter.
    fn unchanged(&self, x: &Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else { return self.weight.multiply(x) };
        let mut shape = x.dims().to_vec();
        *shape.last_mut().unwrap_or(&mut 0) = bias.elem_count();
        self.weight.multiply_add(x, &bias.broadcast_as(shape)?)
    }

    /// What several layers make of the same input, such as queries, keys and values; together where that is faster.
    pub fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let quantised = layers.iter().map(|layer| match (&layer.weight, &layer.change) {
            (Matrix::Quantised(weight), None) => Some(&**weight),
            _ => None,
        });
        let out = match quantised.collect::<Option<Vec<_>>>() {
            None => layers.iter().map(|layer| layer.forward(x)).collect::<Result<Vec<_>>>()?,
            Some(weights) => {
                let products = QuantisedLinear::forward_each(weights, x)?;
                let with_bias = layers.iter().zip(products).map(|(layer, product)| match &layer.bias {
                    None => Ok(product),
                    Some(bias) => Ok(product.broadcast_add(bias)?),
                });
                with_bias.collect::<Result<Vec<_>>>()?
            }
        };
        let wrong = |out: Vec<_>| candle_core::Error::msg(format!("{} products of {N} layers", out.len()));
        Ok(out.try_into().map_err(wrong)?)
    }

    /// `residual + x W^T + b`; `[.., in]` and `[.., out]` to `[.., out]`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if let Some(change) = &self.change {
            return self.changed_by(change, x, Some(residual));
        }
        match &self.bias {
            None => self.weight.multiply_add(x, residual),
            Some(bias) => self.weight.multiply_add(x, &residual.broadcast_add(bias)?),
        }
    }

    /// The weight, if it is dense and there is no bias and no adapter: what the kernels' fused layers take.
    pub fn plain(&self) -> Option<&Tensor> {
        match (&self.weight, &self.bias, &self.change) {
            (Matrix::Dense(weight), None, None) => Some(weight),
            _ => None,
        }
    }

    /// [`forward`](Self::forward), then [`split_heads`].
    pub fn to_heads(&self, x: &Tensor, heads: usize, angles: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
        match self.plain() {
            Some(weight) => {
                Ok(kernels::linear_to_heads(x, weight, heads, angles.map(|(cos, sin)| (cos, sin)))?)
            }
            None => split_heads(&self.forward(x)?, heads, angles),
        }
    }

    /// [`forward_add`](Self::forward_add) of merged heads `[batch, heads, tokens, dim]`.
    pub fn add_heads(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self.plain() {
            Some(weight) => Ok(kernels::linear_from_heads(x, weight, residual)?),
            None => self.forward_add(&kernels::merge_heads(x)?, residual),
        }
    }
}

/// `[batch, tokens, heads * dim]` to `[batch, heads, tokens, dim]`, turned by `angles` (cosines and sines), if any.
pub fn split_heads(x: &Tensor, heads: usize, angles: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
    Ok(match angles {
        Some((cos, sin)) => kernels::rotary_heads(x, heads, cos, sin)?,
        None => kernels::split_heads(x, heads)?,
    })
}

/// Dropout while a network is trained (Srivastava et al. 2014), at all its places in one pass.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    rate: f32,
    seed: u64,
}

impl Dropout {
    /// Sets numbers to zero with the probability `rate`, from 0 to less than 1. Every pass has a seed of its own.
    pub fn new(rate: f32, seed: u64) -> Self {
        Self { rate, seed }
    }

    /// The same for another part of the network, whose places are numbered from 0 again.
    pub fn part(&self, number: u64) -> Self {
        // A step of the generator SplitMix64, which tells neighbouring numbers apart.
        let mixed =
            (self.seed ^ number.wrapping_mul(0xBF58_476D_1CE4_E5B9)).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self { rate: self.rate, seed: mixed ^ (mixed >> 31) }
    }

    /// `x` with some of its numbers dropped at `place`.
    pub fn apply(&self, x: &Tensor, place: u64) -> Result<Tensor> {
        Ok(kernels::dropout(x, self.rate, self.part(place).seed)?)
    }
}

/// `x` with some of its numbers dropped at `place`; `x` itself where there is no dropout.
pub fn drop_at(dropout: Option<Dropout>, x: Tensor, place: u64) -> Result<Tensor> {
    match dropout {
        Some(dropout) => dropout.apply(&x, place),
        None => Ok(x),
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

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormConfig {
    /// Which.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f64,
}

/// Kinds of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w` (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>).
    Rms,
    /// The same with `1 + w` for `w`, as Gemma has it.
    RmsOffset,
    /// `(x - mean) / deviation * w + b` (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>).
    Layer,
}

/// A norm of any kind over the last dimension.
#[derive(Clone)]
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
        let weight = w.get(place.join("weight"), dim, Start::Constant(start))?;
        let bias = match config.kind {
            NormKind::Layer => Some(w.get(place.join("bias"), dim, Start::Constant(0.0))?),
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
#[derive(Clone)]
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
#[derive(Clone)]
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
        let gate = self.gate.as_ref().and_then(Linear::plain);
        if let (Some(gate), Some(up), Some(down)) = (gate, self.up.plain(), self.down.plain()) {
            return Ok(kernels::gated_feed_forward(x, gate, up, down, residual, self.activation)?);
        }
        self.down.forward_add(&self.inner(x)?, residual)
    }

    /// [`forward_add`](Self::forward_add), with numbers dropped between its halves and of what is added.
    pub fn forward_add_dropped(
        &self,
        x: &Tensor,
        residual: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let Some(dropout) = dropout else { return self.forward_add(x, residual) };
        let out = self.down.forward(&dropout.apply(&self.inner(x)?, 0)?)?;
        Ok((residual + dropout.apply(&out, 1)?)?)
    }

    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        match &self.gate {
            Some(gate) => {
                let [gate, up] = Linear::forward_each([gate, &self.up], x)?;
                Ok(kernels::gated(&gate, &up, self.activation)?)
            }
            None => Ok(kernels::activate(&self.up.forward(x)?, self.activation)?),
        }
    }
}

/// A learned bias for every head and distance between query and key, the relative position of
/// RETRO's own attentions. (The paper uses Transformer-XL's sinusoidal form.)
#[derive(Clone)]
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
