//! The output layer and its loss, `cuda/cross_entropy.cu`.

use std::any::Any;

use candle_core::{Error, Result, bail};

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};
use super::matmul::{THREADS, TILE};
use crate::CrossEntropyOptions;

/// How many gradients of logits are held at a time.
const HELD: usize = 64 << 20;

/// What [`linear_cross_entropy`] returns.
pub struct CrossEntropy {
    /// The sum of the losses, in nats.
    pub loss: Tensor<f32>,
    /// The logarithm of each row's softmax's denominator, `[tokens]`, which backward needs.
    pub log_total: Tensor<f32>,
}

/// `[tokens, vocabulary, dim]`.
fn check<T: Storage>(
    hidden: &Tensor<T>,
    weight: &Tensor<T>,
    targets: &[u32],
    options: &CrossEntropyOptions,
) -> Result<[usize; 3]> {
    let (&[tokens, dim], &[vocabulary, weight_dim]) = (hidden.dims(), weight.dims()) else {
        bail!("linear_cross_entropy: hidden is {:?} and weight {:?}", hidden.dims(), weight.dims());
    };
    if dim != weight_dim || targets.len() != tokens || tokens * dim * vocabulary == 0 {
        bail!(
            "linear_cross_entropy: hidden {:?}, weight {:?} and {} targets do not fit together or are empty",
            hidden.dims(),
            weight.dims(),
            targets.len()
        );
    }
    let CrossEntropyOptions { ignore, label_smoothing, z_loss } = *options;
    if !(0.0..=1.0).contains(&label_smoothing) || !z_loss.is_finite() {
        bail!("linear_cross_entropy: label_smoothing {label_smoothing} and z_loss {z_loss}");
    }
    let outside = |target: &u32| Some(*target) != ignore && *target as usize >= vocabulary;
    if let Some(row) = targets.iter().position(outside) {
        bail!(
            "linear_cross_entropy: target {} of row {row} is outside the vocabulary of {vocabulary}",
            targets[row]
        );
    }
    Ok([tokens, vocabulary, dim])
}

/// [`crate::linear_cross_entropy`]: `hidden` is `[tokens, dim]`, `weight` `[vocabulary, dim]`. The logits are never held.
///
/// # Errors
/// When the shapes do not fit together, a target that counts lies outside the vocabulary, or an option is out of its range.
pub fn linear_cross_entropy<T: Storage>(
    device: &Device,
    hidden: &Tensor<T>,
    weight: &Tensor<T>,
    targets: &[u32],
    options: &CrossEntropyOptions,
) -> Result<CrossEntropy> {
    let [tokens, vocabulary, dim] = check(hidden, weight, targets, options)?;
    let targets = device.upload_slice(targets)?;
    let tiles = vocabulary.div_ceil(TILE);
    let partial: Tensor<f32> = device.unwritten(&[tokens, tiles, 3])?;
    let logit: Tensor<f32> = device.zeros(&[tokens])?;
    let blocks = grid(tokens.div_ceil(TILE), tiles, THREADS)?;
    let (rows, words, width) = (size(tokens)?, size(vocabulary)?, size(dim)?);
    let name = format!("cross_entropy_statistics_{}", T::NAME);
    // SAFETY: the arguments are the kernel's, of the sizes checked above.
    unsafe {
        launch!(
            device,
            Source::CrossEntropy,
            &name,
            blocks,
            hidden,
            weight,
            targets,
            partial,
            logit,
            rows,
            words,
            width
        );
    }
    let log_total: Tensor<f32> = device.unwritten(&[tokens])?;
    let losses: Tensor<f32> = device.unwritten(&[tokens])?;
    let blocks = grid(tokens.div_ceil(THREADS as usize / 32), 1, THREADS)?;
    let (tiles, ignore, ignores) =
        (size(tiles)?, options.ignore.unwrap_or(0), i32::from(options.ignore.is_some()));
    let (smoothing, z_loss) = (options.label_smoothing, options.z_loss);
    // SAFETY: as above.
    unsafe {
        launch!(
            device,
            Source::CrossEntropy,
            "cross_entropy_rows",
            blocks,
            partial,
            logit,
            targets,
            log_total,
            losses,
            rows,
            words,
            tiles,
            ignore,
            ignores,
            smoothing,
            z_loss
        );
    }
    let loss: Tensor<f32> = device.unwritten(&[])?;
    let blocks = grid(1, 1, THREADS)?;
    // SAFETY: as above.
    unsafe { launch!(device, Source::CrossEntropy, "cross_entropy_total", blocks, losses, loss, rows) };
    Ok(CrossEntropy { loss, log_total })
}

