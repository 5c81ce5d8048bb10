//! Attention, `cuda/attention.cu` and `cuda/attention_f32.cu`.

use candle_core::{Result, bail};
use cudarc::driver::{CudaSlice, DeviceRepr};

use super::device::{Device, Source, Storage, Tensor, grid, grid3, launch, plain_arguments, size};

pub(super) const THREADS: u32 = 128;
/// Places of a relative bias that one block sums.
const ENTRIES: usize = 1 << 15;

/// Which keys a query sees, and what is added to its scores.
#[derive(Default)]
pub struct Masks<'a> {
    /// A query at position `i + offset` sees no key after it.
    pub causal: bool,
    /// The position of the first query among the keys.
    pub offset: i32,
    /// Of so many positions, its own included, a query sees the keys.
    pub window: Option<usize>,
    /// `[batch, keys]`; 0: no query sees this key.
    pub keys: Option<&'a Tensor<u8>>,
    /// Added to the scores.
    pub bias: Option<Bias<'a>>,
    /// A score without a value for each head, `[heads]`.
    pub sink: Option<&'a Tensor<f32>>,
}

/// What is added to the scores; gets a gradient.
#[derive(Clone, Copy)]
pub enum Bias<'a> {
    /// `[heads, queries, keys]`.
    Each(&'a Tensor<f32>),
    /// `table[head, buckets[query, key]]`, see [`crate::RelativeBias`].
    Relative {
        /// `[heads, buckets]`.
        table: &'a Tensor<f32>,
        /// `[queries, keys]` by rows: columns of the table.
        buckets: &'a [u32],
    },
}

/// What attention returns.
pub struct Attention<T> {
    /// `[batch, heads, queries, dim]`; zeros for a query that sees no key.
    pub out: Tensor<T>,
    /// The logarithm of each softmax's sum, `[batch, heads, queries]`, which backward needs.
    pub log_sum: Tensor<f32>,
}

/// Gradients of attention, of the shapes of what they are gradients of.
pub struct AttentionGradients<T> {
    /// Of the queries.
    pub q: Tensor<T>,
    /// Of the keys.
    pub k: Tensor<T>,
    /// Of the values.
    pub v: Tensor<T>,
    /// Of the bias, or of the relative bias's table.
    pub bias: Option<Tensor<f32>>,
    /// Of the sink.
    pub sink: Option<Tensor<f32>>,
}

/// As the kernels take it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub heads: i32,
    pub key_heads: i32,
    pub queries: i32,
    pub keys: i32,
    pub offset: i32,
    pub causal: i32,
    pub window: i32,
    pub scale: f32,
    pub tokens: i32,
    pub chunks: i32,
    pub shift: i32,
    pub columns: i32,
}

// SAFETY: plain numbers, in the order of the struct of the same name in cuda/attention.cuh.
unsafe impl DeviceRepr for Sizes {}
plain_arguments!(Sizes);

/// How a storage's kernels cut their work: rows of a block, and of the other side at a time.
fn tiles<T: Storage>() -> (Source, usize, usize) {
    if T::WIDE == 4 { (Source::AttentionF32, 32, 8) } else { (Source::Attention, 64, 32) }
}

/// A problem whose shapes fit together, with its buckets on the device.
pub(super) struct Problem<'a> {
    pub batch: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    /// Sequences of keys.
    pub sequences: usize,
    pub sizes: Sizes,
    pub mask: Option<&'a Tensor<u8>>,
    pub bias: Option<&'a Tensor<f32>>,
    pub buckets: Option<CudaSlice<u32>>,
    pub sink: Option<&'a Tensor<f32>>,
}

