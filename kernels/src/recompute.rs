//! Activations that the backward pass computes again instead of finding them kept (Chen et al. 2016, "Training deep nets with
//! sublinear memory cost", <https://arxiv.org/abs/1604.06174>): of a network's parts only what goes into each is kept, for
//! the time of one more forward pass.

use std::cell::Cell;
use std::ops::Range;

use candle_core::{DType, Error, Result, Tensor, Var};

use crate::autograd::{copy_of, record_storage};
use crate::backward::backward_within;
use crate::matrix::Precision;
use crate::scope::within;

/// What a network keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// All that its gradients need.
    #[default]
    Kept,
    /// What goes into each part of so many blocks, at least one; the rest is computed again, a part at a time.
    Recomputed(usize),
}

thread_local! {
    static CURRENT: Cell<Activations> = const { Cell::new(Activations::Kept) };
}

impl Activations {
    /// Those of this thread: [`Kept`](Self::Kept), unless it is within [`Self::run`].
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Does `work`, a forward pass and its backward pass, with the networks that this thread runs keeping this.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        within(&CURRENT, self, work)
    }

    /// The parts of `blocks` that each are a [`checkpoint`]'s, in order: one of all where activations are kept.
    pub fn parts(self, blocks: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (end, most) = match self {
            Self::Kept => (blocks.end, blocks.len()),
            Self::Recomputed(most) => (blocks.end, most),
        };
        blocks.step_by(most.max(1)).map(move |first| first..end.min(first + most.max(1)))
    }
}

