//! Dropout without a stored mask.

use candle_core::{Result, Tensor, bail};

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::parallel::for_pieces;
use crate::philox::factors;

/// Sets each element to zero with probability `rate` and divides the others by `1 - rate` (Srivastava et
/// al. 2014, <https://jmlr.org/papers/v15/srivastava14a.html>).
///
/// Which elements stay is a function of `seed` and their place alone (a counter-based generator: Philox
/// 4x32 with 10 rounds, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so nothing is
/// stored for the backward pass, and neither threads nor the device matter. Give every layer and step a
/// seed of its own.
///
/// `x` has any shape and gets a gradient.
///
/// # Errors
/// When `rate` is not in `[0, 1)`.
pub fn dropout(x: &Tensor, rate: f32, seed: u64) -> Result<Tensor> {
    if !(0.0..1.0).contains(&rate) {
        bail!("dropout: the rate is {rate}; expected at least 0 and less than 1");
    }
    if rate == 0.0 {
        return Ok(x.clone());
    }
    on_gpu!(crate::gpu::takes(&[x]) => crate::gpu::dropout(x, rate, seed));
    if !fusible(&[x]) {
        return composed::dropout(x, rate, seed);
    }
    let x = x.contiguous()?;
    let out = apply(&x, rate, seed)?;
    let input = x.clone();
    record(&[&x], out, x.shape().clone(), move |_, grad| {
        Ok(vec![gradient(apply(grad, rate, seed)?, &input)?])
    })
}

fn apply(x: &Tensor, rate: f32, seed: u64) -> Result<Vec<f32>> {
    let mut out = vec![0f32; x.elem_count()];
    let x = View::of(x)?;
    let x = &x[..];
    // Pieces begin at multiples of 4, where a block of the generator does.
    for_pieces(&mut out, 4, |at, out| {
        for (block, (out, x)) in out.chunks_mut(4).zip(x[at..].chunks(4)).enumerate() {
            let factors = factors((at / 4 + block) as u64, rate, seed);
            for ((out, x), factor) in out.iter_mut().zip(x).zip(factors) {
                *out = x * factor;
            }
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn dropout_is_right() {
        let op = |t: &[Tensor]| dropout(&t[0], 0.3, 7);
        assert_gradients_are_slopes(&[random(&[3, 5], 1)], op);
        for shape in [&[1usize][..], &[3, 5, 7], &[70, 1001]] {
            let inputs = [random(shape, 1)];
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
        assert!(dropout(&random(&[2], 1), 1.0, 0).is_err());
    }
}
