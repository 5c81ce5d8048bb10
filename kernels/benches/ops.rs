//! Forward and backward of every operation, composed of candle operations and fused, at the sizes of a
//! small decoder: 8 sequences of 256 tokens, width 256, 8 heads, a vocabulary of 4096, and chunked
//! cross-attention from 64 queries to 256 keys.
#![allow(missing_docs)]

use std::hint::black_box;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sidenote_kernels::*;

const BATCH: usize = 8;
const TOKENS: usize = 256;
const WIDTH: usize = 256;
const HEADS: usize = 8;
const DIM: usize = WIDTH / HEADS;
const VOCABULARY: usize = 4096;

fn random(shape: &[usize]) -> Var {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Times forward and backward of both versions of an operation.
fn compare(
    c: &mut Criterion,
    name: &str,
    composed: impl Fn() -> Result<Tensor>,
    fused: impl Fn() -> Result<Tensor>,
) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    group.bench_function("composed", |b| b.iter(|| black_box(composed().unwrap().backward().unwrap())));
    group.bench_function("fused", |b| b.iter(|| black_box(fused().unwrap().backward().unwrap())));
    group.finish();
}

fn cross_entropy(c: &mut Criterion) {
    keep_freed_memory();
    let rows = BATCH * TOKENS;
    let (hidden, weight) = (random(&[rows, WIDTH]), random(&[VOCABULARY, WIDTH]));
    let targets: Vec<u32> = (0..rows).map(|i| (i * 31 % VOCABULARY) as u32).collect();
    let targets = Tensor::new(targets, &Device::Cpu).unwrap();
    compare(
        c,
        "linear_cross_entropy",
        || composed::linear_cross_entropy(&hidden, &weight, &targets, &CrossEntropyOptions::default()),
        || linear_cross_entropy(&hidden, &weight, &targets, &CrossEntropyOptions::default()),
    );
}

fn attention_of(c: &mut Criterion, name: &str, batch: usize, queries: usize, keys: usize, chunked: bool) {
    let q = random(&[batch, HEADS, queries, DIM]);
    let (k, v) = (random(&[batch, HEADS, keys, DIM]), random(&[batch, HEADS, keys, DIM]));
    let bias = random(&[HEADS, queries, keys]);
    let mask = Tensor::ones((batch, keys), DType::U8, &Device::Cpu).unwrap();
    let options = AttentionOptions {
        causal: !chunked,
        bias: chunked.then(|| bias.as_tensor()),
        key_mask: chunked.then_some(&mask),
        ..AttentionOptions::scaled((DIM as f32).sqrt().recip())
    };
    compare(c, name, || composed::attention(&q, &k, &v, &options), || attention(&q, &k, &v, &options));
}

fn attentions(c: &mut Criterion) {
    attention_of(c, "attention/causal", BATCH, TOKENS, TOKENS, false);
    attention_of(c, "attention/chunked", BATCH * TOKENS / 64, 64, 256, true);
}

fn elementwise(c: &mut Criterion) {
    let x = random(&[BATCH, TOKENS, WIDTH]);
    let (weight, bias) = (random(&[WIDTH]), random(&[WIDTH]));
    compare(c, "rms_norm", || composed::rms_norm(&x, &weight, 1e-5), || rms_norm(&x, &weight, 1e-5));
    compare(
        c,
        "layer_norm",
        || composed::layer_norm(&x, &weight, &bias, 1e-5),
        || layer_norm(&x, &weight, &bias, 1e-5),
    );
    let (gate, up) = (random(&[BATCH, TOKENS, 3 * WIDTH]), random(&[BATCH, TOKENS, 3 * WIDTH]));
    compare(c, "swiglu", || composed::gated(&gate, &up, Activation::Silu), || swiglu(&gate, &up));
    compare(c, "gelu", || composed::activate(&gate, Activation::Gelu), || gelu(&gate));
    let q = random(&[BATCH, HEADS, TOKENS, DIM]);
    let angles = random(&[TOKENS, DIM / 2]);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    compare(c, "rotary", || composed::rotary(&q, &cos, &sin), || rotary(&q, &cos, &sin));
}

fn adamw(c: &mut Criterion) {
    let vars: Vec<(String, Var)> = (0..16).map(|i| (format!("{i}"), random(&[WIDTH, 3 * WIDTH]))).collect();
    let loss = vars.iter().map(|(_, v)| v.sqr().unwrap().sum_all().unwrap());
    let grads = loss.reduce(|a, b| (a + b).unwrap()).unwrap().backward().unwrap();
    let mut optimiser = AdamW::new(vars, AdamWOptions::default());
    c.bench_function("adamw/3.1M", |b| b.iter(|| optimiser.step(&grads, 1e-3, Some(1.0)).unwrap()));
}

/// A layer's products in `f32` and in `bf16`, forward and backward: 2048 rows, from 512 numbers to 1368.
fn products(c: &mut Criterion) {
    let (x, weight) = (random(&[BATCH * TOKENS, 512]), random(&[1368, 512]));
    let mut group = c.benchmark_group("linear");
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        let step = || precision.run(|| linear(&x, &weight).unwrap().backward().unwrap());
        group.bench_function(name, |b| b.iter(|| black_box(step())));
    }
    group.finish();
}

/// What LoRA's matrices of rank 8 cost beside a frozen weight from 576 numbers to 1536, over 1024 rows.
fn low_rank(c: &mut Criterion) {
    keep_freed_memory();
    let (x, weight) = (random(&[1024, 576]), random(&[1536, 576]).as_detached_tensor());
    let (a, b) = (random(&[8, 576]), random(&[1536, 8]));
    let mut group = c.benchmark_group("low_rank");
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        let frozen = || precision.run(|| backward(&linear(&x, &weight).unwrap()).unwrap());
        group.bench_function(format!("{name}/frozen"), |b| b.iter(|| black_box(frozen())));
        let tuned = || linear_low_rank(&x, &weight, &a, &b, 2.0, None).unwrap();
        let step = || precision.run(|| backward(&tuned()).unwrap());
        group.bench_function(format!("{name}/beside"), |b| b.iter(|| black_box(step())));
    }
    group.finish();
}

criterion_group!(benches, cross_entropy, attentions, elementwise, adamw, products, low_rank);
criterion_main!(benches);
