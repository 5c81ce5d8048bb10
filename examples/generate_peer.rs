//! Sidenote's side of `benches/peers/generate.py`: reads prompts and continues them greedily, timed apart.
//!
//!     generate_peer MODEL
//!
//! Each line of standard input is `BATCH PROMPT TOKENS`; prompts are made-up token numbers, see `prompt`. Each is answered
//! with a line of JSON: seconds for the prompts, seconds for all steps after, the tokens, and the most memory that
//! the process has held. `SIDENOTE_DEVICE=cuda` writes on the first GPU (feature `cuda`). `bandwidth` asks for the bytes a second that all threads read from memory together.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde_json::{Value, json};
use sidenote::model::t5::MODEL_TYPES;
use sidenote::model::{EncoderDecoder, LanguageModel, Source, Trainable, generate::Autoregressive};

#[global_allocator]
static ALLOCATOR: sidenote_kernels::LargeBlocks = sidenote_kernels::LargeBlocks;

fn main() -> Result<()> {
    sidenote_kernels::keep_freed_memory();
    sidenote_kernels::LargeBlocks::start();
    let Some(name) = std::env::args().nth(1) else { bail!("usage: generate_peer MODEL") };
    let device = match std::env::var("SIDENOTE_DEVICE").unwrap_or_default().as_str() {
        "" | "cpu" => Device::Cpu,
        "cuda" => Device::new_cuda(0)?,
        other => bail!("SIDENOTE_DEVICE={other}: neither cpu nor cuda"),
    };
    let source = Source::open(&name)?;
    match source.config()["model_type"].as_str() {
        Some(kind) if MODEL_TYPES.contains(&kind) => {
            answer_all(&EncoderDecoder::from_source(source, false, &device)?.network, &device)
        }
        _ => answer_all(
            LanguageModel::from_source(source, Trainable::Nothing, &device)?.network.decoder(),
            &device,
        ),
    }
}

/// Answers line by line.
fn answer_all(network: &impl Autoregressive, device: &Device) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.trim() {
            "bandwidth" => json!({ "bytes_per_second": bandwidth() }),
            numbers => {
                let numbers: Vec<usize> = numbers
                    .split_whitespace()
                    .map(|n| n.parse().with_context(|| format!("not a number: {n:?}")))
                    .collect::<Result<_>>()?;
                let [batch, prompt, tokens] = numbers[..] else {
                    bail!("expected BATCH PROMPT TOKENS: {line:?}")
                };
                run(network, device, batch, prompt, tokens)?
            }
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Token `i` of the prompt of one row; every system has the same.
fn prompt(row: usize, length: usize, vocabulary: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 7919 + row * 104_729 + 13) % (vocabulary - 200) + 100) as u32).collect()
}

fn run(
    network: &impl Autoregressive,
    device: &Device,
    batch: usize,
    length: usize,
    tokens: usize,
) -> Result<Value> {
    let vocabulary = network.vocab_size();
    let prompts: Vec<Vec<u32>> = (0..batch).map(|row| prompt(row, length, vocabulary)).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut text = vec![Vec::with_capacity(tokens); batch];

    let begin = Instant::now();
    let (mut cache, hidden) = network.start(&prompts)?;
    let mut next = likeliest(&network.logits(&hidden)?)?;
    let prompt_seconds = begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    for _ in 0..tokens {
        text.iter_mut().zip(&next).for_each(|(text, token)| text.push(*token));
        let hidden = network.read(&Tensor::from_vec(next, (batch, 1), device)?, &mut cache)?;
        next = likeliest(&network.logits(&hidden.squeeze(1)?)?)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(json!({ "prompt_seconds": prompt_seconds, "seconds": seconds, "tokens": text, "peak_bytes": peak()? }))
}

fn likeliest(logits: &Tensor) -> Result<Vec<u32>> {
    let rows = logits.to_vec2::<f32>()?;
    let best = |row: &Vec<f32>| {
        let highest = row.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        row.iter().position(|logit| *logit == highest).unwrap_or(0) as u32
    };
    Ok(rows.iter().map(best).collect())
}

/// The best of some passes over what no cache holds.
fn bandwidth() -> f64 {
    let numbers = vec![1u64; 32 << 20];
    let pass = || {
        let begin = Instant::now();
        let total: u64 = numbers.par_chunks(1 << 16).map(|part| part.iter().sum::<u64>()).sum();
        8.0 * total as f64 / begin.elapsed().as_secs_f64()
    };
    (0..10).map(|_| pass()).fold(0.0, f64::max)
}

/// The most memory that this process has held, in bytes.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("VmHWM has no number")?.parse()?;
    Ok(1024 * kilobytes)
}
