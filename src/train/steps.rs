//! The loop over steps, for whatever learns.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::Serialize;
use sidenote_kernels as kernels;

use super::checkpoint;
use super::config::{Schedule, TrainingSection};
use super::group::{Group, sum_gradients};
use super::log::{Curve, Log, plot};
use super::measurement::Measurement;
use super::optimiser::Optimiser;
use super::schedule::learning_rate;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Steps between lines of `metrics.jsonl`.
const LOG_EVERY: usize = 20;

/// What is trained, on what. Everything that it does is a function of its settings and of the number of the batch, so that
/// a resumed run goes on as if it had never stopped.
pub trait Learner {
    /// What is read at once.
    type Batch;

    /// The weights that are trained, by name.
    fn variables(&self) -> &[(String, Var)];

    /// Number of values in all weights.
    fn parameters(&self) -> usize;

    /// The share of the learning rate that the weight `name` is trained with.
    fn rate_share(&self, _name: &str) -> f64 {
        1.0
    }

    /// Done once before the first step of a run.
    ///
    /// # Errors
    /// As the learner has them.
    fn begin(&mut self, _progress: Progress) -> Result<()> {
        Ok(())
    }

    /// Done once before the batches of `step` are read, by all processes of `group`.
    ///
    /// # Errors
    /// As the learner has them; a process that is gone.
    fn prepare(&mut self, _step: usize, _group: &mut dyn Group) -> Result<()> {
        Ok(())
    }

    /// Batch `number` of the run, from 0.
    ///
    /// # Errors
    /// Text that cannot be read.
    fn read(&mut self, number: usize) -> Result<Self::Batch>;

    /// How many targets a batch has: losses are means over those of a step.
    fn targets(&self, batch: &Self::Batch) -> usize;

    /// The sum of the losses of a batch's targets: a scalar.
    ///
    /// # Errors
    /// When the device refuses.
    fn loss(&self, batch: Self::Batch, number: usize) -> Result<Tensor>;

    /// Done after every step.
    ///
    /// # Errors
    /// When the device refuses.
    fn stepped(&mut self) -> Result<()> {
        Ok(())
    }

    /// What it needs to go on bit for bit beside the weights: part of every checkpoint.
    ///
    /// # Errors
    /// When the device refuses.
    fn state(&self) -> Result<HashMap<String, Tensor>> {
        Ok(HashMap::new())
    }

    /// The mean loss on what is held out, where there is any.
    ///
    /// # Errors
    /// Text that cannot be read.
    fn held_out(&self) -> Result<Option<f64>>;

    /// The mean losses on what else is held out and reported apart, by name.
    ///
    /// # Errors
    /// Text that cannot be read.
    fn held_out_parts(&self) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }

    /// Writes what was learnt to the new folder `dir`, which appears whole or not at all.
    ///
    /// # Errors
    /// A full disk.
    fn save(&self, dir: &Path) -> Result<()>;
}

/// What a run ended with.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Folder of the trained model.
    pub model: PathBuf,
    /// Values in all its weights.
    pub parameters: usize,
    /// Values in those that were trained.
    pub trained_parameters: usize,
    /// Steps done.
    pub steps: usize,
    /// Targets read.
    pub tokens: u64,
    /// Seconds spent on steps, measurements and checkpoints not counted.
    pub seconds: f64,
    /// Steps left out because a gradient was not finite.
    pub skipped_steps: usize,
    /// Last training loss, nats a token; none where the last steps were all left out, and of a process that does not write.
    pub loss: Option<f64>,
    /// Last held-out loss, nats a token, on a part of the held-out text.
    pub held_out_loss: Option<f64>,
    /// The same of what else is held out and reported apart, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub held_out_losses: BTreeMap<String, f64>,
    /// Checkpoint with the lowest held-out loss, where the end of the run is not it.
    pub best: Option<PathBuf>,
    /// All measurements.
    #[serde(skip)]
    pub measurements: Vec<Measurement>,
}

/// A sum of losses as its part of the mean over `targets` targets, and the gradients of that.
pub(super) fn gradients_of(sum: &Tensor, targets: usize) -> Result<(f64, GradStore)> {
    let loss = (sum / targets.max(1) as f64)?;
    Ok((f64::from(loss.to_scalar::<f32>()?), kernels::backward(&loss)?))
}

