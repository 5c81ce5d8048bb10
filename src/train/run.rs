//! The training loop.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Device, Var};
use serde::Serialize;
use sidenote_kernels::{self as kernels, CrossEntropyOptions};

use super::checkpoint;
use super::config::{Kind, Schedule, TrainConfig, TrimeKind};
use super::copy;
use super::examples::Examples;
use super::log::{Curve, Log, Measurement, plot};
use super::optimiser::Optimiser;
use super::order::Order;
use super::schedule::learning_rate;
use super::trime::{self, Seen};
use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::eval::perplexity::{self, Neighbourhood};
use crate::interrupt;
use crate::model::batch::{IGNORE, gather};
use crate::model::{Initialisation, LanguageModel, Network, Trainable};
use crate::progress::Progress;
use crate::retriever::neighbours::{Neighbours, tokens_of};
use crate::retriever::open_store;

/// Steps between lines of `metrics.jsonl`.
const LOG_EVERY: usize = 20;
/// Held-out documents that are measured while training.
const HELD_OUT_DOCUMENTS: usize = 48;
/// Batches that the copy initialisation is fitted on.
const FIT_BATCHES: usize = 24;

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
    /// Last training loss, nats a token.
    pub loss: f64,
    /// Last held-out loss, nats a token, on a part of the held-out text.
    pub held_out_loss: Option<f64>,
    /// Checkpoint with the lowest held-out loss, where the end of the run is not it.
    pub best: Option<PathBuf>,
    /// All measurements.
    #[serde(skip)]
    pub measurements: Vec<Measurement>,
}

