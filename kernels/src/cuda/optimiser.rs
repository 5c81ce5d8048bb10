//! AdamW, Adafactor and the clipping of gradients, `cuda/optimiser.cu`.

use candle_core::{Result, bail};
use cudarc::driver::DeviceRepr;

use super::device::{Device, Source, Storage, Tensor, grid, grid3, launch, plain_arguments, size};
use crate::adafactor::LEAST;
use crate::adamw::Update;
use crate::{AdafactorOptions, AdamWOptions};

const THREADS: u32 = 256;
/// Parts of a tensor's sum of squares, at most.
const PARTS: usize = 512;
/// Rows whose part of a column's sum is one block's.
const ROWS: usize = 64;

/// What clipping leaves of the gradients, known to the device alone.
pub struct Clip {
    /// The factor, not a number where the norm is none; and the norm.
    result: Tensor<f32>,
}

impl Clip {
    /// Leaves this factor of the gradients.
    ///
    /// # Errors
    /// When the GPU's memory does not suffice.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn to(device: &Device, factor: f32) -> Result<Self> {
        Ok(Self { result: device.upload(&[factor, f32::NAN], &[2])? })
    }

    /// The Euclidean norm over all gradients before clipping, and whether a gradient held a NaN or an infinity: then a
    /// step changes nothing. Waits for the device.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn norm(&self, device: &Device) -> Result<(f32, bool)> {
        let result = device.download(&self.result)?;
        Ok((result[1], !result[0].is_finite()))
    }
}

/// The global norm of `grads`, and what clipping at `limit` leaves of them. The sum is of fixed parts in a fixed order.
///
/// # Errors
/// When there are no gradients.
pub fn clip<T: Storage>(device: &Device, grads: &[&Tensor<T>], limit: Option<f32>) -> Result<Clip> {
    if grads.is_empty() {
        bail!("clip: no gradients");
    }
    let partial: Tensor<f32> = device.zeros(&[grads.len() * PARTS])?;
    let name = format!("squares_{}", T::NAME);
    for (grad, n) in grads.iter().zip(0..) {
        let part = partial.from(device, n * PARTS);
        let count: usize = grad.dims().iter().product();
        let (blocks, count) = (parts(count)?, count as u64);
        // SAFETY: the arguments are the kernel's; there are at most PARTS blocks.
        unsafe { launch!(device, Source::Optimiser, &name, blocks, grad, part, count) };
    }
    let result: Tensor<f32> = device.unwritten(&[2])?;
    let (blocks, all, limit) = (grid(1, 1, THREADS)?, size(grads.len() * PARTS)?, limit.unwrap_or(0.0));
    // SAFETY: as above.
    unsafe { launch!(device, Source::Optimiser, "clip_factor", blocks, partial, result, all, limit) };
    Ok(Clip { result })
}

fn parts(count: usize) -> Result<cudarc::driver::LaunchConfig> {
    grid(count.div_ceil(THREADS as usize).clamp(1, PARTS), 1, THREADS)
}

/// A variable that is trained: its weight, in `bf16` with a copy in `f32` that is what is stepped.
pub struct Variable<T> {
    /// As operations read it.
    pub weight: Tensor<T>,
    /// As it is stepped, where that is finer.
    pub master: Option<Tensor<f32>>,
}

