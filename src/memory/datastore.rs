//! The datastore on disk: a nearest-neighbour index of contexts, and the token that came after each.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sidenote_index::{Hit, Index};

use crate::artefact;
use crate::corpus::read_numbers;
use crate::error::{Error, Result};

pub(super) const KIND: &str = "token-memory";
pub(super) const VERSION: u32 = 1;
pub(super) const TOKENS: &str = "tokens.u32";
/// The folder of the index, beside the manifest.
pub const CONTEXTS: &str = "contexts";

/// How much the memory says, and how sharply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interpolation {
    /// Neighbours looked up, k.
    pub k: usize,
    /// Temperature in units of the memory's typical distance: `T = temperature * distance`.
    pub temperature: f64,
    /// The memory's share λ. One number; or, adaptive, one more than there are `edges`, by the distance of the nearest
    /// neighbour.
    pub lambda: Vec<f64>,
    /// Squared distances of the nearest neighbour, in units of the typical one, at which λ changes; ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<f64>,
}

impl Default for Interpolation {
    /// k = 64, the temperature at the typical distance, λ = 0.25 (the paper's for WikiText-103).
    fn default() -> Self {
        Self { k: 64, temperature: 1.0, lambda: vec![0.25], edges: Vec::new() }
    }
}

impl Interpolation {
    /// Refuses what makes no distribution.
    pub fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::setting("k", "must be at least 1"));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::setting("temperature", "must be a positive number"));
        }
        // At 1 a token that no neighbour has would be impossible.
        if self.lambda.iter().any(|lambda| !(0.0..1.0).contains(lambda)) {
            return Err(Error::setting("lambda", "is a share, from 0 on, and must be below 1"));
        }
        let ascending = self.edges.windows(2).all(|pair| pair[0] <= pair[1]);
        if self.lambda.len() != self.edges.len() + 1 || !ascending {
            return Err(Error::setting("lambda", "needs one more value than there are ascending edges"));
        }
        Ok(())
    }

    /// λ where the nearest neighbour is this far, in units of the typical squared distance.
    pub fn lambda_at(&self, distance: f64) -> f64 {
        self.lambda[self.edges.partition_point(|edge| *edge < distance)]
    }
}

/// What the manifest of a memory says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryMeta {
    /// Contexts, each with its token.
    pub entries: usize,
    /// Width of a context.
    pub dim: usize,
    /// The model whose contexts these are: where it was, and the hash of its weights.
    pub model: PathBuf,
    /// Identity of the model.
    pub model_identity: String,
    /// Whether the model read neighbours while these were made.
    #[serde(default)]
    pub retrieval: bool,
    /// Identity of the tokenizer.
    pub tokenizer: String,
    /// Identity of the index of contexts.
    pub contexts: String,
    /// Median squared distance of a context to the nearest other one: the unit of temperatures and edges.
    pub distance: f64,
    /// How it is read where nobody says otherwise.
    pub interpolation: Interpolation,
}

/// A memory, opened by memory-mapping its contexts.
pub struct TokenMemory {
    meta: MemoryMeta,
    index: Index,
    tokens: Vec<u32>,
}

/// A neighbour of a context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// The token that came after it.
    pub token: u32,
    /// Squared distance, in units of the typical one.
    pub distance: f64,
}

