//! Whole models on a GPU beside the same ones on the CPU: `cargo test --features cuda --release --test gpu -- --ignored`, or
//! without a GPU, behind scripts/emulated_gpu.sh.
#![cfg(feature = "cuda")]

use candle_core::{Device, Tensor, Var};
use sidenote::model::generate::Autoregressive;
use sidenote::model::weights::Weights;
use sidenote::model::{Decoder, DecoderConfig, Initialisation, Retrieved, Retro, RetroConfig};
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
