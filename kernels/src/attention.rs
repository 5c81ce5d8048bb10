//! Scaled dot-product attention.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::matrix::{Matrix, Threads, multiply};
use crate::parallel::Shared;
use crate::simd::{add, exp, max, sum, vectorised};
use crate::team::for_tasks;

/// How many queries are worked on at a time.
const BLOCK: usize = 64;

/// About how many products of a query and a key one task makes at least, where there is one query a sequence.
const GRAIN: usize = 1 << 14;

/// How many tasks there should be at least where sequences share one.
const TASKS: usize = 16;

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

/// What forward and backward work on.
struct Arguments {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Option<Tensor>,
    sink: Option<Tensor>,
    plan: Plan,
}

/// The sizes, and which keys each query sees.
struct Plan {
    /// Sequences of keys.
    batch: usize,
    heads: usize,
    kv_heads: usize,
    /// Of one sequence of queries, which [`Chunks`] deals out.
    tokens: usize,
    /// How many sequences of keys read one sequence of queries, and from which token on.
    chunks: usize,
    shift: usize,
    /// Of one sequence of keys; the last may have fewer.
    queries: usize,
    keys: usize,
    dim: usize,
    causal: bool,
    window: Option<usize>,
    /// `[batch, queries]`: the first key that each query sees.
    starts: Option<Vec<u32>>,
    scale: f32,
    /// `[batch, keys]`: zero or minus infinity, added to the scores.
    mask: Option<Vec<f32>>,
    /// For each sequence of the batch the number of keys up to its last visible one.
    visible: Vec<usize>,
}

impl Plan {
    fn new(q: &Tensor, k: &Tensor, options: &AttentionOptions, chunks: Chunks) -> Result<Self> {
        let (_, heads, tokens, dim) = q.dims4()?;
        let (batch, kv_heads, keys, _) = k.dims4()?;
        let Chunks { number: chunks, shift, queries, .. } = chunks;
        let (mut mask, mut visible) = (None, vec![keys; batch]);
        if let Some(key_mask) = options.key_mask {
            let seen = key_mask.flatten_all()?.to_vec1::<u8>()?;
            for (visible, seen) in visible.iter_mut().zip(seen.chunks(keys.max(1))) {
                *visible = seen.iter().rposition(|&seen| seen != 0).map_or(0, |last| last + 1);
            }
            mask = Some(seen.into_iter().map(|s| if s != 0 { 0.0 } else { f32::NEG_INFINITY }).collect());
        }
        let AttentionOptions { causal, window, scale, .. } = *options;
        let starts = options.starts.map(|starts| starts.flatten_all()?.to_vec1::<u32>()).transpose()?;
        Ok(Self {
            batch,
            heads,
            kv_heads,
            tokens,
            chunks,
            shift,
            queries,
            keys,
            dim,
            causal,
            window,
            starts,
            scale,
            mask,
            visible,
        })
    }

    /// Up to which key, exclusive, `query` sees (unless masked).
    fn sight(&self, batch: usize, query: usize) -> usize {
        let visible = self.visible[batch];
        if self.causal { (query + self.keys + 1).saturating_sub(self.queries).min(visible) } else { visible }
    }

    /// From which key on `query` sees: the first, or that which its text or its window begins with.
    fn begin(&self, batch: usize, query: usize) -> usize {
        let window =
            self.window.map_or(0, |window| (query + self.keys + 1).saturating_sub(self.queries + window));
        let start = self.starts.as_ref().map_or(0, |starts| starts[batch * self.queries + query] as usize);
        window.max(start)
    }

    /// The keys that some of the `rows` queries from `first` on may see.
    fn span(&self, batch: usize, first: usize, rows: usize) -> Range<usize> {
        let end = self.sight(batch, first + rows - 1);
        self.begin(batch, first).min(end)..end
    }

