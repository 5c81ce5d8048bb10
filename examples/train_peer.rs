//! Sidenote's side of `benches/peers/train.py`: trains a model on made-up tokens, as many steps at a
//! time as standard input asks for.
//!
//!     train_peer decoder|retro WIDTH LAYERS BATCH [WEIGHTS.safetensors]
//!
//! Each line of standard input is a number of steps; each is answered with a line of JSON: seconds and
//! loss of every step, and the most memory that the process has held. A number below zero asks for the
//! machine's rate in products of two large matrices instead. With a file name, the weights are saved
//! there before the first step, for a peer that starts from the same ones. With `SIDENOTE_PRECISION=bf16` steps are those of
//! `training.precision = "bf16"`. `SIDENOTE_DEVICE=cuda` trains on the first GPU, all in bf16 (feature `cuda`; a negative number
//! of steps still asks the processor). `SIDENOTE_MEMORY=plain` leaves memory to the
//! C library, `kept` has it keep what is freed; otherwise large blocks are on huge pages, as in `sidenote train`.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use sidenote::model::weights::Weights;
use sidenote::model::{Decoder, DecoderConfig, Initialisation, Network, Retrieved, Retro, RetroConfig};
use sidenote_kernels::{AdamW, AdamWOptions, CrossEntropyOptions, Precision, backward, linear_cross_entropy};

#[global_allocator]
static ALLOCATOR: sidenote_kernels::LargeBlocks = sidenote_kernels::LargeBlocks;

const VOCABULARY: usize = 32_768;
const TOKENS: usize = 512;
const CHUNK: usize = 64;
const NEIGHBOURS: usize = 2;
const RATE: f64 = 3e-4;
/// Where the numbers of neighbours' tokens begin, far from those of the text.
const NEIGHBOURS_FROM: u64 = 1 << 40;

struct Trainer {
    network: Network,
    optimiser: AdamW,
    device: Device,
    batch: usize,
    precision: Precision,
    step: usize,
}

/// Where it trains, and in what.
fn place() -> Result<(Device, DType)> {
    match std::env::var("SIDENOTE_DEVICE").unwrap_or_default().as_str() {
        "" | "cpu" => Ok((Device::Cpu, DType::F32)),
        "cuda" => Ok((Device::new_cuda(0)?, DType::BF16)),
        other => bail!("SIDENOTE_DEVICE={other}: neither cpu nor cuda"),
    }
}

