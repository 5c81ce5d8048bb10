//! Attention, `cuda/attention.cu`.

use candle_core::{Error, Result, bail};
use cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use half::bf16;

use super::device::{Device, NULL, Source, Tensor, grid, push_optional, size};

const THREADS: u32 = 128;
/// Rows a block, and warps a block.
const TILE: usize = 64;
const WARPS: usize = 4;

/// Which keys a query sees.
#[derive(Default)]
pub struct Masks<'a> {
    /// A query at position `i + offset` sees no key after it.
    pub causal: bool,
    /// The position of the first query among the keys.
    pub offset: i32,
    /// Of so many positions, its own included, a query sees the keys.
    pub window: Option<usize>,
    /// `[batch, keys]` by rows; 0: no query sees this key.
    pub keys: Option<&'a [u8]>,
    /// A score without a value for each head, `[heads]`.
    pub sink: Option<&'a Tensor<f32>>,
}

/// What attention returns.
pub struct Attention {
    /// `[batch, heads, queries, dim]`; zeros for a query that sees no key.
    pub out: Tensor<bf16>,
    /// The logarithm of each softmax's sum, `[batch, heads, queries]`, which backward needs.
    pub log_sum: Tensor<f32>,
}

/// Gradients of attention, of the shapes of what they are gradients of.
pub struct AttentionGradients {
    /// Of the queries.
    pub q: Tensor<bf16>,
    /// Of the keys.
    pub k: Tensor<bf16>,
    /// Of the values.
    pub v: Tensor<bf16>,
    /// Of the sink.
    pub sink: Option<Tensor<f32>>,
}

/// As the kernels take it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sizes {
    heads: i32,
    key_heads: i32,
    queries: i32,
    keys: i32,
    offset: i32,
    causal: i32,
    window: i32,
    scale: f32,
}

// SAFETY: plain numbers, in the order of the struct of the same name in cuda/attention.cu.
unsafe impl DeviceRepr for Sizes {}

/// A problem whose shapes fit together, with its mask on the device.
struct Problem<'a> {
    batch: usize,
    heads: usize,
    key_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    sizes: Sizes,
    mask: Option<CudaSlice<u8>>,
    sink: Option<&'a Tensor<f32>>,
}

impl<'a> Problem<'a> {
    fn new(
        device: &Device,
        q: &Tensor<bf16>,
        k: &Tensor<bf16>,
        v: &Tensor<bf16>,
        scale: f32,
        masks: &Masks<'a>,
    ) -> Result<Self> {
        let (&[batch, heads, queries, dim], &[key_batch, key_heads, keys, key_dim]) = (q.dims(), k.dims())
        else {
            bail!(
                "attention: q and k are [batch, heads, tokens, dim], not {:?} and {:?}",
                q.dims(),
                k.dims()
            );
        };
        if (key_batch, key_dim) != (batch, dim)
            || v.dims() != k.dims()
            || key_heads == 0
            || heads % key_heads != 0
        {
            bail!("attention: q, k and v do not fit: {:?}, {:?}, {:?}", q.dims(), k.dims(), v.dims());
        }
        if ![32, 64, 128].contains(&dim) {
            bail!("attention: heads of {dim}; on the GPU they have 32, 64 or 128 components");
        }
        if batch == 0 || heads == 0 || queries == 0 || keys == 0 {
            bail!("attention: q or k is empty: {:?}, {:?}", q.dims(), k.dims());
        }
        if masks.keys.is_some_and(|mask| mask.len() != batch * keys) {
            bail!("attention: the key mask is [{batch}, {keys}]");
        }
        if masks.sink.is_some_and(|sink| sink.dims() != [heads]) {
            bail!("attention: the sink is [{heads}]");
        }
        if masks.window == Some(0) {
            bail!("attention: a window of 0 positions");
        }
        let sizes = Sizes {
            heads: size(heads)?,
            key_heads: size(key_heads)?,
            queries: size(queries)?,
            keys: size(keys)?,
            offset: masks.offset,
            causal: masks.causal.into(),
            window: size(masks.window.unwrap_or(0))?,
            scale,
        };
        let mask = masks.keys.map(|mask| device.upload_slice(mask)).transpose()?;
        Ok(Self { batch, heads, key_heads, queries, keys, dim, sizes, mask, sink: masks.sink })
    }

    fn kernel(&self, device: &Device, name: &str) -> Result<cudarc::driver::CudaFunction> {
        device.kernel(Source::Attention, &format!("attention_{name}_{}", self.dim))
    }
}

