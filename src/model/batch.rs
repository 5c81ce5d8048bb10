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
    let sequences: Vec<Vec<u32>> = rows
        .iter()
        .map(|row| row.clone().flat_map(|chunk| store.chunk(chunk).tokens.iter().copied()).collect())
        .collect();
    let width = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut tokens = vec![0u32; rows.len() * width];
    let mut targets = vec![IGNORE; tokens.len()];
    let mut scored = 0;
    for (i, (sequence, row)) in sequences.iter().zip(rows).enumerate() {
        let at = i * width;
        tokens[at..at + sequence.len()].copy_from_slice(sequence);
        // The window's last token predicts the first of the chunk after it, where there is one.
        let next = row.clone().last().and_then(|chunk| store.continuation(chunk));
        let next = next.and_then(|chunk| store.chunk(chunk).tokens.first());
        let following: Vec<u32> = sequence.iter().skip(1).chain(next).copied().collect();
        targets[at..at + following.len()].copy_from_slice(&following);
        scored += following.len();
    }
    Ok(Batch {
        tokens: Tensor::from_vec(tokens, (rows.len(), width), device)?,
        targets: Tensor::from_vec(targets, rows.len() * width, device)?,
        scored,
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