    /// The token that is the first query of a sequence of keys, and how many there are.
    fn own(&self, batch: usize) -> (usize, usize) {
        let first = self.shift + batch % self.chunks * self.queries;
        (first, self.queries.min(self.tokens - first))
    }
}

impl Arguments {
    fn operands(&self) -> Result<Operands<'_>> {
        Ok(Operands {
            plan: &self.plan,
            q: View::strided(&self.q)?,
            k: View::strided(&self.k)?,
            v: View::strided(&self.v)?,
            bias: self.bias.as_ref().map(View::of).transpose()?,
            sink: self.sink.as_ref().map(View::of).transpose()?,
        })
    }
}

struct Operands<'a> {
    plan: &'a Plan,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    bias: Option<View<'a>>,
    sink: Option<View<'a>>,
}

/// Gradients in the order of the elements of what they belong to.
struct Gradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Vec<f32>,
    sink: Vec<f32>,
}

/// The part of the gradients that one task fills: those of one sequence and one key head with the
/// query heads that read it.
struct Share<'a> {
    batch: usize,
    kv_head: usize,
    /// One for each query head.
    q: Vec<&'a mut [f32]>,
    k: &'a mut [f32],
    v: &'a mut [f32],
    sink: &'a mut [f32],
}

/// Rows `first..` of one head of a tensor `[batch, heads, tokens, dim]`.
fn head<'a>(tensor: &'a View, batch: usize, head: usize, first: usize) -> Matrix<'a> {
    let stride = tensor.stride();
    let offset = batch * stride[0] + head * stride[1] + first * stride[2];
    Matrix::strided(&tensor[offset..], stride[2], stride[3])
}

