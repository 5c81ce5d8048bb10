//! AdamW.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};

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

/// What one [`AdamW::step`] saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// The Euclidean norm over all gradients, before clipping.
    pub grad_norm: f64,
    /// Whether a gradient held a NaN or an infinity, in which case nothing was changed.
    pub skipped: bool,
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019,
/// <https://arxiv.org/abs/1711.05101>, algorithm 2) with moments in `f32`.
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
    moments: Option<(Tensor, Tensor)>,
}

impl AdamW {
    /// An optimiser over named variables.
    pub fn new(vars: Vec<(String, Var)>, options: AdamWOptions) -> Self {
        let parameters =
            vars.into_iter().map(|(name, var)| Parameter { name, var, steps: 0, moments: None }).collect();
        Self { options, parameters }
    }

    /// Updates every variable that has a gradient. With `clip`, gradients whose global norm is larger
    /// are scaled down to it.
    pub fn step(&mut self, grads: &GradStore, lr: f64, clip: Option<f64>) -> Result<StepStats> {
        let mut square = 0f64;
        for parameter in &self.parameters {
            if let Some(grad) = grads.get(&parameter.var) {
                let grad = grad.to_dtype(DType::F64)?;
                square += grad.sqr()?.sum_all()?.to_scalar::<f64>()?;
            }
        }
        let grad_norm = square.sqrt();
        if !grad_norm.is_finite() {
            return Ok(StepStats { grad_norm, skipped: true });
        }
        let factor = match clip {
            Some(clip) if grad_norm > clip => clip / grad_norm,
            _ => 1.0,
        };
        for parameter in &mut self.parameters {
            if let Some(grad) = grads.get(&parameter.var) {
                parameter.update(grad, &self.options, lr, factor)?;
            }
        }
        Ok(StepStats { grad_norm, skipped: false })
    }

    /// Everything needed to go on bit for bit: for each variable that has been updated, `NAME.exp_avg`
    /// and `NAME.exp_avg_sq` (`f32`, the shape of the variable) and `NAME.step` (`u32` scalar).
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for parameter in &self.parameters {
            if let Some((first, second)) = &parameter.moments {
                let name = &parameter.name;
                state.insert(format!("{name}.exp_avg"), first.clone());
                state.insert(format!("{name}.exp_avg_sq"), second.clone());
                state.insert(format!("{name}.step"), Tensor::new(parameter.steps, &Device::Cpu)?);
            }
        }
        Ok(state)
    }

    /// Takes over a state made by [`AdamW::state`]. A variable it does not name starts afresh.
    ///
    /// # Errors
    /// When an entry has another shape than its variable, or a variable has only some of its entries.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for parameter in &mut self.parameters {
            let entry = |suffix: &str| state.get(&format!("{}.{suffix}", parameter.name));
            (parameter.steps, parameter.moments) =
                match (entry("exp_avg"), entry("exp_avg_sq"), entry("step")) {
                    (None, None, None) => (0, None),
                    (Some(first), Some(second), Some(steps)) => {
                        if first.dims() != parameter.var.dims() || second.dims() != parameter.var.dims() {
                            bail!(
                                "optimiser state of {}: moments are {:?} and {:?}, the variable is {:?}",
                                parameter.name,
                                first.dims(),
                                second.dims(),
                                parameter.var.dims()
                            );
                        }
                        let device = parameter.var.device();
                        let moment = |m: &Tensor| m.to_device(device)?.to_dtype(DType::F32);
                        (steps.to_scalar::<u32>()?, Some((moment(first)?, moment(second)?)))
                    }
                    _ => {
                        bail!("optimiser state of {}: exp_avg, exp_avg_sq or step is missing", parameter.name)
                    }
                };
        }
        Ok(())
    }
}

impl Parameter {
    fn update(&mut self, grad: &Tensor, options: &AdamWOptions, lr: f64, factor: f64) -> Result<()> {
        let AdamWOptions { beta1, beta2, eps, weight_decay } = *options;
        let (first, second) = match self.moments.take() {
            Some(moments) => moments,
            None => {
                let zeros = Tensor::zeros(self.var.shape(), DType::F32, self.var.device())?;
                (zeros.clone(), zeros)
            }
        };
        self.steps += 1;
        let grad = (grad.to_dtype(DType::F32)? * factor)?;
        let first = ((first * beta1)? + (&grad * (1.0 - beta1))?)?;
        let second = ((second * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
        let steps = f64::from(self.steps);
        let rate = lr / (1.0 - beta1.powf(steps));
        let denominator = ((&second / (1.0 - beta2.powf(steps)))?.sqrt()? + eps)?;
        let decay = if self.var.rank() >= 2 { weight_decay } else { 0.0 };
        let value = self.var.to_dtype(DType::F32)?;
        let value = ((value * (1.0 - lr * decay))? - ((&first / denominator)? * rate)?)?;
        self.var.set(&value.to_dtype(self.var.dtype())?)?;
        self.moments = Some((first, second));
        Ok(())
    }
}