impl<'a> Problem<'a> {
    /// `m`: chunks of RETRO's attention.
    pub fn new(
        device: &Device,
        [q, k, v]: [&[usize]; 3],
        m: Option<usize>,
        scale: f32,
        masks: &Masks<'a>,
    ) -> Result<Self> {
        let (&[batch, heads, tokens, dim], &[sequences, key_heads, keys, key_dim]) = (q, k) else {
            bail!("attention: q and k are [batch, heads, tokens, dim], not {q:?} and {k:?}");
        };
        if key_dim != dim || v != k || key_heads == 0 || heads % key_heads != 0 {
            bail!("attention: q, k and v do not fit: {q:?}, {k:?}, {v:?}");
        }
        if ![32, 64, 128].contains(&dim) {
            bail!("attention: heads of {dim}; on the GPU they have 32, 64 or 128 components");
        }
        if batch == 0 || heads == 0 || tokens == 0 || keys == 0 {
            bail!("attention: q or k is empty: {q:?}, {k:?}");
        }
        let chunks = sequences / batch;
        let (queries, shift) = match m {
            None => (tokens, 0),
            Some(m) => (m, m.saturating_sub(1)),
        };
        if chunks * batch != sequences || (m.is_none() && chunks != 1) {
            bail!("attention: {sequences} sequences of keys for {batch} of queries");
        }
        if queries == 0 || chunks == 0 || chunks > tokens / queries {
            bail!("attention: neighbours of {chunks} chunks of {queries} for {tokens} tokens");
        }
        if m.is_some() && (masks.causal || masks.window.is_some()) {
            bail!("attention: neither causal nor a window is for chunks");
        }
        if masks.keys.is_some_and(|mask| mask.dims() != [sequences, keys]) {
            bail!("attention: the key mask is [{sequences}, {keys}]");
        }
        if masks.sink.is_some_and(|sink| sink.dims() != [heads]) {
            bail!("attention: the sink is [{heads}]");
        }
        if masks.window == Some(0) {
            bail!("attention: a window of 0 positions");
        }
        let (bias, buckets) = match masks.bias {
            None => (None, None),
            Some(Bias::Each(bias)) if bias.dims() == [heads, queries, keys] => (Some(bias), None),
            Some(Bias::Each(bias)) => {
                bail!("attention: the bias is {:?}, expected {:?}", bias.dims(), [heads, queries, keys])
            }
            Some(Bias::Relative { table, buckets }) => {
                let &[table_heads, columns] = table.dims() else {
                    bail!("attention: the table of the relative bias is {:?}", table.dims());
                };
                if table_heads != heads || buckets.len() != queries * keys {
                    bail!(
                        "attention: a table of {:?} and {} buckets; expected {heads} heads and {} buckets",
                        table.dims(),
                        buckets.len(),
                        queries * keys
                    );
                }
                if let Some(bucket) = buckets.iter().find(|&&bucket| bucket as usize >= columns) {
                    bail!(
                        "attention: bucket {bucket} of the relative bias is outside its table of {columns}"
                    );
                }
                (Some(table), Some(buckets))
            }
        };
        let sizes = Sizes {
            heads: size(heads)?,
            key_heads: size(key_heads)?,
            queries: size(queries)?,
            keys: size(keys)?,
            offset: masks.offset,
            causal: masks.causal.into(),
            window: size(masks.window.unwrap_or(0))?,
            scale,
            tokens: size(tokens)?,
            chunks: size(chunks)?,
            shift: size(shift)?,
            columns: size(buckets.and(bias).map_or(0, |table| table.dims()[1]))?,
        };
        let buckets = buckets.map(|buckets| device.upload_slice(buckets)).transpose()?;
        let (mask, sink) = (masks.keys, masks.sink);
        Ok(Self { batch, heads, key_heads, queries, keys, dim, sequences, sizes, mask, bias, buckets, sink })
    }

    /// A result of the shape of `q`, whose rows that read no chunk are zeros.
    fn like_q<T: Storage>(&self, device: &Device, q: &Tensor<T>) -> Result<Tensor<T>> {
        let Sizes { tokens, chunks, queries, shift, .. } = self.sizes;
        let all = shift == 0 && i64::from(chunks) * i64::from(queries) >= i64::from(tokens);
        if all { device.unwritten(q.dims()) } else { device.zeros(q.dims()) }
    }

