//! Products of a linear layer, `cuda/matmul.cu`.

use candle_core::{Result, bail};

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};

pub(super) const THREADS: u32 = 256;
/// Rows and columns of a block.
pub(super) const TILE: usize = 128;

/// Where the inner dimension of the operands lies.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Left `[rows, inner]`, right `[columns, inner]`.
    Nt,
    /// Left `[rows, inner]`, right `[inner, columns]`.
    Nn,
    /// Left `[inner, rows]`, right `[inner, columns]`.
    Tn,
}

/// The product `[rows, columns]`, plus `residual` of that shape. `left` and `right` have the sizes that `kind` says, or
/// more rows, which the callers make sure of.
pub(super) fn product<T: Storage>(
    device: &Device,
    kind: Kind,
    left: &Tensor<T>,
    right: &Tensor<T>,
    residual: Option<&Tensor<T>>,
    [rows, columns, inner]: [usize; 3],
) -> Result<Tensor<T>> {
    let out = device.unwritten(&[rows, columns])?;
    let name = match kind {
        Kind::Nt => "nt",
        Kind::Nn => "nn",
        Kind::Tn => "tn",
    };
    let name = format!("matmul_{name}_{}", T::NAME);
    let blocks = grid(rows.div_ceil(TILE), columns.div_ceil(TILE), THREADS)?;
    let (rows, columns, inner) = (size(rows)?, size(columns)?, size(inner)?);
    // SAFETY: the arguments are the kernel's, of the sizes that the callers make sure of.
    unsafe {
        launch!(device, Source::Matmul, &name, blocks, left, right, residual, out, rows, columns, inner)
    };
    Ok(out)
}

fn check<T>(x: &Tensor<T>, weight: &Tensor<T>, like_out: &[&Tensor<T>]) -> Result<[usize; 3]> {
    let (&[rows, inner], &[columns, weight_inner]) = (x.dims(), weight.dims()) else {
        bail!("linear: {:?} and a weight of {:?}; both have two dimensions", x.dims(), weight.dims());
    };
    if inner != weight_inner || like_out.iter().any(|tensor| tensor.dims() != [rows, columns]) {
        bail!(
            "linear: {:?}, a weight of {:?} and results or residuals of {:?} do not fit together",
            x.dims(),
            weight.dims(),
            like_out.iter().map(|tensor| tensor.dims()).collect::<Vec<_>>()
        );
    }
    if rows * columns * inner == 0 {
        bail!("linear: {:?} or {:?} is empty", x.dims(), weight.dims());
    }
    Ok([rows, columns, inner])
}

/// [`crate::linear`], or with a residual [`crate::linear_add`]: `x` is `[rows, in]`, `weight` `[out, in]`, the residual and
/// the result `[rows, out]`. In `bf16` it runs on the tensor cores.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    residual: Option<&Tensor<T>>,
) -> Result<Tensor<T>> {
    let sizes = check(x, weight, residual.as_slice())?;
    product(device, Kind::Nt, x, weight, residual, sizes)
}

/// Gradients of `x` and `weight` in [`linear`]; the residual's is `grad` itself. `more`, where there is some, is a gradient
/// of `x` from elsewhere, which is added.
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_backward<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    weight: &Tensor<T>,
    grad: &Tensor<T>,
    more: Option<&Tensor<T>>,
) -> Result<(Tensor<T>, Tensor<T>)> {
    check(x, weight, &[grad])?;
    let dx = linear_input_gradient(device, weight, grad, more)?;
    Ok((dx, linear_weight_gradient(device, x, grad)?))
}

/// That of `x` in [`linear_backward`].
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_input_gradient<T: Storage>(
    device: &Device,
    weight: &Tensor<T>,
    grad: &Tensor<T>,
    more: Option<&Tensor<T>>,
) -> Result<Tensor<T>> {
    let (&[rows, columns], &[weight_columns, inner]) = (grad.dims(), weight.dims()) else {
        bail!("linear: a gradient of {:?} and a weight of {:?}", grad.dims(), weight.dims());
    };
    if columns != weight_columns || more.is_some_and(|more| more.dims() != [rows, inner]) {
        bail!(
            "linear: a gradient of {:?}, a weight of {:?} and another gradient of {:?} do not fit together",
            grad.dims(),
            weight.dims(),
            more.map(Tensor::dims)
        );
    }
    product(device, Kind::Nn, grad, weight, more, [rows, inner, columns])
}

/// That of the weight in [`linear_backward`].
///
/// # Errors
/// When the shapes do not fit together.
pub fn linear_weight_gradient<T: Storage>(
    device: &Device,
    x: &Tensor<T>,
    grad: &Tensor<T>,
) -> Result<Tensor<T>> {
    let (&[rows, inner], &[grad_rows, columns]) = (x.dims(), grad.dims()) else {
        bail!("linear: {:?} and a gradient of {:?}", x.dims(), grad.dims());
    };
    if rows != grad_rows {
        bail!("linear: {:?} and a gradient of {:?} do not fit together", x.dims(), grad.dims());
    }
    product(device, Kind::Tn, grad, x, None, [columns, inner, rows])
}
