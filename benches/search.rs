//! Queries to passages: the index of the shipped articles, the encoding of the query included.
//!
//! How the kinds of index compare is measured by `cargo bench -p sidenote-index`.

mod common;

use common::{articles, chunks, index};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const K: usize = 5;
const BATCH: usize = 64;

fn search(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let retriever = index("train", &dir.path().join("index"));
    println!("{} index of {} chunks", retriever.meta().kinds(), retriever.store().chunks());
    let (block, articles) = (chunks("heldout"), articles("heldout"));
    let texts = block.chunk_texts();
    let queries: Vec<&str> = articles.iter().map(|article| article.title.as_str()).collect();
    let mut group = criterion.benchmark_group("search");
    group.throughput(Throughput::Elements(1));
    let mut next = queries.iter().cycle();
    group.bench_function("one query", |bencher| {
        bencher.iter(|| retriever.search(next.next().copied().unwrap_or_default(), K).expect("a good query"));
    });
    group.throughput(Throughput::Elements(BATCH as u64));
    // Chunks as queries are what RETRO's precomputed neighbours come from.
    for (name, queries) in [("64 queries", &queries), ("64 chunks", &texts)] {
        let mut batches = queries.chunks_exact(BATCH).cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let batch = batches.next().unwrap_or_default();
                let vectors = retriever.encode(batch).expect("good queries");
                retriever.search_vectors(&vectors, K, None).expect("good queries")
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = search }
criterion_main!(benches);
