//! Activations, gates and the rotary embedding, `cuda/pointwise.cu`.

use candle_core::{Result, bail};

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};
use crate::Activation;

const THREADS: u32 = 256;
/// Rows a block of the rotary embedding.
const WARPS: usize = 8;

/// As the kernels number them.
fn number(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}

fn same<T>(name: &str, tensors: &[&Tensor<T>]) -> Result<()> {
    if tensors.iter().any(|tensor| tensor.dims() != tensors[0].dims()) || tensors[0].dims().contains(&0) {
        bail!(
            "{name}: shapes differ or are empty: {:?}",
            tensors.iter().map(|t| t.dims()).collect::<Vec<_>>()
        );
    }
    Ok(())
}

/// [`crate::gated`], `activation(x) * up`, or [`crate::activate`] where there is no `up`.
///
/// # Errors
/// When the shapes differ.
pub fn gated<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    up: Option<&Tensor<T>>,
    activation: Activation,
) -> Result<Tensor<T>> {
    same("gated", &[x].into_iter().chain(up).collect::<Vec<_>>())?;
    let out = device.unwritten(x.dims())?;
    let count: usize = x.dims().iter().product();
    let (kind, numbers) = (number(activation), count as u64);
    let name = format!("gated_forward_{}", T::NAME);
    let blocks = grid(count.div_ceil(THREADS as usize * T::WIDE), 1, THREADS)?;
    // SAFETY: the arguments are the kernel's, of one size.
    unsafe { launch!(device, Source::Pointwise, &name, blocks, x, up, out, kind, numbers) };
    Ok(out)
}

/// Gradients of `x` and `up` in [`gated`].
///
/// # Errors
/// When the shapes differ.
pub fn gated_backward<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    up: Option<&Tensor<T>>,
    grad: &Tensor<T>,
    activation: Activation,
) -> Result<(Tensor<T>, Option<Tensor<T>>)> {
    same("gated_backward", &[x, grad].into_iter().chain(up).collect::<Vec<_>>())?;
    let dx = device.unwritten(x.dims())?;
    let dup = up.map(|_| device.unwritten(x.dims())).transpose()?;
    let count: usize = x.dims().iter().product();
    let (kind, numbers) = (number(activation), count as u64);
    let name = format!("gated_backward_{}", T::NAME);
    let blocks = grid(count.div_ceil(THREADS as usize * T::WIDE), 1, THREADS)?;
    // SAFETY: the arguments are the kernel's, of one size.
    unsafe { launch!(device, Source::Pointwise, &name, blocks, x, up, grad, dx, dup, kind, numbers) };
    Ok((dx, dup))
}

/// [`crate::dropout`], with the same numbers set to zero; backward is the same of the gradient.
///
/// # Errors
/// When `rate` is not in `[0, 1)`.
pub fn dropout<T: Storage>(device: &Device, x: &Tensor<T>, rate: f32, seed: u64) -> Result<Tensor<T>> {
    if !(0.0..1.0).contains(&rate) {
        bail!("dropout: the rate is {rate}; expected at least 0 and less than 1");
    }
    same("dropout", &[x])?;
    let out = device.unwritten(x.dims())?;
    let count: usize = x.dims().iter().product();
    let blocks = grid(count.div_ceil(4 * THREADS as usize), 1, THREADS)?;
    // As on the CPU.
    let threshold = (f64::from(rate) * 4_294_967_296.0) as u32;
    let (keep, numbers, name) = (1.0 / (1.0 - rate), count as u64, format!("dropout_{}", T::NAME));
    // SAFETY: the arguments are the kernel's, of one size.
    unsafe { launch!(device, Source::Pointwise, &name, blocks, x, out, threshold, keep, seed, numbers) };
    Ok(out)
}

