//! `sidenote generate`.

use std::cell::Cell;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};

use super::device::DeviceArgs;
use super::{Console, print};
use crate::memory::{RememberingWriter, TokenMemory};
use crate::model::generate::{Autoregressive, Ended, Generator, Options, Retrieve, Score, Written};
use crate::model::source::Message;
use crate::model::{LanguageModel, WritingModel};
use crate::retriever::Retriever;
use crate::{Error, interrupt};

mod prompts;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
With one prompt the text appears as it is written; with more, or more samples, each is shown when it is whole.

Examples:
  sidenote generate runs/plain/model \"The city of\"
  sidenote generate runs/retro/model \"The city of\" --index runs/index --max-tokens 128
  sidenote generate runs/plain/model \"The city of\" --memory runs/memory
  sidenote generate runs/plain/model \"The city of\" --temperature 0.8 --top-p 0.95 -n 3
  sidenote generate runs/plain/model \"The sky is\" --choice \" blue\" --choice \" green\" --json
  sidenote generate runs/plain/model --prompts prompts.txt --stop \"\\n\"")]
pub struct Args {
    /// The model: a folder, a file (GGUF, safetensors), or a name on the Hugging Face hub.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// An adapter of that model: PEFT's folder, or one that `sidenote train` wrote.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Texts to continue, or to answer: a model with a chat template gets each as a conversation of its own.
    #[arg(value_name = "PROMPT", required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// A file with one prompt a line (.jsonl: an object a line, whose field "prompt" it is); - for stdin. With
    /// --json the texts are a list.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// Continue the prompt as it is, whether or not the model has a chat template.
    #[arg(long)]
    raw: bool,
    /// What the conversation begins with, for a model with a chat template.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Index that a RETRO model reads from, at every chunk boundary; without it retrieval is off.
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Token-level memory to look things up in (kNN-LM), made by `sidenote memory build` with this model and read as it says.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["index", "adapter"])]
    memory: Option<PathBuf>,
    /// Most tokens to write.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time; higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the K likeliest tokens only; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the fewest likeliest tokens that together have probability P.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Draw from tokens at least P times as probable as the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f64,
    /// More than 1 makes tokens of the prompt and the text less likely to come again.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Go on with the B likeliest texts at a time (beam search).
    #[arg(long, value_name = "B", default_value_t = 1)]
    beams: usize,
    /// Beam search divides a text's log-probability by its length to this power: more is longer.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    length_penalty: f64,
    /// Texts a prompt.
    #[arg(short, value_name = "TEXTS", default_value_t = 1)]
    n: usize,
    /// Seed of the draws.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// End the text before this; may be given several times. \n is a new line.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The text must be one of these: give it several times. At temperature 0 it is the likeliest of them as a
    /// whole.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    choice: Vec<String>,
    /// Give the log-probability of each token, and of the N likeliest in its place.
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// Most texts written at a time.
    #[arg(long, value_name = "TEXTS", default_value_t = 8)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            beams: self.beams,
            length_penalty: self.length_penalty,
            samples: self.n,
            seed: self.seed,
            stop: self.stop.iter().map(|stop| stop.replace("\\n", "\n").replace("\\t", "\t")).collect(),
            choices: self.choice.clone(),
            logprobs: self.logprobs,
            batch: self.batch,
        }
    }
}

