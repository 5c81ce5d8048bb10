//! Every operation written with plain candle operations: differentiable on any device and in any
//! floating-point dtype, but slow. They define what the fused kernels must compute.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::{Activation, AttentionOptions, CrossEntropyOptions, RelativeBias};

/// See [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let wide = widen(x)?;
    let rms = (wide.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    wide.broadcast_div(&rms)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let wide = widen(x)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    let normal = centred.broadcast_div(&deviation)?.to_dtype(x.dtype())?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)
}

/// See [`crate::activate`].
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

/// See [`crate::gated`].
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    activate(gate, activation)?.mul(up)
}

/// See [`crate::linear`].
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let input = shape.pop().unwrap_or(1);
    let rows = shape.iter().product::<usize>();
    shape.push(weight.dim(0)?);
    x.reshape((rows, input))?.matmul(&weight.t()?)?.reshape(shape)
}

/// See [`crate::embedding`].
pub fn embedding(table: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let mut shape = tokens.dims().to_vec();
    shape.push(table.dim(1)?);
    table.index_select(&tokens.flatten_all()?, 0)?.reshape(shape)
}

/// See [`crate::dropout`].
pub fn dropout(x: &Tensor, rate: f32, seed: u64) -> Result<Tensor> {
    let mask = crate::philox::mask(x.elem_count(), rate, seed);
    x * Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_device(x.device())?.to_dtype(x.dtype())?
}

/// See [`crate::rotary`].
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = cos.dim(D::Minus1)?;
    // Sequences share their angles, or have their own, which all heads share.
    let angles = |x: &Tensor| if x.rank() == 3 { x.unsqueeze(1) } else { Ok(x.clone()) };
    let cos = angles(&cos.detach().to_dtype(x.dtype())?)?;
    let sin = angles(&sin.detach().to_dtype(x.dtype())?)?;
    let first = x.narrow(D::Minus1, 0, half)?;
    let second = x.narrow(D::Minus1, half, half)?;
    let rotated_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let rotated_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let rest = x.narrow(D::Minus1, 2 * half, x.dim(D::Minus1)? - 2 * half)?;
    Tensor::cat(&[rotated_first, rotated_second, rest], D::Minus1)
}

/// See [`crate::split_heads`].
pub fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    x.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// See [`crate::merge_heads`].
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = x.dims4()?;
    x.transpose(1, 2)?.reshape((batch, tokens, heads * dim))
}

/// See [`crate::attention`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let (_, heads, queries, _) = q.dims4()?;
    let keys = k.dim(2)?;
    let k = repeat_heads(k, heads)?;
    let v = repeat_heads(v, heads)?;

    let scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * f64::from(options.scale))?;
    let mut scores = widen(&scores)?;
    if let Some(bias) = options.bias {
        scores = scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?;
    }
    if let Some(RelativeBias { table, buckets }) = options.relative {
        // Widened first, so that its gradient is summed so.
        let table = table.to_dtype(scores.dtype())?;
        let bias = table.index_select(&buckets.flatten_all()?, 1)?.reshape(((), queries, keys))?;
        scores = scores.broadcast_add(&bias)?;
    }
    let allowed = allowed(options, queries, keys, q.device())?;
    if let Some(allowed) = &allowed {
        // Finite, so that a row with nothing but masked keys stays free of NaN.
        let lowest = Tensor::new(-1e30f32, q.device())?.to_dtype(scores.dtype())?;
        scores = allowed
            .broadcast_as(scores.shape())?
            .where_cond(&scores, &lowest.broadcast_as(scores.shape())?)?;
    }

    let sink = match options.sink {
        Some(sink) => Some(sink.to_dtype(scores.dtype())?.reshape((1, heads, 1, 1))?),
        None => None,
    };
    // The shift cancels in the softmax, so no gradient passes through it.
    let mut shift = scores.max_keepdim(D::Minus1)?.detach();
    if let Some(sink) = &sink {
        shift = shift.broadcast_maximum(&sink.detach())?;
    }
    let mut weights = scores.broadcast_sub(&shift)?.exp()?;
    if let Some(allowed) = &allowed {
        weights = weights.broadcast_mul(&allowed.to_dtype(weights.dtype())?)?;
    }
    let mut total = weights.sum_keepdim(D::Minus1)?;
    if let Some(sink) = &sink {
        total = (total + shift.neg()?.broadcast_add(sink)?.exp()?)?;
    }
    // A row without keys divides zero by one.
    let empty = total.detach().eq(&total.zeros_like()?)?.to_dtype(total.dtype())?;
    let weights = weights.broadcast_div(&(total + empty)?)?;
    weights.to_dtype(v.dtype())?.matmul(&v.contiguous()?)
}