/// [`crate::split_heads`] of some columns: those of `x`, `[batch * tokens, stride]`, from `first` on, as
/// `[batch, heads, tokens, dim]`, so that one product can give queries, keys and values.
///
/// # Errors
/// When the shapes do not fit together, or `dim`, `stride` or `first` is no multiple of 8.
pub fn split_heads<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    first: usize,
    shape: [usize; 4],
) -> Result<Tensor<T>> {
    let out = device.unwritten(&shape)?;
    move_heads(device, x, &out, shape, x.dims(), first, false)?;
    Ok(out)
}

/// Back from [`split_heads`], into the columns of `to`, whose others stay as they are.
///
/// # Errors
/// As [`split_heads`].
pub fn merge_heads<T: Storage>(device: &Device, x: &Tensor<T>, to: &Tensor<T>, first: usize) -> Result<()> {
    let &[batch, heads, tokens, dim] = x.dims() else {
        bail!("merge_heads: x is [batch, heads, tokens, dim], not {:?}", x.dims());
    };
    move_heads(device, x, to, [batch, heads, tokens, dim], to.dims(), first, true)
}

fn move_heads<T: Storage>(
    device: &Device,
    from: &Tensor<T>,
    to: &Tensor<T>,
    [batch, heads, tokens, dim]: [usize; 4],
    rows: &[usize],
    first: usize,
    back: bool,
) -> Result<()> {
    let count = batch * heads * tokens * dim;
    let fits = matches!(rows, &[all, stride] if all == batch * tokens
        && first + heads * dim <= stride && stride.is_multiple_of(8));
    if !fits || count == 0 || !dim.is_multiple_of(8) || !first.is_multiple_of(8) {
        bail!("heads: [{batch}, {heads}, {tokens}, {dim}] and columns from {first} of {rows:?} do not fit");
    }
    let blocks = grid(count.div_ceil(THREADS as usize * T::WIDE), 1, THREADS)?;
    let (heads, tokens, dim, stride) = (size(heads)?, size(tokens)?, size(dim)?, size(rows[1])?);
    let (first, back, count, name) =
        (size(first)?, i32::from(back), count as u64, format!("move_heads_{}", T::NAME));
    // SAFETY: the arguments are the kernel's, and the columns are within the rows.
    unsafe {
        launch!(
            device,
            Source::Pointwise,
            &name,
            blocks,
            from,
            to,
            heads,
            tokens,
            dim,
            stride,
            first,
            back,
            count
        );
    }
    Ok(())
}

/// [`crate::rotary`]; with `back` the turn is undone, which is its gradient: `x` is `[batch, heads, tokens, dim]`, `cos`
/// and `sin` are `[tokens, half]` or `[batch, tokens, half]`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn rotary<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    back: bool,
) -> Result<Tensor<T>> {
    let &[batch, heads, tokens, dim] = x.dims() else {
        bail!("rotary: x is [batch, heads, tokens, dim], not {:?}", x.dims());
    };
    let half = *cos.dims().last().unwrap_or(&0);
    let own = cos.dims() == [batch, tokens, half];
    if half > dim / 2 || !(own || cos.dims() == [tokens, half]) || sin.dims() != cos.dims() {
        bail!("rotary: angles of {:?} and {:?} for {:?}", cos.dims(), sin.dims(), x.dims());
    }
    let out = device.unwritten(x.dims())?;
    let rows = batch * heads * tokens;
    let (own, sign, row_count) = (i32::from(own), if back { -1f32 } else { 1.0 }, rows as u64);
    let (heads, tokens, dim, half) = (size(heads)?, size(tokens)?, size(dim)?, size(half)?);
    let name = format!("rotary_{}", T::NAME);
    let blocks = grid(rows.div_ceil(WARPS), 1, THREADS)?;
    // SAFETY: the arguments are the kernel's, and their sizes are checked above.
    unsafe {
        launch!(
            device,
            Source::Pointwise,
            &name,
            blocks,
            x,
            cos,
            sin,
            out,
            heads,
            tokens,
            dim,
            half,
            own,
            sign,
            row_count
        )
    };
    Ok(out)
}
