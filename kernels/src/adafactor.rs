//! Adafactor.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var, bail};

use crate::clipping::{Clipping, StepStats, squared_norm};
use crate::master::{Master, own};

/// The constants of [`Adafactor`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdafactorOptions {
    /// The second moment's decay at step t is `1 - t^-decay`.
    pub decay: f64,
    /// Added to the square of a gradient.
    pub eps: f64,
    /// An update whose root mean square is larger is scaled down to this.
    pub clip: f64,
    /// Whether the learning rate is in units of the variable's root mean square, but at least of `1e-3`, as T5
    /// was trained with.
    pub relative: bool,
    /// Decoupled weight decay of tensors of two or more dimensions, per step and unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdafactorOptions {
    fn default() -> Self {
        Self { decay: 0.8, eps: 1e-30, clip: 1.0, relative: true, weight_decay: 0.0 }
    }
}

/// The least root mean square that a relative learning rate takes a variable to have.
pub(crate) const LEAST: f64 = 1e-3;

/// Adafactor without a first moment (Shazeer and Stern 2018, <https://arxiv.org/abs/1804.04235>, algorithms 4 and
/// 5): the second moment of a matrix is kept as one mean a row and one a column, so that the optimiser takes
/// hardly any memory. Of tensors of more dimensions, the last two are factored.
///
/// Everything is in `f32`, whatever the variable is in; those in `bf16` or `f16` have a copy in `f32`, made at the first
/// step, which is what is stepped. A variable without a gradient is left alone and its step
/// count stands still.
#[derive(Debug)]
pub struct Adafactor {
    options: AdafactorOptions,
    parameters: Vec<Parameter>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    var: Var,
    steps: u32,
    moment: Option<Moment>,
    master: Master,
}

/// Running means of the squared gradient.
#[derive(Clone, Debug)]
enum Moment {
    /// `[.., rows]` and `[.., columns]`.
    Factored { row: Tensor, column: Tensor },
    /// Of every element.
    Whole(Tensor),
}

impl Adafactor {
    /// An optimiser over named variables.
    pub fn new(vars: Vec<(String, Var)>, options: AdafactorOptions) -> Self {
        let parameter =
            |(name, var)| Parameter { name, var, steps: 0, moment: None, master: Master::default() };
        Self { options, parameters: vars.into_iter().map(parameter).collect() }
    }

    /// Updates every variable that has a gradient. With `clip`, gradients whose global norm is larger are scaled
    /// down to it first.
    ///
    /// # Errors
    /// When a gradient has another shape than its variable.
    pub fn step(&mut self, grads: &GradStore, lr: f64, clip: Option<f64>) -> Result<StepStats> {
        let clipping = self.clipping(grads, clip)?;
        self.step_clipped(grads, lr, &clipping)?;
        Ok(clipping.stats())
    }

    /// What [`step_clipped`](Self::step_clipped) is to make of the gradients: for optimisers that step together or not at
    /// all.
    pub fn clipping(&self, grads: &GradStore, clip: Option<f64>) -> Result<Clipping> {
        Clipping::of(grads, self.parameters.iter().map(|p| &p.var), clip)
    }

    /// Updates every variable that has a gradient, if all gradients are finite.
    ///
    /// # Errors
    /// When a gradient has another shape than its variable.
    pub fn step_clipped(&mut self, grads: &GradStore, lr: f64, clipping: &Clipping) -> Result<()> {
        let Some(factor) = clipping.factor() else { return Ok(()) };
        for parameter in &mut self.parameters {
            if let Some(grad) = grads.get(&parameter.var) {
                parameter.update(grad, &self.options, lr, factor)?;
            }
        }
        Ok(())
    }

