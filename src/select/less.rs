//! LESS: the rows whose gradients point where the target's do.
//!
//! Xia, Malladi, Gururangan, Arora, Chen: *LESS: Selecting Influential Data for Targeted Instruction Tuning*, ICML 2024
//! (<https://arxiv.org/abs/2402.04333>). A LoRA adapter is learnt from a draw of the pool by Adam; after each quarter of the
//! steps every row's gradient is put into the form of Adam's step and compared with those of the target's labelled examples
//! (definition 3.1): `sum over i of rate_i cos(P grad l(z'; theta_i), P Gamma(z; theta_i))`, the mean over the examples z'. P is a
//! [`Projection`].
//!
//! The pool is gone through four times with a backward pass for each row: for large pools, choose candidates by a cheaper
//! method first.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use candle_core::Device;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use sidenote_kernels::AdamWOptions;

use super::projection::Projection;
use super::scores::{Scores, identity_of};
use super::selector::{Neighbours, Ranked, Ranking, Selector};
use super::{Pool, Target};
use crate::error::{Error, Result};
use crate::eval::tasks::{self, Item};
use crate::interrupt;
use crate::pool::Instance;
use crate::progress::Progress;
use crate::train::instance_gradients::{InstanceGradients, Moments, warm_up};

/// Share of the pool that the adapter is learnt from, as in the paper; and rows that it is at least.
const DRAWN: f64 = 0.05;
const DRAWN_AT_LEAST: usize = 64;
/// Times that gradients are taken; the paper's four epochs.
const CHECKPOINTS: usize = 4;
/// Steps before each. The paper's epochs are longer, on a machine of another kind.
const STEPS: usize = 8;
/// The paper's.
const RATE: f64 = 2e-5;
const PROJECTED: usize = 8192;

/// Rows by their influence on the target.
pub struct Less {
    model: PathBuf,
    seed: u64,
    /// The folder where scores lie until the selection is written, a file a target.
    scratch: PathBuf,
    /// Rows that each example is said to ask for.
    k: usize,
}

impl Less {
    /// By the gradients of the model called `model`; scores lie in the folder `scratch` until it is removed. The `k` rows that are best
    /// for each example are named, or the best.
    pub fn new(model: PathBuf, seed: u64, scratch: PathBuf, k: Option<usize>) -> Self {
        Self { model, seed, scratch, k: k.unwrap_or(1) }
    }

    /// The scores for `target` so far: of each checkpoint, of each row, of each example. The steps before them are taken again, to the same weights.
    fn scores(&self, pool: &Pool, target: &Target) -> Result<Scores> {
        let model = identity_of(&self.model)?;
        let bytes = fs::read(target.path()).map_err(Error::io(target.path()))?;
        let target = blake3::hash(&bytes).to_hex()[..32].to_string();
        let of = format!("less from {} by {model} of {} for {target}", self.seed, pool.identity());
        Scores::open(&self.scratch.join(target), &of)
    }
}

