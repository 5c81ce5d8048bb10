//! A step of the optimiser (forward, backward, AdamW) for the quickstart's two models: the plain
//! decoder, and RETRO's layers over it with the decoder frozen. Reading the batch is left out.

mod common;

use candle_core::{Device, Var};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use sidenote::Result;
use sidenote::model::batch::{Batch, IGNORE, assemble, gather};
use sidenote::model::{LanguageModel, Retrieved};
use sidenote::progress::Progress;
use sidenote::retriever::{Ranking, Retriever, neighbours};
use sidenote::train::Order;
use sidenote::train::config::{ModelSection, RetroSection};
use sidenote_kernels::{AdamW, AdamWOptions, CrossEntropyOptions, backward, linear_cross_entropy};

const WIDTH: usize = 128;
const CHUNKS: usize = 4;
const BATCH_TOKENS: usize = 2048;
const NEIGHBOURS: usize = 2;
/// So small that the weights stay what they are, however many steps are measured.
const LEARNING_RATE: f64 = 1e-6;

fn training(criterion: &mut Criterion) {
    sidenote_kernels::keep_freed_memory();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let retriever = common::index("heldout", &dir.path().join("index"));
    let (batch, retrieved) = batch(&retriever).expect("a good index");
    let decoder = ModelSection {
        hidden_size: WIDTH,
        layers: 4,
        heads: 4,
        intermediate_size: None,
        max_positions: 1024,
    }
    .decoder(retriever.store().tokenizer().vocab_size());
    let tokenizer = retriever.store().tokenizer().clone();
    let plain = LanguageModel::new(&decoder, None, tokenizer, 0, &Device::Cpu).expect("a decoder");
    let base = dir.path().join("plain");
    plain.save(&base).expect("a free folder");
    let retro = RetroSection {
        neighbours: Some(NEIGHBOURS),
        layers: Some(vec![4]),
        heads: Some(1),
        head_dim: Some(WIDTH),
        encoder_hidden_size: Some(2 * WIDTH),
        encoder_intermediate_size: Some(WIDTH),
        encoder_heads: Some(8),
        encoder_layers: Some(1),
        encoder_cross_layers: None,
        initialisation: None,
        gate: None,
    }
    .config(&decoder, common::CHUNK_TOKENS, true);
    let retro = LanguageModel::retrofit(&base, &retro, 0, &Device::Cpu).expect("a plain base");

    let mut group = criterion.benchmark_group("training step");
    group.throughput(Throughput::Elements(batch.scored as u64));
    measure(&mut group, "plain", &plain, &batch, None);
    measure(&mut group, "RETRO on frozen plain", &retro, &batch, Some(&retrieved));
    group.finish();
}

/// A full batch of the index's own text, with its neighbours.
fn batch(retriever: &Retriever) -> Result<(Batch, Retrieved)> {
    let store = retriever.store();
    let table = neighbours::compute(retriever, store, NEIGHBOURS, Ranking::Vectors, Progress::Silent)?;
    let rows = Order::new(store, CHUNKS, BATCH_TOKENS, 0).batch(0);
    let batch = assemble(store, &rows, &Device::Cpu)?;
    let retrieved = gather(
        &batch,
        store,
        |chunk| neighbours::tokens_of(store, table.of(chunk)),
        NEIGHBOURS,
        &Device::Cpu,
    )?;
    println!("batch of {} sequences, {:?} tokens with padding", rows.len(), batch.tokens.elem_count());
    Ok((batch, retrieved))
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    model: &LanguageModel,
    batch: &Batch,
    retrieved: Option<&Retrieved>,
) {
    let variables: Vec<(String, Var)> = model.variables().to_vec();
    let mut optimiser = AdamW::new(variables, AdamWOptions { weight_decay: 0.1, ..Default::default() });
    let mut step = || -> Result<f64> {
        let hidden = model.network.forward(&batch.tokens, retrieved)?.flatten(0, 1)?;
        let head = &model.network.decoder().head().unwrap();
        let loss =
            linear_cross_entropy(&hidden, head, &batch.targets, &CrossEntropyOptions::ignoring(IGNORE))?;
        let loss = (loss / batch.scored as f64)?;
        let stats = optimiser.step(&backward(&loss)?, LEARNING_RATE, Some(1.0))?;
        Ok(stats.grad_norm)
    };
    group.bench_function(name, |bencher| bencher.iter(|| step().expect("a good step")));
}

criterion_group! { name = benches; config = common::criterion(); targets = training }
criterion_main!(benches);