pub fn run(args: Args, console: Console) -> anyhow::Result<()> {
    let options = args.options();
    options.check()?;
    let prompts = match &args.prompts {
        Some(file) => prompts::read(file)?,
        None => args.prompt.clone(),
    };
    let device = args.device.open()?;
    let model = match &args.adapter {
        Some(adapter) => WritingModel::load_adapted(&args.model, adapter, &device)?,
        None => WritingModel::load(&args.model, &device)?,
    };
    if let WritingModel::Decoder(LanguageModel { trime: Some(contexts), .. }) = &model {
        console.progress.note(format!(
            "{}: trained with {contexts} contexts of its text in the softmax (TRIME), and writes without them",
            args.model.display()
        ));
    }
    let retriever = args.index.as_deref().map(|dir| Retriever::open(dir, None)).transpose()?;
    let reader = match &model {
        WritingModel::Decoder(model) if model.network.neighbours() > 0 => Some(model),
        _ => None,
    };
    if let Some(retriever) = &retriever {
        let why = "this model does not read; leave --index out, or give a RETRO model";
        let reader = reader.with_context(|| format!("{}: {why}", args.model.display()))?;
        reader.check_fits(retriever.store())?;
    }
    let (k, ranking) =
        reader.map_or_else(Default::default, |model| (model.network.neighbours(), model.network.ranking()));
    let looked_up = Cell::new(0);
    let find = |chunk: &[u32]| match &retriever {
        Some(retriever) => {
            looked_up.set(looked_up.get() + 1);
            let text = model.tokenizer().decode(chunk)?;
            let found = retriever.neighbour_search(&[&text], &[None], k, ranking)?;
            Ok(found
                .into_iter()
                .flatten()
                .map(|hit| retriever.store().neighbour_tokens(hit.id as usize))
                .collect())
        }
        None => Ok(Vec::new()),
    };
    let retrieve: Option<&Retrieve<'_>> = retriever.as_ref().map(|_| &find as _);
    let tokens = prompts
        .iter()
        .map(|prompt| read_prompt(&model, prompt, &args))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let memory = args.memory.as_deref().map(TokenMemory::open).transpose()?;
    let results = match (&memory, &model) {
        (None, _) => write(&model.generator(retrieve), &model, &prompts, &tokens, &options, console)?,
        (Some(memory), WritingModel::Decoder(decoder)) => {
            let writer = RememberingWriter::new(decoder, memory, &memory.meta().interpolation)?;
            let generator = Generator::new(writer, &decoder.tokenizer, decoder.end_tokens().to_vec());
            write(&generator, &model, &prompts, &tokens, &options, console)?
        }
        (Some(_), WritingModel::EncoderDecoder(_)) => {
            anyhow::bail!("--memory: {} is no decoder, and has none; leave it out", args.model.display())
        }
    };
    let Some(results) = results else { return Ok(()) };
    let shown_already = !console.json
        && options.choices.is_empty()
        && results.len() == 1
        && prompts.len() == 1
        && options.samples == 1;
    let human = || human(&results, options.samples, shown_already);
    let mut value = match results.as_slice() {
        // A file's are a list, however many it has.
        [only] if args.prompts.is_none() => only.clone(),
        all => json!({"results": all}),
    };
    value["retrievals"] = looked_up.get().into();
    console.report(&value, human)
}

