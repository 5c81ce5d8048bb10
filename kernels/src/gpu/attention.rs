//! Attention.

use candle_core::{DType, Result, Tensor};

use super::{Gpu, Number, by_dtype, takes};
use crate::cuda::{self, Bias, Masks};
use crate::{AttentionOptions, RelativeBias};

/// Up to so many queries without gradients, those of a step of generation, are better served by the kernel that cuts the
/// keys into pieces.
const FEW: usize = 8;

/// The widths of heads that kernels are compiled for. Wider ones would not fit a block's 48 KiB of shared memory.
const WIDTHS: [usize; 3] = [32, 64, 128];

/// Whether the kernels can take this attention.
pub fn takes_attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> bool {
    let table = options.relative.map(|relative| relative.table);
    let others = [options.bias, table, options.sink, options.key_mask];
    takes(&[q, k, v])
        // Texts in a row are put together of candle's own operations there.
        && options.starts.is_none()
        && q.dims().last() <= WIDTHS.last()
        && others.into_iter().flatten().all(|other| other.device().same_device(q.device()))
}

/// See [`crate::attention`], or with chunks of `m` [`crate::chunked_cross_attention`].
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
    m: Option<usize>,
) -> Result<Tensor> {
    let dim = q.dim(3)?;
    match WIDTHS.into_iter().find(|width| *width >= dim) {
        Some(width) if width > dim => {
            // Zeros add nothing to a score, and what is made of them is cut off.
            let wide = |x: &Tensor| x.pad_with_zeros(3, 0, width - dim);
            attention(&wide(q)?, &wide(k)?, &wide(v)?, options, m)?.narrow(3, 0, dim)
        }
        _ => by_dtype!(q, T => run::<T>(q, k, v, options, m)),
    }
}

/// What the kernels read beside queries, keys and values, as backward needs it too.
struct Beside {
    causal: bool,
    window: Option<usize>,
    offset: i32,
    scale: f32,
    m: Option<usize>,
    key_mask: Option<Tensor>,
    /// A bias, or the table of a relative one.
    bias: Option<Tensor>,
    buckets: Option<Vec<u32>>,
    sink: Option<Tensor>,
}

impl Beside {
    fn new(q: &Tensor, k: &Tensor, options: &AttentionOptions, m: Option<usize>) -> Result<Self> {
        let (queries, keys) = (q.dim(2)?, k.dim(2)?);
        let table = options.relative.map(|relative| relative.table);
        let buckets = options.relative.map(|RelativeBias { buckets, .. }| buckets.flatten_all()?.to_vec1());
        // In `f32` whatever the others are in; candle turns their gradients back.
        let wide = |tensor: Option<&Tensor>| tensor.map(|tensor| tensor.to_dtype(DType::F32)).transpose();
        Ok(Self {
            causal: options.causal,
            window: options.window,
            offset: keys as i32 - queries as i32,
            scale: options.scale,
            m,
            key_mask: options.key_mask.map(|mask| mask.to_dtype(DType::U8)).transpose()?,
            bias: wide(options.bias.or(table))?,
            buckets: buckets.transpose()?,
            sink: wide(options.sink)?,
        })
    }

    /// Runs `work` with the masks as kernels take them.
    fn with<R>(&self, gpu: &Gpu, work: impl FnOnce(&Masks) -> Result<R>) -> Result<R> {
        let wide =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| gpu.lend::<f32>(tensor)).transpose();
        let (bias, sink) = (wide(&self.bias)?, wide(&self.sink)?);
        let keys = self.key_mask.as_ref().map(|mask| gpu.lend::<u8>(mask)).transpose()?;
        work(&Masks {
            causal: self.causal,
            window: self.window,
            offset: self.offset,
            keys: keys.as_ref(),
            bias: bias.as_ref().map(|bias| match &self.buckets {
                Some(buckets) => Bias::Relative { table: bias, buckets },
                None => Bias::Each(bias),
            }),
            sink: sink.as_ref(),
        })
    }
}

fn run<T: Number>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
    m: Option<usize>,
) -> Result<Tensor> {
    let gpu = Gpu::of(q)?;
    let beside = Beside::new(q, k, options, m)?;
    let others = [&beside.bias, &beside.sink].map(Option::as_ref);
    let inputs: Vec<&Tensor> = [q, k, v].into_iter().chain(others.into_iter().flatten()).collect();
    let queries = q.dim(2)?;
    let few = queries <= FEW.min(k.dim(2)?) && (options.causal || queries == 1);
    if m.is_none() && few && beside.buckets.is_none() && !inputs.iter().any(|input| input.track_op()) {
        return decode::<T>(&gpu, q, k, v, &beside);
    }
    let kernels = gpu.kernels.clone();
    let (of_q, of_k, of_v) = (gpu.lend::<T>(q)?, gpu.lend::<T>(k)?, gpu.lend::<T>(v)?);
    let found = beside.with(&gpu, |masks| match m {
        None => cuda::attention(&kernels, &of_q, &of_k, &of_v, beside.scale, masks),
        Some(m) => cuda::chunked_cross_attention(&kernels, &of_q, &of_k, &of_v, m, beside.scale, masks),
    })?;
    let log_sum = gpu.tensor(found.log_sum, &q.dims()[..3])?;
    let inputs: Vec<Tensor> = inputs.into_iter().cloned().collect();
    let (of, inputs_in) = (gpu.clone(), inputs.clone());
    gpu.record(&inputs.iter().collect::<Vec<_>>(), found.out, q.shape(), move |out, grad| {
        let [q, k, v] = [0, 1, 2].map(|i| of.lend::<T>(&inputs_in[i]));
        let (q, k, v, grad) = (q?, k?, v?, of.lend::<T>(grad)?);
        let result = cuda::Attention { out: of.lend::<T>(out)?, log_sum: of.lend(&log_sum)? };
        let found = beside.with(&of, |masks| {
            let (kernels, scale) = (&of.kernels, beside.scale);
            match beside.m {
                None => cuda::attention_backward(kernels, &q, &k, &v, scale, masks, &result, &grad),
                Some(m) => cuda::chunked_cross_attention_backward(
                    kernels, &q, &k, &v, m, scale, masks, &result, &grad,
                ),
            }
        })?;
        let mut gradients = vec![
            of.gradient(found.q, &inputs_in[0])?,
            of.gradient(found.k, &inputs_in[1])?,
            of.gradient(found.v, &inputs_in[2])?,
        ];
        for (gradient, input) in [found.bias, found.sink].into_iter().flatten().zip(&inputs_in[3..]) {
            gradients.push(of.gradient(gradient, input)?);
        }
        Ok(gradients)
    })
}

/// Attention of few queries on keys that may lie in a cache with room for more.
fn decode<T: Number>(gpu: &Gpu, q: &Tensor, k: &Tensor, v: &Tensor, beside: &Beside) -> Result<Tensor> {
    let (kernels, tokens) = (&gpu.kernels, k.dim(2)?);
    let (keys, values) = match (gpu.lend_with_room::<T>(k)?, gpu.lend_with_room::<T>(v)?) {
        (Some(keys), Some(values)) if keys.dims() == values.dims() => (keys, values),
        _ => (gpu.lend::<T>(k)?, gpu.lend::<T>(v)?),
    };
    let q_lent = gpu.lend::<T>(q)?;
    let out = beside
        .with(gpu, |masks| cuda::decode(kernels, &q_lent, &keys, &values, tokens, beside.scale, masks))?;
    gpu.tensor(out, q.shape())
}
