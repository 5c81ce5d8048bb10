//! `sidenote eval perplexity`.

use std::path::PathBuf;

use serde_json::json;

use super::super::device::DeviceArgs;
use super::super::trime::TrimeArgs;
use super::super::{Console, cut};
use crate::corpus::OnError;
use crate::eval::overlap::{FilteredBits, filtered_bits, overlap};
use crate::eval::perplexity::{Neighbourhood, score_with, shuffled};
use crate::memory::{CacheSettings, Memories, TokenMemory};
use crate::model::{LanguageModel, Network, Trainable};
use crate::retriever::Retriever;
use crate::retriever::neighbours::{self, tokens_of};

/// Neighbours whose overlap counts in bpb(alpha), as in the paper.
const OVERLAP_NEIGHBOURS: usize = 10;
/// Who reads whose neighbours is the same in each run.
const SHUFFLE_SEED: u64 = 0;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sidenote eval perplexity runs/plain/model --corpus heldout.jsonl
  sidenote eval perplexity runs/retro/model --corpus heldout.jsonl --index runs/index
  sidenote eval perplexity runs/retro/model --corpus heldout.jsonl --retrieval off")]
pub struct Args {
    /// Folder of the model.
    model: PathBuf,
    /// Text to predict: files or folders.
    #[arg(long, required = true, num_args = 1..)]
    corpus: Vec<PathBuf>,
    /// Index to retrieve from; also gives the overlap of the text with it.
    #[arg(long)]
    index: Option<PathBuf>,
    /// What a RETRO model reads of what the index gives. With "shuffled" each chunk reads some other chunk's
    /// neighbours: what that gains is not due to what they say.
    #[arg(long, value_enum, default_value_t = Retrieval::On)]
    retrieval: Retrieval,
    /// Neighbours that a RETRO model reads a chunk, in place of as many as it was trained with: more of them often say more
    /// (Borgeaud et al. 2022, section 4.1).
    #[arg(long, value_name = "K", requires = "index", value_parser = clap::value_parser!(u32).range(1..=1000))]
    neighbours: Option<u32>,
    /// Token-level memory to look things up in (kNN-LM), made by `sidenote memory build` with this model.
    #[arg(long, value_name = "DIR")]
    memory: Option<PathBuf>,
    /// Contexts to look up for each token, k, in place of what the memory says.
    #[arg(short, long, requires = "memory")]
    k: Option<usize>,
    /// The memory's share of the prediction, in place of what the memory says.
    #[arg(long, requires = "memory")]
    lambda: Option<f64>,
    /// Temperature, in units of the memory's typical distance, in place of what the memory says.
    #[arg(long, requires = "memory")]
    temperature: Option<f64>,
    /// Remember so many of the last contexts of each document (continuous cache).
    #[arg(long, value_name = "CONTEXTS")]
    cache: Option<usize>,
    /// The cache's share of the prediction.
    #[arg(long, default_value_t = CacheSettings::default().lambda, requires = "cache")]
    cache_lambda: f64,
    #[command(flatten)]
    trime: TrimeArgs,
    /// How sharply the cache tells contexts apart.
    #[arg(long, default_value_t = CacheSettings::default().theta, requires = "cache")]
    cache_theta: f32,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Retrieval {
    On,
    Off,
    Shuffled,
}

impl Retrieval {
    fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Shuffled => "shuffled",
        }
    }
}