    /// Everything needed to go on bit for bit, under the names of Hugging Face's Adafactor: for each variable that
    /// has been updated `NAME.exp_avg_sq_row` and `NAME.exp_avg_sq_col`, or `NAME.exp_avg_sq` where it has but one
    /// dimension (all `f32`), and `NAME.step` (`u32` scalar); and `NAME.master` where it has a copy in `f32`.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for Parameter { name, steps, moment, master, .. } in &self.parameters {
            match moment {
                None => continue,
                Some(Moment::Whole(whole)) => {
                    state.insert(format!("{name}.exp_avg_sq"), whole.copy()?);
                }
                Some(Moment::Factored { row, column }) => {
                    state.insert(format!("{name}.exp_avg_sq_row"), row.copy()?);
                    state.insert(format!("{name}.exp_avg_sq_col"), column.copy()?);
                }
            }
            state.insert(format!("{name}.step"), Tensor::new(*steps, &Device::Cpu)?);
            master.save(name, &mut state)?;
        }
        Ok(state)
    }

    /// Takes over a state made by [`Adafactor::state`]. A variable it does not name starts afresh.
    ///
    /// # Errors
    /// When an entry has another shape than its variable asks for, or a variable has only some of its entries;
    /// the optimiser is then unchanged.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let loaded: Vec<_> =
            self.parameters.iter().map(|parameter| parameter.load(state)).collect::<Result<_>>()?;
        for (parameter, (steps, moment, master)) in self.parameters.iter_mut().zip(loaded) {
            (parameter.steps, parameter.moment, parameter.master) = (steps, moment, master);
        }
        Ok(())
    }
}

impl Parameter {
    /// The moment before the first step: nothing.
    fn start(&self) -> Result<Moment> {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, self.var.device());
        Ok(match self.var.dims() {
            [outer @ .., rows, columns] => Moment::Factored {
                row: zeros(&[outer, &[*rows]].concat())?,
                column: zeros(&[outer, &[*columns]].concat())?,
            },
            dims => Moment::Whole(zeros(dims)?),
        })
    }

    fn load(&self, state: &HashMap<String, Tensor>) -> Result<(u32, Option<Moment>, Master)> {
        let Self { name, var, .. } = self;
        let entry = |suffix: &str, like: &Tensor| match state.get(&format!("{name}.{suffix}")) {
            Some(tensor) if tensor.dims() != like.dims() => bail!(
                "optimiser state of {name}: {suffix} is {:?}, expected {:?}",
                tensor.dims(),
                like.dims()
            ),
            Some(tensor) => own(tensor, var).map(Some),
            None => Ok(None),
        };
        let moment = match self.start()? {
            Moment::Whole(like) => entry("exp_avg_sq", &like)?.map(Moment::Whole),
            Moment::Factored { row, column } => {
                match (entry("exp_avg_sq_row", &row)?, entry("exp_avg_sq_col", &column)?) {
                    (Some(row), Some(column)) => Some(Moment::Factored { row, column }),
                    (None, None) => None,
                    _ => bail!("optimiser state of {name}: exp_avg_sq_row or exp_avg_sq_col is missing"),
                }
            }
        };
        match (moment, state.get(&format!("{name}.step"))) {
            (None, None) => Ok((0, None, Master::default())),
            (Some(moment), Some(step)) => {
                Ok((step.to_scalar::<u32>()?, Some(moment), Master::load(name, var, state)?))
            }
            _ => bail!("optimiser state of {name}: a moment or the step is missing"),
        }
    }

    fn update(&mut self, grad: &Tensor, options: &AdafactorOptions, lr: f64, factor: f64) -> Result<()> {
        if grad.dims() != self.var.dims() {
            bail!("gradient of {} is {:?}, the variable is {:?}", self.name, grad.dims(), self.var.dims());
        }
        let AdafactorOptions { decay, eps, clip, relative, weight_decay } = *options;
        let steps = self.steps + 1;
        let old = match &self.moment {
            Some(moment) => moment.clone(),
            None => self.start()?,
        };
        #[cfg(feature = "candle-cuda")]
        if crate::gpu::takes(&[&self.var, grad]) {
            let moments = match &old {
                Moment::Whole(whole) => (whole, None),
                Moment::Factored { row, column } => (row, Some(column)),
            };
            let master = self.master.of(&self.var)?;
            crate::gpu::adafactor(&self.var, master, grad, moments, self.steps, options, lr, factor)?;
            (self.steps, self.moment) = (steps, Some(old));
            return Ok(());
        }
        let keep = 1.0 - f64::from(steps).powf(-decay);
        let grad = (grad.to_dtype(DType::F32)? * factor)?;
        let square = (grad.sqr()? + eps)?;
        let mean = |old: &Tensor, new: Tensor| (old * keep)? + (new * (1.0 - keep))?;
        let (moment, update) = match old {
            Moment::Whole(whole) => {
                let whole = mean(&whole, square)?;
                let update = (grad / whole.sqrt()?)?;
                (Moment::Whole(whole), update)
            }
            Moment::Factored { row, column } => {
                let row = mean(&row, square.mean(D::Minus1)?)?;
                let column = mean(&column, square.mean(D::Minus2)?)?;
                // The row means in units of their own mean, so that the product has the right scale once.
                let share = row.broadcast_div(&row.mean_keepdim(D::Minus1)?)?;
                let update = grad.broadcast_div(&share.sqrt()?.unsqueeze(D::Minus1)?)?;
                let update = update.broadcast_div(&column.sqrt()?.unsqueeze(D::Minus2)?)?;
                (Moment::Factored { row, column }, update)
            }
        };
        let value = self.master.value(&self.var)?;
        let rate = if relative { lr * root_mean_square(&value)?.max(LEAST) } else { lr };
        let rate = rate / (root_mean_square(&update)? / clip).max(1.0);
        let decayed = if value.rank() >= 2 { (&value * (1.0 - lr * weight_decay))? } else { value };
        self.master.set(&self.var, (decayed - (update * rate)?)?)?;
        (self.steps, self.moment) = (steps, Some(moment));
        Ok(())
    }
}