/// Runs the training that `config` describes. With `resume`, goes on from the last checkpoint in
/// its folder, exactly as if it had never stopped.
pub fn run(config: &TrainConfig, resume: bool, progress: Progress) -> Result<Outcome> {
    config.check()?;
    let out = &config.out;
    let model_dir = out.join("model");
    if model_dir.exists() {
        return Err(Error::file(&model_dir, "this run is finished; choose another `out`, or remove it"));
    }
    let steps_there = checkpoint::list(out)?;
    if !resume && !steps_there.is_empty() {
        let why = "this run was started before; go on with --resume, or remove the folder";
        return Err(Error::file(out, why));
    }
    if !steps_there.is_empty() {
        check_same_run(config)?;
    }
    fs::create_dir_all(out).map_err(Error::io(out))?;
    save_config(config)?;

    let device = Device::Cpu;
    let library = open_store(&config.index)?;
    let neighbours = match &config.neighbours {
        Some(dir) => Some(Neighbours::open_for(dir, &config.index)?),
        None => None,
    };
    if let Some(neighbours) = &neighbours
        && neighbours.len() != library.chunks()
    {
        let why = format!("{} chunks, but the index has {}", neighbours.len(), library.chunks());
        return Err(Error::setting("neighbours", why));
    }
    let start = match steps_there.last() {
        Some(step) => Some(checkpoint::folder(out, *step)),
        None => config.continue_from.clone(),
    };
    let model = open_model(config, &library, start.as_ref(), &device)?;
    let training = &config.training;
    let mut optimiser = Optimiser::new(model.variables().to_vec(), training);
    let mut step = 0;
    if let Some(dir) = &start {
        checkpoint::load_optimiser(dir, &mut optimiser)?;
        step = checkpoint::step_of(dir).ok_or_else(|| {
            Error::setting("continue_from", "give a checkpoint folder, such as checkpoints/step-0000100")
        })?;
    }
    let order = Order::new(&library, training.chunks, training.batch_tokens, training.seed);
    let mut order = match config.trime.as_ref().map(|trime| trime.memory) {
        None | Some(TrimeKind::Local) => order,
        Some(TrimeKind::Long) => order.by_document(&library),
        Some(TrimeKind::External) => order.by_words(&library)?,
    };
    if order.is_empty() {
        return Err(Error::file(&config.index, "holds no text to train on"));
    }
    let (mut log, mut measurements) = Log::open(out, step)?;
    let held_out = HeldOut::open(config, &library)?;
    let k = model.network.neighbours();
    enough_neighbours(neighbours.as_ref(), config.neighbours.as_deref(), k)?;
    enough_neighbours(held_out.as_ref().map(|h| &h.neighbours), config.held_out.as_deref(), k)?;
    let examples = Examples::new(&library, &config.objectives, training.seed, &device)?;
    let longest = examples.longest(training.chunks * library.chunk_size());
    let positions = model.network.decoder().config().max_position_embeddings;
    if longest > positions {
        let why = format!("{longest} tokens a sequence, but the model reads at most {positions}");
        return Err(Error::setting("training.chunks", why));
    }
    let read = |order: &mut Order, number: usize| -> Result<_> {
        let rows = order.batch(number);
        let batch = examples.batch(&rows, order.epoch())?;
        let retrieved = match &neighbours {
            Some(neighbours) => {
                let of = |chunk| tokens_of(&library, neighbours.of(chunk));
                Some(gather(&batch, &library, of, k, &device)?)
            }
            None => None,
        };
        Ok((batch, retrieved))
    };

    let last = measurements.last();
    let mut tokens = last.map_or(0, |m| m.tokens);
    let mut seconds = last.map_or(0.0, |m| m.seconds);
    let mut skipped_steps = last.map_or(0, |m| m.skipped_steps);
    let clock = Instant::now();
    if let (Network::Retro(retro), None) = (&model.network, &start)
        && retro.config().initialisation == Initialisation::Copy
    {
        let batches = (0..FIT_BATCHES).map(|i| read(&mut order, i)).collect::<Result<Vec<_>>>()?;
        progress.note("fitting the copy initialisation to the training text");
        let fit = copy::fit(retro, model.variables(), &batches)?;
        progress.note(format!("copy initialisation: {fit}"));
        seconds += clock.elapsed().as_secs_f64();
    }

    let what = match config.kind {
        Kind::Lm => "train lm",
        Kind::Retro => "train retro",
        Kind::Retrofit => "train retrofit",
    };
    let task = progress.task(what, (training.steps - step.min(training.steps)) as u64, "steps");
    // From there a run with a constant rate can be made longer.
    let level = (training.schedule == Schedule::Constant).then(|| training.level_steps());
    let mut best = best_of(&measurements);
    let (mut sum, mut count) = (0.0, 0usize);
    while step < training.steps {
        let clock = Instant::now();
        let first = step * training.accumulate;
        let batches = (first..first + training.accumulate)
            .map(|number| read(&mut order, number))
            .collect::<Result<Vec<_>>>()?;
        let scored = batches.iter().map(|(batch, _)| batch.scored).sum::<usize>();
        let mut gradients: Option<GradStore> = None;
        let mut value = 0.0;
        for (number, (batch, retrieved)) in (first..).zip(batches) {
            let head = model.network.decoder().head()?;
            let loss = match &config.trime {
                None => {
                    let hidden = model.network.forward(&batch.tokens, retrieved.as_ref())?.flatten(0, 1)?;
                    let options = CrossEntropyOptions::ignoring(IGNORE);
                    kernels::linear_cross_entropy(&hidden, &head, &batch.targets, &options)?
                }
                Some(section) => {
                    let (hidden, contexts) = model.network.forward_with_contexts(&batch.tokens, None)?;
                    let seen = Seen::new(section, &batch, &library, training.seed, number)?;
                    trime::loss(&hidden, &head, &contexts, &batch, &seen)?
                }
            };
            let loss = (loss / scored.max(1) as f64)?;
            value += loss.to_scalar::<f32>()? as f64;
            let of_batch = kernels::backward(&loss)?;
            match &mut gradients {
                None => gradients = Some(of_batch),
                Some(sum) => add(sum, of_batch, model.variables())?,
            }
        }
        let Some(gradients) = gradients else { break };
        let rate = learning_rate(training, step);
        let stats = optimiser.step(&gradients, rate, training.clip)?;
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
        task.remark(format!("loss {value:.3}"));

        let done = step == training.steps;
        let evaluate = done || step.is_multiple_of(training.evaluate_every);
        let stop = interrupt::requested() && !done;
        let mut save =
            stop || (!done && step.is_multiple_of(training.checkpoint_every)) || Some(step) == level;
        // A line before each checkpoint, so that a resumed run counts on from exactly there.
        if evaluate || save || step.is_multiple_of(LOG_EVERY) {
            let held_out_loss = match (&held_out, evaluate) {
                (Some(held_out), true) => Some(held_out.loss(&model, &library, k)?),
                _ => None,
            };
            let line = Measurement {
                step,
                tokens,
                seconds,
                loss: sum / count.max(1) as f64,
                gradient_norm: stats.grad_norm,
                learning_rate: rate,
                skipped_steps,
                held_out_loss,
            };
            log.write(&line)?;
            measurements.push(line);
            let best_yet = best_of(&measurements);
            save |= best_yet != best && !done;
            best = best_yet;
            (sum, count) = (0.0, 0);
        }
        if save {
            let pinned: Vec<usize> = level.into_iter().chain(best).collect();
            checkpoint::save(out, step, &model, &optimiser, training.keep_checkpoints, &pinned)?;
        }
        if stop {
            return Err(Error::Interrupted(format!("step {step} is saved; go on with --resume")));
        }
    }
    drop(task);
    plot(&out.join("curve.svg"), &format!("{what}: {}", out.display()), &[Curve::of(what, &measurements)])?;
    model.save(&model_dir)?;
    let last = measurements.last();
    Ok(Outcome {
        parameters: model.parameters(),
        trained_parameters: model.variables().iter().map(|(_, variable)| variable.elem_count()).sum(),
        model: model_dir,
        steps: step,
        tokens,
        seconds,
        skipped_steps,
        loss: last.map_or(f64::NAN, |m| m.loss),
        held_out_loss: last.and_then(|m| m.held_out_loss),
        best: best.filter(|best| *best != step).map(|best| checkpoint::folder(out, best)),
        measurements,
    })
}