    fn forward<T: Storage>(
        &self,
        device: &Device,
        q: &Tensor<T>,
        k: &Tensor<T>,
        v: &Tensor<T>,
    ) -> Result<Attention<T>> {
        let Self { mask, bias, buckets, sink, sizes, .. } = self;
        let out = self.like_q(device, q)?;
        let log_sum = device.zeros(&q.dims()[..3])?;
        let (source, tile, _) = tiles::<T>();
        let name = format!("attention_forward_{}_{}", T::NAME, self.dim);
        let blocks = grid(self.queries.div_ceil(tile), self.sequences * self.heads, THREADS)?;
        // SAFETY: the arguments are the kernel's, and `new` made sure of their sizes.
        unsafe {
            launch!(device, source, &name, blocks, q, k, v, mask, bias, buckets, sink, out, log_sum, sizes);
        }
        Ok(Attention { out, log_sum })
    }

    fn backward<T: Storage>(
        &self,
        device: &Device,
        [q, k, v]: [&Tensor<T>; 3],
        result: &Attention<T>,
        grad: &Tensor<T>,
    ) -> Result<AttentionGradients<T>> {
        let (out, log_sum) = (&result.out, &result.log_sum);
        if [grad.dims(), out.dims()] != [q.dims(); 2] || log_sum.dims() != &q.dims()[..3] {
            bail!(
                "attention: the gradient is {:?}, the result {:?} with sums {:?}, for q {:?}",
                grad.dims(),
                out.dims(),
                log_sum.dims(),
                q.dims()
            );
        }
        let Self { mask, bias, buckets, sink, sizes, heads, sequences, queries, keys, .. } = self;
        let (source, tile, step) = tiles::<T>();
        let name = |part: &str| format!("attention_{part}_{}_{}", T::NAME, self.dim);

        let delta: Tensor<f32> = device.unwritten(log_sum.dims())?;
        let rows = log_sum.dims().iter().product::<usize>();
        let (blocks, rows) = (grid(rows.div_ceil(THREADS as usize / 32), 1, THREADS)?, size(rows)?);
        // SAFETY: the arguments are the kernel's, and their sizes are checked above and by `new`.
        unsafe { launch!(device, source, &name("delta"), blocks, out, grad, delta, rows) };

        let dq = self.like_q(device, q)?;
        let blocks = grid(queries.div_ceil(tile), sequences * heads, THREADS)?;
        // SAFETY: as above.
        unsafe {
            launch!(
                device,
                source,
                &name("backward_q"),
                blocks,
                q,
                k,
                v,
                mask,
                bias,
                buckets,
                grad,
                log_sum,
                delta,
                dq,
                sizes
            );
        }
        let (dk, dv) = (device.unwritten(k.dims())?, device.unwritten(v.dims())?);
        let blocks = grid(keys.div_ceil(tile), sequences * self.key_heads, THREADS)?;
        // SAFETY: as above.
        unsafe {
            launch!(
                device,
                source,
                &name("backward_kv"),
                blocks,
                q,
                k,
                v,
                mask,
                bias,
                buckets,
                grad,
                log_sum,
                delta,
                dk,
                dv,
                sizes
            );
        }
        let dbias = if bias.is_some() {
            let dbias: Tensor<f32> = device.unwritten(&[*heads, *queries, *keys])?;
            let blocks = grid3([queries.div_ceil(tile), keys.div_ceil(step), *heads], THREADS)?;
            let count = size(*sequences)?;
            // SAFETY: as above.
            unsafe {
                launch!(
                    device,
                    source,
                    &name("backward_bias"),
                    blocks,
                    q,
                    k,
                    v,
                    mask,
                    bias,
                    buckets,
                    grad,
                    log_sum,
                    delta,
                    dbias,
                    count,
                    sizes
                );
            }
            Some(self.gather(device, dbias)?)
        } else {
            None
        };
        let dsink = if let Some(sink) = sink {
            let dsink: Tensor<f32> = device.unwritten(&[*heads])?;
            let (blocks, batch) = (grid(*heads, 1, THREADS)?, size(self.batch)?);
            let name = "attention_backward_sink";
            // SAFETY: as above.
            unsafe {
                launch!(device, Source::Attention, name, blocks, sink, log_sum, delta, dsink, batch, sizes);
            }
            Some(dsink)
        } else {
            None
        };
        Ok(AttentionGradients { q: dq, k: dk, v: dv, bias: dbias, sink: dsink })
    }

