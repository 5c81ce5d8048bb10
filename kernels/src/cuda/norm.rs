//! Normalisation over the last dimension, `cuda/norm.cu`.

use candle_core::{Result, bail};

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};

const THREADS: u32 = 128;
/// Rows whose part of the weight's gradient is summed by one block.
const ROWS: usize = 64;

/// What a norm returns.
pub struct Normalised<T> {
    /// `x + residual`, where there is a residual.
    pub total: Option<Tensor<T>>,
    /// The norm of it, `[rows, width]`.
    pub out: Tensor<T>,
}

/// Gradients of a norm.
pub struct NormGradients<T> {
    /// Of `x` and of the residual alike, `[rows, width]`.
    pub x: Tensor<T>,
    /// `[width]`.
    pub weight: Tensor<T>,
    /// `[width]`; of a norm with a bias.
    pub bias: Option<Tensor<T>>,
}

/// [`crate::rms_norm`], or with a residual [`crate::add_rms_norm`]: `x` and `residual` are `[rows, width]`, `weight`
/// `[width]`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn rms_norm<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    residual: Option<&Tensor<T>>,
    weight: &Tensor<T>,
    eps: f32,
) -> Result<Normalised<T>> {
    forward(device, "rms_norm", x, residual, weight, None, eps)
}

/// [`crate::layer_norm`], or with a residual [`crate::add_layer_norm`]; as [`rms_norm`], and `bias` is `[width]`.
///
/// # Errors
/// When the shapes do not fit together.
pub fn layer_norm<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    residual: Option<&Tensor<T>>,
    weight: &Tensor<T>,
    bias: &Tensor<T>,
    eps: f32,
) -> Result<Normalised<T>> {
    forward(device, "layer_norm", x, residual, weight, Some(bias), eps)
}

/// Backward of [`rms_norm`]: `x` is what was normalised (the sum, where there was a residual), `grad` the gradient of
/// `out`, and `through` one of the sum from elsewhere, which is added.
///
/// # Errors
/// When the shapes do not fit together.
pub fn rms_norm_backward<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    grad: &Tensor<T>,
    through: Option<&Tensor<T>>,
    eps: f32,
) -> Result<NormGradients<T>> {
    backward(device, "rms_norm", x, weight, grad, through, eps, false)
}

/// Backward of [`layer_norm`], as [`rms_norm_backward`].
///
/// # Errors
/// When the shapes do not fit together.
pub fn layer_norm_backward<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    grad: &Tensor<T>,
    through: Option<&Tensor<T>>,
    eps: f32,
) -> Result<NormGradients<T>> {
    backward(device, "layer_norm", x, weight, grad, through, eps, true)
}

/// Rows and width, when all fit together.
fn check<T>(
    name: &str,
    x: &Tensor<T>,
    like_x: &[&Tensor<T>],
    of_width: &[&Tensor<T>],
) -> Result<(usize, usize)> {
    let &[rows, width] = x.dims() else { bail!("{name}: x is [rows, width], not {:?}", x.dims()) };
    for tensor in like_x {
        if tensor.dims() != x.dims() {
            bail!("{name}: {:?} beside x, which is {:?}", tensor.dims(), x.dims());
        }
    }
    for tensor in of_width {
        if tensor.dims() != [width] {
            bail!("{name}: weight and bias are [{width}], not {:?}", tensor.dims());
        }
    }
    if rows == 0 || width == 0 {
        bail!("{name}: x is empty");
    }
    Ok((rows, width))
}

/// Loads of 16 bytes where rows are multiples of that.
fn kernel<T: Storage>(name: &str, direction: &str, width: usize) -> String {
    let wide = if width.is_multiple_of(T::WIDE) { T::WIDE } else { 1 };
    format!("{name}_{direction}_{}x{wide}", T::NAME)
}

fn forward<T: Storage>(
    device: &Device,
    name: &str,
    x: &Tensor<T>,
    residual: Option<&Tensor<T>>,
    weight: &Tensor<T>,
    bias: Option<&Tensor<T>>,
    eps: f32,
) -> Result<Normalised<T>> {
    let of_width: Vec<_> = [weight].into_iter().chain(bias).collect();
    let (rows, width) = check(name, x, residual.as_slice(), &of_width)?;
    let total = residual.map(|_| device.unwritten(x.dims())).transpose()?;
    let out = device.unwritten(x.dims())?;
    let name = kernel::<T>(name, "forward", width);
    let width = size(width)?;
    let blocks = grid(rows, 1, THREADS)?;
    // SAFETY: the arguments are the kernel's, and `check` made sure of their sizes.
    unsafe {
        launch!(device, Source::Norm, &name, blocks, x, residual, weight, bias, total, out, width, eps)
    };
    Ok(Normalised { total, out })
}

fn backward<T: Storage>(
    device: &Device,
    name: &str,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    grad: &Tensor<T>,
    through: Option<&Tensor<T>>,
    eps: f32,
    with_bias: bool,
) -> Result<NormGradients<T>> {
    let like_x: Vec<_> = [grad].into_iter().chain(through).collect();
    let (rows, width) = check(name, x, &like_x, &[weight])?;
    let (blocks, columns) = (rows.div_ceil(ROWS), width.div_ceil(THREADS as usize));
    let dx = device.unwritten(x.dims())?;
    let dweight = device.unwritten(&[width])?;
    let dbias = with_bias.then(|| device.unwritten(&[width])).transpose()?;
    let kept: Tensor<f32> = device.unwritten(&[rows, 2])?;
    let partial: Tensor<f32> = device.unwritten(&[blocks, 2, width])?;

    let name = kernel::<T>(name, "backward", width);
    let (width, row_count, block_count) = (size(width)?, size(rows)?, size(blocks)?);
    let each = grid(rows, 1, THREADS)?;
    // SAFETY: the arguments are the kernel's, and `check` made sure of their sizes.
    unsafe { launch!(device, Source::Norm, &name, each, x, weight, grad, through, dx, kept, width, eps) };

    let name = format!("norm_weight_partial_{}", T::NAME);
    let blocks = grid(columns, blocks, THREADS)?;
    // SAFETY: as above; `partial` has a place for each block of rows.
    unsafe { launch!(device, Source::Norm, &name, blocks, x, grad, kept, partial, row_count, width) };

    let name = format!("norm_weight_total_{}", T::NAME);
    let blocks = grid(columns, 1, THREADS)?;
    // SAFETY: as above.
    unsafe { launch!(device, Source::Norm, &name, blocks, partial, dweight, dbias, block_count, width) };
    Ok(NormGradients { x: dx, weight: dweight, bias: dbias })
}