/// Adds the gradients of another batch to `sum`.
fn add(sum: &mut GradStore, mut other: GradStore, variables: &[(String, Var)]) -> Result<()> {
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

/// The step with the lowest held-out loss, the first of several.
fn best_of(measurements: &[Measurement]) -> Option<usize> {
    let measured = measurements.iter().filter_map(|m| Some((m.step, m.held_out_loss?)));
    measured.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, _)| step)
}

fn open_model(
    config: &TrainConfig,
    library: &Store,
    start: Option<&PathBuf>,
    device: &Device,
) -> Result<LanguageModel> {
    let training = &config.training;
    let trainable = match config.base {
        Some(_) => Trainable::RetroOnly,
        None => Trainable::Everything,
    };
    let model = match (start, &config.base, &config.model) {
        (Some(checkpoint), _, _) => {
            let model = LanguageModel::load(checkpoint, trainable, device)?;
            match (config.kind, &model.network) {
                (Kind::Lm, Network::Plain(_)) | (Kind::Retro | Kind::Retrofit, Network::Retro(_)) => model,
                (Kind::Lm, _) => return Err(Error::file(checkpoint, "a RETRO model, but kind = \"lm\"")),
                (Kind::Retro | Kind::Retrofit, _) => {
                    return Err(Error::file(checkpoint, "a plain decoder, but the kind is one of RETRO's"));
                }
            }
        }
        (None, Some(base), _) => {
            let frozen = LanguageModel::load(base, Trainable::Nothing, device)?;
            let section = config.retro.clone().unwrap_or_default();
            let retro = section.config(frozen.network.decoder().config(), library.chunk_size());
            LanguageModel::retrofit(base, &retro, training.seed, device)?
        }
        (None, None, Some(section)) => {
            let tokenizer = library.tokenizer().clone();
            let decoder = section.decoder(tokenizer.vocab_size());
            let retro = match config.kind {
                Kind::Retro => {
                    Some(config.retro.clone().unwrap_or_default().config(&decoder, library.chunk_size()))
                }
                Kind::Lm | Kind::Retrofit => None,
            };
            LanguageModel::new(&decoder, retro.as_ref(), tokenizer, training.seed, device)?
        }
        (None, None, None) => return Err(Error::setting("model", "give [model] or a base")),
    };
    model.check_fits(library)?;
    Ok(model)
}

