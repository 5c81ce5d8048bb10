//! AdamW.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible};
use crate::clipping::{Clipping, StepStats};
use crate::master::{Master, own};
use crate::simd::vectorised;

/// How many elements one task handles.
const PIECE: usize = 16 * 1024;

/// The constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per step and unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019,
/// <https://arxiv.org/abs/1711.05101>, algorithm 2) with moments in `f32`. Variables in `bf16` or `f16` have a copy in `f32`,
/// made at the first step, which is what is stepped.
///
/// Weight decay applies to tensors of two or more dimensions only: not to biases, norm weights and
/// the like. A variable without a gradient is left alone and its step count stands still.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    parameters: Vec<Parameter>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    var: Var,
    steps: u32,
    moments: Option<Moments>,
    master: Master,
}

/// Running means of the gradient and of its square.
#[derive(Debug)]
enum Moments {
    /// For `f32` on the CPU, updated in place.
    Fused { first: Vec<f32>, second: Vec<f32> },
    /// For everything else.
    Composed { first: Tensor, second: Tensor },
}

impl AdamW {
    /// An optimiser over named variables.
    pub fn new(vars: Vec<(String, Var)>, options: AdamWOptions) -> Self {
        let parameter =
            |(name, var)| Parameter { name, var, steps: 0, moments: None, master: Master::default() };
        Self { options, parameters: vars.into_iter().map(parameter).collect() }
    }

    /// Updates every variable that has a gradient. With `clip`, gradients whose global norm is larger
    /// are scaled down to it.
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
    pub fn step_clipped(&mut self, grads: &GradStore, lr: f64, clipping: &Clipping) -> Result<()> {
        let Some(factor) = clipping.factor() else { return Ok(()) };
        for parameter in &mut self.parameters {
            if let Some(grad) = grads.get(&parameter.var) {
                parameter.update(grad, &self.options, lr, factor)?;
            }
        }
        Ok(())
    }

    /// Everything needed to go on bit for bit: for each variable that has been updated, `NAME.exp_avg`
    /// and `NAME.exp_avg_sq` (`f32`, the shape of the variable) and `NAME.step` (`u32` scalar), and `NAME.master` where
    /// the variable has a copy in `f32`.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for parameter in &self.parameters {
            let (first, second) = match &parameter.moments {
                None => continue,
                // Copies, for a GPU's kernel steps them in place.
                Some(Moments::Composed { first, second }) => (first.copy()?, second.copy()?),
                Some(Moments::Fused { first, second }) => {
                    let tensor = |m: &Vec<f32>| Tensor::from_slice(m, parameter.var.shape(), &Device::Cpu);
                    (tensor(first)?, tensor(second)?)
                }
            };
            let name = &parameter.name;
            state.insert(format!("{name}.exp_avg"), first);
            state.insert(format!("{name}.exp_avg_sq"), second);
            state.insert(format!("{name}.step"), Tensor::new(parameter.steps, &Device::Cpu)?);
            parameter.master.save(name, &mut state)?;
        }
        Ok(state)
    }

    /// Takes over a state made by [`AdamW::state`]. A variable it does not name starts afresh.
    ///
    /// # Errors
    /// When an entry has another shape than its variable, or a variable has only some of its entries;
    /// the optimiser is then unchanged.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let loaded: Vec<_> =
            self.parameters.iter().map(|parameter| parameter.load(state)).collect::<Result<_>>()?;
        for (parameter, (steps, moments, master)) in self.parameters.iter_mut().zip(loaded) {
            (parameter.steps, parameter.moments, parameter.master) = (steps, moments, master);
        }
        Ok(())
    }
}

impl Parameter {
    /// Whether the variable is updated in place.
    fn fused(&self) -> bool {
        fusible(&[&self.var]) && self.var.is_contiguous()
    }