/// A run through the loop.
pub struct Run<'a> {
    /// Its folder.
    pub out: &'a Path,
    /// How to train.
    pub training: &'a TrainingSection,
    /// Checkpoint to go on from.
    pub start: Option<&'a Path>,
    /// What it is called.
    pub what: &'a str,
    /// The processes that train together, of which the first writes.
    pub group: &'a mut dyn Group,
}

impl Run<'_> {
    /// Trains `learner` to the last step, and saves it as `model` in the run's folder.
    ///
    /// # Errors
    /// An interruption, after a checkpoint; a full disk; what the learner reports.
    pub fn through<L: Learner>(self, mut learner: L, progress: Progress) -> Result<Outcome> {
        let Self { out, training, start, what, group } = self;
        let writes = group.rank() == 0;
        let mut step = 0;
        if let Some(dir) = start {
            step = checkpoint::step_of(dir).ok_or_else(|| {
                Error::setting("continue_from", "give a checkpoint folder, such as checkpoints/step-0000100")
            })?;
        }
        let (mut log, mut measurements) = match writes {
            true => Log::open(out, step).map(|(log, measurements)| (Some(log), measurements))?,
            false => (None, Vec::new()),
        };
        let last = measurements.last();
        let mut tokens = last.map_or(0, |m| m.tokens);
        let mut seconds = last.map_or(0.0, |m| m.seconds);
        let mut skipped_steps = last.map_or(0, |m| m.skipped_steps);
        if start.is_none() {
            let clock = Instant::now();
            training.precision.of_products().run(|| learner.begin(progress))?;
            seconds += clock.elapsed().as_secs_f64();
        }
        let mut optimiser =
            Optimiser::new(learner.variables().to_vec(), training, |name| learner.rate_share(name))?;
        if let Some(dir) = start {
            checkpoint::load_optimiser(dir, &mut optimiser)?;
        }

        let task = progress.task(what, (training.steps - step.min(training.steps)) as u64, "steps");
        // From there a run with a constant rate can be made longer.
        let level = (training.schedule == Schedule::Constant).then(|| training.level_steps());
        let mut best = best_of(&measurements);
        let (mut sum, mut count) = (0.0, 0usize);
        while step < training.steps {
            let clock = Instant::now();
            learner.prepare(step, group)?;
            let first = (step * group.size() + group.rank()) * training.accumulate;
            let numbers = first..first + training.accumulate;
            let batches = numbers.clone().map(|number| learner.read(number)).collect::<Result<Vec<_>>>()?;
            // Few enough to be exact.
            let mut scored = [batches.iter().map(|batch| learner.targets(batch)).sum::<usize>() as f32];
            group.sum(&mut scored)?;
            let scored = scored[0] as usize;
            let mut gradients: Option<GradStore> = None;
            let mut value = 0.0;
            for (number, batch) in numbers.zip(batches) {
                let both_ways = || gradients_of(&learner.loss(batch, number)?, scored);
                let keeping = || training.activations().run(both_ways);
                let (loss, of_batch) = training.precision.of_products().run(keeping)?;
                value += loss;
                match &mut gradients {
                    None => gradients = Some(of_batch),
                    Some(sum) => add(sum, of_batch, learner.variables())?,
                }
            }
            let Some(mut gradients) = gradients else { break };
            sum_gradients(group, &mut gradients, learner.variables())?;
            let mut loss = [value as f32];
            if group.size() > 1 {
                group.sum(&mut loss)?;
                value = loss[0].into();
            }
            let rate = learning_rate(training, step);
            let stats = optimiser.step(&mut gradients, rate, training.clip)?;
            learner.stepped()?;
            step += 1;
            tokens += scored as u64;
            seconds += clock.elapsed().as_secs_f64();
            match stats.skipped {
                true => skipped_steps += 1,
                false => {
                    sum += value;
                    count += 1;
                }
            }
            task.advance(1);
            task.remark(format!("loss {value:.3}, {:.0} tokens/s", tokens as f64 / seconds.max(1e-9)));

            let done = step == training.steps;
            let evaluate = done || step.is_multiple_of(training.evaluate_every);
            let stop = interrupt::requested() && !done;
            if !writes {
                continue;
            }
            let mut save =
                stop || (!done && step.is_multiple_of(training.checkpoint_every)) || Some(step) == level;
            // A line before each checkpoint, so that a resumed run counts on from exactly there.
            if evaluate || save || step.is_multiple_of(LOG_EVERY) {
                let (held_out_loss, held_out_losses) = match evaluate {
                    true => (learner.held_out()?, learner.held_out_parts()?),
                    false => Default::default(),
                };
                let line = Measurement {
                    step,
                    tokens,
                    seconds,
                    loss: (count > 0).then(|| sum / count as f64),
                    gradient_norm: Some(stats.grad_norm).filter(|norm| norm.is_finite()),
                    learning_rate: rate,
                    skipped_steps,
                    held_out_loss,
                    held_out_losses,
                };
                if let Some(log) = &mut log {
                    log.write(&line)?;
                }
                measurements.push(line);
                let best_yet = best_of(&measurements);
                save |= best_yet != best && !done;
                best = best_yet;
                (sum, count) = (0.0, 0);
            }
            if save {
                let pinned: Vec<usize> = level.into_iter().chain(best).collect();
                let save = |dir: &Path| {
                    learner.save(dir)?;
                    checkpoint::save_learner(dir, &learner.state()?)
                };
                checkpoint::save(out, step, save, &optimiser, training.keep_checkpoints, &pinned)?;
            }
            if stop {
                return Err(Error::Interrupted(format!("step {step} is saved; go on with --resume")));
            }
        }
        drop(task);
        let model_dir = out.join("model");
        if writes {
            learner.save(&model_dir)?;
            let title = format!("{what}: {}", out.display());
            let curves =
                [Curve::training("training", &measurements), Curve::held_out("held out", &measurements)];
            plot(&out.join("curve.svg"), &title, &curves)?;
        }
        let last = measurements.last();
        Ok(Outcome {
            parameters: learner.parameters(),
            trained_parameters: learner.variables().iter().map(|(_, variable)| variable.elem_count()).sum(),
            model: model_dir,
            steps: step,
            tokens,
            seconds,
            skipped_steps,
            loss: last.and_then(|m| m.loss),
            held_out_loss: last.and_then(|m| m.held_out_loss),
            held_out_losses: last.map(|m| m.held_out_losses.clone()).unwrap_or_default(),
            best: best.filter(|best| *best != step).map(|best| checkpoint::folder(out, best)),
            measurements,
        })
    }
}

