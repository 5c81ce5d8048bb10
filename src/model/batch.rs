//! Batches out of a chunk store: each sequence is a window of consecutive chunks of one document,
//! so that neighbours stay aligned with chunks and no sequence crosses into another document.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::corpus::Store;
use crate::error::Result;
use crate::model::Retrieved;

/// Target of a position that is not scored.
pub const IGNORE: u32 = u32::MAX;

/// Sequences side by side.
pub struct Batch {
    /// Token ids, `[batch, tokens]`, filled up at the end of shorter rows.
    pub tokens: Tensor,
    /// The token that comes next, `[batch * tokens]`, [`IGNORE`] where there is none.
    pub targets: Tensor,
    /// Number of targets.
    pub scored: usize,
    /// The chunks of each row.
    pub rows: Vec<Range<usize>>,
}

/// Puts windows of chunks side by side.
pub fn assemble(store: &Store, rows: &[Range<usize>], device: &Device) -> Result<Batch> {
    let sequences = rows.iter().map(|row| Sequence::of(store, row)).collect();
    pack(sequences, rows, device)
}

/// Tokens and, for the first of them at least, the token to be predicted after each.
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The token that comes next, [`IGNORE`] where it is not scored; not longer than `tokens`.
    pub targets: Vec<u32>,
}

impl Sequence {
    /// The text of the chunks `row`, each token of which is predicted after those before it.
    pub fn of(store: &Store, row: &Range<usize>) -> Self {
        let tokens: Vec<u32> =
            row.clone().flat_map(|chunk| store.chunk(chunk).tokens.iter().copied()).collect();
        // The window's last token predicts the first of the chunk after it, where there is one.
        let next = row.clone().last().and_then(|chunk| store.continuation(chunk));
        let next = next.and_then(|chunk| store.chunk(chunk).tokens.first());
        let targets = tokens.iter().skip(1).chain(next).copied().collect();
        Self { tokens, targets }
    }

    /// `tokens`, of which those from `from` on, at least 1, are predicted.
    pub fn predicted_from(tokens: Vec<u32>, from: usize) -> Self {
        let target = |(i, token): (usize, &u32)| if i < from { IGNORE } else { *token };
        let targets = tokens.iter().enumerate().skip(1).map(target).collect();
        Self { tokens, targets }
    }
}

/// Puts sequences, of the chunks `rows`, side by side.
pub fn pack(sequences: Vec<Sequence>, rows: &[Range<usize>], device: &Device) -> Result<Batch> {
    let width = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
    let mut tokens = vec![0u32; sequences.len() * width];
    let mut targets = vec![IGNORE; tokens.len()];
    for (i, sequence) in sequences.iter().enumerate() {
        tokens[i * width..][..sequence.tokens.len()].copy_from_slice(&sequence.tokens);
        targets[i * width..][..sequence.targets.len()].copy_from_slice(&sequence.targets);
    }
    Ok(Batch {
        scored: targets.iter().filter(|target| **target != IGNORE).count(),
        tokens: Tensor::from_vec(tokens, (sequences.len(), width), device)?,
        targets: Tensor::from_vec(targets, sequences.len() * width, device)?,
        rows: rows.to_vec(),
    })
}

/// Gathers the neighbours of a batch's complete chunks; `of(chunk)` gives their tokens, `[N; F]`
/// each, nearest first, of which `k` are taken.
pub fn gather(
    batch: &Batch,
    text: &Store,
    of: impl Fn(usize) -> Vec<Vec<u32>>,
    k: usize,
    device: &Device,
) -> Result<Retrieved> {
    let m = text.chunk_size();
    let complete = batch.tokens.dim(1)? / m;
    let of_row = |row: &Range<usize>| -> Vec<Vec<Vec<u32>>> {
        let whole = |chunk: usize| chunk < row.end && text.chunk(chunk).tokens.len() == m;
        (row.start..row.start + complete)
            .map(|chunk| if whole(chunk) { of(chunk) } else { Vec::new() })
            .collect()
    };
    let neighbours: Vec<_> = batch.rows.iter().map(of_row).collect();
    Retrieved::pack(&neighbours, k, 2 * m, device)
}

/// Texts filled up at the end, `[texts, longest]`, and the mask of what is text; `None` where all are of one
/// length.
pub fn side_by_side(texts: &[&[u32]], device: &Device) -> Result<(Tensor, Option<Tensor>)> {
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let shape = (texts.len(), longest);
    let filled =
        |text: &&[u32]| text.iter().copied().chain(std::iter::repeat_n(0, longest - text.len())).collect();
    let tokens: Vec<u32> = texts.iter().flat_map::<Vec<u32>, _>(filled).collect();
    let tokens = Tensor::from_vec(tokens, shape, device)?;
    if texts.iter().all(|text| text.len() == longest) {
        return Ok((tokens, None));
    }
    let mask = texts.iter().flat_map(|text| (0..longest).map(|i| u8::from(i < text.len()))).collect();
    Ok((tokens, Some(Tensor::from_vec(mask, shape, device)?)))
}