/// [`crate::attention`]: `q` is `[batch, heads, queries, dim]`, `k` and `v` are `[batch, key_heads, keys, dim]`,
/// `key_heads` divides `heads`, and `dim` is 32, 64 or 128.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(
    device: &Device,
    q: &Tensor<bf16>,
    k: &Tensor<bf16>,
    v: &Tensor<bf16>,
    scale: f32,
    masks: &Masks,
) -> Result<Attention> {
    let problem = Problem::new(device, q, k, v, scale, masks)?;
    let out = device.unwritten(q.dims())?;
    let log_sum = device.unwritten(&[problem.batch, problem.heads, problem.queries])?;
    let function = problem.kernel(device, "forward")?;
    let mut launch = device.stream.launch_builder(&function);
    launch.arg(&q.data).arg(&k.data).arg(&v.data);
    match &problem.mask {
        Some(mask) => launch.arg(mask),
        None => launch.arg(&NULL),
    };
    push_optional!(launch, problem.sink);
    launch.arg(&out.data).arg(&log_sum.data).arg(&problem.sizes);
    // SAFETY: the arguments are the kernel's, and `Problem::new` made sure of their sizes.
    unsafe { launch.launch(grid(problem.queries.div_ceil(TILE), problem.batch * problem.heads, THREADS)?) }
        .map_err(Error::wrap)?;
    Ok(Attention { out, log_sum })
}

/// Backward of [`attention`], whose arguments and result are given again with the gradient of `out`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention_backward(
    device: &Device,
    q: &Tensor<bf16>,
    k: &Tensor<bf16>,
    v: &Tensor<bf16>,
    scale: f32,
    masks: &Masks,
    result: &Attention,
    grad: &Tensor<bf16>,
) -> Result<AttentionGradients> {
    let problem = Problem::new(device, q, k, v, scale, masks)?;
    if grad.dims() != q.dims() || result.out.dims() != q.dims() {
        bail!("attention: the gradient is {:?} and the result {:?}", grad.dims(), result.out.dims());
    }
    let Problem { batch, heads, key_heads, queries, keys, .. } = problem;
    let rows = size(batch * heads * queries)?;
    let delta: Tensor<f32> = device.unwritten(&[batch, heads, queries])?;
    let (dq, dk, dv) =
        (device.unwritten(q.dims())?, device.unwritten(k.dims())?, device.unwritten(v.dims())?);

    let function = problem.kernel(device, "delta")?;
    let mut launch = device.stream.launch_builder(&function);
    launch.arg(&result.out.data).arg(&grad.data).arg(&delta.data).arg(&rows);
    // SAFETY: the arguments are the kernel's, and their sizes are checked above and by `Problem::new`.
    unsafe { launch.launch(grid((rows as usize).div_ceil(WARPS), 1, THREADS)?) }.map_err(Error::wrap)?;

    let sides: [(&str, Vec<&Tensor<bf16>>, usize, usize); 2] =
        [("backward_q", vec![&dq], queries, heads), ("backward_kv", vec![&dk, &dv], keys, key_heads)];
    for (name, outputs, rows, heads) in sides {
        let function = problem.kernel(device, name)?;
        let mut launch = device.stream.launch_builder(&function);
        launch.arg(&q.data).arg(&k.data).arg(&v.data);
        match &problem.mask {
            Some(mask) => launch.arg(mask),
            None => launch.arg(&NULL),
        };
        launch.arg(&grad.data).arg(&result.log_sum.data).arg(&delta.data);
        for output in outputs {
            launch.arg(&output.data);
        }
        launch.arg(&problem.sizes);
        // SAFETY: as above.
        unsafe { launch.launch(grid(rows.div_ceil(TILE), batch * heads, THREADS)?) }.map_err(Error::wrap)?;
    }

    let mut dsink = None;
    if let Some(sink) = problem.sink {
        let out: Tensor<f32> = device.unwritten(&[heads])?;
        let batch = size(batch)?;
        let function = device.kernel(Source::Attention, "attention_backward_sink")?;
        let mut launch = device.stream.launch_builder(&function);
        launch
            .arg(&sink.data)
            .arg(&result.log_sum.data)
            .arg(&delta.data)
            .arg(&out.data)
            .arg(&batch)
            .arg(&problem.sizes);
        // SAFETY: as above.
        unsafe { launch.launch(grid(heads, 1, THREADS)?) }.map_err(Error::wrap)?;
        dsink = Some(out);
    }
    Ok(AttentionGradients { q: dq, k: dk, v: dv, sink: dsink })
}