/// See [`crate::chunked_cross_attention`].
pub fn chunked_cross_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    m: usize,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = q.dims4()?;
    let chunks = k.dim(0)? / batch;
    // The queries of all chunks, the last filled up.
    let n = (chunks * m).min(tokens + 1 - m);
    let queries = q.narrow(2, m - 1, n)?.pad_with_zeros(2, 0, chunks * m - n)?;
    let queries = queries.reshape((batch, heads, chunks, m, dim))?.transpose(1, 2)?;
    let queries = queries.reshape((batch * chunks, heads, m, dim))?;
    let out = attention(&queries, k, v, options)?.reshape((batch, chunks, heads, m, dim))?;
    let out = out.transpose(1, 2)?.reshape((batch, heads, chunks * m, dim))?.narrow(2, 0, n)?;
    out.pad_with_zeros(2, m - 1, tokens + 1 - m - n)
}

/// See [`crate::linear_cross_entropy`].
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    let logits = widen(&hidden.matmul(&weight.t()?)?)?;
    let kept = match options.ignore {
        Some(ignore) => targets.ne(ignore)?,
        None => targets.ones_like()?.to_dtype(DType::U8)?,
    };
    let targets = kept.where_cond(targets, &targets.zeros_like()?)?;
    let log_total = log_sum(&logits)?;
    let at_target = logits.gather(&targets.unsqueeze(1)?, 1)?;
    let smoothing = f64::from(options.label_smoothing);
    let expected = ((at_target * (1.0 - smoothing))? + (logits.mean_keepdim(1)? * smoothing)?)?;
    let penalty = (log_total.sqr()? * f64::from(options.z_loss))?;
    let losses = ((log_total - expected)? + penalty)?.squeeze(1)?;
    let losses = losses.mul(&kept.to_dtype(losses.dtype())?)?;
    losses.sum_all()
}

/// See [`crate::trime_cross_entropy`].
pub fn trime_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    contexts: &Tensor,
    targets: &[u32],
    sees: impl Fn(usize, usize) -> bool,
) -> Result<Tensor> {
    // What a score is where there is no memory: nothing, after exp.
    const NOTHING: f32 = -1e9;
    let n = targets.len();
    let logits = widen(&hidden.matmul(&weight.t()?)?)?;
    let own = logits.gather(&Tensor::new(targets, hidden.device())?.unsqueeze(1)?, 1)?;
    let scores = widen(&(contexts.matmul(&contexts.t()?)? / (contexts.dim(1)? as f64).sqrt())?)?;
    let masked = |counts: &dyn Fn(usize, usize) -> bool| -> Result<Tensor> {
        let mask = (0..n * n).map(|at| if counts(at / n, at % n) { 0.0 } else { NOTHING }).collect();
        scores.broadcast_add(
            &Tensor::from_vec::<_, f32>(mask, (n, n), hidden.device())?.to_dtype(scores.dtype())?,
        )
    };
    let seen = masked(&|i, j| sees(i, j))?;
    let right = masked(&|i, j| sees(i, j) && targets[i] == targets[j])?;
    let everything = log_sum(&Tensor::cat(&[&logits, &seen], 1)?)?;
    (everything - log_sum(&Tensor::cat(&[&own, &right], 1)?)?)?.sum_all()
}

/// `ln sum exp` of each row of `[n, m]`: `[n, 1]`.
fn log_sum(x: &Tensor) -> Result<Tensor> {
    let shift = x.max_keepdim(1)?.detach();
    x.broadcast_sub(&shift)?.exp()?.sum_keepdim(1)?.log()? + shift
}

/// Half precision becomes `f32` where sums and exponentials are taken; other dtypes stay.
fn widen(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// `[batch, kv_heads, tokens, dim]` to `[batch, heads, tokens, dim]`, each head repeated in place.
fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, kv_heads, tokens, dim) = x.dims4()?;
    if kv_heads == heads {
        return Ok(x.clone());
    }
    let repeats = heads / kv_heads;
    x.unsqueeze(2)?.expand((batch, kv_heads, repeats, tokens, dim))?.reshape((batch, heads, tokens, dim))
}

/// What may be attended as `u8`, broadcastable to `[batch, heads, queries, keys]`; None is everything.
fn allowed(
    options: &AttentionOptions,
    queries: usize,
    keys: usize,
    device: &Device,
) -> Result<Option<Tensor>> {
    let key_mask = match options.key_mask {
        Some(mask) => Some(mask.unsqueeze(1)?.unsqueeze(1)?),
        None => None,
    };
    if !options.causal {
        return Ok(key_mask);
    }
    let window = options.window.unwrap_or(keys + queries);
    let sees = |i: usize, j: usize| j + queries <= i + keys && i + keys < j + queries + window;
    let causal: Vec<u8> = (0..queries).flat_map(|i| (0..keys).map(move |j| u8::from(sees(i, j)))).collect();
    let mut causal = Tensor::from_vec(causal, (1, 1, queries, keys), device)?;
    if let Some(starts) = options.starts {
        let keys = Tensor::arange(0, keys as u32, device)?;
        let seen = keys.unsqueeze(0)?.unsqueeze(0)?.broadcast_ge(&starts.unsqueeze(2)?)?;
        causal = causal.broadcast_mul(&seen.unsqueeze(1)?)?;
    }
    match key_mask {
        Some(mask) => mask.broadcast_mul(&causal).map(Some),
        None => Ok(Some(causal)),
    }
}