    fn load(&self, state: &HashMap<String, Tensor>) -> Result<(u32, Option<Moments>, Master)> {
        let Self { name, var, .. } = self;
        let entry = |suffix: &str| state.get(&format!("{name}.{suffix}"));
        let (first, second, steps) = match (entry("exp_avg"), entry("exp_avg_sq"), entry("step")) {
            (None, None, None) => return Ok((0, None, Master::default())),
            (Some(first), Some(second), Some(steps)) => (first, second, steps),
            _ => bail!("optimiser state of {name}: exp_avg, exp_avg_sq or step is missing"),
        };
        if first.dims() != var.dims() || second.dims() != var.dims() {
            bail!(
                "optimiser state of {name}: the moments are {:?} and {:?}, the variable is {:?}",
                first.dims(),
                second.dims(),
                var.dims()
            );
        }
        let (first, second) = (own(first, var)?, own(second, var)?);
        let moments = if self.fused() {
            let values = |m: Tensor| m.flatten_all()?.to_vec1::<f32>();
            Moments::Fused { first: values(first)?, second: values(second)? }
        } else {
            Moments::Composed { first, second }
        };
        Ok((steps.to_scalar::<u32>()?, Some(moments), Master::load(name, var, state)?))
    }

    fn update(&mut self, grad: &Tensor, options: &AdamWOptions, lr: f64, factor: f64) -> Result<()> {
        if grad.dims() != self.var.dims() {
            bail!("gradient of {} is {:?}, the variable is {:?}", self.name, grad.dims(), self.var.dims());
        }
        let update = Update::of(options, self.steps + 1, lr, self.var.rank());
        if self.moments.is_none() {
            self.moments = Some(if self.fused() {
                let zeros = vec![0f32; self.var.elem_count()];
                Moments::Fused { first: zeros.clone(), second: zeros }
            } else {
                let zeros = || Tensor::zeros(self.var.shape(), DType::F32, self.var.device());
                Moments::Composed { first: zeros()?, second: zeros()? }
            });
        }
        match &mut self.moments {
            Some(Moments::Fused { first, second }) => {
                let grad = grad.to_dtype(DType::F32)?.contiguous()?;
                let moments = RefCell::new((first, second));
                let op = InPlace { update, factor, grad: &View::of(&grad)?, moments };
                self.var.inplace_op1(&op)?;
            }
            #[cfg(feature = "candle-cuda")]
            Some(Moments::Composed { first, second }) if crate::gpu::takes(&[&self.var, grad]) => {
                let master = self.master.of(&self.var)?;
                crate::gpu::adamw(&self.var, master, grad, [first, second], self.steps, options, lr, factor)?;
            }
            Some(Moments::Composed { first, second }) => {
                let value = self.master.value(&self.var)?;
                let value = update.composed(&value, grad, factor, first, second)?;
                self.master.set(&self.var, value)?;
            }
            None => {}
        }
        self.steps += 1;
        Ok(())
    }
}

/// The numbers of one step, the same for all elements of a variable.
#[derive(Clone, Copy)]
pub(crate) struct Update {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// The learning rate over the bias correction of the first moment.
    pub rate: f64,
    /// The bias correction of the root of the second moment, as a factor.
    pub correction: f64,
    /// What weight decay leaves of the variable, as a factor.
    pub keep: f64,
}

impl Update {
    /// Of the step with this number, from 1 on, of a variable of so many dimensions.
    pub fn of(options: &AdamWOptions, step: u32, lr: f64, rank: usize) -> Self {
        let AdamWOptions { beta1, beta2, eps, weight_decay } = *options;
        let step = f64::from(step);
        let decay = if rank >= 2 { weight_decay } else { 0.0 };
        Self {
            beta1,
            beta2,
            eps,
            rate: lr / (1.0 - beta1.powf(step)),
            correction: 1.0 / (1.0 - beta2.powf(step)).sqrt(),
            keep: 1.0 - lr * decay,
        }
    }

    /// The new value of a variable that has this one in `f32`; the moments are replaced. `factor` is what clipping leaves of
    /// the gradient.
    fn composed(
        &self,
        value: &Tensor,
        grad: &Tensor,
        factor: f64,
        first: &mut Tensor,
        second: &mut Tensor,
    ) -> Result<Tensor> {
        let grad = (grad.to_dtype(DType::F32)? * factor)?;
        *first = ((&*first * self.beta1)? + (&grad * (1.0 - self.beta1))?)?;
        *second = ((&*second * self.beta2)? + (grad.sqr()? * (1.0 - self.beta2))?)?;
        let denominator = ((second.sqrt()? * self.correction)? + self.eps)?;
        (value * self.keep)? - ((&*first / denominator)? * self.rate)?
    }
}

