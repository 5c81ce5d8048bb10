//! Whole models on a GPU beside the same ones on the CPU: `cargo test --features cuda --release --test gpu -- --ignored`, or
//! without a GPU, behind scripts/emulated_gpu.sh.
#![cfg(feature = "cuda")]

mod common;
mod tiny;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use clap::Parser;
use serde_json::{Value, json};
use sidenote::commands::{self, Cli};
use sidenote::memory::TokenMemory;
use sidenote::model::generate::{Autoregressive, Options};
use sidenote::model::weights::Weights;
use sidenote::model::{Decoder, DecoderConfig, Initialisation, Retrieved, Retro, RetroConfig, WritingModel};
use sidenote_kernels::{AdamW, AdamWOptions, CrossEntropyOptions, backward, linear_cross_entropy};

const VOCABULARY: u32 = 61;
const CHUNK: usize = 5;
const NEIGHBOURS: usize = 2;

fn decoder() -> DecoderConfig {
    DecoderConfig {
        vocab_size: VOCABULARY as usize,
        hidden_size: 64,
        intermediate_size: 80,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        ..DecoderConfig::llama()
    }
    .with_usual_heads()
}

fn retro(device: &Device) -> (Retro, Vec<(String, Var)>) {
    let decoder = decoder();
    let config = RetroConfig {
        neighbours: NEIGHBOURS,
        layers: vec![2],
        heads: 2,
        head_dim: 32,
        encoder_hidden_size: 64,
        encoder_intermediate_size: 48,
        encoder_heads: 2,
        encoder_layers: 2,
        encoder_cross_layers: vec![1, 2],
        initialisation: Initialisation::Random,
        gate: true,
        ..RetroConfig::for_decoder(&decoder, CHUNK)
    };
    let mut weights = Weights::from_seed(3, device);
    let base = Decoder::new(&decoder, &mut weights).unwrap();
    let retro = Retro::new(base, &config, &mut weights).unwrap();
    (retro, weights.finish().1)
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7 + seed * 13 + i * i * 3 + seed * seed * i) % VOCABULARY).collect()
}

/// The losses of some steps of training, the last of which sees what the others did, and the weights after them.
fn train(device: &Device) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
    let (retro, variables) = retro(device);
    let options = AdamWOptions { weight_decay: 0.1, ..Default::default() };
    let mut optimiser = AdamW::new(variables.clone(), options);
    let (rows, width) = (2, 17);
    let losses = (0..3).map(|step| {
        let text = tokens(rows * (width + 1), step);
        let (inputs, targets): (Vec<_>, Vec<_>) =
            text.chunks(width + 1).map(|row| (row[..width].to_vec(), row[1..].to_vec())).unzip();
        let inputs = Tensor::from_vec(inputs.concat(), (rows, width), device).unwrap();
        let targets = Tensor::from_vec(targets.concat(), rows * width, device).unwrap();
        let list = |row: usize, chunk: usize, n: usize| {
            tokens(2 * CHUNK - (chunk + n) % 3, (row + chunk + n) as u32)
        };
        let lists: Vec<Vec<Vec<Vec<u32>>>> = (0..rows)
            .map(|row| {
                (0..width / CHUNK)
                    .map(|chunk| (0..NEIGHBOURS).map(|n| list(row, chunk, n)).collect())
                    .collect()
            })
            .collect();
        let retrieved = Retrieved::pack(&lists, NEIGHBOURS, 2 * CHUNK, device).unwrap();
        let hidden = retro.forward(&inputs, Some(&retrieved)).unwrap().flatten(0, 1).unwrap();
        let head = retro.base().head().unwrap();
        let loss = linear_cross_entropy(&hidden, &head, &targets, &CrossEntropyOptions::default()).unwrap();
        let loss = (loss / targets.elem_count() as f64).unwrap();
        let stats = optimiser.step(&backward(&loss).unwrap(), 1e-2, Some(1.0)).unwrap();
        assert!(!stats.skipped && stats.grad_norm > 0.0);
        loss.to_scalar::<f32>().unwrap()
    });
    let losses = losses.collect();
    let values = |var: &Var| var.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (losses, variables.iter().map(|(name, var)| (name.clone(), values(var))).collect())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_retro_trains_as_on_the_cpu() {
    let (losses, weights) = train(&Device::Cpu);
    let (found_losses, found) = train(&Device::new_cuda(0).unwrap());
    for (loss, found) in losses.iter().zip(&found_losses) {
        assert!((loss - found).abs() < 1e-4 * loss, "losses {found_losses:?}, on the CPU {losses:?}");
    }
    for ((name, weight), (found_name, found)) in weights.iter().zip(&found) {
        assert_eq!(name, found_name);
        let norm = weight.iter().map(|x| x * x).sum::<f32>().sqrt();
        let off = weight.iter().zip(found).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
        // Adam's first steps are signs of gradients, of which the smallest are noise.
        assert!(off <= 2e-2 * norm, "{name}: off by {off} of {norm}");
    }
}

