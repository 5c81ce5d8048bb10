//! `sidenote generate`.

use std::path::PathBuf;

use serde_json::json;

use super::{Console, print};
use crate::model::generate::{Retrieve, Sampling, generate};
use crate::model::{LanguageModel, Trainable};
use crate::retriever::Retriever;
use crate::{Error, interrupt};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sidenote generate runs/plain/model \"The city of\"
  sidenote generate runs/retro/model \"The city of\" --index runs/index --max-tokens 128")]
pub struct Args {
    /// The model: a folder, a file (GGUF, safetensors), or a name on the Hugging Face hub.
    model: PathBuf,
    /// Text to continue.
    prompt: String,
    /// Index that a RETRO model reads from, at every chunk boundary; without it retrieval is off.
    #[arg(long)]
    index: Option<PathBuf>,
    /// Most tokens to write.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time; higher is more varied.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the choice when the temperature is not 0.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    sidenote_kernels::LargeBlocks::start();
    let model = LanguageModel::load(&args.model, Trainable::Nothing, &candle_core::Device::Cpu)?;
    let retriever = args.index.as_deref().map(|dir| Retriever::open(dir, None)).transpose()?;
    let k = model.network.neighbours();
    if let Some(retriever) = &retriever {
        anyhow::ensure!(
            k > 0,
            "{}: a plain decoder does not read; leave --index out, or give a RETRO model",
            args.model.display()
        );
        model.check_fits(retriever.store())?;
    }
    let words = model.tokenizer.encode(&args.prompt)?.ids;
    anyhow::ensure!(!words.is_empty(), "prompt: is empty; give at least one word to go on from");
    let mut looked_up = 0;
    let mut retrieve = |chunk: &[u32]| match &retriever {
        Some(retriever) => {
            looked_up += 1;
            let text = model.tokenizer.decode(chunk)?;
            let found = retriever.neighbour_search(&[&text], &[None], k)?;
            Ok(found
                .into_iter()
                .flatten()
                .map(|hit| retriever.store().neighbour_tokens(hit.id as usize))
                .collect())
        }
        None => Ok(Vec::new()),
    };
    let retrieve: Option<&mut Retrieve<'_>> = match &retriever {
        Some(_) => Some(&mut retrieve),
        None => None,
    };

    let mut prompt = model.start_tokens().to_vec();
    prompt.extend(words);
    let sampling = Sampling { max_tokens: args.max_tokens, temperature: args.temperature, seed: args.seed };
    let mut written = Vec::new();
    let mut shown = String::new();
    let mut failed = None;
    generate(&model, &prompt, &sampling, retrieve, &mut |token| {
        written.push(token);
        if console.json {
            return !interrupt::requested();
        }
        let read_on = show(&model, &written, &mut shown).unwrap_or_else(|error| {
            failed = Some(error);
            false
        });
        read_on && !interrupt::requested()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if !console.json {
        print("\n")?;
    }
    if interrupt::requested() {
        return Err(Error::Interrupted(format!("{} tokens were written", written.len())).into());
    }
    if !console.json {
        return Ok(());
    }
    let text = model.tokenizer.decode(&written)?;
    let value =
        json!({"prompt": args.prompt, "text": text, "tokens": written.len(), "retrievals": looked_up});
    console.report(&value, String::new)
}

/// Shows what is new of the text of `written` and notes it in `shown`; says whether somebody reads
/// on.
fn show(model: &LanguageModel, written: &[u32], shown: &mut String) -> anyhow::Result<bool> {
    // A token may end in the middle of a character, so the whole text is decoded again and what is
    // new and complete is shown.
    let text = model.tokenizer.decode(written)?;
    let complete = text.trim_end_matches('\u{fffd}');
    let Some(new) = complete.strip_prefix(shown.as_str()) else { return Ok(true) };
    let read_on = print(new)?;
    *shown = complete.to_string();
    Ok(read_on)
}
