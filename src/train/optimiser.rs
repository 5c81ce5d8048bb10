//! The optimiser that a run asks for.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use sidenote_kernels::{Adafactor, AdafactorOptions, AdamW, AdamWOptions, Clipping, StepStats};

use super::config::{OptimiserKind, TrainingSection};
use crate::error::Result;
use crate::model::Precision;

/// What follows a weight's name in the state where its values before rounding are.
const MASTER: &str = "master";

/// An optimiser with its state.
///
/// Where weights are rounded (`training.precision`), a step is far smaller than the distance to the next number that a weight
/// can be, and would be lost. So each has a master of f32, which is what steps are added to, and is itself the master
/// rounded (Micikevicius et al. 2018, "Mixed precision training", section 3.1, <https://arxiv.org/abs/1710.03740>).
pub struct Optimiser {
    /// Weights that are stepped together, with their share of the learning rate. Each is clipped by itself.
    groups: Vec<(f64, Rule)>,
    precision: Precision,
    /// Name, the weight that is read, and its master; none where weights are not rounded.
    rounded: Vec<(String, Var, Var)>,
}

enum Rule {
    AdamW(AdamW),
    Adafactor(Adafactor),
}

impl Rule {
    fn clipping(&self, grads: &GradStore, clip: f64) -> Result<Clipping> {
        Ok(match self {
            Self::AdamW(optimiser) => optimiser.clipping(grads, Some(clip)),
            Self::Adafactor(optimiser) => optimiser.clipping(grads, Some(clip)),
        }?)
    }

    fn step(&mut self, grads: &GradStore, lr: f64, clipping: &Clipping) -> Result<()> {
        Ok(match self {
            Self::AdamW(optimiser) => optimiser.step_clipped(grads, lr, clipping),
            Self::Adafactor(optimiser) => optimiser.step_clipped(grads, lr, clipping),
        }?)
    }
}