/// What the arguments ask to look at beside the network.
fn memories<'a>(
    args: &Args,
    model: &LanguageModel,
    memory: Option<&'a TokenMemory>,
) -> anyhow::Result<Memories<'a>> {
    let mut memories = Memories::default();
    if let Some(memory) = memory {
        let mut interpolation = memory.meta().interpolation.clone();
        interpolation.k = args.k.unwrap_or(interpolation.k);
        interpolation.temperature = args.temperature.unwrap_or(interpolation.temperature);
        if let Some(lambda) = args.lambda {
            (interpolation.lambda, interpolation.edges) = (vec![lambda], Vec::new());
        }
        interpolation.check()?;
        memories.datastore = Some((memory, interpolation));
    }
    if let Some(window) = args.cache {
        let cache = CacheSettings { window, theta: args.cache_theta, lambda: args.cache_lambda };
        cache.check()?;
        memories.cache = Some(cache);
    }
    memories.trime = args.trime.contexts(model);
    Ok(memories)
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let model = LanguageModel::load(&args.model, Trainable::Nothing, &args.device.open()?)?;
    let retriever = args.index.as_deref().map(|dir| Retriever::open(dir, None)).transpose()?;
    let (chunk_size, k) = match (&model.network, &retriever) {
        (Network::Retro(retro), _) => {
            let k = args.neighbours.map_or(retro.config().neighbours, |k| k as usize);
            (retro.config().chunk_size, k)
        }
        (Network::Plain(_), Some(retriever)) => (retriever.store().chunk_size(), 0),
        (Network::Plain(_), None) => (model.chunk_size(), 0),
    };
    let retrieval = if k > 0 { args.retrieval } else { Retrieval::Off };
    let reads = retrieval != Retrieval::Off;
    if reads && retriever.is_none() {
        anyhow::bail!(
            "{}: a RETRO model reads from an index; give --index, or --retrieval off",
            args.model.display()
        );
    }
    if args.neighbours.is_some() && !reads {
        let why = if k > 0 { "with --retrieval off" } else { "which is no RETRO model" };
        anyhow::bail!("--neighbours: {}, {why}, reads none; leave it out", args.model.display());
    }
    let scratch = tempfile::tempdir()?;
    let text = cut(&args.corpus, &model.tokenizer, chunk_size, OnError::Fail, scratch.path(), console)?;

    let mut table = None;
    if let Some(retriever) = &retriever {
        model.check_fits(retriever.store())?;
        let wanted = k.max(OVERLAP_NEIGHBOURS);
        table =
            Some(neighbours::compute(retriever, &text, wanted, model.network.ranking(), console.progress)?);
    }
    let mut around = None;
    if let (Some(retriever), Some(table), true) = (&retriever, &table, reads) {
        let other = (retrieval == Retrieval::Shuffled).then(|| shuffled(text.chunks(), SHUFFLE_SEED));
        let of = move |chunk: usize| {
            let whose = other.as_ref().map_or(chunk, |other| other[chunk]);
            tokens_of(retriever.store(), table.of(whose))
        };
        around = Some(Neighbourhood { of: Box::new(of), k });
    }
    let memory = args.memory.as_deref().map(TokenMemory::open).transpose()?;
    let memories = memories(&args, &model, memory.as_ref())?;
    let scores =
        score_with(&model, &text, 0..text.documents(), around.as_ref(), &memories, console.progress)?;
    let filtered: Option<Vec<FilteredBits>> = match (&retriever, &table) {
        (Some(retriever), Some(table)) => {
            let overlaps: Vec<f64> = scores
                .chunks
                .iter()
                .map(|score| {
                    let near = table.of(score.chunk);
                    let near = tokens_of(retriever.store(), &near[..OVERLAP_NEIGHBOURS.min(near.len())]);
                    overlap(text.chunk(score.chunk).tokens, &near, chunk_size)
                })
                .collect();
            Some(filtered_bits(&scores, &overlaps))
        }
        _ => None,
    };
    let value = json!({
        "model": args.model,
        "memory": args.memory,
        "interpolation": memories.datastore.as_ref().map(|(_, interpolation)| interpolation),
        "cache": args.cache,
        "trime": memories.trime,
        "retrieval": retrieval.name(),
        "documents": text.documents(),
        "tokens": scores.tokens(),
        "bytes": scores.bytes(),
        "perplexity": scores.perplexity(),
        "bits_per_byte": scores.bits_per_byte(),
        "filtered": filtered,
    });
    console.report(&value, || {
        let mut text = format!(
            "perplexity {:.3} a token, {:.4} bits a byte ({} tokens, {} bytes, retrieval {})\n",
            scores.perplexity(),
            scores.bits_per_byte(),
            scores.tokens(),
            scores.bytes(),
            retrieval.name(),
        );
        for point in filtered.iter().flatten() {
            let bits = point.bits_per_byte.map_or("-".to_string(), |bits| format!("{bits:.4}"));
            text += &format!(
                "  chunks sharing at most {:>5.1} % with a neighbour: {bits} bits a byte ({} chunks)\n",
                100.0 * point.alpha,
                point.chunks
            );
        }
        text
    })
}
