//! Scaled dot-product attention.

mod fused;
mod plan;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use self::fused::Arguments;
use self::plan::Plan;
use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;

/// What [`attention`] does between the scores and their softmax.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// Query `i` sees only keys `j <= i + (keys - queries)`: the last query sees every key.
    pub causal: bool,
    /// With `causal`: of the keys that a query sees, only this many, the last ones (a sliding window; Beltagy et
    /// al. 2020, <https://arxiv.org/abs/2004.05150>, section 3.1).
    pub window: Option<usize>,
    /// With `causal`: the first key that each query sees, `[batch, queries]` as `u32`, which never falls along a sequence. Texts
    /// that stand one after another in a sequence do not see each other so.
    pub starts: Option<&'a Tensor>,
    /// What the dot products are multiplied by, usually `1 / sqrt(dim)`; T5 uses 1.
    pub scale: f32,
    /// Added to the scores, `[heads, queries, keys]`; gets a gradient.
    pub bias: Option<&'a Tensor>,
    /// Added to the scores like `bias`, of which there is then none: a table and which entry of it belongs to
    /// each query and key.
    pub relative: Option<RelativeBias<'a>>,
    /// `[batch, keys]` as `u8`: 1 where the key may be attended, 0 where not.
    pub key_mask: Option<&'a Tensor>,
    /// `[heads]`: the score of one extra key whose value is zero, which lets a head attend to
    /// nothing; gets a gradient.
    pub sink: Option<&'a Tensor>,
}

impl AttentionOptions<'_> {
    /// Plain attention, which sees every key: all scores times `scale`.
    pub fn scaled(scale: f32) -> Self {
        Self {
            causal: false,
            window: None,
            starts: None,
            scale,
            bias: None,
            relative: None,
            key_mask: None,
            sink: None,
        }
    }
}

/// A bias that depends on where a query and a key lie to each other: `table[head, buckets[query, key]]`, such
/// as T5's (Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>, section 2.1).
#[derive(Clone, Copy, Debug)]
pub struct RelativeBias<'a> {
    /// `[heads, buckets]`; gets a gradient.
    pub table: &'a Tensor,
    /// `[queries, keys]` as `u32`: numbers of columns of the table.
    pub buckets: &'a Tensor,
}

/// Scaled dot-product attention with grouped key heads: `softmax(scale * q k^T + bias) v`
/// (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>, equation 1).
///
/// `q` is `[batch, heads, queries, dim]`, `k` and `v` are `[batch, kv_heads, keys, dim]` where
/// `kv_heads` divides `heads`; query head `h` reads key head `h / (heads / kv_heads)`. The result is
/// `[batch, heads, queries, dim]`. A query that may attend to no key gives exactly zero and zero
/// gradients. `q`, `k`, `v`, the bias or the table of the relative bias, and the sink get gradients.
///
/// The fused kernel holds the scores of one block of queries at a time and recomputes them in backward
/// (as FlashAttention does, Dao et al. 2022, <https://arxiv.org/abs/2205.14135>). `q`, `k` and `v` may
/// have any strides.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    check(q, k, v, options)?;
    let (_, _, tokens, _) = q.dims4()?;
    run(q, k, v, options, Chunks { number: 1, shift: 0, queries: tokens, shifted: false })
}

/// RETRO's chunked cross-attention (Borgeaud et al. 2022, <https://arxiv.org/abs/2112.04426>, section 2.4): the
/// tokens of a sequence read the neighbours of the last chunk of `m` tokens that was complete, itself included,
/// when they were read. So the token at `u m + m - 1 + i`, for `i` below `m`, is query `i` of chunk `u`.
///
/// `q` is `[batch, heads, tokens, dim]`; `k` and `v` are `[batch * chunks, kv_heads, keys, dim]`, the neighbours
/// of each sequence's first `chunks` chunks side by side. `options` are those of an [`attention`] of `m` queries
/// on `keys` keys: the bias is `[heads, m, keys]`, the key mask `[batch * chunks, keys]`; `causal` is not for
/// it. The result is `[batch, heads, tokens, dim]`, zero where a token reads no chunk. Gradients as in
/// [`attention`].
///
/// # Errors
/// When the shapes do not fit together or a sequence has fewer than `chunks` complete chunks.
pub fn chunked_cross_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    m: usize,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = q.dims4()?;
    let sequences = k.dim(0)?;
    if m == 0 || options.causal || sequences.checked_rem(batch).is_some_and(|rest| rest != 0) {
        bail!(
            "chunked_cross_attention: {sequences} lists of neighbours for {batch} sequences in chunks of {m}, causal: \
             {}; expected a multiple, chunks of at least 1, and false",
            options.causal
        );
    }
    let chunks = sequences.checked_div(batch).unwrap_or(0);
    if chunks > tokens / m {
        bail!(
            "chunked_cross_attention: neighbours of {chunks} chunks, but {tokens} tokens are {} of {m}",
            tokens / m
        );
    }
    if chunks == 0 {
        return q.zeros_like();
    }
    // What one chunk's attention looks like, to check the rest.
    let shape = Tensor::zeros((), q.dtype(), q.device())?.broadcast_as((sequences, heads, m, dim))?;
    check(&shape, k, v, options)?;
    run(q, k, v, options, Chunks { number: chunks, shift: m - 1, queries: m, shifted: true })
}

