//! Reading a text to see how well it is predicted.
//!
//! A document is read in windows as long as the model was trained on. Each window after the first
//! begins with the last chunk of the one before it, which is read but not counted again, so every
//! token but a document's first is predicted exactly once.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use sidenote_kernels::log_sum_exp;

use super::batch::{Batch, assemble, gather};
use super::store::LanguageModel;
use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Tokens a window, in whole chunks but at least two of them; fewer where a model reads fewer.
const WINDOW_TOKENS: usize = 256;
/// Windows read at once.
const BATCH: usize = 8;

/// Where a text's neighbours come from.
pub struct Neighbourhood<'a> {
    /// Tokens of a chunk's neighbours, nearest first.
    pub of: Box<dyn Fn(usize) -> Vec<Vec<u32>> + 'a>,
    /// How many of them are read.
    pub k: usize,
}

/// Some windows, read.
pub struct Reading<'a> {
    model: &'a LanguageModel,
    batch: Batch,
    hidden: Tensor,
    contexts: Tensor,
    /// What is predicted in them, in the order of the text.
    pub chunks: Vec<Predicted>,
}

/// A chunk whose tokens are predicted.
pub struct Predicted {
    /// Number of the chunk in its store.
    pub chunk: usize,
    /// Where in the batch the states are that its tokens are predicted from.
    places: Range<usize>,
}

impl Predicted {
    /// How many of its tokens are predicted: all but a document's first.
    pub fn tokens(&self) -> usize {
        self.places.len()
    }
}

impl Reading<'_> {
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.places.clone())
    }

    /// The predicted tokens.
    pub fn tokens(&self) -> Result<Vec<u32>> {
        let targets = self.batch.targets.to_vec1::<u32>()?;
        Ok(self.places().map(|place| targets[place]).collect())
    }

    /// Negative log likelihood of each predicted token, and its logit.
    pub fn predictions(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let all = token_predictions(&self.hidden, self.model, &self.batch.targets)?;
        Ok(self.places().map(|place| all[place]).unzip())
    }

    /// The context that each predicted token came after, `[tokens, d]` row-major: what the last block's feed-forward
    /// layer reads, which makes the best keys (Khandelwal et al. 2020, section 5).
    pub fn contexts(&self) -> Result<Vec<f32>> {
        let width = self.contexts.dim(2)?;
        let all = self.contexts.flatten_all()?.to_vec1::<f32>()?;
        Ok(self.places().flat_map(|place| all[place * width..][..width].iter().copied()).collect())
    }

    /// The predicted tokens (numbered as in [`Self::tokens`]) of each document that was read of, and whether it begins
    /// here. `text` is what was read.
    pub fn documents(&self, text: &Store) -> Vec<(Range<usize>, bool)> {
        let of = |chunk: &Predicted| text.document_of(chunk.chunk);
        let mut end = 0;
        let one = |run: &[Predicted]| {
            let first = end;
            end += run.iter().map(Predicted::tokens).sum::<usize>();
            (first..end, run[0].chunk == text.chunks_of(of(&run[0])).start)
        };
        self.chunks.chunk_by(|a, b| of(a) == of(b)).map(one).collect()
    }
}

/// Reads `documents` of `text`, but for deleted ones, with `model` and gives what was read to `each`, some windows at a time;
/// without neighbours, retrieval is off.
///
/// # Errors
/// A chunk size that leaves no room for two chunks; an interruption; what `each` reports.
pub fn read(
    model: &LanguageModel,
    text: &Store,
    documents: Range<usize>,
    neighbours: Option<&Neighbourhood<'_>>,
    progress: Progress,
    mut each: impl FnMut(&Reading<'_>) -> Result<()>,
) -> Result<()> {
    let decoder = model.network.decoder();
    let device = decoder.device();
    let m = text.chunk_size();
    let positions = decoder.config().max_position_embeddings;
    let longest = (WINDOW_TOKENS.min(positions) / m).max(2);
    if longest * m > positions {
        let why =
            format!("windows of {longest} chunks of {m} tokens, but the model reads only {positions} tokens");
        return Err(Error::setting("chunk size", why));
    }
    let live = documents.filter(|document| text.document_is_live(*document));
    let windows: Vec<(Range<usize>, usize)> =
        live.flat_map(|document| windows(text.chunks_of(document), longest)).collect();
    let task = progress.task("score", windows.len() as u64, "windows");
    for group in windows.chunks(BATCH) {
        if interrupt::requested() {
            return Err(Error::Interrupted("nothing was measured to the end".into()));
        }
        let rows: Vec<Range<usize>> = group.iter().map(|(row, _)| row.clone()).collect();
        let batch = assemble(text, &rows, device)?;
        let retrieved = match neighbours {
            Some(n) => Some(gather(&batch, text, &n.of, n.k, device)?),
            None => None,
        };
        let (hidden, contexts) = model.network.forward_with_contexts(&batch.tokens, retrieved.as_ref())?;
        let (hidden, contexts) = (hidden.detach(), contexts.detach());
        let width = batch.tokens.dim(1)?;
        let mut chunks = Vec::new();
        for (i, (row, context)) in group.iter().enumerate() {
            for (u, chunk) in row.clone().enumerate().skip(*context) {
                // The token at position p is predicted at p - 1; a document's first is not.
                let first = (u * m).max(1);
                let last = u * m + text.chunk(chunk).tokens.len();
                chunks.push(Predicted {
                    chunk,
                    places: i * width + first - 1..i * width + last.max(first) - 1,
                });
            }
        }
        each(&Reading { model, batch, hidden, contexts, chunks })?;
        task.advance(group.len() as u64);
    }
    Ok(())
}

/// Windows of at most `longest` (2 or more) of a document's chunks, each with the number of chunks
/// that are only context.
fn windows(all: Range<usize>, longest: usize) -> Vec<(Range<usize>, usize)> {
    let mut windows = Vec::new();
    let mut scored = all.start;
    while scored < all.end {
        let context = (scored > all.start) as usize;
        let start = scored - context;
        let end = (start + longest).min(all.end);
        windows.push((start..end, context));
        scored = end;
    }
    windows
}

/// Negative log likelihood and logit of each target; 0 where there is none.
fn token_predictions(hidden: &Tensor, model: &LanguageModel, targets: &Tensor) -> Result<Vec<(f32, f32)>> {
    let hidden = hidden.flatten(0, 1)?;
    let targets = targets.to_vec1::<u32>()?;
    let decoder = model.network.decoder();
    let vocabulary = decoder.config().vocab_size;
    let mut all = Vec::with_capacity(targets.len());
    // The logits of all tokens at once would be large; some hundred rows are enough for speed.
    for (i, targets) in targets.chunks(256).enumerate() {
        let logits = decoder.logits(&hidden.narrow(0, i * 256, targets.len())?)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        all.par_extend(logits.par_chunks(vocabulary).zip(targets).map(|(row, target)| {
            let Some(own) = row.get(*target as usize) else { return (0.0, 0.0) };
            (log_sum_exp(row) - own, *own)
        }));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_predicted_once() {
        for (chunks, longest) in (1..12).flat_map(|chunks| (2..6).map(move |longest| (chunks, longest))) {
            let windows = windows(5..5 + chunks, longest);
            let scored: Vec<usize> =
                windows.iter().flat_map(|(row, context)| row.clone().skip(*context)).collect();
            assert_eq!(scored, (5..5 + chunks).collect::<Vec<_>>());
            assert!(windows.iter().all(|(row, _)| row.len() <= longest));
        }
    }
}
