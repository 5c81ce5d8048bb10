//! Search speed and recall of each kind of index on synthetic clustered vectors.
//!
//! `cargo bench -p sidenote-index` takes less than a minute; `SIDENOTE_BENCH_ROWS=100000` in the
//! environment takes more rows.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{build, clustered, recall};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sidenote_index::{Hit, Metric, Spec};

const DIM: usize = 384;
const QUERIES: usize = 64;
const K: usize = 10;

fn search(criterion: &mut Criterion) {
    let rows = std::env::var("SIDENOTE_BENCH_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(5000);
    let all = clustered(QUERIES + rows, DIM, rows / 50 + 1, 1);
    let (queries, rows) = all.split_at(QUERIES * DIM);
    let mut truth = None;
    for spec in [Spec::Flat, Spec::RaBitQ { bits: 1 }, Spec::Hnsw { m: 16 }] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let start = Instant::now();
        let index = build(dir.path(), rows, DIM, Metric::Cosine, spec);
        let built = start.elapsed();
        let found = index.search_batch(queries, K, None).expect("good queries");
        let scored = |hits: &Vec<Hit>| hits.iter().map(|hit| (hit.id, f64::from(hit.score))).collect();
        // The first kind, Flat, is exact.
        let truth: &mut Vec<Vec<_>> = truth.get_or_insert_with(|| found.iter().map(scored).collect());
        let mean =
            found.iter().zip(truth).map(|(hits, truth)| recall(hits, truth, K)).sum::<f64>() / QUERIES as f64;
        println!("{spec}: {} x {DIM}, built in {built:.1?}, recall@{K} {mean:.3}", index.len());

        let mut group = criterion.benchmark_group(spec.to_string());
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(1));
        let mut next = queries.chunks_exact(DIM).cycle();
        group.bench_function("one query", |b| b.iter(|| index.search(next.next().unwrap_or(&[]), K, None)));
        group.throughput(Throughput::Elements(QUERIES as u64));
        group.bench_function("64 queries", |b| b.iter(|| index.search_batch(queries, K, None)));
        group.finish();
    }
}

criterion_group!(benches, search);
criterion_main!(benches);
