//! `sidenote memory ...`.

use std::path::{Path, PathBuf};

use serde_json::json;
use sidenote_index::{Bytes, Spec};

use super::device::DeviceArgs;
use super::trime::TrimeArgs;
use super::{Console, cut};
use crate::artefact;
use crate::corpus::OnError;
use crate::error::Error;
use crate::eval::perplexity::Neighbourhood;
use crate::memory::{self, BuildOptions, TokenMemory};
use crate::model::{LanguageModel, Trainable};
use crate::retriever::neighbours::{self, Neighbours, tokens_of};
use crate::retriever::{Retriever, bytes_in, open_store};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let a model read a corpus, and keep every context with the token that came after it (kNN-LM).
    Build(BuildArgs),
    /// Find out on held-out text how much a memory should say, and keep that in it where it is better.
    Tune(TuneArgs),
    /// Say what a memory holds.
    #[command(after_help = "Example:\n  sidenote memory info runs/memory")]
    Info(DirArgs),
    /// Read every byte of a memory and say what is wrong.
    #[command(after_help = "Example:\n  sidenote memory verify runs/memory")]
    Verify(DirArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sidenote memory build runs/plain/model --corpus articles.jsonl --out runs/memory
  sidenote memory build runs/plain/model --text-of runs/index --out runs/memory --index RaBitQ
  sidenote memory tune runs/memory runs/plain/model --corpus valid.jsonl --adaptive
  sidenote eval perplexity runs/plain/model --corpus heldout.jsonl --memory runs/memory")]
pub struct BuildArgs {
    /// The model.
    model: PathBuf,
    /// Text to remember: files or folders.
    #[arg(long, required_unless_present = "text_of", num_args = 1..)]
    corpus: Vec<PathBuf>,
    /// Index whose text is to be remembered, in place of --corpus.
    #[arg(long, value_name = "INDEX", conflicts_with = "corpus")]
    text_of: Option<PathBuf>,
    /// Neighbours of that index's chunks, made by `sidenote neighbours`, for a RETRO model to read; without them its
    /// retrieval is off.
    #[arg(long, value_name = "DIR", requires = "text_of")]
    neighbours: Option<PathBuf>,
    /// Folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Kind of the index of contexts, as for `sidenote index build`; by their number where it is left out.
    #[arg(long, value_name = "KIND")]
    index: Option<Spec>,
    /// Most memory that building the index may take, such as 4GiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Seed of the kinds of index that use chance.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to do with a line or file that cannot be used.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sidenote memory tune runs/memory runs/plain/model --corpus valid.jsonl --adaptive")]
pub struct TuneArgs {
    /// The memory.
    dir: PathBuf,
    /// The model that it was made with.
    model: PathBuf,
    /// Text that neither has seen: files or folders.
    #[arg(long, required = true, num_args = 1..)]
    corpus: Vec<PathBuf>,
    /// Index that a RETRO model retrieves from; without it its retrieval is off.
    #[arg(long)]
    index: Option<PathBuf>,
    #[command(flatten)]
    trime: TrimeArgs,
    /// Let the memory's share go by the distance of the nearest context.
    #[arg(long)]
    adaptive: bool,
    /// Most contexts to look up, k.
    #[arg(short, long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, clap::Args)]
pub struct DirArgs {
    /// The memory.
    dir: PathBuf,
}

pub fn run(command: Command, console: Console) -> anyhow::Result<()> {
    match command {
        Command::Build(args) => build(args, console),
        Command::Tune(args) => tune(args, console),
        Command::Info(args) => info(&args.dir, console),
        Command::Verify(args) => verify(&args.dir, console),
    }
}

fn build(args: BuildArgs, console: Console) -> anyhow::Result<()> {
    let model = LanguageModel::load(&args.model, Trainable::Nothing, &args.device.open()?)?;
    let scratch = tempfile::tempdir()?;
    let text = match &args.text_of {
        Some(index) => open_store(index)?,
        None => {
            cut(&args.corpus, &model.tokenizer, model.chunk_size(), args.on_error, scratch.path(), console)?
        }
    };
    let found = match (&args.neighbours, &args.text_of) {
        (Some(dir), Some(index)) => {
            let (found, k) = (Neighbours::open_for(dir, index)?, wanted(&model)?);
            found.check_ranking(model.network.ranking())?;
            found.check_enough("neighbours", k)?;
            if found.len() != text.chunks() {
                let (dir, own) = (dir.display(), text.chunks());
                let why = format!("{dir}: those of {} chunks, but the index has {own}", found.len());
                return Err(Error::setting("neighbours", why).into());
            }
            Some((found, k))
        }
        _ => None,
    };
    let around = found
        .as_ref()
        .map(|(found, k)| Neighbourhood { of: Box::new(|chunk| tokens_of(&text, found.of(chunk))), k: *k });
    let options = BuildOptions {
        model: &model,
        name: args.model,
        text: &text,
        neighbours: around.as_ref(),
        out: &args.out,
        index: args.index,
        memory: args.memory,
        seed: args.seed,
    };
    memory::build(&options, console.progress)?;
    info(&args.out, console)
}

/// The neighbours that a model reads.
fn wanted(model: &LanguageModel) -> Result<usize, Error> {
    match model.network.neighbours() {
        0 => Err(Error::setting("neighbours", "are read by RETRO models; this one is plain")),
        k => Ok(k),
    }
}

fn tune(args: TuneArgs, console: Console) -> anyhow::Result<()> {
    let model = LanguageModel::load(&args.model, Trainable::Nothing, &args.device.open()?)?;
    let memory = TokenMemory::open(&args.dir)?;
    let scratch = tempfile::tempdir()?;
    let text =
        cut(&args.corpus, &model.tokenizer, model.chunk_size(), OnError::Fail, scratch.path(), console)?;
    let found = match &args.index {
        Some(dir) => {
            let (retriever, k) = (Retriever::open(dir, None)?, wanted(&model)?);
            model.check_fits(retriever.store())?;
            let table = neighbours::compute(&retriever, &text, k, model.network.ranking(), console.progress)?;
            Some((retriever, table, k))
        }
        None => None,
    };
    let around = found.as_ref().map(|(retriever, table, k)| Neighbourhood {
        of: Box::new(|chunk| tokens_of(retriever.store(), table.of(chunk))),
        k: *k,
    });
    let most = args.k as usize;
    let trime = args.trime.contexts(&model);
    let tuned =
        memory::tune(&memory, &model, &text, around.as_ref(), trime, args.adaptive, most, console.progress)?;
    if tuned.better {
        TokenMemory::keep(&args.dir, &tuned.interpolation)?;
    }
    console.report(&json!(tuned), || {
        let outcome = if tuned.better { "" } else { "nothing better than before; " };
        format!(
            "{}: {outcome}k {}, temperature {}, share {:.3?}; perplexity {:.3} without the memory, {:.3} before, {:.3} \
             now ({} tokens)",
            args.dir.display(),
            tuned.interpolation.k,
            tuned.interpolation.temperature,
            tuned.interpolation.lambda,
            tuned.loss_without.exp(),
            tuned.loss_before.exp(),
            tuned.loss_after.exp(),
            tuned.tokens,
        )
    })
}

fn info(dir: &Path, console: Console) -> anyhow::Result<()> {
    let memory = TokenMemory::open(dir)?;
    let meta = memory.meta();
    let bytes = bytes_in(dir);
    let mut value = json!(meta);
    value["disk_bytes"] = json!(bytes);
    value["index"] = json!(memory.kind().to_string());
    console.report(&value, || {
        format!(
            "{}: {} contexts of width {} by {}, {} index, {:.1} MB; k {}, temperature {}, share {:.3?}",
            dir.display(),
            meta.entries,
            meta.dim,
            meta.model.display(),
            memory.kind(),
            bytes as f64 / 1e6,
            meta.interpolation.k,
            meta.interpolation.temperature,
            meta.interpolation.lambda,
        )
    })
}

fn verify(dir: &Path, console: Console) -> anyhow::Result<()> {
    let mut problems: Vec<String> = artefact::verify(dir)?.iter().map(ToString::to_string).collect();
    problems.extend(artefact::verify(&dir.join(memory::CONTEXTS))?.iter().map(ToString::to_string));
    if problems.is_empty() {
        TokenMemory::open(dir)?;
    }
    console.report_problems("memory_dir", dir, &problems)
}
