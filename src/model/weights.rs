//! Named weights: read from a checkpoint or started from a seed, trainable or frozen.

use std::collections::BTreeMap;

use candle_core::{Device, Shape, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::source::Source;
use crate::error::Result;

/// How a weight starts when it is not read from a file.
#[derive(Debug, Clone)]
pub enum Start {
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// All the same value.
    Constant(f32),
    /// Exactly these values, row-major.
    Values(Vec<f32>),
}

/// Hands out a model's weights by name, remembering each.
pub struct Weights {
    seed: u64,
    device: Device,
    source: Option<Source>,
    trainable: bool,
    tensors: BTreeMap<String, Tensor>,
    variables: Vec<(String, Var)>,
}

impl Weights {
    /// Weights that start from `seed`. A weight's values depend on the seed and its name only.
    pub fn from_seed(seed: u64, device: &Device) -> Self {
        Self {
            seed,
            device: device.clone(),
            source: None,
            trainable: true,
            tensors: BTreeMap::new(),
            variables: Vec::new(),
        }
    }

    /// Weights taken out of `source`, as f32.
    pub fn from_source(source: Source, device: &Device) -> Self {
        Self { source: Some(source), ..Self::from_seed(0, device) }
    }

    /// Whether weights handed out from now on are trained.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable;
    }

    /// From now on, weights start from the seed even if the rest was read from a checkpoint.
    pub fn start_fresh(&mut self, seed: u64) {
        self.source = None;
        self.seed = seed;
    }

    /// The weight called `name`.
    pub fn get(&mut self, name: &str, shape: impl Into<Shape>, start: Start) -> Result<Tensor> {
        let shape = shape.into();
        let tensor = match &mut self.source {
            Some(source) => {
                let stored = source.take(name)?;
                let stored = stored.ok_or_else(|| {
                    source.fault(format!("{name}: this tensor is missing from the checkpoint"))
                })?;
                if stored.shape() != shape.dims() {
                    return Err(source.fault(format!(
                        "{name}: the checkpoint has shape {:?}, but config.json asks for {:?}",
                        stored.shape(),
                        shape.dims()
                    )));
                }
                stored.to_f32()?.to_device(&self.device)?
            }
            None => self.start(name, shape, start)?,
        };
        let tensor = match self.trainable {
            true => {
                let variable = Var::from_tensor(&tensor)?;
                let tensor = variable.as_tensor().clone();
                self.variables.push((name.to_string(), variable));
                tensor
            }
            false => tensor,
        };
        self.tensors.insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }

    fn start(&self, name: &str, shape: Shape, start: Start) -> Result<Tensor> {
        let n = shape.elem_count();
        let values = match start {
            Start::Normal(deviation) => normal(self.seed, name, n, deviation),
            Start::Constant(value) => vec![value; n],
            Start::Values(values) => values,
        };
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    /// The device that the weights live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The checkpoint that weights are taken from.
    pub fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    /// All weights handed out, and those among them that are trained.
    pub fn finish(self) -> (BTreeMap<String, Tensor>, Vec<(String, Var)>) {
        (self.tensors, self.variables)
    }
}

/// `n` values of a normal distribution that depend on `seed` and `name` only.
pub fn normal(seed: u64, name: &str, n: usize, deviation: f32) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        // Box and Muller: two normal values out of two uniform ones.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.push((radius * angle.cos()) as f32 * deviation);
        values.push((radius * angle.sin()) as f32 * deviation);
    }
    values.truncate(n);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        assert_eq!(normal(1, "a", 5, 1.0), normal(1, "a", 5, 1.0));
        assert_ne!(normal(1, "a", 5, 1.0), normal(1, "b", 5, 1.0));
        assert_ne!(normal(1, "a", 5, 1.0), normal(2, "a", 5, 1.0));
        let values = normal(3, "x", 10_000, 2.0);
        let mean = values.iter().sum::<f32>() / 1e4;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.1 && (variance - 4.0).abs() < 0.2, "{mean} {variance}");
    }
}