/// The tokens that a decoder writes, the likeliest each, and the logits of the last.
fn write(device: &Device) -> (Vec<Vec<u32>>, Vec<f32>) {
    let mut weights = Weights::from_seed(5, device);
    let network = Decoder::new(&decoder(), &mut weights).unwrap();
    for (_, variable) in weights.finish().1 {
        let wider = (variable.as_detached_tensor() * 3.0).unwrap();
        variable.set(&wider).unwrap();
    }
    let prompts = [tokens(7, 1), tokens(4, 2), tokens(9, 3)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (mut cache, mut hidden) = network.start(&prompts).unwrap();
    let mut written = vec![vec![]; prompts.len()];
    for _ in 0..6 {
        let logits = network.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
        let next = logits.iter().map(|row| {
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            best as u32
        });
        let next: Vec<u32> = next.collect();
        written.iter_mut().zip(&next).for_each(|(text, token)| text.push(*token));
        let next = Tensor::from_vec(next, (prompts.len(), 1), device).unwrap();
        hidden = network.read(&next, &mut cache).unwrap().squeeze(1).unwrap();
    }
    let logits = network.logits(&hidden).unwrap();
    (written, logits.flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_decoder_writes_as_on_the_cpu() {
    let (text, logits) = write(&Device::Cpu);
    let (found_text, found) = write(&Device::new_cuda(0).unwrap());
    assert_eq!(text, found_text);
    for (logit, found) in logits.iter().zip(&found) {
        assert!((logit - found).abs() < 1e-4 * (1.0 + logit.abs()), "{found}, on the CPU {logit}");
    }
}

const TOPICS: [&[&str]; 2] = [
    &["river", "bridge", "boat", "water", "fish", "stone"],
    &["honey", "bee", "hive", "flower", "wax", "queen"],
];

const TRAINING: &str = "[training]\nsteps = 4\nbatch_tokens = 96\nlearning_rate = 0.01\nwarmup_steps = 1\n\
    evaluate_every = 2\ncheckpoint_every = 2\n";
const MODEL: &str = "[model]\nhidden_size = 32\nlayers = 2\nheads = 4\nmax_positions = 64\n";

/// What is trained: a name, and two parts of a run's file.
const RUNS: [(&str, &str, &str); 5] = [
    ("plain", "kind = \"lm\"\nindex = \"@/index\"\nheld_out = \"@/held-out\"\n", MODEL),
    ("trime", "kind = \"lm\"\nindex = \"@/index\"\n[trime]\nmemory = \"external\"\n", MODEL),
    (
        "retro",
        "kind = \"retrofit\"\nindex = \"@/index\"\nneighbours = \"@/neighbours\"\nheld_out = \"@/held-out\"\n\
         base = \"@/cpu/plain/model\"\n[retro]\nlayers = [1, 2]\nheads = 2\nhead_dim = 16\nencoder_hidden_size = 64\n\
         encoder_heads = 4\nencoder_layers = 1\ninitialisation = \"copy\"\n",
        "",
    ),
    (
        "t5",
        "kind = \"t5\"\nindex = \"@/index\"\nobjectives = [{kind = \"prefix\"}]\n[t5]\nhidden_size = 32\nlayers = 2\n\
         heads = 2\n",
        "",
    ),
    (
        "tuned",
        "kind = \"tune\"\nbase = \"@/cpu/plain/model\"\n[tune]\ndata = [\"@/tasks.jsonl\"]\n[adapter]\nmethod = \"lora\"\n\
         rank = 2\n",
        "",
    ),
];

/// Runs the program here, with `@` for the folder `dir`.
fn sidenote(dir: &Path, arguments: &str) {
    let arguments = arguments.replace('@', &dir.display().to_string());
    let cli = Cli::try_parse_from(["sidenote", "--quiet"].into_iter().chain(arguments.split_whitespace()));
    commands::run(cli.unwrap()).unwrap_or_else(|e| panic!("{arguments}: {e:#}"));
}

/// The lines of a file of JSON.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether two values are the same but for what a GPU rounds otherwise, and for seconds.
fn near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| name == "seconds" || near(a, &b[name]))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b)),
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 2e-3 * a.abs().max(1e-2)
        }
        _ => a == b,
    }
}

/// How far the tensors of a file are from those of another, in the latter's norm.
fn apart(file: &Path, other: &Path) -> f32 {
    let load = |path: &Path| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let (tensors, others) = (load(file), load(other));
    assert_eq!(tensors.len(), others.len());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_dtype(DType::F32).unwrap();
    let (mut off, mut all) = (0.0, 1e-30);
    for (name, other) in &others {
        off += norm(&(&tensors[name] - other).unwrap()).to_scalar::<f32>().unwrap();
        all += norm(other).to_scalar::<f32>().unwrap();
    }
    (off / all).sqrt()
}