    /// Of the gradient of a bias, `[heads, queries, keys]`, that of the table, where the bias is one by buckets.
    fn gather(&self, device: &Device, dbias: Tensor<f32>) -> Result<Tensor<f32>> {
        let Self { buckets: Some(buckets), sizes, heads, queries, keys, .. } = self else {
            return Ok(dbias);
        };
        let slices = (queries * keys).div_ceil(ENTRIES);
        let columns = sizes.columns as usize;
        let partial: Tensor<f32> = device.unwritten(&[slices, *heads, columns])?;
        let blocks = grid(slices, *heads, THREADS)?;
        let name = "attention_table_partial";
        // SAFETY: the arguments are the kernel's; buckets are within the table, which `new` made sure of.
        unsafe { launch!(device, Source::Attention, name, blocks, dbias, buckets, partial, sizes) };
        let dtable: Tensor<f32> = device.unwritten(&[*heads, columns])?;
        let blocks = grid((heads * columns).div_ceil(THREADS as usize), 1, THREADS)?;
        let (slices, entries) = (size(slices)?, size(heads * columns)?);
        let name = "attention_table_total";
        // SAFETY: as above.
        unsafe { launch!(device, Source::Attention, name, blocks, partial, dtable, slices, entries) };
        Ok(dtable)
    }
}

/// [`crate::attention`]: `q` is `[batch, heads, queries, dim]`, `k` and `v` are `[batch, key_heads, keys, dim]`,
/// `key_heads` divides `heads`, and `dim` is 32, 64 or 128. In `bf16` it runs on the tensor cores.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention<T: Storage>(
    device: &Device,
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    scale: f32,
    masks: &Masks,
) -> Result<Attention<T>> {
    Problem::new(device, [q.dims(), k.dims(), v.dims()], None, scale, masks)?.forward(device, q, k, v)
}

/// Backward of [`attention`], whose arguments and result are given again with the gradient of `out`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention_backward<T: Storage>(
    device: &Device,
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    scale: f32,
    masks: &Masks,
    result: &Attention<T>,
    grad: &Tensor<T>,
) -> Result<AttentionGradients<T>> {
    Problem::new(device, [q.dims(), k.dims(), v.dims()], None, scale, masks)?.backward(
        device,
        [q, k, v],
        result,
        grad,
    )
}

/// [`crate::chunked_cross_attention`], RETRO's: `q` is `[batch, heads, tokens, dim]`, `k` and `v` are
/// `[batch * chunks, key_heads, keys, dim]`, and a chunk has `m` tokens. A bias is `[heads, m, keys]`, the key mask
/// `[batch * chunks, keys]`.
///
/// # Errors
/// When the shapes do not fit together, or a sequence has fewer than `chunks` complete chunks.
pub fn chunked_cross_attention<T: Storage>(
    device: &Device,
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    m: usize,
    scale: f32,
    masks: &Masks,
) -> Result<Attention<T>> {
    Problem::new(device, [q.dims(), k.dims(), v.dims()], Some(m), scale, masks)?.forward(device, q, k, v)
}

/// Backward of [`chunked_cross_attention`].
///
/// # Errors
/// When the shapes do not fit together.
pub fn chunked_cross_attention_backward<T: Storage>(
    device: &Device,
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    m: usize,
    scale: f32,
    masks: &Masks,
    result: &Attention<T>,
    grad: &Tensor<T>,
) -> Result<AttentionGradients<T>> {
    Problem::new(device, [q.dims(), k.dims(), v.dims()], Some(m), scale, masks)?.backward(
        device,
        [q, k, v],
        result,
        grad,
    )
}