/// Gradients of `hidden` and `weight` in [`linear_cross_entropy`], times `factor` (such as one over the tokens).
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn linear_cross_entropy_backward<T: Storage>(
    device: &Device,
    hidden: &Tensor<T>,
    weight: &Tensor<T>,
    targets: &[u32],
    options: &CrossEntropyOptions,
    result: &CrossEntropy,
    factor: f32,
) -> Result<(Tensor<T>, Tensor<T>)> {
    let [tokens, vocabulary, dim] = check(hidden, weight, targets, options)?;
    if result.log_total.dims() != [tokens] {
        bail!("linear_cross_entropy: the result is of {:?} tokens, not {tokens}", result.log_total.dims());
    }
    let targets = device.upload_slice(targets)?;
    let dhidden: Tensor<T> = device.unwritten(&[tokens, dim])?;
    let sums: Tensor<f32> = device.zeros(&[vocabulary, dim])?;
    let held = (HELD / vocabulary / TILE * TILE).clamp(TILE, tokens.next_multiple_of(TILE));
    let logits: Tensor<T> = device.unwritten(&[held.min(tokens), vocabulary])?;
    let (words, width) = (size(vocabulary)?, size(dim)?);
    let (ignore, ignores) = (options.ignore.unwrap_or(0), i32::from(options.ignore.is_some()));
    let (smoothing, z_loss) = (options.label_smoothing, options.z_loss);
    let none: Option<Tensor<T>> = None;
    for first in (0..tokens).step_by(held) {
        let some = first..tokens.min(first + held);
        let of_hidden = hidden.from(device, some.start * dim);
        let of_dhidden = dhidden.from(device, some.start * dim);
        let of_targets = targets.slice(some.clone());
        let of_log_total = result.log_total.from(device, some.start);
        let rows = size(some.len())?;
        let name = format!("cross_entropy_gradient_{}", T::NAME);
        let blocks = grid(some.len().div_ceil(TILE), vocabulary.div_ceil(TILE), THREADS)?;
        // SAFETY: the arguments are the kernel's, of the sizes checked above; the slices are within their tensors.
        unsafe {
            launch!(
                device,
                Source::CrossEntropy,
                &name,
                blocks,
                of_hidden,
                weight,
                of_targets,
                of_log_total,
                logits,
                rows,
                words,
                width,
                ignore,
                ignores,
                smoothing,
                z_loss,
                factor
            );
        }
        let name = format!("matmul_nn_{}", T::NAME);
        let blocks = grid(some.len().div_ceil(TILE), dim.div_ceil(TILE), THREADS)?;
        // SAFETY: as above.
        unsafe {
            launch!(
                device,
                Source::Matmul,
                &name,
                blocks,
                logits,
                weight,
                none,
                of_dhidden,
                rows,
                width,
                words
            );
        }
        let name = format!("matmul_tn_added_{}", T::NAME);
        let blocks = grid(vocabulary.div_ceil(TILE), dim.div_ceil(TILE), THREADS)?;
        // SAFETY: as above.
        unsafe {
            launch!(device, Source::Matmul, &name, blocks, logits, of_hidden, sums, words, width, rows)
        };
    }
    // In `f32` the sums are what is asked for.
    let sums: Box<dyn Any> = Box::new(sums);
    let sums = match sums.downcast::<Tensor<T>>() {
        Ok(dweight) => return Ok((dhidden, *dweight)),
        Err(sums) => *sums.downcast::<Tensor<f32>>().map_err(|_| Error::msg("cuda: sums are not f32"))?,
    };
    let dweight: Tensor<T> = device.unwritten(&[vocabulary, dim])?;
    let count = (vocabulary * dim) as u64;
    let blocks = grid((vocabulary * dim).div_ceil(THREADS as usize).min(1 << 16), 1, THREADS)?;
    // SAFETY: as above.
    unsafe { launch!(device, Source::Matmul, "round_bf16", blocks, sums, dweight, count) };
    Ok((dhidden, dweight))
}