/// What `work`, a part of a network, makes of 1 to 4 `inputs`. Where activations are [recomputed](Activations::Recomputed) nothing but
/// the inputs and the result is kept, and the backward pass does `work` again. Whatever variables it uses get their gradients
/// too, from [`backward`](crate::backward) and no other backward pass. What it does must be a function of its inputs alone.
///
/// # Errors
/// Those of `work`.
pub fn checkpoint<E>(
    inputs: &[&Tensor],
    work: impl Fn(&[Tensor]) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
) -> std::result::Result<Tensor, E>
where
    E: From<Error> + std::error::Error + Send + Sync + 'static,
{
    if Activations::current() == Activations::Kept {
        return work(&inputs.iter().map(|input| (*input).clone()).collect::<Vec<_>>());
    }
    let tracked: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
    let cut: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    // What lies between is let go here.
    let value = work(&cut)?.detach();
    // Nobody knows what variables `work` uses, so there is one that says that there are some.
    let some = Var::zeros((), DType::F32, value.device())?;
    let mut arguments = inputs.to_vec();
    arguments.push(&some);
    let precision = Precision::current();
    let backward = move |_: &Tensor, slope: &Tensor| {
        let each = cut.iter().zip(&tracked);
        let variables = each
            .map(|(input, tracked)| tracked.then(|| Var::from_tensor(input)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let read = variables.iter().zip(&cut).map(|(variable, input)| match variable {
            Some(variable) => variable.as_tensor().clone(),
            None => input.clone(),
        });
        let read: Vec<Tensor> = read.collect();
        precision.run(|| {
            let again = work(&read).map_err(Error::wrap)?;
            let mut gradients = backward_within(&again, slope, &variables)?;
            gradients.push(None);
            Ok(gradients)
        })
    };
    Ok(record_storage(&arguments, copy_of(&value)?, value.shape().clone(), backward)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{distance, random};
    use crate::{backward, embedding, linear, linear_add, rms_norm};
    use candle_core::Device;
    use candle_core::backprop::GradStore;
    use std::sync::{Arc, Mutex};

    fn variables() -> [Var; 4] {
        let var = |shape: &[usize], seed| Var::from_tensor(&random(shape, seed)).unwrap();
        [var(&[11, 6], 1), var(&[6, 6], 2), var(&[6], 3), var(&[6], 4)]
    }

    /// Three parts that share a weight, one of two inputs, with operations of this crate and of candle.
    fn loss(of: &[Var; 4]) -> Result<Tensor> {
        let part = |inputs: &[&Tensor], work: fn(&[Tensor], &[Var; 4]) -> Result<Tensor>| {
            let of = of.clone();
            checkpoint(inputs, move |inputs| work(inputs, &of))
        };
        let tokens = Tensor::new(&[3u32, 3, 10, 0, 7], &Device::Cpu)?;
        let x = embedding(&of[0], &tokens)?;
        let first = part(&[&x], |x, of| linear_add(&linear(&x[0], &of[1])?, &of[1], &x[0]))?;
        let second = part(&[&first, &x], |x, of| {
            rms_norm(&(&x[0] * &x[1])?, &(of[2].as_tensor() + 1.0)?, 1e-5)?.broadcast_mul(&of[2])
        })?;
        // Of a part that reads nothing with a gradient.
        let third = part(&[&random(&[5, 6], 9)], |x, of| linear(&x[0], &of[1])?.broadcast_add(&of[3]))?;
        linear(&(second + third)?, &of[0])?.sqr()?.sum_all()
    }

    fn gap(of: &[Var; 4], a: &GradStore, b: &GradStore) -> f64 {
        let gap = |var: &Var| {
            let (a, b) = (a.get(var).unwrap(), b.get(var).unwrap());
            assert!(distance(a, &a.zeros_like().unwrap()) > 0.1);
            distance(a, b) / (1.0 + distance(b, &b.zeros_like().unwrap()))
        };
        of.iter().map(gap).fold(0.0, f64::max)
    }

    /// Fails when a variable's gradient of a part is lost, added twice, or an input's is another's.
    #[test]
    fn gradients_are_those_with_everything_kept() {
        let of = variables();
        let kept = loss(&of).unwrap();
        let again = Activations::Recomputed(1).run(|| loss(&of)).unwrap();
        assert_eq!(distance(&kept, &again), 0.0);
        let wanted = backward(&kept).unwrap();
        assert!(gap(&of, &backward(&again).unwrap(), &wanted) < 1e-5);
        // The same graph a second time.
        assert!(gap(&of, &backward(&again).unwrap(), &wanted) < 1e-5);
        // candle's own backward pass would lose what the parts' variables get.
        assert!(again.backward().unwrap_err().to_string().contains("sidenote_kernels::backward"));
    }

    /// Fails when what is between is kept, by the graph, by what was computed again, or by the gradients.
    #[test]
    fn the_activations_of_one_part_are_there_at_a_time() {
        /// How many activations somebody holds, and the most that there were.
        #[derive(Clone, Default)]
        struct Seen(Arc<Mutex<(usize, usize)>>);
        struct Held(Seen);
        impl Held {
            fn new(seen: &Seen) -> Self {
                let mut counts = seen.0.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
                Self(seen.clone())
            }
        }
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.0.lock().unwrap().0 -= 1;
            }
        }
        let [_, weight, bias, _] = variables();
        for (activations, most) in [(Activations::Kept, 5), (Activations::Recomputed(1), 1)] {
            let seen = Seen::default();
            let mut x = random(&[5, 6], 1);
            for _ in 0..5 {
                let (weight, bias, seen) = (weight.clone(), bias.clone(), seen.clone());
                let part = move |x: &[Tensor]| {
                    let held = Held::new(&seen);
                    let between = linear(&x[0], &weight)?;
                    let backward = move |_: &Tensor, slope: &Tensor| {
                        let _held = &held;
                        Ok(vec![Some(slope.clone())])
                    };
                    let noted =
                        record_storage(&[&between], copy_of(&between)?, between.shape().clone(), backward)?;
                    noted.broadcast_mul(&bias)?.broadcast_add(&bias)
                };
                x = activations.run(|| checkpoint::<Error>(&[&x], part)).unwrap();
            }
            let loss = x.sqr().unwrap().sum_all().unwrap();
            let gradients = backward(&loss).unwrap();
            assert_eq!(seen.0.lock().unwrap().1, most, "{activations:?}");
            drop((loss, x));
            assert_eq!(seen.0.lock().unwrap().0, 0, "{activations:?}: by the gradients");
            assert!(gradients.get(&bias).is_some() && gradients.get(&weight).is_some());
        }
    }

    #[test]
    fn errors_of_the_work_are_handed_on() {
        let x = Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let times = std::sync::atomic::AtomicUsize::new(0);
        let work = move |x: &[Tensor]| match times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => x[0].sqr(),
            _ => candle_core::bail!("the second time"),
        };
        let value = Activations::Recomputed(1).run(|| checkpoint(&[&x], work)).unwrap();
        let error = backward(&value.sum_all().unwrap()).unwrap_err().to_string();
        assert!(error.contains("the second time"), "{error}");
    }

    #[test]
    fn blocks_are_cut_into_parts() {
        let parts = |activations: Activations| -> Vec<(usize, usize)> {
            activations.parts(1..6).map(|part| (part.start, part.end)).collect()
        };
        assert_eq!(parts(Activations::Kept), [(1, 6)]);
        assert_eq!(parts(Activations::Recomputed(2)), [(1, 3), (3, 5), (5, 6)]);
        assert_eq!(parts(Activations::Recomputed(9)), [(1, 6)]);
        assert_eq!(Activations::Kept.parts(2..2).count(), 0);
        assert_eq!(Activations::current(), Activations::Kept);
        Activations::Recomputed(3).run(|| assert_eq!(Activations::current(), Activations::Recomputed(3)));
        assert_eq!(Activations::current(), Activations::Kept);
    }
}
