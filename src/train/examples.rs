//! From windows of text to what is learnt from them.

use std::ops::Range;

use candle_core::Device;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::{Level, ObjectiveSection};
use super::objective::{Example, Infilling, Objective, Spans};
use crate::corpus::{Store, Tokenizer};
use crate::error::{Error, Result};
use crate::model::batch::{Batch, Sequence, assemble, pack};

/// Makes batches of the text of a store under a mixture of objectives: a function of seed, epoch and window alone, so
/// that a resumed run reads what it would have read.
pub struct Examples {
    mixture: Vec<(f64, Objective, Level)>,
    /// Most tokens of a window.
    window: usize,
    seed: u64,
    device: Device,
}

impl Examples {
    /// The mixture that `sections` describe, over windows of `chunks` chunks of `store`; plain text where there are none.
    ///
    /// # Errors
    /// A token that an objective needs and the tokenizer does not have; more spans than sentinels.
    pub fn new(
        store: &Store,
        sections: &[ObjectiveSection],
        chunks: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let window = chunks * store.chunk_size();
        let mixture =
            sections.iter().map(|section| read(section, store.tokenizer(), window)).collect::<Result<_>>()?;
        Ok(Self { mixture, window, seed, device: device.clone() })
    }

    /// The most tokens of a sequence made of a window.
    pub fn longest(&self) -> usize {
        let added = |(_, objective, _): &(f64, Objective, Level)| objective.added(self.window);
        self.window + self.mixture.iter().map(added).max().unwrap_or(0)
    }

    /// The windows `rows` of `store` as they are read in epoch `epoch`.
    pub fn batch(&self, store: &Store, rows: &[Range<usize>], epoch: usize) -> Result<Batch> {
        if self.mixture.is_empty() {
            return assemble(store, rows, &self.device);
        }
        let sequences = rows.iter().map(|row| self.sequence(store, row, epoch)).collect();
        pack(sequences, rows, &self.device)
    }

    fn sequence(&self, store: &Store, row: &Range<usize>, epoch: usize) -> Sequence {
        let document = store.document_of(row.start);
        let mut rng = self.random(epoch, document as u64);
        match self.choose(&mut rng) {
            None | Some((_, Objective::Causal, _)) => Sequence::of(store, row),
            Some((_, Objective::Infilling(infilling), Level::Document)) => {
                self.cut(store, infilling, row, document, &mut rng)
            }
            Some((_, objective, _)) => {
                let (tokens, from) = self.example(store, row, epoch, objective).left_to_right();
                Sequence::predicted_from(tokens, from)
            }
        }
    }

    /// What an encoder reads and a decoder writes of the windows `rows` in epoch `epoch`; windows too short to be
    /// parted are left out.
    pub fn pairs(&self, store: &Store, rows: &[Range<usize>], epoch: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let pair = |row: &Range<usize>| {
            let (_, objective, _) =
                self.choose(&mut self.random(epoch, store.document_of(row.start) as u64))?;
            match self.example(store, row, epoch, objective) {
                Example::Pair { input, target } => Some((input, target)),
                Example::Text { tokens, from } if from < tokens.len() => {
                    Some((tokens[..from].to_vec(), tokens[from..].to_vec()))
                }
                Example::Text { .. } => None,
            }
        };
        rows.iter().filter_map(pair).collect()
    }

    /// One of the mixture. It goes by the document, so that one that was transformed as a whole is cut consistently.
    fn choose(&self, rng: &mut ChaCha8Rng) -> Option<&(f64, Objective, Level)> {
        let mut left = rng.random::<f64>() * self.mixture.iter().map(|(weight, ..)| weight).sum::<f64>();
        let chosen = self.mixture.iter().find(|(weight, ..)| {
            left -= weight;
            left < 0.0
        });
        chosen.or(self.mixture.last())
    }

    fn example(&self, store: &Store, row: &Range<usize>, epoch: usize, objective: &Objective) -> Example {
        let mut rng = self.random(epoch, (1 << 63) | row.start as u64);
        objective.apply(Sequence::of(store, row).tokens, &mut rng)
    }