impl Selector for Less {
    fn rank(
        &mut self,
        pool: &Pool,
        target: Option<&Target>,
        _: usize,
        progress: Progress,
    ) -> Result<Ranking> {
        let target = super::needed(target)?;
        let examples = labelled(target)?;
        let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
        let drawn = folder.path().join("drawn.jsonl");
        draw(pool, &drawn, self.seed)?;
        let out = folder.path().join("none");
        let config = warm_up(self.model.clone(), drawn, out, CHECKPOINTS * STEPS, RATE, self.seed);
        let mut run = InstanceGradients::open(&config, &Device::Cpu)?;
        let projection = Projection::new(PROJECTED, self.seed);
        let mut parts = self.scores(pool, target)?;
        let there = parts.all().len();
        let task = progress.task("take gradients", (CHECKPOINTS * pool.len()) as u64, "rows");
        for checkpoint in 0..CHECKPOINTS {
            let mut rate = 0.0;
            for _ in 0..STEPS {
                rate += run.step()? / STEPS as f64;
            }
            if there >= (checkpoint + 1) * pool.len() * examples.len() {
                task.advance(pool.len() as u64);
                continue;
            }
            let wanted = wanted(&run, &examples, projection)?;
            let moments = run.moments()?;
            pool.for_each(|number, _, row| {
                task.advance(1);
                let first = (checkpoint * pool.len() + number) * examples.len();
                if first + examples.len() <= there {
                    return Ok(());
                }
                if interrupt::requested() {
                    parts.keep()?;
                    return Err(Error::Interrupted("run the same command again to go on".to_string()));
                }
                let instance = Instance { input: row.input, target: row.target, ..Instance::default() };
                let item = Item {
                    references: vec![instance.target.clone()],
                    instance,
                    example: String::new(),
                    path: pool.path().to_path_buf(),
                    line: number as u64 + 1,
                    without_content: None,
                };
                let step = adam(&run.of(&item)?, &moments);
                let step = unit(projection.apply(&step));
                // A block may end within a row.
                let missing = wanted.iter().skip(there.saturating_sub(first));
                missing.map(|wanted| rate * dot(&step, wanted)).try_for_each(|score| parts.push(score))
            })?;
        }
        // Of each row, by each example, over the checkpoints.
        let mut by_example = vec![0f64; pool.len() * examples.len()];
        for parts in parts.finish()?.chunks(by_example.len()) {
            by_example.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
        let mean = |of_row: &[f64]| of_row.iter().sum::<f64>() / examples.len() as f64;
        let scores: Vec<f64> = by_example.chunks(examples.len()).map(mean).collect();
        let neighbours = (0..examples.len()).map(|example| {
            let score = |row: &usize| by_example[row * examples.len() + example];
            let mut rows: Vec<usize> = (0..pool.len()).collect();
            rows.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
            rows.truncate(self.k);
            Neighbours {
                ids: rows.iter().map(|row| *row as u32).collect(),
                distances: rows.iter().map(|row| -score(row) as f32).collect(),
            }
        });
        let neighbours = neighbours.collect();
        let mut rows: Vec<usize> = (0..pool.len()).collect();
        rows.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let rows = rows.into_iter().map(|row| Ranked { row, depth: 0 }).collect();
        Ok(Ranking { rows, neighbours })
    }
}

/// The target's examples with what is right.
///
/// # Errors
/// An example without a target, named.
fn labelled(target: &Target) -> Result<Vec<Item>> {
    if let Some(query) = target.unlabelled() {
        let why = "the method less compares gradients, so it needs the string \"target\" with every example; \
                   the other methods need none";
        return Err(target.error(query, why));
    }
    tasks::read(&[target.path().to_path_buf()])
}

/// Writes the rows that the adapter is learnt from.
fn draw(pool: &Pool, path: &std::path::Path, seed: u64) -> Result<()> {
    let count = ((pool.len() as f64 * DRAWN) as usize).max(DRAWN_AT_LEAST).min(pool.len());
    let mut drawn = index::sample(&mut ChaCha8Rng::seed_from_u64(seed), pool.len(), count).into_vec();
    drawn.sort_unstable();
    let mut drawn = drawn.into_iter().peekable();
    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    pool.for_each(|number, _, row| {
        if drawn.next_if_eq(&number).is_none() {
            return Ok(());
        }
        // What is learnt is the target alone, whatever the row says that there is to choose from.
        let line = serde_json::json!({"input": row.input, "target": row.target, "task": row.task});
        writeln!(file, "{line}").map_err(Error::io(path))
    })?;
    file.flush().map_err(Error::io(path))
}

/// The examples' projected gradients, each of unit length: inner products with a unit vector are their cosines.
fn wanted(run: &InstanceGradients<'_>, examples: &[Item], projection: Projection) -> Result<Vec<Vec<f32>>> {
    examples.iter().map(|example| Ok(unit(projection.apply(&run.of(example)?)))).collect()
}

/// Gamma (the paper's equation 3 and its definition of Adam's step): what Adam would take for its next step if `gradient` were
/// the batch's.
fn adam(gradient: &[f32], moments: &Moments) -> Vec<f32> {
    // As the run's optimiser has them.
    let AdamWOptions { beta1, beta2, eps, .. } = AdamWOptions::default();
    let steps = moments.steps + 1;
    let (seen, seen_squared) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
    let step = |((g, m), v): ((&f32, &f32), &f32)| {
        let (g, m, v) = (f64::from(*g), f64::from(*m), f64::from(*v));
        let m = (beta1 * m + (1.0 - beta1) * g) / seen;
        let v = (beta2 * v + (1.0 - beta2) * g * g) / seen_squared;
        (m / (v.sqrt() + eps)) as f32
    };
    gradient.iter().zip(&moments.first).zip(&moments.second).map(step).collect()
}

/// `vector` at unit length; zero stays zero.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = dot(&vector, &vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: after one step, of a gradient of 2, the moments are 0.2 and 0.004.
    #[test]
    fn adams_form_of_a_gradient_is_the_papers() {
        let moments = Moments { first: vec![0.2, 0.2, 0.0], second: vec![0.004, 0.004, 0.0], steps: 1 };
        let found = adam(&[3.0, 2.0, 0.0], &moments);
        // (0.9 * 0.2 + 0.1 * 3) / (1 - 0.81) over the root of (0.999 * 0.004 + 0.001 * 9) / (1 - 0.998001).
        let m: f64 = (0.18 + 0.3) / 0.19;
        let v: f64 = (0.003996 + 0.009) / 0.001999;
        assert!((f64::from(found[0]) - m / v.sqrt()).abs() < 1e-5, "{found:?}");
        // The same gradient again is a step of one.
        assert!((found[1] - 1.0).abs() < 1e-4 && found[2] == 0.0, "{found:?}");
    }

    #[test]
    fn a_run_that_was_cut_off_goes_on_to_the_same_scores() {
        let (dir, pool) = super::super::tests::pool(&[("a", 30)]);
        let path = dir.path().join("examples.jsonl");
        let line = |i: usize| format!("{{\"input\": \"a {i}\", \"target\": \"no\"}}\n");
        fs::write(&path, (3..6).map(line).collect::<String>()).unwrap();
        let target = Target::open(&path).unwrap();
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/models/llama2c/stories260K.bin");
        let scratch = dir.path().join("scratch");
        let rank = || {
            Less::new(model.clone(), 3, scratch.clone(), Some(2))
                .rank(&pool, Some(&target), 1, Progress::Silent)
                .unwrap()
        };
        let whole = rank();
        let file = fs::read_dir(&scratch).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(&file).unwrap();
        for share in [1, 4, 7] {
            fs::write(&file, &bytes[..bytes.len() * share / 8]).unwrap();
            assert_eq!(rank(), whole);
            assert!(fs::read(&file).unwrap() == bytes, "other scores after {share} eighths");
        }
    }
}