fn check<T>(variable: &Variable<T>, grad: &Tensor<T>) -> Result<()> {
    let master = variable.master.as_ref().map_or(grad.dims(), Tensor::dims);
    if variable.weight.dims() != grad.dims() || master != grad.dims() || grad.dims().contains(&0) {
        bail!(
            "optimiser: a gradient of {:?} for a weight of {:?} with a copy of {master:?}",
            grad.dims(),
            variable.weight.dims()
        );
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Adam {
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
    rate: f32,
    correction: f32,
    keep: f32,
}

// SAFETY: plain numbers, in the order of the struct of the same name in cuda/optimiser.cu.
unsafe impl DeviceRepr for Adam {}
plain_arguments!(Adam, Factors);

/// The state of [`crate::AdamW`] for one variable: running means of the gradient and of its square, in `f32`.
pub struct AdamW {
    first: Tensor<f32>,
    second: Tensor<f32>,
    steps: u32,
}

impl AdamW {
    /// Before the first step of a variable of this shape.
    ///
    /// # Errors
    /// When the GPU's memory does not suffice.
    pub fn new(device: &Device, shape: &[usize]) -> Result<Self> {
        Ok(Self { first: device.zeros(shape)?, second: device.zeros(shape)?, steps: 0 })
    }

    /// A state that is kept elsewhere, after so many steps.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn from_parts(first: Tensor<f32>, second: Tensor<f32>, steps: u32) -> Self {
        Self { first, second, steps }
    }

    /// One step, in place. Weight decay is for tensors of two or more dimensions.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn step<T: Storage>(
        &mut self,
        device: &Device,
        variable: &Variable<T>,
        grad: &Tensor<T>,
        clip: &Clip,
        options: &AdamWOptions,
        lr: f64,
    ) -> Result<()> {
        check(variable, grad)?;
        if self.first.dims() != grad.dims() {
            bail!("AdamW: a state of {:?} for a gradient of {:?}", self.first.dims(), grad.dims());
        }
        self.steps += 1;
        let Update { beta1, beta2, eps, rate, correction, keep } =
            Update::of(options, self.steps, lr, grad.dims().len());
        let adam = Adam {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            eps: eps as f32,
            rate: rate as f32,
            correction: correction as f32,
            keep: keep as f32,
        };
        let count: usize = grad.dims().iter().product();
        let (blocks, count) =
            (grid(count.div_ceil(THREADS as usize).min(1 << 16), 1, THREADS)?, count as u64);
        let Variable { weight, master } = variable;
        let (Self { first, second, .. }, factor) = (&*self, &clip.result);
        let name = format!("adamw_{}", T::NAME);
        // SAFETY: the arguments are the kernel's, of one shape.
        unsafe {
            launch!(
                device,
                Source::Optimiser,
                &name,
                blocks,
                weight,
                master,
                grad,
                first,
                second,
                factor,
                adam,
                count
            );
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Factors {
    rows: i32,
    columns: i32,
    keep: f32,
    eps: f32,
}

// SAFETY: plain numbers, in the order of the struct of the same name in cuda/optimiser.cu.
unsafe impl DeviceRepr for Factors {}

/// The state of [`crate::Adafactor`] for one variable: the running means of squares, of rows and columns, or of each
/// number of a vector.
pub struct Adafactor {
    row: Tensor<f32>,
    column: Option<Tensor<f32>>,
    shape: Vec<usize>,
    steps: u32,
}

impl Adafactor {
    /// Before the first step of a variable of this shape.
    ///
    /// # Errors
    /// When the GPU's memory does not suffice.
    pub fn new(device: &Device, shape: &[usize]) -> Result<Self> {
        let (row, column) = match shape {
            [outer @ .., rows, columns] => (
                device.zeros(&[outer, &[*rows]].concat())?,
                Some(device.zeros(&[outer, &[*columns]].concat())?),
            ),
            shape => (device.zeros(shape)?, None),
        };
        Ok(Self { row, column, shape: shape.to_vec(), steps: 0 })
    }

    /// A state that is kept elsewhere, after so many steps of a variable of this shape.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn from_parts(
        row: Tensor<f32>,
        column: Option<Tensor<f32>>,
        shape: &[usize],
        steps: u32,
    ) -> Self {
        Self { row, column, shape: shape.to_vec(), steps }
    }

    /// One step, in place.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn step<T: Storage>(
        &mut self,
        device: &Device,
        variable: &Variable<T>,
        grad: &Tensor<T>,
        clip: &Clip,
        options: &AdafactorOptions,
        lr: f64,
    ) -> Result<()> {
        check(variable, grad)?;
        if self.shape != grad.dims() {
            bail!("Adafactor: a state of {:?} for a gradient of {:?}", self.shape, grad.dims());
        }
        self.steps += 1;
        let Variable { weight, master } = variable;
        let Self { row, column, steps, .. } = &*self;
        let count: usize = grad.dims().iter().product();
        let (factor, numbers) = (&clip.result, count as u64);
        let keep = (1.0 - f64::from(*steps).powf(-options.decay)) as f32;
        let (outer, rows, columns) = match grad.dims() {
            [outer @ .., rows, columns] => (outer.iter().product(), *rows, *columns),
            _ => (1, 1, count),
        };
        let eps = options.eps as f32;
        let factors = Factors { rows: size(rows)?, columns: size(columns)?, keep, eps };
        let name = |part: &str| format!("adafactor_{part}{}", T::NAME);
        let scale = if let Some(column) = column {
            let blocks = grid(outer * rows, 1, THREADS)?;
            // SAFETY: the arguments are the kernel's, of the shapes checked above.
            unsafe { launch!(device, Source::Optimiser, &name("rows_"), blocks, grad, row, factor, factors) };
            let slices = rows.div_ceil(ROWS);
            let partial: Tensor<f32> = device.unwritten(&[outer, slices, columns])?;
            let blocks = grid3([columns.div_ceil(THREADS as usize), slices, outer], THREADS)?;
            // SAFETY: as above.
            unsafe {
                launch!(
                    device,
                    Source::Optimiser,
                    &name("column_parts_"),
                    blocks,
                    grad,
                    partial,
                    factor,
                    factors
                );
            }
            let blocks = grid(columns.div_ceil(THREADS as usize), outer, THREADS)?;
            let slices = size(slices)?;
            // SAFETY: as above.
            unsafe {
                launch!(
                    device,
                    Source::Optimiser,
                    "adafactor_columns",
                    blocks,
                    partial,
                    column,
                    factor,
                    slices,
                    factors
                );
            }
            let scale: Tensor<f32> = device.unwritten(&[outer])?;
            let (blocks, rows) = (grid(outer, 1, THREADS)?, size(rows)?);
            // SAFETY: as above.
            unsafe { launch!(device, Source::Optimiser, "adafactor_scale", blocks, row, scale, rows) };
            Some(scale)
        } else {
            let blocks = parts(count)?;
            // SAFETY: as above.
            unsafe {
                launch!(
                    device,
                    Source::Optimiser,
                    &name("whole_"),
                    blocks,
                    grad,
                    row,
                    factor,
                    keep,
                    eps,
                    numbers
                );
            }
            None
        };
        let blocks = parts(count)?;
        let slices = size(blocks.grid_dim.0 as usize)?;
        let sums: Tensor<f32> = device.unwritten(&[2, blocks.grid_dim.0 as usize])?;
        // SAFETY: as above.
        unsafe {
            launch!(
                device,
                Source::Optimiser,
                &name("sizes_"),
                blocks,
                weight,
                master,
                grad,
                row,
                column,
                scale,
                factor,
                sums,
                factors,
                numbers
            );
        }
        let rate: Tensor<f32> = device.unwritten(&[])?;
        let least = if options.relative { LEAST as f32 } else { 0.0 };
        let (one, lr_of, most) = (grid(1, 1, THREADS)?, lr as f32, options.clip as f32);
        // SAFETY: as above.
        unsafe {
            launch!(
                device,
                Source::Optimiser,
                "adafactor_rate",
                one,
                sums,
                rate,
                slices,
                lr_of,
                least,
                most,
                numbers
            );
        }
        let kept = if column.is_some() { (1.0 - lr * options.weight_decay) as f32 } else { 1.0 };
        let name = format!("adafactor_{}", T::NAME);
        // SAFETY: as above.
        unsafe {
            launch!(
                device,
                Source::Optimiser,
                &name,
                blocks,
                weight,
                master,
                grad,
                row,
                column,
                scale,
                factor,
                rate,
                kept,
                factors,
                numbers
            );
        }
        Ok(())
    }
}