fn main() -> Result<()> {
    let memory = std::env::var("SIDENOTE_MEMORY").unwrap_or_default();
    if memory != "plain" {
        sidenote_kernels::keep_freed_memory();
    }
    if memory.is_empty() {
        sidenote_kernels::LargeBlocks::start();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (kind, numbers, file) = match &arguments[..] {
        [kind, width, layers, batch] => (kind, [width, layers, batch], None),
        [kind, width, layers, batch, file] => (kind, [width, layers, batch], Some(Path::new(file))),
        _ => bail!("usage: train_peer decoder|retro WIDTH LAYERS BATCH [WEIGHTS.safetensors]"),
    };
    let [width, layers, batch] = numbers.map(|n| n.parse::<usize>());
    let mut trainer = Trainer::new(kind, width?, layers?, batch?, file)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let steps: i64 = line.trim().parse().with_context(|| format!("not a number of steps: {line:?}"))?;
        let answer = match usize::try_from(steps) {
            Ok(steps) => trainer.run(steps)?,
            Err(_) => json!({ "gflops": product_rate()? }),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

impl Trainer {
    fn new(kind: &str, width: usize, layers: usize, batch: usize, file: Option<&Path>) -> Result<Self> {
        let precision = match std::env::var("SIDENOTE_PRECISION").as_deref() {
            Ok("bf16") => Precision::Bf16,
            _ => Precision::F32,
        };
        let retro = match kind {
            "decoder" => false,
            "retro" => true,
            other => bail!("{other}: neither decoder nor retro"),
        };
        let decoder = DecoderConfig {
            vocab_size: VOCABULARY,
            hidden_size: width,
            // Eight thirds of the width, to a multiple of 8: as many weights as a layer with GELU has
            // that is four times as wide.
            intermediate_size: (width * 8 / 3).next_multiple_of(8),
            num_hidden_layers: layers,
            num_attention_heads: 8,
            num_key_value_heads: 8,
            max_position_embeddings: TOKENS,
            // retro-pytorch has a head of its own.
            tie_word_embeddings: !retro,
            ..DecoderConfig::llama()
        }
        .with_usual_heads();
        let (device, dtype) = place()?;
        let mut weights = Weights::from_seed(0, &device);
        weights.set_dtype(dtype);
        let base = Decoder::new(&decoder, &mut weights)?;
        let network = if retro {
            let config = RetroConfig {
                neighbours: NEIGHBOURS,
                initialisation: Initialisation::Random,
                ..RetroConfig::for_decoder(&decoder, CHUNK)
            };
            Network::Retro(Retro::new(base, &config, &mut weights)?)
        } else {
            Network::Plain(base)
        };
        let (tensors, variables) = weights.finish();
        if let Some(file) = file {
            let named: HashMap<String, _> = tensors
                .into_iter()
                .map(|(place, t)| Ok((place.to_string(), t.dense()?)))
                .collect::<Result<_>>()?;
            candle_core::safetensors::save(&named, file)?;
        }
        let options = AdamWOptions { beta2: 0.95, weight_decay: 0.1, ..Default::default() };
        Ok(Self { network, optimiser: AdamW::new(variables, options), device, batch, precision, step: 0 })
    }

    fn run(&mut self, steps: usize) -> Result<Value> {
        let (mut seconds, mut losses) = (vec![], vec![]);
        for _ in 0..steps {
            let clock = Instant::now();
            losses.push(self.precision.run(|| self.step())?);
            seconds.push(clock.elapsed().as_secs_f64());
        }
        Ok(json!({ "seconds": seconds, "losses": losses, "peak_bytes": peak_bytes()? }))
    }

    /// One step: batch, forward, backward, clipping, AdamW.
    fn step(&mut self) -> Result<f32> {
        let rows = self.batch * (TOKENS + 1);
        let text = tokens((self.step * rows) as u64, rows);
        let (inputs, targets): (Vec<_>, Vec<_>) =
            text.chunks(TOKENS + 1).map(|row| (row[..TOKENS].to_vec(), row[1..].to_vec())).unzip();
        let inputs = Tensor::from_vec(inputs.concat(), (self.batch, TOKENS), &self.device)?;
        let targets = Tensor::from_vec(targets.concat(), self.batch * TOKENS, &self.device)?;
        let retrieved = match &self.network {
            Network::Plain(_) => None,
            Network::Retro(_) => {
                let shape = (self.batch, TOKENS / CHUNK, NEIGHBOURS, 2 * CHUNK);
                let n = self.batch * TOKENS / CHUNK * NEIGHBOURS * 2 * CHUNK;
                let tokens = tokens(NEIGHBOURS_FROM + (self.step * n) as u64, n);
                Some(Retrieved {
                    mask: Tensor::ones(shape, DType::U8, &self.device)?,
                    tokens: Tensor::from_vec(tokens, shape, &self.device)?,
                })
            }
        };
        let hidden = self.network.forward(&inputs, retrieved.as_ref())?.flatten(0, 1)?;
        let loss = linear_cross_entropy(
            &hidden,
            &self.network.decoder().head()?,
            &targets,
            &CrossEntropyOptions::default(),
        )?;
        let loss = (loss / targets.elem_count() as f64)?;
        self.optimiser.step(&backward(&loss)?, RATE, Some(1.0))?;
        self.step += 1;
        Ok(loss.to_scalar()?)
    }
}

/// Tokens number `from` to `from + n` of an endless text without meaning (splitmix64), never 0, which
/// retro-pytorch takes for padding.
fn tokens(from: u64, n: usize) -> Vec<u32> {
    (from..from + n as u64)
        .map(|i| {
            let z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            1 + ((z ^ (z >> 31)) % (VOCABULARY as u64 - 1)) as u32
        })
        .collect()
}

/// The best of a few products of two matrices of 2048 x 2048, 10^9 operations a second.
fn product_rate() -> Result<f64> {
    const N: usize = 2048;
    let a = Tensor::rand(-1f32, 1f32, (N, N), &Device::Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let clock = Instant::now();
        sidenote_kernels::linear(&a, &a)?;
        best = best.min(clock.elapsed().as_secs_f64());
    }
    Ok(2.0 * (N * N * N) as f64 / best / 1e9)
}

/// The most memory that the process has held at a time (Linux; 0 elsewhere).
fn peak_bytes() -> Result<u64> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return Ok(0) };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