impl Operands<'_> {
    /// Fills `out` and, for each query, the logarithm of the sum of its exponentials.
    fn forward(&self, out: &mut [f32], log_totals: &mut [f32]) {
        let Plan { heads, kv_heads, tokens, chunks, shift, queries, keys, dim, .. } = *self.plan;
        if out.is_empty() || keys == 0 {
            return;
        }
        if tokens == 1 && chunks == 1 {
            return self.forward_single(out, log_totals);
        }
        let sequences = out.par_chunks_mut(tokens * dim).zip(log_totals.par_chunks_mut(tokens));
        sequences.enumerate().for_each(|(i, (out, log_totals))| {
            let (sequence, head) = (i / heads, i % heads);
            let out = out[shift * dim..].par_chunks_mut(queries * dim);
            let parts = out.zip(log_totals[shift..].par_chunks_mut(queries)).take(chunks);
            parts.enumerate().for_each(|(chunk, (out, log_totals))| {
                let blocks = out.par_chunks_mut(BLOCK * dim).zip(log_totals.par_chunks_mut(BLOCK));
                blocks.enumerate().for_each_init(Vec::new, |scores, (block, (out, log_totals))| {
                    let kv_head = head / (heads / kv_heads);
                    let batch = sequence * chunks + chunk;
                    self.forward_block(batch, head, kv_head, block * BLOCK, scores, out, log_totals);
                });
            });
        });
    }

    /// The same for one query a sequence, as generation has them: a task takes the query heads that share a key
    /// head.
    fn forward_single(&self, out: &mut [f32], log_totals: &mut [f32]) {
        let Plan { batch, heads, kv_heads, keys, dim, .. } = *self.plan;
        let group = heads / kv_heads;
        let (out, log_totals) = (Shared::new(out), Shared::new(log_totals));
        let some = (GRAIN / (group * keys * dim).max(1)).clamp(1, batch * kv_heads);
        for_tasks((batch * kv_heads).div_ceil(some), |task| {
            let mut scores = Vec::new();
            for i in task * some..(batch * kv_heads).min((task + 1) * some) {
                let (batch, kv_head) = (i / kv_heads, i % kv_heads);
                for head in kv_head * group..(kv_head + 1) * group {
                    let at = batch * heads + head;
                    // SAFETY: both buffers live as long as this call, and no two tasks have a head in common.
                    let (out, log_total) = unsafe { (out.part(at * dim, dim), log_totals.part(at, 1)) };
                    self.forward_block(batch, head, kv_head, 0, &mut scores, out, log_total);
                }
            }
        });
    }

    fn forward_block(
        &self,
        batch: usize,
        query_head: usize,
        kv_head: usize,
        first: usize,
        scores: &mut Vec<f32>,
        out: &mut [f32],
        log_totals: &mut [f32],
    ) {
        let dim = self.plan.dim;
        let rows = log_totals.len();
        let span = self.plan.span(batch, first, rows);
        let (begin, n) = (span.start, span.len());
        if n == 0 {
            log_totals.fill(f32::INFINITY);
            return;
        }
        self.scores(batch, query_head, kv_head, first, rows, span, scores);
        let sink = self.sink.as_ref().map_or(f32::NEG_INFINITY, |sink| sink[query_head]);
        let mut inverses = [0f32; BLOCK];
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            (inverses[i], log_totals[i]) = exponentials(row, sink);
        }
        match self.rows(&self.v, batch, kv_head).filter(|_| rows == 1) {
            Some((v, stride)) => mix(scores, &v[begin * stride..], stride, out),
            None => {
                let v = head(&self.v, batch, kv_head, begin);
                multiply([rows, n, dim], 1.0, Matrix::rows(scores, n), v, out, dim, false, Threads::One);
            }
        }
        for (row, inverse) in out.chunks_exact_mut(dim).zip(inverses) {
            row.iter_mut().for_each(|x| *x *= inverse);
        }
    }

    /// The scores of `rows` queries from `first` on against the keys of `span`, which is not empty; minus
    /// infinity where a query may not look.
    fn scores(
        &self,
        batch: usize,
        query_head: usize,
        kv_head: usize,
        first: usize,
        rows: usize,
        span: Range<usize>,
        scores: &mut Vec<f32>,
    ) {
        let Plan { chunks, queries, keys, dim, scale, .. } = *self.plan;
        let (begin, n) = (span.start, span.len());
        scores.resize(rows * n, 0.0);
        let token = self.plan.own(batch).0 + first;
        let (q, k) = (head(&self.q, batch / chunks, query_head, token), head(&self.k, batch, kv_head, begin));
        match (self.rows(&self.q, batch / chunks, query_head), self.rows(&self.k, batch, kv_head)) {
            (Some((q, down)), Some((k, stride))) if rows == 1 && dim > 0 => {
                dots(&q[token * down..][..dim], &k[begin * stride..], stride, scale, scores);
            }
            _ => multiply([rows, dim, n], scale, q, k.t(), scores, n, false, Threads::One),
        }
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            let query = first + i;
            if let Some(bias) = &self.bias {
                add(row, &bias[(query_head * queries + query) * keys + begin..][..n]);
            }
            if let Some(mask) = &self.plan.mask {
                add(row, &mask[batch * keys + begin..][..n]);
            }
            row[self.plan.sight(batch, query).saturating_sub(begin).min(n)..].fill(f32::NEG_INFINITY);
            row[..self.plan.begin(batch, query).saturating_sub(begin).min(n)].fill(f32::NEG_INFINITY);
        }
    }

    /// One head's rows, and how far apart they begin, if the elements of each lie side by side.
    fn rows<'a>(&self, tensor: &'a View, batch: usize, head: usize) -> Option<(&'a [f32], usize)> {
        let stride = tensor.stride();
        (stride[3] == 1).then(|| (&tensor[batch * stride[0] + head * stride[1]..], stride[2]))
    }

    fn backward(&self, out: &[f32], log_totals: &[f32], grad: &[f32]) -> Gradients {
        let Plan { batch, heads, kv_heads, tokens, chunks, shift, queries, keys, dim, .. } = *self.plan;
        let group = heads / kv_heads;
        let mut dq = vec![0f32; grad.len()];
        let mut dk = vec![0f32; batch * kv_heads * keys * dim];
        let mut dv = vec![0f32; batch * kv_heads * keys * dim];
        let mut dsink = vec![0f32; batch * heads];
        if out.is_empty() || keys == 0 {
            let bias = vec![0f32; heads * queries * keys];
            return Gradients { q: dq, k: dk, v: dv, bias, sink: vec![0f32; heads] };
        }

        // Sequences whose gradients go into the same sum for the bias share a task. How they are
        // grouped depends on the sizes alone, so that the sums do not depend on the threads.
        let segments = if self.bias.is_some() { batch.min(TASKS.div_ceil(kv_heads)) } else { batch };
        let mut tasks: Vec<Vec<Share>> = (0..segments * kv_heads).map(|_| vec![]).collect();
        let mut own: Vec<Vec<&mut [f32]>> = (0..batch * kv_heads).map(|_| vec![]).collect();
        for (i, dq) in dq.chunks_mut(tokens * dim).enumerate() {
            let (sequence, kv_head) = (i / heads, i % heads / group);
            for (chunk, dq) in dq[shift * dim..].chunks_mut(queries * dim).take(chunks).enumerate() {
                own[(sequence * chunks + chunk) * kv_heads + kv_head].push(dq);
            }
        }
        let shares = own.into_iter().zip(dk.chunks_mut(keys * dim));
        let shares = shares.zip(dv.chunks_mut(keys * dim).zip(dsink.chunks_mut(group)));
        for (i, ((q, k), (v, sink))) in shares.enumerate() {
            let (batch_item, kv_head) = (i / kv_heads, i % kv_heads);
            let segment = batch_item * segments / batch;
            tasks[segment * kv_heads + kv_head].push(Share { batch: batch_item, kv_head, q, k, v, sink });
        }
        let plane = if self.bias.is_some() { queries * keys } else { 0 };
        let mut dbias = vec![0f32; segments * heads * plane];
        let mut rest = &mut dbias[..];
        let mut work = Vec::with_capacity(tasks.len());
        for shares in tasks {
            let (dbias, others) = std::mem::take(&mut rest).split_at_mut(group * plane);
            rest = others;
            work.push((shares, dbias));
        }
        work.into_par_iter().for_each_init(
            || (vec![], vec![]),
            |(p, dp), (shares, dbias)| {
                for share in shares {
                    self.backward_share(share, out, log_totals, grad, dbias, p, dp);
                }
            },
        );

        let (total, others) = dbias.split_at_mut(heads * plane);
        if plane > 0 {
            others.chunks(heads * plane).for_each(|segment| add(total, segment));
        }
        dbias.truncate(heads * plane);
        let mut sink = vec![0f32; heads];
        dsink.chunks(heads).for_each(|one| add(&mut sink, one));
        Gradients { q: dq, k: dk, v: dv, bias: dbias, sink }
    }

    fn backward_share(
        &self,
        mut share: Share,
        out: &[f32],
        log_totals: &[f32],
        grad: &[f32],
        dbias: &mut [f32],
        p: &mut Vec<f32>,
        dp: &mut Vec<f32>,
    ) {
        let Plan { heads, kv_heads, tokens, chunks, queries, keys, dim, scale, .. } = *self.plan;
        let group = heads / kv_heads;
        let Share { batch, kv_head, .. } = share;
        let (own, of_own) = self.plan.own(batch);
        for member in 0..group {
            let query_head = kv_head * group + member;
            for first in (0..of_own).step_by(BLOCK) {
                let rows = BLOCK.min(of_own - first);
                let span = self.plan.span(batch, first, rows);
                let (begin, n) = (span.start, span.len());
                if n == 0 {
                    continue;
                }
                self.scores(batch, query_head, kv_head, first, rows, span, p);
                let (k, v) = (head(&self.k, batch, kv_head, begin), head(&self.v, batch, kv_head, begin));
                let at = (batch / chunks * heads + query_head) * tokens + own + first;
                let (grad, out) = (&grad[at * dim..][..rows * dim], &out[at * dim..][..rows * dim]);
                let grad_rows = Matrix::rows(grad, dim);
                dp.resize(rows * n, 0.0);
                multiply([rows, dim, n], 1.0, grad_rows, v.t(), dp, n, false, Threads::One);
                for i in 0..rows {
                    let log_total = log_totals[at + i];
                    let along = dot(&grad[i * dim..][..dim], &out[i * dim..][..dim]);
                    score_gradients(&mut p[i * n..][..n], &mut dp[i * n..][..n], log_total, along);
                    if let Some(sink) = &self.sink {
                        share.sink[member] -= exp(sink[query_head] - log_total) * along;
                    }
                    if self.bias.is_some() {
                        let at = (member * queries + first + i) * keys + begin;
                        add(&mut dbias[at..][..n], &dp[i * n..][..n]);
                    }
                }
                let (p, ds) = (Matrix::rows(p, n), Matrix::rows(dp, n));
                let q = head(&self.q, batch / chunks, query_head, own + first);
                let dq = &mut share.q[member][first * dim..];
                let (dk, dv) = (&mut share.k[begin * dim..], &mut share.v[begin * dim..]);
                multiply([n, rows, dim], 1.0, p.t(), grad_rows, dv, dim, true, Threads::One);
                multiply([n, rows, dim], scale, ds.t(), q, dk, dim, true, Threads::One);
                multiply([rows, n, dim], scale, ds, k, dq, dim, false, Threads::One);
            }
        }
    }
}

