//! What single instances would have an adapter learn: their gradients while it is being learnt, and Adam's moments by then.

use std::path::PathBuf;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use super::config::{Kind, Schedule, TrainConfig, TrainingSection, TuneSection};
use super::optimiser::Optimiser;
use super::schedule::learning_rate;
use super::steps::{Learner, gradients_of};
use super::tune::TuneLearner;
use crate::adapter::{Lora, Method};
use crate::error::Result;
use crate::eval::tasks::Item;

/// An adapter that is being learnt from some files, whose gradients can be asked for between the steps.
pub struct InstanceGradients<'a> {
    learner: TuneLearner<'a>,
    optimiser: Optimiser,
    training: &'a TrainingSection,
    step: usize,
}

/// Adam's moments of all values of the adapter, as [`InstanceGradients::of`] orders them.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// The running mean of gradients.
    pub first: Vec<f32>,
    /// The running mean of their squares.
    pub second: Vec<f32>,
    /// Steps done.
    pub steps: i32,
}

/// A run that learns a LoRA adapter of the model `base` from the instances in `data` by Adam, its rate falling in a straight
/// line. Nothing is written to `out`.
pub fn warm_up(
    base: PathBuf,
    data: PathBuf,
    out: PathBuf,
    steps: usize,
    rate: f64,
    seed: u64,
) -> TrainConfig {
    let training = TrainingSection {
        learning_rate: rate,
        schedule: Schedule::Linear,
        weight_decay: 0.0,
        seed,
        ..TrainingSection::of(steps)
    };
    TrainConfig {
        kind: Kind::Tune,
        out,
        index: PathBuf::new(),
        pairs: None,
        neighbours: None,
        held_out: None,
        base: Some(base),
        continue_from: None,
        model: None,
        retro: None,
        t5: None,
        retriever: None,
        objectives: Vec::new(),
        tune: Some(TuneSection { data: vec![data], ..TuneSection::default() }),
        adapter: Some(Method::Lora(Lora::default())),
        trime: None,
        examples: None,
        atlas: None,
        training,
    }
}

impl<'a> InstanceGradients<'a> {
    /// Before the first step of `config`, which [`warm_up`] made.
    ///
    /// # Errors
    /// A model or a file that cannot be read.
    pub fn open(config: &'a TrainConfig, device: &Device) -> Result<Self> {
        let learner = TuneLearner::open(config, None, device)?;
        let optimiser = Optimiser::new(learner.variables().to_vec(), &config.training, |_| 1.0)?;
        Ok(Self { learner, optimiser, training: &config.training, step: 0 })
    }

    /// One step of learning; its rate.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn step(&mut self) -> Result<f64> {
        let rate = learning_rate(self.training, self.step);
        let batch = self.learner.read(self.step)?;
        let targets = self.learner.targets(&batch);
        let (_, mut gradients) = gradients_of(&self.learner.loss(batch, self.step)?, targets)?;
        self.optimiser.step(&mut gradients, rate, self.training.clip)?;
        self.step += 1;
        Ok(rate)
    }

    /// The gradient `[values of the adapter]` of the mean negative log likelihood of an instance's target tokens, without
    /// dropout.
    ///
    /// # Errors
    /// An instance that does not fit the model.
    pub fn of(&self, item: &Item) -> Result<Vec<f32>> {
        let (nats, tokens) = self.learner.nats_of(item)?;
        let (_, gradients) = gradients_of(&nats, tokens)?;
        self.flat(&gradients)
    }

    /// Adam's moments after the steps so far; zero for values that had no gradient yet.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn moments(&self) -> Result<Moments> {
        let state = self.optimiser.state()?;
        let mut moments = Moments { steps: self.step as i32, ..Moments::default() };
        for (name, variable) in self.learner.variables() {
            for (end, to) in [("exp_avg", &mut moments.first), ("exp_avg_sq", &mut moments.second)] {
                match state.get(&format!("{name}.{end}")) {
                    Some(tensor) => to.extend(values(tensor)?),
                    None => to.resize(to.len() + variable.elem_count(), 0.0),
                }
            }
        }
        Ok(moments)
    }

    fn flat(&self, gradients: &GradStore) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for (_, variable) in self.learner.variables() {
            match gradients.get(variable) {
                Some(gradient) => all.extend(values(gradient)?),
                None => all.resize(all.len() + variable.elem_count(), 0.0),
            }
        }
        Ok(all)
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use candle_core::Var;

    use super::*;
    use crate::eval::tasks;

    /// A small model, a file of instances, and these.
    fn workplace(dir: &Path) -> Vec<Item> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
        for file in fs::read_dir(models.join("gpt2")).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
        }
        fs::copy(models.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        let line =
            |i: usize| serde_json::json!({"input": format!("moon {i} line"), "target": "read the text"});
        let lines: Vec<_> = (0..6).map(|i| line(i).to_string()).collect();
        fs::write(dir.join("data.jsonl"), lines.join("\n")).unwrap();
        tasks::read(&[dir.join("data.jsonl")]).unwrap()
    }

    /// Fails when a gradient is of a sum instead of a mean, of the question too, or in another order than the weights.
    #[test]
    fn a_gradient_is_how_the_loss_changes_with_each_value() {
        let dir = tempfile::tempdir().unwrap();
        let items = workplace(dir.path());
        let config =
            warm_up(dir.path().into(), dir.path().join("data.jsonl"), dir.path().join("none"), 4, 0.01, 1);
        let mut run = InstanceGradients::open(&config, &Device::Cpu).unwrap();
        assert_eq!(run.moments().unwrap().steps, 0);
        let first = run.step().unwrap();
        assert!(run.step().unwrap() < first, "the rate falls");
        let gradient = run.of(&items[2]).unwrap();
        let moments = run.moments().unwrap();
        assert_eq!(
            (moments.first.len(), moments.second.len(), moments.steps),
            (gradient.len(), gradient.len(), 2)
        );
        let loss = |run: &InstanceGradients<'_>| {
            let (nats, tokens) = run.learner.nats_of(&items[2]).unwrap();
            f64::from(nats.to_scalar::<f32>().unwrap()) / tokens as f64
        };
        let variables: Vec<Var> =
            run.learner.variables().iter().map(|(_, variable)| variable.clone()).collect();
        let mut offset = 0;
        let mut checked = 0;
        for variable in variables {
            let before = values(variable.as_tensor()).unwrap();
            let own = &gradient[offset..offset + before.len()];
            // The value with the greatest gradient of each weight: differences of small ones are noise.
            let at = (0..own.len()).max_by(|a, b| own[*a].abs().total_cmp(&own[*b].abs())).unwrap();
            let moved = |by: f32| {
                let mut moved = before.clone();
                moved[at] += by;
                variable.set(&Tensor::from_vec(moved, variable.dims(), &Device::Cpu).unwrap()).unwrap();
                loss(&run)
            };
            let step = 0.02;
            let difference = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            moved(0.0);
            let found = f64::from(own[at]);
            assert!((difference - found).abs() < 0.02 * found.abs() + 2e-4, "{difference} {found}");
            checked += usize::from(found.abs() > 1e-3);
            offset += own.len();
        }
        assert_eq!(offset, gradient.len());
        assert!(checked > 0, "nothing has a gradient");
    }
}