/// Adds the gradients of another batch to `sum`.
pub(super) fn add(sum: &mut GradStore, mut other: GradStore, variables: &[(String, Var)]) -> Result<()> {
    for (_, variable) in variables {
        let Some(new) = other.remove(variable) else { continue };
        let new = match sum.remove(variable) {
            Some(old) => (old + new)?,
            None => new,
        };
        sum.insert(variable, new);
    }
    Ok(())
}

/// The step with the lowest held-out loss, the first of several; a loss that is no number is none.
fn best_of(measurements: &[Measurement]) -> Option<usize> {
    let measured = measurements.iter().filter_map(|m| Some((m.step, m.held_out_loss?)));
    measured.filter(|(_, loss)| !loss.is_nan()).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, _)| step)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use candle_core::{DType, Device, Tensor};

    use super::super::group::Alone;
    use super::*;

    /// A difference of infinities has a sign, by which it would be the least of all.
    #[test]
    fn what_is_no_number_is_not_the_best() {
        let measured = |step, loss| Measurement { step, held_out_loss: Some(loss), ..Measurement::default() };
        let lines = [measured(1, -f64::NAN), measured(2, 3.0), measured(3, 2.0), measured(4, f64::NAN)];
        assert_eq!((best_of(&lines), best_of(&lines[..1])), (Some(3), None));
    }

    /// Learns numbers that are small; one of its batches has a loss that is no number.
    struct Small {
        weights: [(String, Var); 1],
        bad: usize,
    }

    impl Small {
        fn new(bad: usize) -> Self {
            let weight = Var::new(&[0.5f32, -2.0, 3.0], &Device::Cpu).unwrap();
            Self { weights: [("w".into(), weight)], bad }
        }
    }

    impl Learner for Small {
        type Batch = ();

        fn variables(&self) -> &[(String, Var)] {
            &self.weights
        }

        fn parameters(&self) -> usize {
            3
        }

        fn read(&mut self, _: usize) -> Result<()> {
            Ok(())
        }

        fn targets(&self, (): &()) -> usize {
            1
        }

        fn loss(&self, (): (), number: usize) -> Result<Tensor> {
            let scale = if number == self.bad { f64::NAN } else { 1.0 };
            Ok((self.weights[0].1.sqr()?.sum_all()? * scale)?)
        }

        fn held_out(&self) -> Result<Option<f64>> {
            Ok(None)
        }

        fn save(&self, dir: &Path) -> Result<()> {
            fs::create_dir_all(dir).map_err(Error::io(dir))
        }
    }

    /// Fails when such a step moves a weight, counts in the mean loss, or is forgotten by a run that goes on.
    #[test]
    fn a_step_that_is_not_finite_is_left_out_and_counted() {
        let place = tempfile::tempdir().unwrap();
        let through = |name: &str, steps: usize, bad: usize, start: Option<usize>| {
            let out = place.path().join(name);
            fs::create_dir_all(&out).unwrap();
            let training = TrainingSection { checkpoint_every: 4, ..TrainingSection::of(steps) };
            let start = start.map(|step| checkpoint::folder(&out, step));
            let learner = Small::new(bad);
            let weight = learner.weights[0].1.clone();
            let group = &mut Alone;
            let run = Run { out: &out, training: &training, start: start.as_deref(), what: "small", group };
            let outcome = run.through(learner, Progress::Silent).unwrap();
            fs::remove_dir_all(&outcome.model).unwrap();
            (outcome, weight.to_vec1::<f32>().unwrap())
        };
        let (without, expected) = through("without", 4, usize::MAX, None);
        let (with, found) = through("with", 5, 2, None);
        assert_eq!((without.skipped_steps, with.skipped_steps), (0, 1));
        assert_eq!(found, expected);
        assert!(
            with.measurements.iter().all(|line| line.loss.is_some_and(f64::is_finite)),
            "{:?}",
            with.measurements
        );
        // Where all are left out there is no loss, and the run goes on to count them.
        let out = place.path().join("bad");
        fs::create_dir_all(&out).unwrap();
        let training = TrainingSection { checkpoint_every: 4, ..TrainingSection::of(1) };
        let run = Run { out: &out, training: &training, start: None, what: "small", group: &mut Alone };
        let outcome = run.through(Small::new(0), Progress::Silent).unwrap();
        assert_eq!((outcome.loss, outcome.skipped_steps), (None, 1));
        assert_eq!(Log::open(&out, 1).unwrap().1[0].skipped_steps, 1);
        assert_eq!(through("with", 6, usize::MAX, Some(4)).0.skipped_steps, 1);
    }

    #[test]
    fn gradients_of_batches_add_up_to_those_of_all_of_them() {
        let device = Device::Cpu;
        let variable =
            |n: usize| Var::from_tensor(&Tensor::arange(0f32, n as f32, &device).unwrap()).unwrap();
        let variables = [("a".to_string(), variable(3)), ("b".to_string(), variable(2))];
        let (a, b) = (&variables[0].1, &variables[1].1);
        let first = a.sqr().unwrap().sum_all().unwrap();
        // Has no part in the first.
        let second = (a.sum_all().unwrap() * b.sqr().unwrap().sum_all().unwrap()).unwrap();
        let mut sum = first.backward().unwrap();
        add(&mut sum, second.backward().unwrap(), &variables).unwrap();
        add(&mut sum, first.backward().unwrap(), &variables).unwrap();
        let whole = ((&first + &second).unwrap() + &first).unwrap().backward().unwrap();
        for (name, variable) in &variables {
            let of = |grads: &GradStore| {
                grads.get(variable).unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(of(&sum), of(&whole), "{name}");
        }
    }
}