fn root_mean_square(x: &Tensor) -> Result<f64> {
    Ok((squared_norm(x)? / x.elem_count().max(1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn var(shape: &[usize], seed: u64) -> Var {
        var_of(DType::F32, shape, seed)
    }

    fn var_of(dtype: DType, shape: &[usize], seed: u64) -> Var {
        Var::from_tensor(&random(shape, seed).to_dtype(dtype).unwrap()).unwrap()
    }

    fn named(vars: &[&Var]) -> Vec<(String, Var)> {
        vars.iter().enumerate().map(|(i, &v)| (format!("v{i}"), v.clone())).collect()
    }

    /// Gradients that differ from step to step.
    fn grads(vars: &[&Var], step: u64) -> GradStore {
        let terms = vars.iter().enumerate().map(|(i, v)| {
            let slope = random(v.dims(), 100 * step + i as u64).to_dtype(v.dtype()).unwrap();
            (v.as_tensor() * slope).unwrap().sum_all().unwrap()
        });
        terms.reduce(|a, b| (a + b).unwrap()).unwrap().backward().unwrap()
    }

    /// Algorithm 4, element by element in f64.
    #[test]
    fn steps_are_as_in_the_paper() {
        let (rows, columns) = (7, 5);
        let v = var(&[rows, columns], 1);
        let options = AdafactorOptions { weight_decay: 0.1, ..Default::default() };
        let mut adafactor = Adafactor::new(named(&[&v]), options);
        let flat = |t: &Tensor| -> Vec<f64> {
            t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let mut expected = flat(&v);
        let (mut row, mut column) = (vec![0.0; rows], vec![0.0; columns]);
        let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        for step in 1..6u32 {
            let store = grads(&[&v], u64::from(step));
            let g = flat(store.get(&v).unwrap());
            adafactor.step(&store, 0.05, None).unwrap();
            let keep = 1.0 - f64::from(step).powf(-0.8);
            for i in 0..rows {
                let mean = (0..columns).map(|j| g[i * columns + j].powi(2)).sum::<f64>() / columns as f64;
                row[i] = keep * row[i] + (1.0 - keep) * mean;
            }
            for j in 0..columns {
                let mean = (0..rows).map(|i| g[i * columns + j].powi(2)).sum::<f64>() / rows as f64;
                column[j] = keep * column[j] + (1.0 - keep) * mean;
            }
            let total = row.iter().sum::<f64>() / rows as f64;
            let update: Vec<f64> = (0..rows * columns)
                .map(|at| g[at] / (row[at / columns] * column[at % columns] / total).sqrt())
                .collect();
            let rate = 0.05 * rms(&expected).max(1e-3) / rms(&update).max(1.0);
            for (value, update) in expected.iter_mut().zip(update) {
                *value = *value * (1.0 - 0.05 * 0.1) - rate * update;
            }
            let now = flat(&v);
            let worst = now.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5, "step {step}: off by {worst}");
        }
    }

    #[test]
    fn resumes_bit_for_bit() {
        for dtype in [DType::F32, DType::BF16] {
            let var = |shape: &[usize], seed| var_of(dtype, shape, seed);
            let run = |interrupted: bool| {
                let vars = [var(&[7, 5], 1), var(&[6], 2), var(&[2, 3, 4], 3), var(&[2, 2], 4)];
                let all: Vec<&Var> = vars.iter().collect();
                let mut adafactor = Adafactor::new(named(&all), AdafactorOptions::default());
                for step in 0..4 {
                    if interrupted && step == 2 {
                        let state = adafactor.state().unwrap();
                        adafactor = Adafactor::new(named(&all), AdafactorOptions::default());
                        adafactor.load_state(&state).unwrap();
                    }
                    adafactor.step(&grads(&all[..3], step), 1e-2, Some(1.0)).unwrap();
                }
                vars
            };
            let (whole, resumed) = (run(false), run(true));
            for (a, b) in whole.iter().zip(&resumed) {
                assert_eq!(distance(a, b), 0.0);
            }
            assert_eq!(distance(&whole[3], &var(&[2, 2], 4)), 0.0, "one without a gradient has moved");
            assert!(distance(&whole[2], &var(&[2, 3, 4], 3)) > 0.0);
        }
    }

    /// Fails when `bf16` itself is stepped: 1e-4 is a fortieth of the distance between its numbers below 1.
    #[test]
    fn steps_too_small_for_the_variable_add_up() {
        let one = Var::ones((3, 5), DType::BF16, &Device::Cpu).unwrap();
        let options = AdafactorOptions { relative: false, ..Default::default() };
        let mut adafactor = Adafactor::new(named(&[&one]), options);
        for _ in 0..300 {
            adafactor.step(&one.sum_all().unwrap().backward().unwrap(), 1e-4, None).unwrap();
        }
        let expected = Tensor::full(1f32 - 0.03, (3, 5), &Device::Cpu).unwrap();
        assert!(distance(&one, &expected) < 0.004);
        assert!(distance(&adafactor.state().unwrap()["v0.master"], &expected) < 1e-4);
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_and_bad_gradients_skipped() {
        let one = var(&[4, 3], 1);
        let mut adafactor = Adafactor::new(named(&[&one]), AdafactorOptions::default());
        adafactor.step(&grads(&[&one], 1), 1e-2, None).unwrap();
        let mut state = adafactor.state().unwrap();
        let other = var(&[5, 3], 1);
        let mut refusing = Adafactor::new(named(&[&other]), AdafactorOptions::default());
        let error = refusing.load_state(&state).unwrap_err().to_string();
        assert!(error.contains("v0") && error.contains("[5]"), "{error}");
        state.remove("v0.step");
        assert!(adafactor.load_state(&state).unwrap_err().to_string().contains("missing"));
        let before = one.copy().unwrap();
        let bad = (one.as_tensor() * f64::NAN).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(adafactor.step(&bad, 0.1, None).unwrap().skipped);
        assert_eq!(distance(&one, &before), 0.0);
    }
}