/// Refuses neighbours that are fewer a chunk than the model reads.
fn enough_neighbours(neighbours: Option<&Neighbours>, dir: Option<&Path>, k: usize) -> Result<()> {
    let (Some(neighbours), Some(dir)) = (neighbours, dir) else { return Ok(()) };
    if neighbours.k() >= k {
        return Ok(());
    }
    let why = format!(
        "{k}, but {} holds {} a chunk; set it to that, or run `sidenote neighbours` with -k {k}",
        dir.display(),
        neighbours.k()
    );
    Err(Error::setting("retro.neighbours", why))
}

/// Refuses to go on with a run under settings that it was not started with. How long it is, how often
/// it is measured, and where things lie may change.
fn check_same_run(config: &TrainConfig) -> Result<()> {
    let path = config.out.join("config.toml");
    let mut started = TrainConfig::read(&path, &[])?;
    let now = &config.training;
    if now.schedule == Schedule::Constant {
        started.training.steps = now.steps;
        started.training.decay_steps = now.decay_steps;
    }
    started.training.keep_checkpoints = now.keep_checkpoints;
    started.training.evaluate_every = now.evaluate_every;
    started.training.checkpoint_every = now.checkpoint_every;
    let started = TrainConfig {
        kind: started.kind,
        model: started.model,
        retro: started.retro,
        objectives: started.objectives,
        trime: started.trime,
        training: started.training,
        ..config.clone()
    };
    if started == *config {
        return Ok(());
    }
    let why = "the run was started with other settings than these; go on with those, or choose another `out`";
    Err(Error::file(path, why))
}

/// Keeps the resolved configuration with the run.
fn save_config(config: &TrainConfig) -> Result<()> {
    let path = config.out.join("config.toml");
    let text = toml::to_string(config).map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(crate::artefact::write_atomically(&path, text.as_bytes())?)
}

/// Held-out text that is measured while training.
struct HeldOut {
    text: Store,
    neighbours: Neighbours,
}

impl HeldOut {
    fn open(config: &TrainConfig, library: &Store) -> Result<Option<Self>> {
        let Some(dir) = &config.held_out else { return Ok(None) };
        let neighbours = Neighbours::open_for(dir, &config.index)?;
        let text = neighbours.queries()?.ok_or_else(|| {
            Error::file(dir, "holds no text of its own; make it with `sidenote neighbours --queries`")
        })?;
        if text.tokenizer().identity() != library.tokenizer().identity() {
            return Err(Error::setting("held_out", "was made with another tokenizer than the index"));
        }
        Ok(Some(Self { text, neighbours }))
    }

    fn loss(&self, model: &LanguageModel, library: &Store, k: usize) -> Result<f64> {
        let documents = 0..self.text.documents().min(HELD_OUT_DOCUMENTS);
        let around = (k > 0).then(|| Neighbourhood {
            of: Box::new(|chunk| tokens_of(library, self.neighbours.of(chunk))),
            k,
        });
        let scores = perplexity::score(model, &self.text, documents, around.as_ref(), Progress::Silent)?;
        Ok(scores.loss())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::*;

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