impl TokenMemory {
    /// Opens the memory in `dir`.
    ///
    /// # Errors
    /// No memory there, a damaged or incomplete one.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = artefact::open(dir, KIND, VERSION)?;
        let meta: MemoryMeta = manifest.meta_as(dir)?;
        meta.interpolation.check()?;
        let index = Index::open(&dir.join(CONTEXTS))?;
        let tokens: Vec<u32> = read_numbers(&manifest.path(dir, TOKENS)?)?;
        if index.identity() != meta.contexts || index.len() != meta.entries || tokens.len() != meta.entries {
            let why = format!(
                "the manifest states {} contexts, but {CONTEXTS}/ holds {} and there are {} tokens; build it again",
                meta.entries,
                index.len(),
                tokens.len()
            );
            return Err(Error::file(dir, why));
        }
        if !(meta.distance > 0.0 && meta.distance.is_finite()) {
            return Err(Error::file(dir, "the typical distance is no positive number; build it again"));
        }
        Ok(Self { meta, index, tokens })
    }

    /// Kind of the index of contexts.
    pub fn kind(&self) -> sidenote_index::Spec {
        self.index.spec()
    }

    /// What it is.
    pub fn meta(&self) -> &MemoryMeta {
        &self.meta
    }

    /// Makes `interpolation` what the memory in `dir` is read with.
    pub fn keep(dir: &Path, interpolation: &Interpolation) -> Result<()> {
        interpolation.check()?;
        let manifest = artefact::open(dir, KIND, VERSION)?;
        let meta: MemoryMeta = manifest.meta_as(dir)?;
        let meta = MemoryMeta { interpolation: interpolation.clone(), ..meta };
        artefact::recommit(dir, &manifest, VERSION, serde_json::json!(meta))?;
        Ok(())
    }

    /// The `k` nearest contexts to each of `[n, dim]`, nearest first.
    pub fn neighbours(&self, contexts: &[f32], k: usize) -> Result<Vec<Vec<Neighbour>>> {
        let neighbour = |hit: &Hit| Neighbour {
            token: self.tokens[hit.id as usize],
            // Scores of squared L2 are minus the distance.
            distance: f64::from(-hit.score).max(0.0) / self.meta.distance,
        };
        let found = self.index.search_batch(contexts, k, None)?;
        Ok(found.iter().map(|hits| hits.iter().map(neighbour).collect()).collect())
    }

    /// Refuses contexts of another model, and those that it has only while it reads neighbours, or only while it does
    /// not: chunked cross-attention moves them.
    pub fn check_model(&self, identity: &str, retrieval: bool) -> Result<()> {
        if self.meta.retrieval != retrieval {
            let how = |on: bool| if on { "with neighbours" } else { "without neighbours" };
            return Err(Error::Mismatch {
                what: "ways to read".into(),
                left: format!("{} of the memory", how(self.meta.retrieval)),
                right: format!("{} at hand", how(retrieval)),
                hint: "a RETRO model's memory is built with --neighbours, and tuned and asked with --index"
                    .into(),
            });
        }
        if self.meta.model_identity == identity {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: "models".into(),
            left: format!("{} ({}) of the memory", self.meta.model_identity, self.meta.model.display()),
            right: format!("{identity} at hand"),
            hint: "build a memory with this model".into(),
        })
    }
}

/// The distribution over tokens that neighbours give, `p(w) ∝ Σ_{j: v_j = w} exp(-d_j / T)` (equation 2): what each neighbour adds
/// to its token.
pub fn shares(neighbours: &[Neighbour], temperature: f64) -> impl Iterator<Item = (u32, f64)> {
    let nearest = neighbours.first().map_or(0.0, |n| n.distance);
    let weight = move |n: &Neighbour| ((nearest - n.distance) / temperature).exp();
    let all: f64 = neighbours.iter().map(weight).sum();
    neighbours.iter().map(move |n| (n.token, weight(n) / all))
}

/// That distribution at `token`.
pub fn probability(neighbours: &[Neighbour], temperature: f64, token: u32) -> f64 {
    shares(neighbours, temperature).filter(|(other, _)| *other == token).map(|(_, share)| share).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_neighbours_weigh_more_and_all_of_it_is_one() {
        let at = |token, distance| Neighbour { token, distance };
        let neighbours = [at(5, 1.0), at(6, 2.0), at(5, 4.0)];
        let weights = [1.0, (-0.5f64).exp(), (-1.5f64).exp()];
        let total: f64 = weights.iter().sum();
        assert!((probability(&neighbours, 2.0, 5) - (weights[0] + weights[2]) / total).abs() < 1e-12);
        assert!((probability(&neighbours, 2.0, 6) - weights[1] / total).abs() < 1e-12);
        assert_eq!(probability(&neighbours, 2.0, 7), 0.0);
        assert_eq!(probability(&[], 2.0, 7), 0.0);
        // Far away and cold, nothing overflows.
        assert_eq!(probability(&[at(1, 1e9), at(2, 2e9)], 1e-3, 1), 1.0);
    }

    #[test]
    fn an_adaptive_share_goes_by_the_distance() {
        let mut adaptive =
            Interpolation { lambda: vec![0.9, 0.5, 0.1], edges: vec![1.0, 2.0], ..Default::default() };
        adaptive.check().unwrap();
        assert_eq!([0.5, 1.0, 1.5, 2.5].map(|d| adaptive.lambda_at(d)), [0.9, 0.9, 0.5, 0.1]);
        adaptive.edges = vec![2.0, 1.0];
        assert!(adaptive.check().is_err());
        for (wrong, name) in [
            (Interpolation { k: 0, ..Default::default() }, "k"),
            (Interpolation { temperature: 0.0, ..Default::default() }, "temperature"),
            (Interpolation { lambda: vec![1.5], ..Default::default() }, "lambda"),
            (Interpolation { lambda: vec![1.0], ..Default::default() }, "below 1"),
            (Interpolation { lambda: vec![], ..Default::default() }, "lambda"),
        ] {
            assert!(wrong.check().unwrap_err().to_string().contains(name));
        }
    }
}