/// Fusion in the decoder (Izacard and Grave 2021, <https://arxiv.org/abs/2007.01282>, section 3): each query reads
/// the tokens of all passages of its sequence as one list.
///
/// `q` is `[batch, heads, queries, dim]`; `k` and `v` are `[batch, passages, tokens, kv_heads * dim]`, as the
/// layers before give them, and are read where they lie; `mask` is `[batch, passages, tokens]` as `u8`, 0 for
/// padding and absent passages. The result is `[batch, heads, queries, dim]`. Gradients and grouped heads as in
/// [`attention`].
///
/// # Errors
/// When the shapes do not fit together.
pub fn fusion_in_decoder_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: f32,
) -> Result<Tensor> {
    let dim = q.dim(3)?;
    let (batch, passages, tokens, width) = k.dims4()?;
    if dim == 0 || width % dim != 0 || v.dims() != k.dims() {
        bail!(
            "fusion_in_decoder_attention: q {:?}, k {:?} and v {:?} do not fit together; expected [batch, heads, \
             queries, dim] and twice [batch, passages, tokens, kv_heads * dim]",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let joined = |x: &Tensor| x.reshape((batch, passages * tokens, width / dim, dim))?.transpose(1, 2);
    let mask = mask.map(|mask| mask.reshape((batch, passages * tokens))).transpose()?;
    let options = AttentionOptions { key_mask: mask.as_ref(), ..AttentionOptions::scaled(scale) };
    attention(q, &joined(k)?, &joined(v)?, &options)
}

/// How the queries of one sequence are dealt out to sequences of keys: from token `shift` on, `queries` each
/// to the next of `number`; the last may get fewer.
#[derive(Clone, Copy)]
struct Chunks {
    number: usize,
    shift: usize,
    queries: usize,
    /// Whether it is RETRO's shifted attention (of which shift 0 is a case too).
    shifted: bool,
}

fn run(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions, chunks: Chunks) -> Result<Tensor> {
    let (bias, sink) = (options.bias, options.sink);
    let table = options.relative.map(|relative| relative.table);
    let inputs: Vec<&Tensor> = [Some(q), Some(k), Some(v), bias, table, sink].into_iter().flatten().collect();
    on_gpu!(crate::gpu::takes_attention(q, k, v, options)
        => crate::gpu::attention(q, k, v, options, chunks.shifted.then_some(chunks.queries)));
    if !fusible(&inputs) {
        return match chunks.shifted {
            false => composed::attention(q, k, v, options),
            true => composed::chunked_cross_attention(q, k, v, chunks.queries, options),
        };
    }
    let relative = options.relative.map(|relative| Buckets::new(&relative)).transpose()?;
    let arguments = Arguments {
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
        bias: match (&relative, bias) {
            (Some(relative), _) => Some(relative.spread(chunks.queries, k.dim(2)?)?),
            (None, bias) => bias.map(Tensor::contiguous).transpose()?,
        },
        sink: sink.map(Tensor::contiguous).transpose()?,
        plan: Plan::new(q, k, options, chunks)?,
    };
    let mut out = vec![0f32; q.elem_count()];
    let mut log_totals = vec![0f32; q.elem_count() / q.dim(3)?.max(1)];
    arguments.operands()?.forward(&mut out, &mut log_totals);
    record(&inputs, out, q.shape(), move |out, grad| {
        let out = View::of(out)?;
        let grad = View::of(grad)?;
        let gradients = arguments.operands()?.backward(&out, &log_totals, &grad);
        let Arguments { q, k, v, bias, sink, .. } = &arguments;
        let mut tensors =
            vec![gradient(gradients.q, q)?, gradient(gradients.k, k)?, gradient(gradients.v, v)?];
        match (&relative, bias) {
            (Some(relative), _) => {
                tensors.push(gradient(relative.gather(&gradients.bias), &relative.table)?);
            }
            (None, Some(bias)) => tensors.push(gradient(gradients.bias, bias)?),
            (None, None) => {}
        }
        if let Some(sink) = sink {
            tensors.push(gradient(gradients.sink, sink)?);
        }
        Ok(tensors)
    })
}

/// A relative bias as the kernel uses it. It is spread out once for all sequences, which is far less than the
/// scores, and its gradient gathered at the end.
struct Buckets {
    table: Tensor,
    buckets: Vec<u32>,
    columns: usize,
}

impl Buckets {
    fn new(relative: &RelativeBias) -> Result<Self> {
        let table = relative.table.contiguous()?;
        let columns = table.dim(1)?;
        let buckets = relative.buckets.flatten_all()?.to_vec1::<u32>()?;
        if let Some(bucket) = buckets.iter().find(|&&bucket| bucket as usize >= columns) {
            bail!("attention: bucket {bucket} of the relative bias is outside its table of {columns}");
        }
        Ok(Self { table, buckets, columns })
    }

    fn spread(&self, queries: usize, keys: usize) -> Result<Tensor> {
        let heads = self.table.dim(0)?;
        let mut bias = Vec::with_capacity(heads * self.buckets.len());
        let table = View::of(&self.table)?;
        for row in table.chunks(self.columns.max(1)) {
            bias.extend(self.buckets.iter().map(|&bucket| row[bucket as usize]));
        }
        Tensor::from_vec(bias, (heads, queries, keys), self.table.device())
    }

    fn gather(&self, dbias: &[f32]) -> Vec<f32> {
        let mut dtable = vec![0f32; self.table.elem_count()];
        let rows =
            dtable.par_chunks_mut(self.columns.max(1)).zip(dbias.par_chunks(self.buckets.len().max(1)));
        rows.for_each(|(row, dbias)| {
            for (&bucket, gradient) in self.buckets.iter().zip(dbias) {
                row[bucket as usize] += gradient;
            }
        });
        dtable
    }
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<()> {
    let (batch, heads, queries, dim) = q.dims4()?;
    let (k_batch, kv_heads, keys, k_dim) = k.dims4()?;
    if k.dims() != v.dims() || k_batch != batch || k_dim != dim || kv_heads == 0 || heads % kv_heads != 0 {
        bail!(
            "attention: q {:?}, k {:?} and v {:?} do not fit together; expected [batch, heads, queries, \
             dim] and twice [batch, kv_heads, keys, dim] where kv_heads divides heads",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let expect = |name: &str, tensor: Option<&Tensor>, shape: &[usize]| match tensor {
        Some(tensor) if tensor.dims() != shape => {
            bail!("attention: {name} is {:?}, expected {shape:?}", tensor.dims())
        }
        _ => Ok(()),
    };
    if options.window.is_some() && (!options.causal || options.window == Some(0)) {
        bail!(
            "attention: a window of {:?} with causal {}; a window is of at least 1 key, and for causal attention",
            options.window,
            options.causal
        );
    }
    if let Some(starts) = options.starts {
        expect("starts", Some(starts), &[batch, queries])?;
        if !options.causal || starts.dtype() != DType::U32 {
            let dtype = starts.dtype();
            bail!(
                "attention: starts are {dtype:?}, causal {}; they are u32, and for causal attention",
                options.causal
            );
        }
        if let Some(row) = starts.to_vec2::<u32>()?.iter().position(|row| !row.is_sorted()) {
            bail!("attention: the starts of sequence {row} fall along it");
        }
    }
    if options.bias.is_some() && options.relative.is_some() {
        bail!("attention: there is a bias and a relative bias; give one of them");
    }
    if let Some(RelativeBias { table, buckets }) = options.relative {
        let columns = table.dims2()?.1;
        expect("table of the relative bias", Some(table), &[heads, columns])?;
        expect("buckets of the relative bias", Some(buckets), &[queries, keys])?;
        if buckets.dtype() != DType::U32 {
            bail!("attention: the buckets of the relative bias are {:?}, expected u32", buckets.dtype());
        }
    }
    expect("bias", options.bias, &[heads, queries, keys])?;
    expect("key_mask", options.key_mask, &[batch, keys])?;
    expect("sink", options.sink, &[heads])
}