impl Optimiser {
    /// The one that `training` asks for, over named variables of f32, which are rounded from here on if it says so. Each is
    /// stepped by its `share` of the learning rate.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn new(
        variables: Vec<(String, Var)>,
        training: &TrainingSection,
        share: impl Fn(&str) -> f64,
    ) -> Result<Self> {
        let (weight_decay, precision) = (training.weight_decay, training.precision);
        let (stepped, rounded) = match precision {
            Precision::F32 => (variables, Vec::new()),
            Precision::Bf16 => {
                let mut rounded = Vec::with_capacity(variables.len());
                for (name, weight) in variables {
                    let master = Var::from_tensor(&weight.as_tensor().copy()?)?;
                    weight.set(&precision.rounded(&master)?)?;
                    rounded.push((name, weight, master));
                }
                let masters = rounded.iter().map(|(name, _, master)| (name.clone(), master.clone()));
                (masters.collect(), rounded)
            }
        };
        let rule = |stepped| match training.optimiser {
            OptimiserKind::AdamW => {
                Rule::AdamW(AdamW::new(stepped, AdamWOptions { weight_decay, ..Default::default() }))
            }
            OptimiserKind::Adafactor => Rule::Adafactor(Adafactor::new(
                stepped,
                AdafactorOptions { weight_decay, ..Default::default() },
            )),
        };
        let mut groups: Vec<(f64, Vec<(String, Var)>)> = Vec::new();
        for (name, weight) in stepped {
            let own = share(&name);
            match groups.iter_mut().find(|(share, _)| *share == own) {
                Some((_, group)) => group.push((name, weight)),
                None => groups.push((own, vec![(name, weight)])),
            }
        }
        let groups = groups.into_iter().map(|(share, group)| (share, rule(group))).collect();
        Ok(Self { groups, precision, rounded })
    }

    /// Updates the variables; gradients whose global norm is larger than `clip` are scaled down to it, each group's by
    /// itself. Nothing is changed where any gradient is not finite. Those of rounded weights are taken out of `grads`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn step(&mut self, grads: &mut GradStore, lr: f64, clip: f64) -> Result<StepStats> {
        for (_, weight, master) in &self.rounded {
            if let Some(gradient) = grads.remove(weight) {
                grads.insert(master, gradient);
            }
        }
        // What cannot be stepped by one group is not stepped by another.
        let clippings: Vec<Clipping> =
            self.groups.iter().map(|(_, rule)| rule.clipping(grads, clip)).collect::<Result<_>>()?;
        let of_all = |all: StepStats, one: StepStats| StepStats {
            grad_norm: all.grad_norm.hypot(one.grad_norm),
            skipped: all.skipped || one.skipped,
        };
        let stats = clippings.iter().map(Clipping::stats);
        let stats = stats.reduce(of_all).unwrap_or(StepStats { grad_norm: 0.0, skipped: false });
        if !stats.skipped {
            for ((share, rule), clipping) in self.groups.iter_mut().zip(&clippings) {
                rule.step(grads, *share * lr, clipping)?;
            }
            self.round()?;
        }
        Ok(stats)
    }

    fn round(&self) -> Result<()> {
        for (_, weight, master) in &self.rounded {
            weight.set(&self.precision.rounded(master)?)?;
        }
        Ok(())
    }

    /// All that is needed to go on bit for bit, beside the weights as they are read.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (_, rule) in &self.groups {
            state.extend(match rule {
                Rule::AdamW(optimiser) => optimiser.state(),
                Rule::Adafactor(optimiser) => optimiser.state(),
            }?);
        }
        for (name, _, master) in &self.rounded {
            state.insert(format!("{name}.{MASTER}"), master.as_detached_tensor());
        }
        Ok(state)
    }

    /// Takes over a state made by [`state`](Self::state) of the same optimiser. A weight without a master in it, because
    /// it was not rounded there, is its own.
    ///
    /// # Errors
    /// A state of other weights.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        for (_, rule) in &mut self.groups {
            match rule {
                Rule::AdamW(optimiser) => optimiser.load_state(state),
                Rule::Adafactor(optimiser) => optimiser.load_state(state),
            }?;
        }
        for (name, _, master) in &self.rounded {
            if let Some(value) = state.get(&format!("{name}.{MASTER}")) {
                master.set(&value.to_device(master.device())?)?;
            }
        }
        self.round()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn training(optimiser: OptimiserKind, precision: Precision) -> TrainingSection {
        TrainingSection { optimiser, precision, weight_decay: 0.0, ..TrainingSection::of(1) }
    }

    fn variable() -> Var {
        Var::from_vec(vec![1.003f32, -2.0, 0.7, 1.0, 3.3, -0.5], (2, 3), &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// A step along the gradient of the sum of squares, times `scale`.
    fn step(optimiser: &mut Optimiser, weight: &Var, scale: f64) -> StepStats {
        let loss = (weight.sqr().unwrap().sum_all().unwrap() * scale).unwrap();
        optimiser.step(&mut loss.backward().unwrap(), 1e-4, 1e9).unwrap()
    }

    /// Fails when steps are added to the rounded weight: 1e-4 is a fortieth of the distance between its numbers at 1.
    #[test]
    fn steps_too_small_for_a_rounded_weight_add_up() {
        let kinds = [OptimiserKind::AdamW, OptimiserKind::Adafactor];
        for (kind, steps) in kinds.into_iter().flat_map(|kind| [(kind, 3), (kind, 400)]) {
            let (whole, rounded) = (variable(), variable());
            let named = |weight: &Var| vec![("w".to_string(), weight.clone())];
            let mut exact = Optimiser::new(named(&whole), &training(kind, Precision::F32), |_| 1.0).unwrap();
            let mut master =
                Optimiser::new(named(&rounded), &training(kind, Precision::Bf16), |_| 1.0).unwrap();
            for _ in 0..steps {
                step(&mut exact, &whole, 1.0);
                assert!(!step(&mut master, &rounded, 1.0).skipped);
            }
            let (a, b) = (bits(&whole), bits(&rounded));
            let upper = bits(&rounded.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap());
            assert_eq!(b, upper, "{kind:?}: what is read is rounded");
            for (a, b) in a.into_iter().zip(b) {
                let (a, b) = (f32::from_bits(a), f32::from_bits(b));
                // Half the distance between two numbers of bf16, and what other gradients have made of it.
                assert!((a - b).abs() < 0.006 * a.abs() + 1e-4, "{kind:?}: {a} {b} after {steps} steps");
            }
        }
    }

    /// Fails when the state lacks the masters.
    #[test]
    fn a_state_goes_on_to_the_same_bits() {
        for kind in [OptimiserKind::AdamW, OptimiserKind::Adafactor] {
            let settings = training(kind, Precision::Bf16);
            let (once, first) = (variable(), variable());
            let new = |weight: &Var| {
                Optimiser::new(vec![("w".to_string(), weight.clone())], &settings, |_| 1.0).unwrap()
            };
            let (mut all, mut half) = (new(&once), new(&first));
            for _ in 0..50 {
                step(&mut all, &once, 1.0);
            }
            for _ in 0..20 {
                step(&mut half, &first, 1.0);
            }
            // A run that goes on reads rounded weights.
            let second = Var::from_tensor(&first.as_tensor().copy().unwrap()).unwrap();
            let mut rest = new(&second);
            rest.load_state(&half.state().unwrap()).unwrap();
            for _ in 0..30 {
                step(&mut rest, &second, 1.0);
            }
            assert_eq!(bits(&once), bits(&second), "{kind:?}");
            let masters = [&all, &rest].map(|one| bits(&one.state().unwrap()["w.master"]));
            assert_eq!(masters[0], masters[1], "{kind:?}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        for precision in [Precision::F32, Precision::Bf16] {
            let weight = variable();
            let variables = vec![("w".to_string(), weight.clone())];
            let mut optimiser =
                Optimiser::new(variables, &training(OptimiserKind::AdamW, precision), |_| 1.0).unwrap();
            step(&mut optimiser, &weight, 1.0);
            let before = (bits(&weight), optimiser.state().unwrap().keys().count());
            for scale in [f64::NAN, f64::INFINITY] {
                assert!(step(&mut optimiser, &weight, scale).skipped);
            }
            assert_eq!((bits(&weight), optimiser.state().unwrap().keys().count()), before);
        }
    }

    /// Fails when the group whose gradients are finite is stepped by itself.
    #[test]
    fn a_gradient_that_is_not_finite_stops_the_other_group_too() {
        for kind in [OptimiserKind::AdamW, OptimiserKind::Adafactor] {
            let (slow, fast) = (variable(), variable());
            let variables = vec![("slow".to_string(), slow.clone()), ("fast".to_string(), fast.clone())];
            let share = |name: &str| if name == "slow" { 0.1 } else { 1.0 };
            let mut optimiser = Optimiser::new(variables, &training(kind, Precision::F32), share).unwrap();
            let mut step = |of_slow: f64, of_fast: f64| {
                let part = |weight: &Var, scale: f64| (weight.sum_all().unwrap() * scale).unwrap();
                let loss = (part(&slow, of_slow) + part(&fast, of_fast)).unwrap();
                optimiser.step(&mut loss.backward().unwrap(), 1e-2, 1e9).unwrap()
            };
            let before = bits(&fast);
            for (of_slow, of_fast) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
                assert!(step(of_slow, of_fast).skipped);
                assert!(bits(&slow) == before && bits(&fast) == before, "{kind:?}");
            }
            assert!(!step(1.0, 1.0).skipped);
            let moved = |weight: &Var| {
                let by = (weight.as_tensor() - variable().as_tensor()).unwrap().abs().unwrap();
                by.mean_all().unwrap().to_scalar::<f32>().unwrap()
            };
            let ratio = moved(&fast) / moved(&slow);
            assert!((ratio - 10.0).abs() < 0.01, "{kind:?}: {ratio}");
        }
    }
}