    /// What lies at the place of `row` after the whole document was transformed.
    fn cut(
        &self,
        store: &Store,
        infilling: &Infilling,
        row: &Range<usize>,
        document: usize,
        rng: &mut ChaCha8Rng,
    ) -> Sequence {
        let chunks = store.chunks_of(document);
        let whole = Sequence::of(store, &chunks).tokens;
        let transformed = infilling.apply(&whole, rng);
        let start = Sequence::of(store, &(chunks.start..row.start)).tokens.len();
        let end = match row.end == chunks.end {
            true => transformed.len(),
            false => start + Sequence::of(store, row).tokens.len(),
        };
        let after = transformed.get(start + 1..transformed.len().min(end + 1)).unwrap_or_default();
        Sequence { tokens: transformed[start..end].to_vec(), targets: after.to_vec() }
    }

    fn random(&self, epoch: usize, place: u64) -> ChaCha8Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
        seed[16..24].copy_from_slice(&place.to_le_bytes());
        ChaCha8Rng::from_seed(seed)
    }
}

/// The objective that `section` describes for windows of `window` tokens, with its own tokens looked up.
fn read(section: &ObjectiveSection, tokenizer: &Tokenizer, window: usize) -> Result<(f64, Objective, Level)> {
    let token = |name: &str| {
        tokenizer.token(name).ok_or_else(|| {
            let why = format!(
                "the tokenizer has no token {name:?}; train one that has it (`sidenote tokenizer train --special \
                 {name:?}`) and build the index with that, or name another token"
            );
            Error::setting("objectives", why)
        })
    };
    let mut level = Level::Context;
    let objective = match section {
        ObjectiveSection::Causal { .. } => Objective::Causal,
        ObjectiveSection::Prefix { .. } => Objective::Prefix,
        ObjectiveSection::Infilling { level: asked, spm_rate, tokens: [prefix, suffix, middle], .. } => {
            level = *asked;
            let (prefix, suffix, middle) = (token(prefix)?, token(suffix)?, token(middle)?);
            let end = tokenizer.end_of_text();
            let infilling = Infilling { prefix, suffix, middle, end, spm_rate: *spm_rate };
            infilling.check(tokenizer)?;
            Objective::Infilling(infilling)
        }
        ObjectiveSection::Spans { density, mean_length, sentinel, .. } => {
            let first = token(&format!("{sentinel}0>"))?;
            let others = (1..).map_while(|i| tokenizer.token(&format!("{sentinel}{i}>")));
            let sentinels = std::iter::once(first).chain(others).collect();
            let spans = Spans { density: *density, mean_length: *mean_length, sentinels };
            let (wanted, there) = (spans.wanted(window), spans.sentinels.len());
            if wanted > there {
                let why = format!(
                    "a window of {window} tokens has {wanted} spans, but the tokenizer only {there} sentinels \
                     ({sentinel}0> and on); train one that has more (`--special`), lower density or \
                     training.chunks, or raise mean_length"
                );
                return Err(Error::setting("objectives", why));
            }
            Objective::Spans(spans)
        }
        ObjectiveSection::Denoising { .. } => Objective::Denoising,
        ObjectiveSection::Continuation { token: clm, .. } => Objective::Continuation { clm: token(clm)? },
    };
    Ok((section.weight(), objective, level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Tokenizer;
    use crate::retriever::testing;
    use crate::train::Order;

    const SPECIAL: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];

    fn store(dir: &std::path::Path) -> Store {
        let special = SPECIAL.map(String::from);
        let tokenizer = Tokenizer::train((0..97).map(|w| Ok(format!("w{w} w{w}"))), 320, &special).unwrap();
        testing::store_of(dir, 30, &tokenizer)
    }

    fn infilling(level: Level) -> ObjectiveSection {
        ObjectiveSection::Infilling { weight: 3.0, level, spm_rate: 0.5, tokens: SPECIAL.map(String::from) }
    }

    #[test]
    fn documents_transformed_as_a_whole_are_whole_again_when_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let section = infilling(Level::Document);
        let (_, Objective::Infilling(inverse), _) =
            read(&section, store.tokenizer(), 2 * store.chunk_size()).unwrap()
        else {
            panic!()
        };
        let examples = Examples::new(&store, &[section], 2, 7, &Device::Cpu).unwrap();
        let mut cut = 0;
        for document in 0..store.documents() {
            let chunks = store.chunks_of(document);
            let windows: Vec<_> =
                chunks.clone().step_by(2).map(|start| start..(start + 2).min(chunks.end)).collect();
            let sequences: Vec<_> =
                windows.iter().map(|window| examples.sequence(&store, window, 5)).collect();
            let whole: Vec<u32> = sequences.iter().flat_map(|s| s.tokens.clone()).collect();
            assert_eq!(inverse.invert(&whole).unwrap(), Sequence::of(&store, &chunks).tokens);
            let targets: Vec<u32> = sequences.iter().flat_map(|s| s.targets.clone()).collect();
            assert_eq!(targets, whole[1..]);
            cut += usize::from(windows.len() > 1);
        }
        assert!(cut > 10, "too few documents of several windows");
    }

    #[test]
    fn a_mixture_is_drawn_by_weight_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let sections = [ObjectiveSection::Causal { weight: 1.0 }, infilling(Level::Context)];
        let examples = Examples::new(&store, &sections, 2, 1, &Device::Cpu).unwrap();
        let first = store.tokenizer().token(SPECIAL[0]).unwrap();
        let (mut infilled, mut all) = (0, 0);
        for epoch in 0..40 {
            for document in 0..store.documents() {
                let sequence = examples.sequence(&store, &store.chunks_of(document), epoch);
                let again = examples.sequence(&store, &store.chunks_of(document), epoch);
                assert_eq!((&sequence.tokens, &sequence.targets), (&again.tokens, &again.targets));
                infilled += usize::from(sequence.tokens[0] == first);
                all += 1;
            }
        }
        let share = infilled as f64 / all as f64;
        assert!((share - 0.75).abs() < 0.05, "{share}");
    }

    #[test]
    fn what_is_only_read_is_not_scored() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let sections = [ObjectiveSection::Denoising { weight: 1.0 }];
        let examples = Examples::new(&store, &sections, 2, 1, &Device::Cpu).unwrap();
        let mut order = Order::new(&store, 2, 64, 0);
        let rows = order.batch(0);
        let batch = examples.batch(&store, &rows, 0).unwrap();
        let text: usize = rows.iter().map(|row| Sequence::of(&store, row).tokens.len()).sum();
        assert_eq!(batch.scored, text, "the whole text is what is written");
        assert!(batch.tokens.dim(1).unwrap() <= examples.longest());
    }

    #[test]
    fn a_token_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let section = ObjectiveSection::Continuation { weight: 1.0, token: "[CLM]".into() };
        let error = Examples::new(&store, &[section], 2, 1, &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("[CLM]") && error.contains("--special"), "{error}");
    }

    #[test]
    fn spans_without_a_sentinel_each_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let special: Vec<String> = (0..4).map(|i| format!("<extra_id_{i}>")).collect();
        let tokenizer = Tokenizer::train((0..97).map(|w| Ok(format!("w{w} w{w}"))), 320, &special).unwrap();
        let store = testing::store_of(dir.path(), 30, &tokenizer);
        let sections = |density: f64| {
            let sentinel = "<extra_id_".to_string();
            [ObjectiveSection::Spans { weight: 1.0, density, mean_length: 1.0, sentinel }]
        };
        let window = 2 * store.chunk_size();
        let new =
            |spans: usize| Examples::new(&store, &sections(spans as f64 / window as f64), 2, 1, &Device::Cpu);
        new(4).unwrap();
        let error = new(5).err().unwrap().to_string();
        assert!(error.contains("5 spans") && error.contains("4 sentinels (<extra_id_0>"), "{error}");
    }
}
