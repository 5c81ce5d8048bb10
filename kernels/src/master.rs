//! The copy in `f32` of a variable whose own numbers are coarser.

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor, Var, bail};

/// What follows a variable's name in an optimiser's state.
const SUFFIX: &str = "master";

/// What an optimiser steps in the place of a variable in `bf16` or `f16`, which is itself that rounded: a step is mostly
/// far smaller than the distance to the variable's next number, and would be lost (Micikevicius et al. 2018,
/// <https://arxiv.org/abs/1710.03740>, section 3.1). Other variables have none.
#[derive(Clone, Debug, Default)]
pub struct Master(Option<Tensor>);

impl Master {
    /// That of a variable before its first step, or the one that it has.
    pub fn of(&mut self, var: &Var) -> Result<Option<&Tensor>> {
        if self.0.is_none() && is_coarse(var) {
            self.0 = Some(var.to_dtype(DType::F32)?);
        }
        Ok(self.0.as_ref())
    }

    /// The variable's value as it is stepped.
    pub fn value(&mut self, var: &Var) -> Result<Tensor> {
        match self.of(var)? {
            Some(master) => Ok(master.clone()),
            None => var.to_dtype(DType::F32),
        }
    }

    /// Gives the variable a value in `f32`.
    pub fn set(&mut self, var: &Var, value: Tensor) -> Result<()> {
        var.set(&value.to_dtype(var.dtype())?)?;
        if is_coarse(var) {
            self.0 = Some(value);
        }
        Ok(())
    }

    /// Adds it to a state; a copy, for a GPU's kernel steps it in place.
    pub fn save(&self, name: &str, state: &mut HashMap<String, Tensor>) -> Result<()> {
        if let Some(master) = &self.0 {
            state.insert(format!("{name}.{SUFFIX}"), master.copy()?);
        }
        Ok(())
    }

    /// The one in a state; where that has none, the variable is its own.
    pub fn load(name: &str, var: &Var, state: &HashMap<String, Tensor>) -> Result<Self> {
        match state.get(&format!("{name}.{SUFFIX}")) {
            Some(master) if is_coarse(var) => {
                if master.dims() != var.dims() {
                    bail!(
                        "optimiser state of {name}: {SUFFIX} is {:?}, the variable is {:?}",
                        master.dims(),
                        var.dims()
                    );
                }
                Ok(Self(Some(own(master, var)?)))
            }
            _ => Ok(Self(None)),
        }
    }
}

fn is_coarse(var: &Var) -> bool {
    matches!(var.dtype(), DType::BF16 | DType::F16)
}

/// A part of a state beside its variable, in `f32`; a copy, for a GPU's kernel steps it in place.
pub fn own(part: &Tensor, var: &Var) -> Result<Tensor> {
    part.to_device(var.device())?.to_dtype(DType::F32)?.copy()
}
