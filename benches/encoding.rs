//! Text to vectors: the static encoder inside the program, on all cores.

mod common;

use common::{articles, chunks};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sidenote::encoder;

fn encoding(criterion: &mut Criterion) {
    let encoder = encoder::load("default").expect("an encoder");
    let (block, articles) = (chunks("heldout"), articles("heldout"));
    let texts = block.chunk_texts();
    // A title is about what people type into a search box.
    let queries: Vec<&str> = articles.iter().map(|article| article.title.as_str()).collect();
    let mut group = criterion.benchmark_group("encoding");
    for (name, texts) in [("chunks", &texts), ("short queries", &queries)] {
        group.throughput(Throughput::Elements(texts.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| encoder.encode(texts).expect("good text")));
    }
    group.throughput(Throughput::Elements(1));
    let mut next = queries.iter().cycle();
    group.bench_function("one short query", |bencher| {
        bencher.iter(|| encoder.encode(&[next.next().copied().unwrap_or_default()]).expect("good text"));
    });
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = encoding }
criterion_main!(benches);
