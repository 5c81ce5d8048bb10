//! Text to chunks: tokenising the held-out articles and cutting them into chunks of 64 tokens.

mod common;

use common::{CHUNK_TOKENS, articles};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sidenote::corpus::{Block, Tokenizer, cut};

fn chunking(criterion: &mut Criterion) {
    let articles = articles("heldout");
    let tokenizer = Tokenizer::default_lm().expect("a tokenizer");
    let bytes: usize = articles.iter().map(|article| article.text.len()).sum();
    let mut group = criterion.benchmark_group("chunking");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("one core", |bencher| {
        bencher.iter(|| {
            let chunks = articles.iter().map(|article| {
                let tokens = tokenizer.encode(&article.text).expect("good text");
                cut(&article.text, &tokens, tokenizer.end_of_text(), CHUNK_TOKENS).starts.len()
            });
            chunks.sum::<usize>()
        });
    });
    // As `index build` does it: the same, laid out for the store.
    group.bench_function("all cores", |bencher| {
        bencher.iter(|| Block::new(&articles, &tokenizer, CHUNK_TOKENS).expect("good text"));
    });
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = chunking }
criterion_main!(benches);
