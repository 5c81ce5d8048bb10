//! Training with memories in the batch (TRIME; Zhong, Lei and Chen 2022, <https://arxiv.org/abs/2205.12674>).
//!
//! The contexts of other tokens of the batch are predictions of what came after them, beside the output embeddings:
//!
//! ```text
//! P(w | c) ∝ exp(E_w f(c)) + Σ_{j in M, x_j = w} exp(g(c) g(c_j) / √d)        (equation 4)
//! ```
//!
//! with `f` the hidden state, `g` what the last feed-forward layer reads, and `M` the contexts that [`TrimeKind`] lets
//! the token see. A model so trained has contexts that find each other, and keeps its memories when it is asked:
//! [`crate::memory::Memories::trime`].

use candle_core::{D, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sidenote_kernels as kernels;

use super::config::{TrimeKind, TrimeSection};
use crate::corpus::Store;
use crate::error::Result;
use crate::model::batch::{Batch, IGNORE};

/// The sum of the negative log likelihoods of a batch's targets under the network and the memories that `seen` gives, in
/// nats: a scalar. `hidden` and `contexts` are `[batch, tokens, d]`, `head` is `[vocabulary, d]`; all three get
/// gradients.
pub fn loss(hidden: &Tensor, head: &Tensor, contexts: &Tensor, batch: &Batch, seen: &Seen) -> Result<Tensor> {
    // Only positions that predict something count, as queries and as memories.
    let targets = batch.targets.to_vec1::<u32>()?;
    let places: Vec<usize> = (0..targets.len()).filter(|&place| targets[place] != IGNORE).collect();
    let index: Vec<u32> = places.iter().map(|&place| place as u32).collect();
    let index = Tensor::from_vec(index, places.len(), hidden.device())?;
    let rows = |x: &Tensor| x.flatten(0, 1)?.index_select(&index, 0);
    let tokens: Vec<u32> = places.iter().map(|&place| targets[place]).collect();
    let seen = seen.clone();
    let sees = move |query: usize, other: usize| seen.sees(places[query], places[other]);
    Ok(kernels::trime_cross_entropy(&rows(hidden)?, head, &rows(contexts)?, &tokens, sees)?)
}

/// Which tokens of a batch see which.
#[derive(Clone)]
pub struct Seen {
    kind: TrimeKind,
    /// Whether tokens see those before them in their own sequence.
    local: bool,
    /// Tokens of a sequence, padding included.
    width: usize,
    /// The document of each sequence, and where in it the sequence begins.
    rows: Vec<(usize, usize)>,
}

impl Seen {
    /// For the batch number `number` of a run.
    pub fn new(
        section: &TrimeSection,
        batch: &Batch,
        store: &Store,
        seed: u64,
        number: usize,
    ) -> Result<Self> {
        // With the external memory, the local one is left out of most batches: else the nearer would do all the work.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number as u64);
        let local = section.memory != TrimeKind::External || rng.random::<f64>() < section.local_rate;
        let rows = batch.rows.iter().map(|row| (store.document_of(row.start), row.start)).collect();
        Ok(Self { kind: section.memory, local, width: batch.tokens.dim(D::Minus1)?, rows })
    }

    /// Whether the token predicted at place `query` of the batch sees what was predicted at `other`.
    fn sees(&self, query: usize, other: usize) -> bool {
        let ((row, at), (other_row, other_at)) =
            ((query / self.width, query % self.width), (other / self.width, other % self.width));
        if row == other_row {
            return self.local && other_at < at;
        }
        let ((document, start), (other_document, other_start)) = (self.rows[row], self.rows[other_row]);
        match self.kind {
            TrimeKind::Local => false,
            TrimeKind::Long => document == other_document && other_start < start,
            // Another document is known as a whole. Of its own, what comes later must not be seen.
            TrimeKind::External => document != other_document,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::normal::normal;

    const WIDTH: usize = 5;
    const VOCABULARY: usize = 4;
    const D: usize = 3;

    fn tensor(name: &str, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor::from_vec(normal(1, name, n, 0.7), shape, &Device::Cpu).unwrap()
    }

    /// Three sequences: the first two of one document, the second of which is shorter; then another document.
    fn batch() -> Batch {
        let targets = [[0, 1, 2, 1, 3], [1, 0, 2, IGNORE, IGNORE], [2, 2, 1, 0, 1]].concat();
        Batch {
            tokens: Tensor::zeros((3, WIDTH), DType::U32, &Device::Cpu).unwrap(),
            scored: 13,
            targets: Tensor::from_vec(targets, 3 * WIDTH, &Device::Cpu).unwrap(),
            rows: vec![0..1, 1..2, 2..3],
        }
    }

    fn seen(kind: TrimeKind, local: bool) -> Seen {
        Seen { kind, local, width: WIDTH, rows: vec![(0, 0), (0, 1), (1, 2)] }
    }

    /// Who sees whom, written out again: row, place.
    fn may(kind: TrimeKind, local: bool, query: usize, other: usize) -> bool {
        let (row, other_row) = (query / WIDTH, other / WIDTH);
        match (row, other_row) {
            (a, b) if a == b => local && other < query,
            (1, 0) => kind == TrimeKind::Long,
            (0, 1) => false,
            _ => kind == TrimeKind::External,
        }
    }

    /// Equation 4, term by term in f64. Fails when a token sees itself, one after it, or another document's where it must
    /// not; when the score is not divided by the root of the width; and when padding counts.
    #[test]
    fn the_loss_is_the_papers() {
        let (hidden, contexts) = (tensor("f", &[3, WIDTH, D]), tensor("g", &[3, WIDTH, D]));
        let head = tensor("e", &[VOCABULARY, D]);
        let rows = |x: &Tensor| x.flatten(0, 1).unwrap().to_vec2::<f32>().unwrap();
        let (f, g, e) = (rows(&hidden), rows(&contexts), head.to_vec2::<f32>().unwrap());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        let batch = batch();
        let targets = batch.targets.to_vec1::<u32>().unwrap();
        for (kind, local) in [
            (TrimeKind::Local, true),
            (TrimeKind::Long, true),
            (TrimeKind::External, false),
            (TrimeKind::External, true),
        ] {
            let mut expected = 0.0;
            for query in (0..3 * WIDTH).filter(|place| targets[*place] != IGNORE) {
                let mut of = [0.0; VOCABULARY];
                for (word, of) in of.iter_mut().enumerate() {
                    *of += dot(&e[word], &f[query]).exp();
                }
                for other in (0..3 * WIDTH).filter(|place| targets[*place] != IGNORE) {
                    if may(kind, local, query, other) {
                        of[targets[other] as usize] += (dot(&g[query], &g[other]) / (D as f64).sqrt()).exp();
                    }
                }
                expected -= (of[targets[query] as usize] / of.iter().sum::<f64>()).ln();
            }
            let found = loss(&hidden, &head, &contexts, &batch, &seen(kind, local)).unwrap();
            let found = f64::from(found.to_scalar::<f32>().unwrap());
            assert!((found - expected).abs() < 1e-4, "{kind:?} {local}: {found}, not {expected}");
        }
    }

    #[test]
    fn gradients_are_slopes_and_reach_memories() {
        let inputs = [("f", vec![3, WIDTH, D]), ("g", vec![3, WIDTH, D]), ("e", vec![VOCABULARY, D])];
        let variables: Vec<candle_core::Var> = inputs
            .iter()
            .map(|(name, shape)| candle_core::Var::from_tensor(&tensor(name, shape)).unwrap())
            .collect();
        let batch = batch();
        let seen = seen(TrimeKind::External, true);
        let run = || loss(&variables[0], &variables[2], &variables[1], &batch, &seen).unwrap();
        let gradients = kernels::backward(&run()).unwrap();
        for variable in &variables {
            let gradient = gradients.get(variable).unwrap();
            let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(length > 1e-2);
            let start = variable.as_detached_tensor().copy().unwrap();
            let at = |sign: f64| {
                let step = (gradient * (sign * 1e-2 / f64::from(length))).unwrap();
                variable.set(&(&start + step).unwrap()).unwrap();
                f64::from(run().to_scalar::<f32>().unwrap())
            };
            let slope = ((at(1.0) - at(-1.0)) / 2e-2) as f32;
            variable.set(&start).unwrap();
            assert!((slope - length).abs() < 0.01 * length + 0.01, "{slope} {length}");
        }
    }
}
