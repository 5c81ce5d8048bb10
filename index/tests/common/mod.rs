//! Data and brute force for the tests.
#![allow(dead_code)] // each test file uses a part

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sidenote_index::{Builder, Hit, Index, Metric, Quantizer, Spec};

pub const METRICS: [Metric; 3] = [Metric::InnerProduct, Metric::Cosine, Metric::L2];
pub const SPECS: [Spec; 10] = [
    Spec::Flat,
    Spec::Sq(Quantizer::Bf16),
    Spec::Sq(Quantizer::Int8),
    Spec::Hnsw { m: 8 },
    Spec::RaBitQ { bits: 1 },
    Spec::RaBitQ { bits: 4 },
    Spec::Graph { degree: 32 },
    Spec::Ivf { lists: 16, graph: None, bits: 1 },
    Spec::Ivf { lists: 16, graph: None, bits: 4 },
    Spec::Ivf { lists: 16, graph: Some(32), bits: 1 },
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

/// What [`build`] builds with.
pub const SEED: u64 = 1;

pub fn build(dir: &Path, rows: &[f32], dim: usize, metric: Metric, spec: Spec) -> Index {
    let mut builder = Builder::create(dir, dim, metric, &spec, SEED).unwrap();
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

/// [`brute_force`] over the rows that an index was built of; where it keeps them rounded, over what it
/// keeps (whose lengths bf16 does not leave at 1 under cosine: their scores are inner products).
pub fn truth(index: &Index, rows: &[f32], query: &[f32], metric: Metric) -> Vec<(u32, f64)> {
    let Spec::Sq(_) = index.spec() else { return brute_force(rows, query, metric) };
    let kept: Vec<f32> =
        (0..index.len() as u32).flat_map(|id| index.vector(id).unwrap().into_owned()).collect();
    match metric {
        Metric::Cosine => {
            let square: f64 = query.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let length = if square > 0.0 { square.sqrt() } else { 1.0 };
            let unit: Vec<f32> = query.iter().map(|&x| (f64::from(x) / length) as f32).collect();
            brute_force(&kept, &unit, Metric::InnerProduct)
        }
        _ => brute_force(&kept, query, metric),
    }
}

/// How many of the true `k` best were found, by score, so that ties do not count as misses.
pub fn recall(found: &[Hit], truth: &[(u32, f64)], k: usize) -> f64 {
    let k = k.min(truth.len());
    let worst = truth[k - 1].1;
    let tolerance = 1e-4 * worst.abs().max(1.0);
    found.iter().take(k).filter(|hit| f64::from(hit.score) >= worst - tolerance).count() as f64 / k as f64
}
