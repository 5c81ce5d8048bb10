//! Sidenote's side of `benches/peers/ask.py`: answers questions from an index, timed one by one.
//!
//!     ask_peer ask INDEX READER PASSAGES TOKENS
//!     ask_peer encode ENCODER CORPUS.jsonl ROWS.f32
//!     ask_peer build ENCODER CORPUS.jsonl ROWS.f32 KIND INDEX
//!
//! `ask` answers each line of standard input with a line of JSON: seconds on the clock, of them those of the search, the answer, the ids of what
//! was read, and the most memory that the process has held. `encode` writes the vectors of the corpus's documents. `build` makes an
//! index of a kind, such as IVF4096,RaBitQ, whose vectors are the rows of a file, one for each document in turn: what its encoder would say of them is not asked.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use serde_json::{Value, json};
use sidenote::corpus::{OnError, Tokenizer};
use sidenote::encoder::{Encoder, SentenceEncoder};
use sidenote::progress::Progress;
use sidenote::reader::{ReaderModel, ask};
use sidenote::retriever::{BuildOptions, Existing, Retriever, SearchOptions, build};
use sidenote_index::Metric;

#[global_allocator]
static ALLOCATOR: sidenote_kernels::LargeBlocks = sidenote_kernels::LargeBlocks;

/// Documents that are encoded at once.
const BLOCK: usize = 1024;
/// Each document is a chunk of its own.
const CHUNK_TOKENS: usize = 2048;

fn main() -> Result<()> {
    sidenote_kernels::keep_freed_memory();
    sidenote_kernels::LargeBlocks::start();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["ask", index, reader, passages, tokens] => {
            answer_all(index, reader, passages.parse()?, tokens.parse()?)
        }
        ["encode", encoder, corpus, rows] => encode_all(encoder, corpus, rows),
        ["build", encoder, corpus, rows, kind, index] => build_with(encoder, corpus, rows, kind, index),
        _ => bail!("usage: ask_peer ask | encode | build ..., see its first lines"),
    }
}

fn answer_all(index: &str, reader: &str, passages: usize, tokens: usize) -> Result<()> {
    let retriever = Retriever::open(Path::new(index), None)?;
    let mut model = ReaderModel::load(Path::new(reader), &Device::Cpu)?;
    model.templates.answer_tokens = tokens;
    let (reader, options) = (model.reader(), SearchOptions::default());
    for line in std::io::stdin().lock().lines() {
        let question = line?;
        let clock = Instant::now();
        let response = ask(&retriever, &question, passages, &options, reader.as_ref(), None)?;
        let seconds = clock.elapsed().as_secs_f64();
        // A second time, by itself.
        let clock = Instant::now();
        retriever.search_with(&question, passages, &options)?;
        let search_seconds = clock.elapsed().as_secs_f64();
        let ids: Vec<&str> = response.sources.iter().map(|source| source.id.as_str()).collect();
        let answer = json!({
            "seconds": seconds, "search_seconds": search_seconds, "answer": response.answer.generation, "ids": ids,
            "peak_bytes": peak_bytes()?,
        });
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn documents(corpus: &str) -> Result<Vec<String>> {
    let file = BufReader::new(fs::File::open(corpus).with_context(|| corpus.to_string())?);
    let text = |line: std::io::Result<String>| {
        let line: Value = serde_json::from_str(&line?)?;
        Ok(line["text"].as_str().context("a document without text")?.trim().to_string())
    };
    file.lines().map(text).collect()
}

fn encode_all(encoder: &str, corpus: &str, rows: &str) -> Result<()> {
    let encoder = SentenceEncoder::open(encoder)?;
    let mut out = BufWriter::new(fs::File::create(rows)?);
    for texts in documents(corpus)?.chunks(BLOCK) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for value in encoder.encode(&texts)? {
            out.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(out.flush()?)
}

/// An encoder that knows the vectors of some texts by heart, and no others.
struct Known {
    encoder: SentenceEncoder,
    row_of: HashMap<String, usize>,
    rows: Vec<u8>,
}

impl Encoder for Known {
    fn dim(&self) -> usize {
        self.encoder.dim()
    }

    fn encode(&self, texts: &[&str]) -> sidenote::Result<Vec<f32>> {
        let width = 4 * self.dim();
        let mut found = Vec::with_capacity(texts.len() * self.dim());
        for text in texts {
            let row =
                self.row_of.get(text.trim()).and_then(|row| self.rows.get(row * width..(row + 1) * width));
            let row =
                row.ok_or_else(|| sidenote::Error::setting("rows", format!("there is none for {text:?}")))?;
            found.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Ok(found)
    }

    fn name(&self) -> &str {
        self.encoder.name()
    }

    fn identity(&self) -> &str {
        self.encoder.identity()
    }

    fn metric(&self) -> Metric {
        self.encoder.metric()
    }
}

fn build_with(encoder: &str, corpus: &str, rows: &str, kind: &str, index: &str) -> Result<()> {
    let row_of = documents(corpus)?.into_iter().enumerate().map(|(row, text)| (text, row)).collect();
    let known = Known { encoder: SentenceEncoder::open(encoder)?, row_of, rows: fs::read(rows)? };
    let options = BuildOptions {
        corpus: &[PathBuf::from(corpus)],
        out: Path::new(index),
        encoder: &known,
        tokenizer: &Tokenizer::default_lm()?,
        chunk_tokens: CHUNK_TOKENS,
        index: Some(kind.parse()?),
        seed: 0,
        memory: None,
        on_error: OnError::Fail,
        existing: Existing::Fail,
    };
    build(&options, Progress::Silent)?;
    Ok(())
}

/// The most memory that this process has held.
fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
