//! Sidenote's side of `benches/peers/encode.py`: encodes lists of texts, as often as standard input asks for.
//!
//!     encode_peer MODEL TEXTS.json
//!
//! `TEXTS.json` holds lists of texts by name. Each line of standard input names one; each is answered with a line of
//! JSON: seconds that encoding it took, on the clock and of processors, the vectors of its first texts, and the most
//! memory that the process has held. The line `rate` asks for the machine's rate in products of two large matrices
//! instead.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sidenote::encoder::{Encoder, SentenceEncoder};
use sidenote_kernels::matrix::{Matrix, Threads, multiply};

/// Texts whose vectors are shown.
const SHOWN: usize = 8;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts] = &arguments[..] else { bail!("usage: encode_peer MODEL TEXTS.json") };
    let encoder = SentenceEncoder::open(model)?;
    let texts = fs::read(texts).with_context(|| texts.clone())?;
    let texts: HashMap<String, Vec<String>> = serde_json::from_slice(&texts)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.as_str() {
            "rate" => json!({ "gflops": product_rate() }),
            name => encode(&encoder, texts.get(name).with_context(|| format!("no texts {name:?}"))?)?,
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn encode(encoder: &SentenceEncoder, texts: &[String]) -> Result<Value> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (clock, processors) = (Instant::now(), processor_seconds()?);
    let vectors = encoder.encode(&texts)?;
    let (seconds, processors) = (clock.elapsed().as_secs_f64(), processor_seconds()? - processors);
    let shown: Vec<&[f32]> = vectors.chunks(encoder.dim()).take(SHOWN).collect();
    Ok(json!({
        "seconds": seconds, "processor_seconds": processors, "vectors": shown, "peak_bytes": peak_bytes()?,
    }))
}

/// Seconds that this process's threads have run, to a hundredth.
fn processor_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks =
        |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).context("/proc/self/stat");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// The most memory that this process has held.
fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// Billions of operations a second in a product of two 2048 x 2048 matrices; the best of five.
fn product_rate() -> f64 {
    const N: usize = 2048;
    let (a, b) = (vec![1.0f32; N * N], vec![0.5f32; N * N]);
    let mut out = vec![0f32; N * N];
    let (a, b) = (Matrix::rows(&a, N), Matrix::rows(&b, N));
    let seconds = (0..5).map(|_| {
        let clock = Instant::now();
        multiply([N, N, N], 1.0, a, b, &mut out, N, false, Threads::All);
        clock.elapsed().as_secs_f64()
    });
    2.0 * (N * N * N) as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}
