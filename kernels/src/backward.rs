//! The backward pass.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, TensorId, Var, bail};

use crate::autograd::{copy_of, record_storage};
use crate::parallel::for_pieces;
use crate::simd::add;

/// The gradients of `loss`, a scalar, with regard to every variable that it depends on: those of
/// [`Tensor::backward`], for less memory and work.
///
/// candle adds every gradient to a tensor of zeros that it makes first. The gradients that this crate's operations
/// have for variables stay out of that: the first is taken as it is, and others are added to it in place. (Within
/// rayon's tasks, where one thread may run a second pass while the first waits, all passes must be of this kind.)
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let collecting = Collecting::begin();
    let mut store = loss.backward()?;
    let collected = collecting.finish();
    for (variable, gradient) in collected.of_parts {
        let gradient = match store.get_id(variable) {
            Some(other) => (gradient + other)?,
            None => gradient,
        };
        store.insert_id(variable, gradient);
    }
    for (variable, values) in collected.of_kernels.into_values() {
        let gradient = Tensor::from_vec(values, variable.shape(), variable.device())?;
        // What candle's own operations have for it.
        let gradient = match store.remove(&variable) {
            Some(other) => (gradient + other)?,
            None => gradient,
        };
        store.insert(&variable, gradient);
    }
    Ok(store)
}

/// [`backward`] of a part of a network within the pass over the whole: the gradients of those `inputs` that have any, where the
/// part's `output` has the gradient `slope`. What the part has for other variables goes to the whole pass.
pub fn backward_within(
    output: &Tensor,
    slope: &Tensor,
    inputs: &[Option<Var>],
) -> Result<Vec<Option<Tensor>>> {
    if COLLECTED.with_borrow(Option::is_none) {
        bail!("what is recomputed has gradients in sidenote_kernels::backward only");
    }
    // A number of which the output has that gradient.
    let number = Tensor::zeros((), DType::F32, output.device())?;
    let (number, slope) = (copy_of(&number)?, slope.clone());
    let loss = record_storage(&[output], number, ().into(), move |_, _| Ok(vec![Some(slope.clone())]))?;
    let mut store = loss.backward()?;
    let mut of_input = |input: &Var| {
        let by_kernels = match collected(|all| all.of_kernels.remove(&input.id())).flatten() {
            Some((_, values)) => Some(Tensor::from_vec(values, input.shape(), input.device())?),
            None => None,
        };
        Ok(match (by_kernels, store.remove(input)) {
            (Some(a), Some(b)) => Some((a + b)?.detach()),
            (a, b) => a.or(b).map(|gradient| gradient.detach()),
        })
    };
    let gradients = inputs.iter().map(|input| input.as_ref().map_or(Ok(None), &mut of_input));
    let gradients = gradients.collect::<Result<_>>()?;
    // candle has gradients for constants too, which hold what they were made of: with them the whole part would be kept.
    for variable in loss.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
        let Some(gradient) = store.remove(variable) else { continue };
        let sum = match collected(|all| all.of_parts.remove(&variable.id())).flatten() {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        collected(|all| all.of_parts.insert(variable.id(), sum.detach()));
    }
    Ok(gradients)
}

/// Gradients of variables.
#[derive(Default)]
struct Collected {
    /// What this crate's operations have for them.
    of_kernels: HashMap<TensorId, (Tensor, Vec<f32>)>,
    /// What candle's operations have for them in [parts](backward_within) of the network.
    of_parts: HashMap<TensorId, Tensor>,
}

thread_local! {
    /// What the innermost [`backward`] that this thread is in has collected.
    static COLLECTED: RefCell<Option<Collected>> = const { RefCell::new(None) };
}

/// As long as it lives, gradients are collected; it keeps what an outer pass has.
struct Collecting {
    outer: Option<Collected>,
}

impl Collecting {
    fn begin() -> Self {
        Self { outer: COLLECTED.replace(Some(Collected::default())) }
    }

    fn finish(self) -> Collected {
        COLLECTED.take().unwrap_or_default()
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        COLLECTED.set(self.outer.take());
    }
}

/// `values` as the gradient of `input`: None where `input` asks for none, or is a variable whose gradients are being
/// collected.
pub fn gradient(values: Vec<f32>, input: &Tensor) -> Result<Option<Tensor>> {
    accumulate(input, |there| match there {
        None => values,
        Some(mut sum) => {
            for_pieces(&mut sum, 1, |at, sum| add(sum, &values[at..][..sum.len()]));
            sum
        }
    })
}

/// The gradient of `input` as `sum` makes it from what has been collected for it, if anything; else as [`gradient`].
pub fn accumulate(input: &Tensor, sum: impl FnOnce(Option<Vec<f32>>) -> Vec<f32>) -> Result<Option<Tensor>> {
    if !input.track_op() {
        return Ok(None);
    }
    let collects = input.is_variable() && COLLECTED.with_borrow(Option::is_some);
    if !collects {
        return Tensor::from_vec(sum(None), input.shape(), input.device()).map(Some);
    }
    // Taken out, not borrowed, while `sum` works: it may wait for other threads, and this one begin another pass.
    let there = collected(|all| all.of_kernels.remove(&input.id())).flatten();
    let values = sum(there.map(|(_, values)| values));
    collected(|all| all.of_kernels.insert(input.id(), (input.clone(), values)));
    Ok(None)
}

fn collected<T>(work: impl FnOnce(&mut Collected) -> T) -> Option<T> {
    COLLECTED.with_borrow_mut(|all| all.as_mut().map(work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{distance, random};
    use crate::{embedding, linear, linear_add, rms_norm};
    use candle_core::Device;

    /// Variables that are used once, twice, by candle as well, and not at all.
    #[test]
    fn gradients_are_those_of_candle() {
        let var = |shape: &[usize], seed| Var::from_tensor(&random(shape, seed)).unwrap();
        let (table, weight, norm, unused) = (var(&[11, 6], 1), var(&[6, 6], 2), var(&[6], 3), var(&[2], 4));
        let tokens = Tensor::new(&[3u32, 3, 10, 0, 7], &Device::Cpu).unwrap();
        let loss = || -> Result<Tensor> {
            let x = embedding(&table, &tokens)?;
            let y = linear_add(&linear(&x, &weight)?, &weight, &x)?;
            let y = rms_norm(&y, &(norm.as_tensor() + 1.0)?, 1e-5)?.broadcast_mul(&norm)?;
            linear(&y, &table)?.sqr()?.sum_all()
        };
        let loss = loss().unwrap();
        let (ours, candles) = (backward(&loss).unwrap(), loss.backward().unwrap());
        for var in [&table, &weight, &norm] {
            let (ours, candles) = (ours.get(var).unwrap(), candles.get(var).unwrap());
            assert!(
                distance(ours, candles) <= 1e-5 * (1.0 + distance(candles, &candles.zeros_like().unwrap()))
            );
            assert!(distance(ours, &ours.zeros_like().unwrap()) > 0.1);
        }
        assert!(ours.get(&unused).is_none());
        // A second pass gives the same, and nothing is collected outside of one.
        let again = backward(&loss).unwrap();
        assert_eq!(distance(again.get(&table).unwrap(), ours.get(&table).unwrap()), 0.0);
        assert!(COLLECTED.with_borrow(Option::is_none));
        assert!(loss.backward().unwrap().get(&table).is_some());
    }
}
