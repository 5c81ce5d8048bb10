//! All four jobs on a real corpus that ships with the program, from the text to a report.
//!
//! Every step is the same library call as the single command that the report names for it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use crate::corpus::{OnError, Tokenizer};
use crate::encoder;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::reader;
use crate::retriever::{BuildOptions, Existing, Passage, Retriever, SearchOptions, build};
use crate::select::{self, Job, Method};

mod assets;
mod models;
mod report;

pub use report::human;

/// What the search looks for.
const QUERY: &str = "a mountain covered with snow and glaciers";
/// Instances that are selected.
const SELECTED: usize = 300;

/// How to run it.
pub struct Options {
    /// Folder for everything that is made; must not exist or be empty.
    pub out: PathBuf,
    /// Less data and fewer steps.
    pub short: bool,
    /// Seed of the models' weights and of the order of the text.
    pub seed: u64,
}

/// Does everything, and gives the report that is also saved as `report.json` in the folder.
pub fn run(options: &Options, progress: Progress) -> Result<Value> {
    let started = Instant::now();
    let out = &options.out;
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        let why = "is not empty; give another folder with --out, or remove it";
        return Err(Error::file(out, why));
    }
    let files = assets::unpack(out, options.short)?;
    let settings = models::Settings::new(options.short);

    progress.note("1. index: a chunk store and a nearest-neighbour index over it");
    let clock = Instant::now();
    let index = out.join("index");
    let encoder = encoder::load("default")?;
    let meta = build(
        &BuildOptions {
            corpus: std::slice::from_ref(&files.train),
            out: &index,
            encoder: encoder.as_ref(),
            tokenizer: &Tokenizer::default_lm()?,
            chunk_tokens: settings.chunk_tokens,
            index: None,
            seed: options.seed,
            memory: None,
            on_error: OnError::Fail,
            existing: Existing::Fail,
        },
        progress,
    )?;
    let index_seconds = clock.elapsed().as_secs_f64();
    let retriever = Retriever::open(&index, None)?;

    progress.note("2. search");
    let found: Vec<Value> = retriever.search(QUERY, 3)?.iter().map(passage).collect();

    progress.note("3. train: a plain decoder, and RETRO on it");
    let trained = models::run(&settings, options.seed, &retriever, &files, out, progress)?;

    progress.note("4. ask");
    let question = files.question.clone();
    let reader = reader::Extractive::new(retriever.encoder());
    let response = reader::ask(&retriever, &question, 5, &SearchOptions::default(), &reader, None)?;

    progress.note("5. select");
    let chosen = out.join("select").join("chosen.jsonl");
    let selected = select::run(
        &Job {
            pool: files.pool.clone(),
            targets: vec![files.target.clone()],
            method: Method::Deft,
            n: Some(SELECTED),
            k: None,
            level_answers: false,
            encoder: "default".into(),
            first: "default".into(),
            smoothing: crate::select::SMOOTHING,
            model: None,
            vectors: None,
            seed: options.seed,
            out: chosen.clone(),
            scores: None,
        },
        progress,
    )?;

    let commands = commands(&settings, options, &files, &index, &question, &chosen);
    let select_report = serde_json::to_value(&selected).unwrap_or_default();
    let report = json!({
        "index": {
            "documents": meta.live().documents,
            "chunks": meta.live().chunks,
            "tokens": meta.live().tokens,
            "kind": meta.kinds(),
            "seconds": index_seconds,
        },
        "search": found,
        "perplexity": trained["perplexity"],
        "bits_per_byte": trained["bits_per_byte"],
        "held_out": trained["held_out"],
        "training": trained["training"],
        "ask": {
            "question": question,
            "answer": response.answer.text,
            "reader": response.answer.reader,
            "sources": response.sources,
        },
        "select": {
            "target_task": files.target_task,
            "chosen": selected.chosen,
            "tasks": select_report["tasks"],
            "random_tasks": select_report["random_tasks"],
            "nearest_tasks": select_report["nearest_tasks"],
        },
        "query": QUERY,
        "seed": options.seed,
        "short": options.short,
        "seconds": started.elapsed().as_secs_f64(),
        "folder": out,
        "commands": commands,
    });
    let path = out.join("report.json");
    crate::artefact::write_atomically(&path, format!("{report:#}\n").as_bytes())?;
    Ok(report)
}

fn passage(passage: &Passage) -> Value {
    json!({"title": passage.title, "score": passage.score, "text": passage.text})
}

/// The single commands that make the same.
fn commands(
    settings: &models::Settings,
    options: &Options,
    files: &assets::Files,
    index: &Path,
    question: &str,
    chosen: &Path,
) -> Vec<String> {
    let out = options.out.display();
    let (index, k, m) = (index.display(), settings.neighbours, settings.chunk_tokens);
    let held_out = files.held_out.display();
    vec![
        format!("sidenote index build {} --out {index} --chunk-tokens {m}", files.train.display()),
        format!("sidenote index search {index} \"{QUERY}\" -k 3"),
        format!("sidenote neighbours {index} -k {k} --out {out}/neighbours"),
        format!("sidenote neighbours {index} --queries {held_out} -k 10 --out {out}/held-out"),
        format!("sidenote train {out}/plain.toml"),
        format!("sidenote train {out}/retro.toml"),
        format!("sidenote train {out}/plain-longer.toml"),
        format!("sidenote eval perplexity {out}/plain/model --corpus {held_out}"),
        format!("sidenote eval perplexity {out}/retro/model --corpus {held_out} --index {index}"),
        format!("sidenote generate {out}/retro/model \"The city\" --index {index}"),
        format!("sidenote ask \"{question}\" --index {index}"),
        format!(
            "sidenote select {} --target {} --method deft -n {SELECTED} --out {} --seed {}",
            files.pool.display(),
            files.target.display(),
            chosen.display(),
            options.seed
        ),
    ]
}
