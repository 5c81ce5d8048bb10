//! Data and brute force for the tests.
#![allow(dead_code)] // each test file uses a part

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sidenote_index::{Builder, Hit, Index, Metric, Spec};

pub const METRICS: [Metric; 3] = [Metric::InnerProduct, Metric::Cosine, Metric::L2];
pub const SPECS: [Spec; 6] = [
    Spec::Flat,
    Spec::Hnsw { m: 8 },
    Spec::RaBitQ { bits: 1 },
    Spec::RaBitQ { bits: 4 },
    Spec::Graph { degree: 32 },
    Spec::Ivf { lists: 16 },
];

/// `n` vectors around `clusters` random centres.
pub fn clustered(n: usize, dim: usize, clusters: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..clusters * dim).map(|_| normal(&mut rng)).collect();
    let mut rows = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let centre = rng.random_range(0..clusters);
        rows.extend(centres[centre * dim..][..dim].iter().map(|c| c + normal(&mut rng)));
    }
    rows
}

/// A sum of twelve uniform numbers: near enough to normal.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}

pub fn build(dir: &Path, rows: &[f32], dim: usize, metric: Metric, spec: Spec) -> Index {
    let mut builder = Builder::create(dir, dim, metric, &spec, 1).unwrap();
    builder.add(rows).unwrap();
    builder.finish().unwrap();
    Index::open(dir).unwrap()
}

/// What the definition of the metric says, in f64: `(id, score)` of all rows, best first.
pub fn brute_force(rows: &[f32], query: &[f32], metric: Metric) -> Vec<(u32, f64)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let score = |row: &[f32]| match metric {
        Metric::InnerProduct => dot(row, query),
        Metric::Cosine => {
            let lengths = (dot(row, row) * dot(query, query)).sqrt();
            if lengths == 0.0 { 0.0 } else { dot(row, query) / lengths }
        }
        Metric::L2 => {
            -row.iter().zip(query).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>()
        }
    };
    let mut all: Vec<_> =
        rows.chunks_exact(query.len()).enumerate().map(|(id, row)| (id as u32, score(row))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

/// How many of the true `k` best were found, by score, so that ties do not count as misses.
pub fn recall(found: &[Hit], truth: &[(u32, f64)], k: usize) -> f64 {
    let k = k.min(truth.len());
    let worst = truth[k - 1].1;
    let tolerance = 1e-4 * worst.abs().max(1.0);
    found.iter().take(k).filter(|hit| f64::from(hit.score) >= worst - tolerance).count() as f64 / k as f64
}