struct InPlace<'a> {
    update: Update,
    /// What clipping leaves of the gradient.
    factor: f64,
    grad: &'a [f32],
    moments: RefCell<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "sidenote-adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("{}: the variable is not contiguous f32", self.name());
        };
        let mut moments = self.moments.borrow_mut();
        let (first, second) = &mut *moments;
        let pieces = values[start..end].par_chunks_mut(PIECE).zip(self.grad.par_chunks(PIECE));
        let moments = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
        let (update, factor) = (self.update, self.factor as f32);
        pieces.zip(moments).for_each(|((value, grad), (first, second))| {
            fused(value, grad, factor, first, second, update);
        });
        Ok(())
    }
}

vectorised! {
    fn fused(
        value: &mut [f32],
        grad: &[f32],
        factor: f32,
        first: &mut [f32],
        second: &mut [f32],
        update: Update,
    ) {
        let n = value.len();
        let (grad, first, second) = (&grad[..n], &mut first[..n], &mut second[..n]);
        let (beta1, beta2) = (update.beta1 as f32, update.beta2 as f32);
        let (rest1, rest2) = ((1.0 - update.beta1) as f32, (1.0 - update.beta2) as f32);
        let (rate, correction) = (update.rate as f32, update.correction as f32);
        let (eps, keep) = (update.eps as f32, update.keep as f32);
        for i in 0..n {
            let grad = factor * grad[i];
            first[i] = beta1 * first[i] + rest1 * grad;
            second[i] = beta2 * second[i] + rest2 * grad * grad;
            value[i] = keep * value[i] - rate * first[i] / (correction * second[i].sqrt() + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{distance, random};

    const OPTIONS: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };

    fn var(shape: &[usize], seed: u64, dtype: DType) -> Var {
        Var::from_tensor(&random(shape, seed).to_dtype(dtype).unwrap()).unwrap()
    }

    /// Gradients `scale * x * weight` for the variables given.
    fn grads(vars: &[&Var], scale: f64) -> GradStore {
        let mut loss = Tensor::zeros((), vars[0].dtype(), &Device::Cpu).unwrap();
        for (i, var) in vars.iter().enumerate() {
            let weight = random(var.dims(), 50 + i as u64).to_dtype(var.dtype()).unwrap();
            let term = (var.sqr().unwrap() * weight).unwrap().sum_all().unwrap();
            loss = (loss + (term * (0.5 * scale)).unwrap()).unwrap();
        }
        loss.backward().unwrap()
    }

    fn named(vars: &[&Var]) -> Vec<(String, Var)> {
        vars.iter().enumerate().map(|(i, var)| (format!("v{i}"), (*var).clone())).collect()
    }

    #[test]
    fn first_step_is_as_in_the_paper() {
        let weight = Var::new(&[[1f32, -2.0]], &Device::Cpu).unwrap();
        let bias = Var::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let loss = (weight.sum_all().unwrap() + bias.sum_all().unwrap()).unwrap();
        let mut adamw = AdamW::new(named(&[&weight, &bias]), OPTIONS);
        let stats = adamw.step(&loss.backward().unwrap(), 0.5, None).unwrap();
        assert_eq!(stats, StepStats { grad_norm: 2.0, skipped: false });
        // Corrected moments of a first step: the gradient and its square, so the step is lr * sign.
        let expected = Tensor::new(&[[1f32 * 0.95 - 0.5, -2.0 * 0.95 - 0.5]], &Device::Cpu).unwrap();
        assert!(distance(&weight, &expected) < 1e-6);
        let expected = Tensor::new(&[1f32 - 0.5, -2.0 - 0.5], &Device::Cpu).unwrap();
        assert!(distance(&bias, &expected) < 1e-6, "no decay on one dimension");
    }

    #[test]
    fn fused_matches_composed() {
        let (fused, composed) = (var(&[37, 911], 1, DType::F32), var(&[37, 911], 1, DType::F64));
        let mut a = AdamW::new(named(&[&fused]), OPTIONS);
        let mut b = AdamW::new(named(&[&composed]), OPTIONS);
        for step in 0..5 {
            let scale = 1.0 + f64::from(step);
            let one = a.step(&grads(&[&fused], scale), 1e-2, Some(1.0)).unwrap();
            let two = b.step(&grads(&[&composed], scale), 1e-2, Some(1.0)).unwrap();
            assert!((one.grad_norm - two.grad_norm).abs() < 1e-4 * two.grad_norm);
        }
        assert!(distance(&fused, &composed) < 1e-5);
        assert!(distance(&fused, &random(&[37, 911], 1)) > 1e-2, "nothing moved");
    }

    #[test]
    fn clipping_scales_the_gradient() {
        let (clipped, scaled) = (var(&[5, 3], 1, DType::F32), var(&[5, 3], 1, DType::F32));
        // A large eps, for Adam's step hardly knows the gradient's scale.
        let options = AdamWOptions { eps: 1.0, ..OPTIONS };
        let norm = AdamW::new(named(&[&scaled]), options).step(&grads(&[&scaled], 1.0), 0.0, None);
        let norm = norm.unwrap().grad_norm;
        AdamW::new(named(&[&clipped]), options)
            .step(&grads(&[&clipped], 1.0), 0.1, Some(norm / 4.0))
            .unwrap();
        AdamW::new(named(&[&scaled]), options).step(&grads(&[&scaled], 0.25), 0.1, Some(norm)).unwrap();
        assert!(distance(&clipped, &scaled) < 1e-6);
    }

    #[test]
    fn bad_gradients_change_nothing() {
        for bad in [f64::NAN, f64::INFINITY] {
            let vars = [var(&[4, 4], 1, DType::F32), var(&[3], 2, DType::F32)];
            let before: Vec<Tensor> = vars.iter().map(|v| v.copy().unwrap()).collect();
            let mut adamw = AdamW::new(named(&[&vars[0], &vars[1]]), OPTIONS);
            assert!(adamw.step(&grads(&[&vars[0], &vars[1]], bad), 0.1, Some(1.0)).unwrap().skipped);
            for (var, before) in vars.iter().zip(&before) {
                assert_eq!(distance(var, before), 0.0);
            }
            assert!(adamw.state().unwrap().is_empty());
        }
    }

    #[test]
    fn resumes_bit_for_bit_and_leaves_others_alone() {
        for dtype in [DType::F32, DType::BF16] {
            let run = |interrupted: bool| {
                let vars = [var(&[7, 5], 1, dtype), var(&[6], 2, dtype), var(&[2, 2], 3, dtype)];
                let all = named(&[&vars[0], &vars[1], &vars[2]]);
                let mut adamw = AdamW::new(all.clone(), OPTIONS);
                for step in 0..4 {
                    if interrupted && step == 2 {
                        let state = adamw.state().unwrap();
                        let parts = if dtype == DType::F32 { 3 } else { 4 };
                        assert_eq!(state.len(), 2 * parts, "the last variable has no gradient");
                        adamw = AdamW::new(all.clone(), OPTIONS);
                        adamw.load_state(&state).unwrap();
                    }
                    adamw.step(&grads(&[&vars[0], &vars[1]], 1.0), 1e-2, None).unwrap();
                }
                vars
            };
            let (whole, resumed) = (run(false), run(true));
            for (a, b) in whole.iter().zip(&resumed) {
                assert_eq!(distance(a, b), 0.0);
            }
            assert_eq!(distance(&whole[2], &var(&[2, 2], 3, dtype)), 0.0);
            assert!(distance(&whole[0], &var(&[7, 5], 1, dtype)) > 0.0);
        }
    }

    /// Fails when `bf16` itself is stepped: 1e-4 is a fortieth of the distance between its numbers below 1.
    #[test]
    fn steps_too_small_for_the_variable_add_up() {
        let one = var(&[3, 5], 1, DType::BF16);
        one.set(&Tensor::ones((3, 5), DType::BF16, &Device::Cpu).unwrap()).unwrap();
        let mut adamw =
            AdamW::new(named(&[&one]), AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() });
        for _ in 0..300 {
            adamw.step(&one.sum_all().unwrap().backward().unwrap(), 1e-4, None).unwrap();
        }
        let expected = Tensor::full(1f32 - 0.03, (3, 5), &Device::Cpu).unwrap();
        assert!(distance(&one, &expected) < 0.004);
        assert!(distance(&adamw.state().unwrap()["v0.master"], &expected) < 1e-4);
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let one = var(&[4], 1, DType::F32);
        let mut adamw = AdamW::new(named(&[&one]), OPTIONS);
        adamw.step(&grads(&[&one], 1.0), 1e-2, None).unwrap();
        let mut state = adamw.state().unwrap();
        let other = var(&[5], 1, DType::F32);
        let error = AdamW::new(named(&[&other]), OPTIONS).load_state(&state).unwrap_err().to_string();
        assert!(error.contains("v0") && error.contains("[5]"), "{error}");
        state.remove("v0.step");
        assert!(adamw.load_state(&state).unwrap_err().to_string().contains("missing"));
    }
}
