//! How much of a chunk can be copied from its neighbours, and bits per byte by that share: the
//! leakage-filtered evaluation of RETRO (section 2.6).

use serde::Serialize;

use super::perplexity::{ChunkScore, Scores};

/// Length of the longest run of tokens that `a` and `b` share.
pub fn longest_common_run(a: &[u32], b: &[u32]) -> usize {
    let mut ending_here = vec![0usize; b.len() + 1];
    let mut longest = 0;
    for x in a {
        for j in (0..b.len()).rev() {
            ending_here[j + 1] = if *x == b[j] { ending_here[j] + 1 } else { 0 };
            longest = longest.max(ending_here[j + 1]);
        }
    }
    longest
}

/// r(C): the longest run of tokens that the chunk shares with any neighbour, as a part of the
/// chunk size m. Neighbours are given as the model sees them, chunk and continuation.
pub fn overlap(chunk: &[u32], neighbours: &[Vec<u32>], chunk_size: usize) -> f64 {
    let longest = neighbours.iter().map(|neighbour| longest_common_run(chunk, neighbour)).max();
    longest.unwrap_or(0) as f64 / chunk_size as f64
}

/// One point of bpb(alpha).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilteredBits {
    /// Chunks that share at most this part of themselves with a neighbour.
    pub alpha: f64,
    /// How many chunks that are.
    pub chunks: usize,
    /// Bits per byte over them; none where there are no bytes.
    pub bits_per_byte: Option<f64>,
}

/// Bits per byte over {C: r(C) <= alpha}, for alpha in steps of an eighth. `overlaps` has a value
/// for each of `scores`' chunks.
pub fn filtered_bits(scores: &Scores, overlaps: &[f64]) -> Vec<FilteredBits> {
    (1..=8)
        .map(|eighths| {
            let alpha = eighths as f64 / 8.0;
            let kept: Vec<&ChunkScore> = scores
                .chunks
                .iter()
                .zip(overlaps)
                .filter(|(_, overlap)| **overlap <= alpha)
                .map(|(score, _)| score)
                .collect();
            let bytes: usize = kept.iter().map(|score| score.bytes).sum();
            let nats: f64 = kept.iter().map(|score| score.nats).sum();
            let bits = nats / std::f64::consts::LN_2;
            FilteredBits {
                alpha,
                chunks: kept.len(),
                bits_per_byte: (bytes > 0).then(|| bits / bytes as f64),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_is_contiguous() {
        assert_eq!(longest_common_run(&[1, 2, 3, 4, 5], &[9, 2, 3, 4, 9, 5]), 3);
        assert_eq!(longest_common_run(&[1, 2], &[2, 1]), 1);
        assert_eq!(longest_common_run(&[1, 1, 1], &[1, 1]), 2);
        assert_eq!(longest_common_run(&[], &[1]), 0);
        assert_eq!(overlap(&[1, 2, 3], &[vec![7], vec![2, 3]], 4), 0.5);
    }

    #[test]
    fn filtering_keeps_what_shares_at_most_alpha() {
        let chunk = |nats: f64, bytes| ChunkScore { chunk: 0, nats, tokens: 1, bytes };
        let ln2 = std::f64::consts::LN_2;
        let scores = Scores { chunks: vec![chunk(8.0 * ln2, 4), chunk(2.0 * ln2, 4)] };
        let points = filtered_bits(&scores, &[0.1, 0.9]);
        assert_eq!(points.iter().map(|p| p.chunks).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 1, 1, 2]);
        assert!((points[0].bits_per_byte.unwrap() - 2.0).abs() < 1e-12);
        assert!((points[7].bits_per_byte.unwrap() - 1.25).abs() < 1e-12);
        assert_eq!(filtered_bits(&scores, &[2.0, 2.0])[0].bits_per_byte, None);
    }
}
