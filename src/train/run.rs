//! A run: what its configuration asks for, set up and given to the loop.

use std::fs;

use candle_core::Device;

use super::atlas::AtlasLearner;
use super::checkpoint;
use super::config::{Kind, Schedule, TrainConfig};
use super::group::{Alone, Group};
use super::inputs::Inputs;
use super::language::LanguageLearner;
use super::pairs::PairLearner;
use super::retriever::RetrieverLearner;
use super::steps::{Outcome, Run};
use super::tune::TuneLearner;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Runs the training that `config` describes, with the model on `device`. With `resume`, goes on from the last checkpoint in
/// its folder, exactly as if it had never stopped.
pub fn run(config: &TrainConfig, device: &Device, resume: bool, progress: Progress) -> Result<Outcome> {
    run_in(&mut Alone, config, device, resume, progress)
}

/// [`run`] as one of several processes, each of which is given the same configuration: a step is of as many batches as
/// there are processes, and the first of them writes.
///
/// # Errors
/// As for [`run`]; a process that is gone.
pub fn run_in(
    group: &mut dyn Group,
    config: &TrainConfig,
    device: &Device,
    resume: bool,
    progress: Progress,
) -> Result<Outcome> {
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
    let inputs = Inputs::of(config, group.size())?;
    let start = match steps_there.last() {
        Some(step) => Some(checkpoint::folder(out, *step)),
        None => config.continue_from.clone(),
    };
    let step = start.as_deref().and_then(checkpoint::step_of).unwrap_or(0);
    inputs.agree(group, config, step)?;
    if !steps_there.is_empty() {
        check_same_run(config)?;
        inputs.check_started(out)?;
    } else if step > 0 && step >= config.training.steps {
        let why =
            format!("the checkpoint to continue from is of step {step} already; give more steps than that");
        return Err(Error::setting("training.steps", why));
    }
    if group.rank() == 0 {
        fs::create_dir_all(out).map_err(Error::io(out))?;
        save_config(config)?;
        inputs.save(out)?;
    }
    let queue = config.retriever.as_ref().map_or(0, |section| section.queue);
    if queue > 0 && group.size() > 1 {
        return Err(Error::setting(
            "retriever.queue",
            "each process would have one of its own; train with one",
        ));
    }
    let what = match config.kind {
        Kind::Lm => "train lm",
        Kind::Retro => "train retro",
        Kind::Retrofit => "train retrofit",
        Kind::T5 => "train t5",
        Kind::Retriever => "train retriever",
        Kind::Atlas => "train atlas",
        Kind::Tune => "tune",
    };
    let run = Run { out, training: &config.training, start: start.as_deref(), what, group };
    match config.kind {
        Kind::T5 => run.through(PairLearner::open(config, start.as_deref(), device)?, progress),
        Kind::Retriever => run.through(RetrieverLearner::open(config, start.as_deref(), device)?, progress),
        Kind::Atlas => {
            let encodes = run.group.rank() == 0;
            run.through(AtlasLearner::open(config, start.as_deref(), device, encodes)?, progress)
        }
        Kind::Tune => run.through(TuneLearner::open(config, start.as_deref(), device)?, progress),
        _ => run.through(LanguageLearner::open(config, start.as_deref(), device)?, progress),
    }
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
    if started.without_places() == config.without_places() {
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