/// What is written after each prompt, or chosen, for machines; none where people have seen all of it.
fn write<M: Autoregressive>(
    generator: &Generator<'_, M>,
    model: &WritingModel,
    prompts: &[String],
    tokens: &[Vec<u32>],
    options: &Options,
    console: Console,
) -> anyhow::Result<Option<Vec<Value>>> {
    // Among choices, the likeliest as a whole; step by step would be the likeliest beginning.
    if !options.choices.is_empty() && options.temperature == 0.0 && options.beams == 1 {
        let mut results = Vec::new();
        for (prompt, tokens) in prompts.iter().zip(tokens) {
            let (best, scores) = generator.choose(tokens, &options.choices, options.batch)?;
            let choice = |(text, score): (&String, &Score)| json!({"text": text, "logprob": score.sum(), "tokens": score.tokens.len()});
            let scores: Vec<Value> = options.choices.iter().zip(&scores).map(choice).collect();
            results.push(json!({"prompt": prompt, "text": options.choices[best], "choices": scores}));
        }
        return Ok(Some(results));
    }
    let live = !console.json && prompts.len() == 1 && options.samples == 1;
    let mut failed = None;
    let written = generator.generate(tokens, options, &mut |piece| {
        let read_on = !live
            || piece.text.is_empty()
            || print(piece.text).unwrap_or_else(|error| {
                failed = Some(error);
                false
            });
        read_on && !interrupt::requested()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if interrupt::requested() {
        let count: usize = written.iter().flatten().map(|text| text.tokens.len()).sum();
        if live {
            print("\n")?;
        }
        return Err(Error::Interrupted(format!("{count} tokens were written")).into());
    }
    if live {
        print("\n")?;
        if options.logprobs.is_none() {
            return Ok(None);
        }
    }
    let texts =
        prompts.iter().zip(&written).flat_map(|(prompt, texts)| texts.iter().map(move |text| (prompt, text)));
    Ok(Some(texts.map(|(prompt, text)| report(model, prompt, text)).collect::<Result<_, _>>()?))
}

/// The tokens of a prompt; of a conversation that it begins, where the model was trained on some.
fn read_prompt(model: &WritingModel, prompt: &str, args: &Args) -> anyhow::Result<Vec<u32>> {
    let Some(chat) = model.chat_template().filter(|_| !args.raw) else {
        let name = args.model.display();
        anyhow::ensure!(
            args.system.is_none(),
            "--system: {name} has no chat template, and continues the prompt"
        );
        return Ok(model.prompt(prompt)?);
    };
    anyhow::ensure!(!prompt.is_empty(), "prompt: is empty; give at least one word to answer");
    // What somebody else wrote ends no turn.
    let message = |role, content| Message::new(role, model.tokenizer().unmarked(content));
    let system = args.system.as_deref().map(|system| message("system", system));
    let messages: Vec<Message> = system.into_iter().chain([message("user", prompt)]).collect();
    Ok(model.tokenizer().encode_marked(&chat.render(&messages, true)?)?)
}

/// One text, for machines.
fn report(model: &WritingModel, prompt: &str, text: &Written) -> crate::Result<Value> {
    let mut value = json!({
        "prompt": prompt,
        "text": text.text,
        "tokens": text.tokens.len(),
        "finish_reason": text.ended.reason(),
    });
    if let Some(score) = text.score {
        value["score"] = score.into();
    }
    if let Ended::Choice(number) = text.ended {
        value["choice"] = number.into();
    }
    if let Some(logprobs) = &text.logprobs {
        let spelled = |token: u32, logprob: f32| -> crate::Result<Value> {
            Ok(json!({"token": model.tokenizer().decode(&[token])?, "id": token, "logprob": logprob}))
        };
        let mut all = Vec::new();
        for one in logprobs {
            let mut entry = spelled(one.token, one.logprob)?;
            let top = one.top.iter().map(|(token, logprob)| spelled(*token, *logprob));
            entry["top"] = top.collect::<crate::Result<Vec<_>>>()?.into();
            all.push(entry);
        }
        value["logprobs"] = all.into();
    }
    Ok(value)
}

/// The texts, for people: each under its prompt's number where there are several.
fn human(results: &[Value], samples: usize, shown_already: bool) -> String {
    let mut out = String::new();
    for (number, result) in results.iter().enumerate() {
        let text = result["text"].as_str().unwrap_or_default();
        if results.len() > 1 {
            let prompt = result["prompt"].as_str().unwrap_or_default();
            let place = match samples {
                1 => format!("{}", number + 1),
                _ => format!("{}.{}", number / samples + 1, number % samples + 1),
            };
            out.push_str(&format!("[{place}] {prompt}\n"));
        }
        if !shown_already {
            out.push_str(text);
            out.push('\n');
        }
        for entry in result["logprobs"].as_array().into_iter().flatten() {
            let one = |entry: &Value| {
                let token = entry["token"].as_str().unwrap_or_default();
                format!("{:8.3} {:<16}", entry["logprob"].as_f64().unwrap_or_default(), format!("{token:?}"))
            };
            let top: Vec<String> = entry["top"].as_array().into_iter().flatten().map(one).collect();
            out.push_str(format!("{}  {}", one(entry), top.join("  ")).trim_end());
            out.push('\n');
        }
        if results.len() > 1 {
            out.push('\n');
        }
    }
    out
}