vectorised! {
    /// Turns a row of scores into exponentials, shifted so that they are in range. Returns what makes
    /// their sum (with the sink's) one, and the logarithm of the sum of the unshifted ones. A row with
    /// nothing to see becomes zero, and the logarithm infinity, so that it is zero in backward too.
    fn exponentials(scores: &mut [f32], sink: f32) -> (f32, f32) {
        let highest = max(scores);
        let highest = if sink > highest { sink } else { highest };
        if highest == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
            scores.fill(0.0);
            return (0.0, f32::INFINITY);
        }
        for score in scores.iter_mut() {
            *score = exp(*score - highest);
        }
        let total = sum(scores.len(), |i| scores[i]) + exp(sink - highest);
        (1.0 / total, highest + total.ln())
    }

    /// Turns a row of scores into probabilities `p`, and their gradients into those of the scores,
    /// `p * (dp - p . dp)`; the dot product is that of the output and its gradient.
    fn score_gradients(scores: &mut [f32], dp: &mut [f32], log_total: f32, along: f32) {
        for (score, dp) in scores.iter_mut().zip(dp) {
            let p = exp(*score - log_total);
            *score = p;
            *dp = p * (*dp - along);
        }
    }

    /// The scores of a single query, as generation has them, where packing operands would not pay.
    fn dots(q: &[f32], k: &[f32], stride: usize, scale: f32, scores: &mut [f32]) {
        for (i, score) in scores.iter_mut().enumerate() {
            let k = &k[i * stride..][..q.len()];
            *score = scale * sum(q.len(), |i| q[i] * k[i]);
        }
    }

    /// The sum of values by their weights, for a single query.
    fn mix(weights: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
        out.fill(0.0);
        let n = out.len();
        // Four at a time, so that the sums are read and written a quarter as often.
        let (fours, rest) = weights.as_chunks::<4>();
        for (i, weights) in fours.iter().enumerate() {
            let v = |j: usize| &v[(4 * i + j) * stride..][..n];
            let (a, b, c, d) = (v(0), v(1), v(2), v(3));
            for l in 0..n {
                out[l] += (weights[0] * a[l] + weights[1] * b[l]) + (weights[2] * c[l] + weights[3] * d[l]);
            }
        }
        for (i, weight) in (4 * fours.len()..).zip(rest) {
            for (out, v) in out.iter_mut().zip(&v[i * stride..][..n]) {
                *out += weight * v;
            }
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i] * b[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    /// Batch, heads, key heads, queries, keys, dim.
    const SHAPES: [[usize; 6]; 6] = [
        [1, 1, 1, 1, 1, 1],
        [2, 4, 2, 3, 5, 3],
        [2, 2, 1, 5, 2, 4],
        [3, 2, 2, 1, 7, 8],
        [2, 4, 4, 67, 67, 16],
        [2, 6, 3, 33, 130, 20],
    ];

    fn check_shape([batch, heads, kv_heads, queries, keys, dim]: [usize; 6]) {
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, kv_heads, keys, dim], 2),
            random(&[batch, kv_heads, keys, dim], 3),
            random(&[heads, queries, keys], 4),
            random(&[heads], 5),
        ];
        // The first sequence may attend to nothing.
        let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i >= keys && i % 3 != 1)).collect();
        let mask = Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap();
        for variant in 0..16 {
            let [causal, biased, masked, sunk] = [1, 2, 4, 8].map(|bit| variant & bit != 0);
            // The bias is the fourth input if there is one, the sink the last.
            let mut inputs = inputs.to_vec();
            if !sunk {
                inputs.pop();
            }
            if !biased {
                inputs.remove(3);
            }
            let op = |t: &[Tensor]| {
                let options = AttentionOptions {
                    causal,
                    window: None,
                    starts: None,
                    scale: 0.7,
                    bias: biased.then(|| &t[3]),
                    relative: None,
                    key_mask: masked.then_some(&mask),
                    sink: if sunk { t.last() } else { None },
                };
                attention(&t[0], &t[1], &t[2], &options)
            };
            if queries * keys < 20 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn a_sliding_window_is_right() {
        for [batch, heads, kv_heads, queries, keys, dim] in SHAPES {
            for window in [1, 3, 40, 500] {
                let inputs = [
                    random(&[batch, heads, queries, dim], 1),
                    random(&[batch, kv_heads, keys, dim], 2),
                    random(&[batch, kv_heads, keys, dim], 3),
                    random(&[heads, queries, keys], 4),
                ];
                for mask in masks(batch, keys) {
                    let op = |t: &[Tensor]| {
                        let options = AttentionOptions {
                            causal: true,
                            window: Some(window),
                            bias: Some(&t[3]),
                            key_mask: mask.as_ref(),
                            ..AttentionOptions::scaled(0.7)
                        };
                        attention(&t[0], &t[1], &t[2], &options)
                    };
                    if queries * keys < 20 {
                        assert_gradients_are_slopes(&inputs, op);
                    }
                    assert_matches_f64(&inputs, 1e-5, op);
                    assert_same_on_any_number_of_threads(&inputs, op);
                }
            }
        }
    }

    /// What the window does not reach changes nothing; what it just reaches does.
    #[test]
    fn a_window_ends_where_it_says() {
        let (q, k) = (random(&[1, 1, 9, 4], 1), random(&[1, 1, 9, 4], 2));
        let options = AttentionOptions { causal: true, window: Some(3), ..AttentionOptions::scaled(0.7) };
        let before = attention(&q, &k, &k, &options).unwrap();
        let (ones, rest) = (random(&[1, 1, 1, 4], 9), k.narrow(2, 1, 8).unwrap());
        let changed = Tensor::cat(&[&ones, &rest], 2).unwrap();
        let after = attention(&q, &changed, &changed, &options).unwrap();
        let moved = |query: usize| {
            distance(&before.narrow(2, query, 1).unwrap(), &after.narrow(2, query, 1).unwrap()) > 0.0
        };
        assert_eq!((0..9).filter(|query| moved(*query)).collect::<Vec<_>>(), [0, 1, 2]);
        let without = AttentionOptions { causal: false, ..options };
        assert!(attention(&q, &k, &k, &without).is_err());
        assert!(attention(&q, &k, &k, &AttentionOptions { window: Some(0), ..options }).is_err());
    }

    #[test]
    fn texts_in_a_row_are_right() {
        for [batch, heads, kv_heads, queries, keys, dim] in SHAPES {
            let inputs = [
                random(&[batch, heads, queries, dim], 1),
                random(&[batch, kv_heads, keys, dim], 2),
                random(&[batch, kv_heads, keys, dim], 3),
                random(&[heads, queries, keys], 4),
            ];
            // Texts of 1, 2, 3, ... tokens, or of 30 more in other sequences; the last queries are those of the last keys.
            let start = |i: usize| -> u32 {
                let (mut start, mut length) = (0, 1 + 30 * (i / queries % 2));
                let at = (i % queries + keys).saturating_sub(queries);
                while start + length <= at {
                    (start, length) = (start + length, length + 1);
                }
                start as u32
            };
            let starts: Vec<u32> = (0..batch * queries).map(start).collect();
            let starts = Tensor::from_vec(starts, (batch, queries), &Device::Cpu).unwrap();
            for (mask, window) in masks(batch, keys).into_iter().zip([None, Some(5)]) {
                let op = |t: &[Tensor]| {
                    let options = AttentionOptions {
                        causal: true,
                        window,
                        starts: Some(&starts),
                        bias: Some(&t[3]),
                        key_mask: mask.as_ref(),
                        ..AttentionOptions::scaled(0.7)
                    };
                    attention(&t[0], &t[1], &t[2], &options)
                };
                if queries * keys < 20 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
    }

    /// Texts one after another are read as each is by itself.
    #[test]
    fn texts_in_a_row_do_not_see_each_other() {
        let lengths = [3usize, 70, 1, 40];
        let total: usize = lengths.iter().sum();
        let [q, k, v] = [1, 2, 3].map(|seed| random(&[1, 2, total, 4], seed));
        let mut from = 0;
        let (mut starts, mut apart) = (Vec::new(), Vec::new());
        let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(0.7) };
        for length in lengths {
            starts.extend(vec![from as u32; length]);
            let own = |x: &Tensor| x.narrow(2, from, length).unwrap().contiguous().unwrap();
            apart.push(attention(&own(&q), &own(&k), &own(&v), &options).unwrap());
            from += length;
        }
        let starts = Tensor::from_vec(starts, (1, total), &Device::Cpu).unwrap();
        let together = attention(&q, &k, &v, &AttentionOptions { starts: Some(&starts), ..options }).unwrap();
        assert!(distance(&together, &Tensor::cat(&apart, 2).unwrap()) < 1e-6);
        let falling = Tensor::arange(0u32, total as u32, &Device::Cpu).unwrap();
        let falling = (falling.ones_like().unwrap() * total as f64)
            .unwrap()
            .sub(&falling)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        assert!(attention(&q, &k, &v, &AttentionOptions { starts: Some(&falling), ..options }).is_err());
        let without = AttentionOptions { causal: false, starts: Some(&starts), ..options };
        assert!(attention(&q, &k, &v, &without).is_err());
    }

    /// Without a mask, and with one that leaves the first sequence nothing.
    fn masks(batch: usize, keys: usize) -> [Option<Tensor>; 2] {
        let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i >= keys && i % 3 != 1)).collect();
        [None, Some(Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap())]
    }

    #[test]
    fn relative_bias_is_right() {
        for [batch, heads, kv_heads, queries, keys, dim] in SHAPES {
            let buckets: Vec<u32> = (0..queries * keys).map(|i| (i * 7 % 5) as u32).collect();
            let buckets = Tensor::from_vec(buckets, (queries, keys), &Device::Cpu).unwrap();
            let inputs = [
                random(&[batch, heads, queries, dim], 1),
                random(&[batch, kv_heads, keys, dim], 2),
                random(&[batch, kv_heads, keys, dim], 3),
                random(&[heads, 5], 4),
            ];
            for mask in masks(batch, keys) {
                let op = |t: &[Tensor]| {
                    let relative = Some(RelativeBias { table: &t[3], buckets: &buckets });
                    let options = AttentionOptions {
                        relative,
                        key_mask: mask.as_ref(),
                        ..AttentionOptions::scaled(0.7)
                    };
                    attention(&t[0], &t[1], &t[2], &options)
                };
                if queries * keys < 20 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
    }

    #[test]
    fn chunked_cross_attention_is_right() {
        // Batch, heads, key heads, tokens, chunks, chunk size, keys, dim: whole and partial last chunks, fewer
        // chunks than there could be, a chunk of one token, and of more than a block of queries.
        for [batch, heads, kv_heads, tokens, chunks, m, keys, dim] in [
            [1, 1, 1, 1, 1, 1, 1, 1],
            [2, 2, 1, 7, 2, 3, 4, 2],
            [2, 2, 2, 8, 1, 3, 5, 2],
            [1, 2, 2, 4, 4, 1, 3, 4],
            [2, 2, 2, 150, 2, 70, 33, 8],
            [2, 4, 2, 64, 4, 16, 32, 16],
        ] {
            let buckets: Vec<u32> = (0..m * keys).map(|i| (i * 3 % 4) as u32).collect();
            let buckets = Tensor::from_vec(buckets, (m, keys), &Device::Cpu).unwrap();
            let inputs = [
                random(&[batch, heads, tokens, dim], 1),
                random(&[batch * chunks, kv_heads, keys, dim], 2),
                random(&[batch * chunks, kv_heads, keys, dim], 3),
                random(&[heads, 4], 4),
                random(&[heads], 5),
            ];
            for mask in masks(batch * chunks, keys) {
                let op = |t: &[Tensor]| {
                    let options = AttentionOptions {
                        relative: Some(RelativeBias { table: &t[3], buckets: &buckets }),
                        key_mask: mask.as_ref(),
                        sink: Some(&t[4]),
                        ..AttentionOptions::scaled(0.7)
                    };
                    chunked_cross_attention(&t[0], &t[1], &t[2], m, &options)
                };
                if tokens * keys < 40 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
        let q = random(&[2, 2, 7, 4], 1);
        let kv = random(&[6, 2, 5, 4], 2);
        assert!(chunked_cross_attention(&q, &kv, &kv, 3, &AttentionOptions::scaled(1.0)).is_err());
        assert!(chunked_cross_attention(&q, &kv, &kv, 0, &AttentionOptions::scaled(1.0)).is_err());
    }

    #[test]
    fn fusion_in_decoder_attention_is_right() {
        for [batch, passages, tokens, kv_heads, heads, queries, dim] in
            [[1, 1, 1, 1, 1, 1, 1], [2, 2, 3, 1, 2, 2, 2], [2, 3, 17, 2, 2, 70, 8]]
        {
            let width = kv_heads * dim;
            let inputs = [
                random(&[batch, heads, queries, dim], 1),
                random(&[batch, passages, tokens, width], 2),
                random(&[batch, passages, tokens, width], 3),
            ];
            for mask in masks(batch, passages * tokens) {
                let mask = mask.map(|mask| mask.reshape((batch, passages, tokens)).unwrap());
                let op = |t: &[Tensor]| fusion_in_decoder_attention(&t[0], &t[1], &t[2], mask.as_ref(), 0.5);
                if queries * tokens < 20 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
    }

    #[test]
    fn attention_is_right() {
        SHAPES.into_iter().for_each(check_shape);
    }
}
