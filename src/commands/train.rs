//! `sidenote train`.

use std::path::PathBuf;

use serde_json::json;

use super::Console;
use super::device::DeviceArgs;
use crate::train::{self, TrainConfig};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example, a plain decoder on the text of an index (plain.toml):
  kind = \"lm\"
  out = \"runs/plain\"
  index = \"runs/index\"
  [model]
  hidden_size = 128
  layers = 4
  heads = 4
  [training]
  steps = 1000

  sidenote train plain.toml
  sidenote train plain.toml --set out=runs/other --set training.seed=1
  sidenote train plain.toml --resume        # after Ctrl-C or a crash

RETRO's layers on that decoder, or any other, which stays as it is (retro.toml):
  kind = \"retrofit\"                       # \"retro\" with a [model] trains everything from scratch
  out = \"runs/retro\"
  index = \"runs/index\"
  neighbours = \"runs/neighbours\"            # sidenote neighbours runs/index -k 2 --out ...
  base = \"runs/plain/model\"                 # a folder, a GGUF file, or a name on the hub
  [retro]
  initialisation = \"copy\"                   # what it is by itself; \"random\" to learn to copy from nothing
  [training]
  steps = 300

An encoder-decoder (t5.toml): kind = \"t5\", a section [t5] with hidden_size, layers and heads (or a T5 as base), and
  objectives = [{kind = \"spans\"}]
An encoder (retriever.toml): kind = \"retriever\", base = \"ENCODER\", pairs = \"pairs.jsonl\" with a query and a positive a line,
  or an index, of whose text crops are taken; perhaps a section [retriever] with batch, temperature, queue or symmetric
A reader and its retriever (atlas.toml): kind = \"atlas\", base = \"T5\", an index by a network that encodes, examples = \"qa.jsonl\", and
  a section [atlas] with loss = \"pdist\" | \"emdr2\" | \"adist\" | \"loop\", passages, refresh = \"0-1000:500\" or query_side = true;
  without an index and loss, mode = \"given-passages\" or \"closed-book\"

Tasks, by any model, whole or with an adapter (tuned.toml): kind = \"tune\", base = \"MODEL\", a section [tune] with
  data = [\"chosen.jsonl\"] (files or pools) and perhaps learn, losses, packing, splits = {categories, tasks, instances}
  (`sidenote pool split`), and how tasks are mixed: max_examples, mixing, cap, temperature, by, within, formats; and perhaps a section [adapter] with
  method = \"lora\" | \"ia3\" | \"bitfit\" | \"prompt\" | \"prefix\" and rank, alpha, targets or tokens

Beside what is shown, [training] takes accumulate, optimiser, schedule, final_rate, keep_checkpoints and others, and
the file a list `objectives` of {kind = \"causal\" | \"infilling\" | \"prefix\" | \"spans\" | \"denoising\" |
\"continuation\", weight = ...}; an unknown name is told.")]
pub struct Args {
    /// The run's configuration, a TOML file.
    config: PathBuf,
    /// Override a setting of the file; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on from the last checkpoint in the run's folder.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Train together with other processes, here or on other machines: where the first of them listens, HOST:PORT. A step
    /// then is of as many batches as there are processes. All read the same files; the first writes.
    #[arg(long, value_name = "ADDRESS", requires_all = ["rank", "of"])]
    together: Option<String>,
    /// Which of the processes this is, from 0.
    #[arg(long, requires = "together")]
    rank: Option<usize>,
    /// How many there are.
    #[arg(long, value_name = "PROCESSES", requires = "together")]
    of: Option<usize>,
    /// Sum the gradients of these processes on GPUs, by NCCL.
    #[cfg(feature = "nccl")]
    #[arg(long, requires = "together")]
    nccl: bool,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let config = TrainConfig::read(&args.config, &args.set)?;
    let outcome = match (&args.together, args.rank, args.of) {
        (Some(address), Some(rank), Some(of)) if of > 1 => {
            anyhow::ensure!(rank < of, "--rank {rank}: ranks are numbered from 0 to {}", of - 1);
            let mut group: Box<dyn train::Group> = Box::new(train::Star::connect(address, rank, of)?);
            #[cfg(feature = "nccl")]
            if args.nccl {
                group = Box::new(train::Nccl::connect(&mut *group)?);
            }
            train::run_in(&mut *group, &config, &device, args.resume, console.progress)?
        }
        _ => train::run(&config, &device, args.resume, console.progress)?,
    };
    console.report(&json!(outcome), || {
        let mut held_out = match outcome.held_out_loss {
            Some(loss) => format!(", held-out loss {loss:.3}"),
            None => String::new(),
        };
        for (name, loss) in &outcome.held_out_losses {
            held_out += &format!(", of held-out {name} {loss:.3}");
        }
        let loss = outcome.loss.map_or("no loss".to_string(), |loss| format!("loss {loss:.3}"));
        if outcome.skipped_steps > 0 {
            let skipped = outcome.skipped_steps;
            held_out += &format!(", {skipped} steps left out because a gradient was not finite");
        }
        format!(
            "{}: {} parameters ({} trained), {} steps, {} tokens in {:.0} s ({:.0}/s), {loss}{held_out}",
            outcome.model.display(),
            outcome.parameters,
            outcome.trained_parameters,
            outcome.steps,
            outcome.tokens,
            outcome.seconds,
            outcome.tokens as f64 / outcome.seconds.max(1e-9),
        )
    })
}
