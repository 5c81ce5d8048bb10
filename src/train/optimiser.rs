//! The optimiser that a run asks for.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use sidenote_kernels::{Adafactor, AdafactorOptions, AdamW, AdamWOptions, StepStats};

use super::config::{OptimiserKind, TrainingSection};

/// Either optimiser, with its state.
pub enum Optimiser {
    /// AdamW.
    AdamW(AdamW),
    /// Adafactor.
    Adafactor(Adafactor),
}

impl Optimiser {
    /// The one that `training` asks for, over named variables.
    pub fn new(variables: Vec<(String, Var)>, training: &TrainingSection) -> Self {
        let weight_decay = training.weight_decay;
        match training.optimiser {
            OptimiserKind::AdamW => {
                Self::AdamW(AdamW::new(variables, AdamWOptions { weight_decay, ..Default::default() }))
            }
            OptimiserKind::Adafactor => Self::Adafactor(Adafactor::new(
                variables,
                AdafactorOptions { weight_decay, ..Default::default() },
            )),
        }
    }

    /// Updates the variables; gradients whose global norm is larger than `clip` are scaled down to it.
    pub fn step(&mut self, grads: &GradStore, lr: f64, clip: f64) -> candle_core::Result<StepStats> {
        match self {
            Self::AdamW(optimiser) => optimiser.step(grads, lr, Some(clip)),
            Self::Adafactor(optimiser) => optimiser.step(grads, lr, Some(clip)),
        }
    }

    /// All that is needed to go on bit for bit.
    pub fn state(&self) -> candle_core::Result<HashMap<String, Tensor>> {
        match self {
            Self::AdamW(optimiser) => optimiser.state(),
            Self::Adafactor(optimiser) => optimiser.state(),
        }
    }

    /// Takes over a state made by [`state`](Self::state) of the same optimiser.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> candle_core::Result<()> {
        match self {
            Self::AdamW(optimiser) => optimiser.load_state(state),
            Self::Adafactor(optimiser) => optimiser.load_state(state),
        }
    }
}