/// An index with neighbours, text that is held out, and tasks.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    tiny::write_encoder(&dir.join("encoder"), &TOPICS);
    common::write_lines(&dir.join("corpus.jsonl"), &common::documents(&TOPICS, 0..30));
    common::write_lines(&dir.join("held.jsonl"), &common::documents(&TOPICS, 100..104));
    let item = |i: usize| {
        let word = TOPICS[i % 2][i % 6];
        json!({"input": format!("{word}?"), "target": (if i.is_multiple_of(2) { "no" } else { "yes" }), "choices": ["yes", "no"], "task": "which"})
    };
    common::write_lines(&dir.join("tasks.jsonl"), &(0..12).map(item).collect::<Vec<_>>());
    sidenote(
        dir,
        "tokenizer train @/corpus.jsonl --vocab-size 280 --special <extra_id_0> --out @/tokenizer.json",
    );
    sidenote(
        dir,
        "index build @/corpus.jsonl --encoder @/encoder --tokenizer @/tokenizer.json --chunk-tokens 8 --out @/index",
    );
    sidenote(dir, "neighbours @/index -k 2 --out @/neighbours");
    sidenote(dir, "neighbours @/index --queries @/held.jsonl -k 2 --out @/held-out");
    place
}

/// Every kind of training, a run that goes on, a memory and answers to tasks.
#[test]
#[ignore = "needs a GPU"]
fn gpu_commands_do_as_on_the_cpu() {
    let place = workplace();
    let dir = place.path();
    for (name, text, model) in RUNS {
        for device in ["cpu", "cuda"] {
            let text = format!("out = \"@/{device}/{name}\"\n{text}{model}{TRAINING}");
            fs::write(dir.join("run.toml"), text.replace('@', &dir.display().to_string())).unwrap();
            sidenote(dir, &format!("train @/run.toml --device {device}"));
        }
        let [of_cpu, of_gpu] = ["cpu", "cuda"].map(|device| dir.join(device).join(name));
        let measured = [&of_cpu, &of_gpu].map(|run| json!(lines(&run.join("metrics.jsonl"))));
        assert!(near(&measured[0], &measured[1]), "{name}: {measured:#?}");
        let file =
            if name == "tuned" { "model/adapter_model.safetensors" } else { "model/model.safetensors" };
        let apart = apart(&of_gpu.join(file), &of_cpu.join(file));
        // Adam's first steps are signs of gradients, of which the smallest are noise.
        assert!(apart < 2e-2, "{name}: weights are {apart} apart");
    }
    for device in ["cpu", "cuda"] {
        sidenote(
            dir,
            &format!(
                "memory build @/cpu/retro/model --text-of @/index --neighbours @/neighbours --out @/{device}/memory --device \
                 {device}"
            ),
        );
        let out = format!("@/{device}/answers.jsonl --device {device}");
        sidenote(
            dir,
            &format!(
                "eval tasks @/cpu/plain/model --adapter @/cpu/tuned/model --data @/tasks.jsonl --out {out}"
            ),
        );
    }
    let [of_cpu, of_gpu] = ["cpu", "cuda"].map(|device| {
        let memory = TokenMemory::open(&dir.join(device).join("memory")).unwrap();
        json!([lines(&dir.join(device).join("answers.jsonl")), memory.meta().entries, memory.meta().distance])
    });
    assert!(near(&of_cpu, &of_gpu), "{of_gpu:#}, on the CPU {of_cpu:#}");
    texts_are_the_same(dir);
}

/// What the trained models write, and how likely they and one in blocks of few bits find choices.
fn texts_are_the_same(dir: &Path) {
    let blocks = dir.join("blocks.gguf");
    fs::write(&blocks, include_bytes!("data/models/gguf/llama.gguf")).unwrap();
    let trained = ["plain", "retro", "t5"].map(|name| dir.join("cpu").join(name).join("model"));
    let gpu = Device::new_cuda(0).unwrap();
    for model in trained.iter().chain([&blocks]) {
        // The CPU rounds what blocks are multiplied by, so that texts of such a model part.
        let longest = if model == &blocks { 1 } else { 10 };
        let [of_cpu, of_gpu] = [&Device::Cpu, &gpu].map(|device| {
            let model = WritingModel::load(model, device).unwrap();
            let find = |_: &[u32]| Ok(vec![vec![9u32, 8, 7, 6, 5, 4], vec![3, 4, 5]]);
            let reads = matches!(&model, WritingModel::Decoder(model) if model.network.neighbours() > 0);
            let generator = model.generator(reads.then_some(&find as _));
            let prompts = ["the river and the boat", "honey"].map(|text| model.prompt(text).unwrap());
            let options = Options { max_tokens: longest, ..Options::default() };
            let written = generator.generate(&prompts, &options, &mut |_| true).unwrap();
            let texts: Vec<&[u32]> = written.iter().flatten().map(|text| text.tokens.as_slice()).collect();
            let choices = ["water".to_string(), "queen wax".to_string()];
            let (_, scores) = generator.choose(&prompts[0], &choices, 2).unwrap();
            json!([texts, scores.iter().map(|score| score.sum()).collect::<Vec<_>>()])
        });
        assert!(near(&of_cpu, &of_gpu), "{}: {of_gpu}, on the CPU {of_cpu}", model.display());
    }
}
