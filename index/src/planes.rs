//! More bits a dimension: the extended RaBitQ code (Gao et al., 2024; arXiv 2409.09913), read row
//! by row where one bit was not enough to decide.
//!
//! Each number of the rotated direction o is rounded to one of 2^B levels, `y = v - (2^B - 1) / 2`
//! with the code v from 0 to 2^B - 1, on a grid whose width is chosen for each row so that y points
//! along o as nearly as it can (section 3.2 there). `<y, q> / <y, o>` then estimates `<o, q>`, and
//! its error shrinks by about half with every bit. A code is kept as B planes of one bit a
//! dimension, so that `<y, q>` is a sum of B masked sums over the query, which is not rounded.

use crate::blocks;
use crate::metric::{Metric, dot};
use crate::simd::masked_sum;

/// Grid widths tried for a row.
const WIDTHS: usize = 20;

/// Words that a row takes: its planes, then a word with its scale and its error.
pub(crate) fn words(dim: usize, bits: usize) -> usize {
    bits * dim.div_ceil(64) + 1
}

/// Writes the code of a rotated residual whose squared length is `square` into `out`, which is
/// zero and has [`words`] words.
pub(crate) fn encode(metric: Metric, rotated: &[f32], square: f32, bits: usize, out: &mut [u64]) {
    let dim = rotated.len();
    let levels = 1usize << (bits - 1);
    let largest = rotated.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let (mut best, mut best_fit) = (0.0, 0.0);
    // Half a level to all levels for the largest number: beyond, it is cut off ever more.
    for step in 0..WIDTHS {
        let grid = levels as f32 * (0.5 + 1.5 * step as f32 / WIDTHS as f32) / largest;
        let (mut along, mut own) = (0.0f32, 0.0f32);
        for x in rotated {
            let y = level(x.abs(), grid, levels) as f32 + 0.5;
            along += y * x.abs();
            own += y * y;
        }
        let fit = along / own.sqrt();
        if fit > best_fit {
            (best, best_fit) = (grid, fit);
        }
    }
    let plane_words = dim.div_ceil(64);
    let (mut along, mut own) = (0.0f32, 0.0f32);
    for (i, x) in rotated.iter().enumerate() {
        let u = level(x.abs(), best, levels);
        let y = u as f32 + 0.5;
        along += y * x.abs();
        own += y * y;
        let v = if *x >= 0.0 { levels + u } else { levels - 1 - u };
        for bit in 0..bits {
            out[bit * plane_words + i / 64] |= ((v >> bit & 1) as u64) << (i % 64);
        }
    }
    let length = square.sqrt();
    let fit = along / (length * own.sqrt());
    let (scale, error) = match along == 0.0 {
        true => (0.0, if length == 0.0 { 0.0 } else { f32::INFINITY }),
        false => {
            let spread = (1.0 - fit * fit).max(0.0).sqrt() / fit;
            let weight = blocks::weight(metric);
            let error = weight * length * spread / ((dim - 1).max(1) as f32).sqrt();
            (weight * square / along, if error.is_finite() { error } else { f32::INFINITY })
        }
    };
    out[bits * plane_words] = u64::from(scale.to_bits()) | u64::from(error.to_bits()) << 32;
}

/// The level of an absolute number.
fn level(x: f32, grid: f32, levels: usize) -> usize {
    ((x * grid) as usize).min(levels - 1)
}

/// What the code of a row tells of `<r, q - c>` times the metric's weight, for a rotated residual
/// query q - c with this sum of its numbers, and the deviation of that for `|q - c|` = 1.
pub(crate) fn estimate(row: &[u64], bits: usize, query: &[f32], total: f32) -> (f32, f32) {
    let plane_words = query.len().div_ceil(64);
    let mut sum = 0.0;
    for (bit, plane) in row.chunks_exact(plane_words).take(bits).enumerate() {
        sum += (1u32 << bit) as f32 * masked_sum(plane, query);
    }
    let along = sum - ((1u32 << bits) - 1) as f32 / 2.0 * total;
    let last = row[bits * plane_words];
    (along * f32::from_bits(last as u32), f32::from_bits((last >> 32) as u32))
}

/// The sum of the numbers of a query, as [`estimate`] wants it.
pub(crate) fn total(query: &[f32]) -> f32 {
    dot(query, &vec![1.0; query.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(dim: usize, seed: f32) -> Vec<f32> {
        (0..dim).map(|i| ((i as f32 + seed) * 1.618).sin() + ((i as f32 * seed) * 0.3).cos()).collect()
    }

    /// Fails when the offset of the levels is left out, or the planes are weighted wrongly.
    #[test]
    fn every_bit_halves_the_error() {
        for dim in [64, 100, 384] {
            let mut before = f32::INFINITY;
            for bits in 2..=8 {
                let (mut off, mut within, mut count) = (0.0f64, 0, 0);
                for seed in 1..40 {
                    let row = vector(dim, seed as f32);
                    let mut code = vec![0; words(dim, bits)];
                    let square = dot(&row, &row);
                    encode(Metric::InnerProduct, &row, square, bits, &mut code);
                    for other in 1..20 {
                        let query = vector(dim, 0.37 * other as f32 + 50.0);
                        let (estimate, error) = estimate(&code, bits, &query, total(&query));
                        let deviation = error * dot(&query, &query).sqrt();
                        let error = (estimate - dot(&row, &query)).abs();
                        off += f64::from(error * error);
                        within += usize::from(error <= 3.0 * deviation + 1e-3);
                        count += 1;
                    }
                }
                let off = (off / f64::from(count)).sqrt() as f32;
                assert!(off < 0.7 * before, "{dim} with {bits} bits: {off} after {before}");
                assert!(within as f32 > 0.97 * count as f32, "{dim} with {bits} bits: {within} of {count}");
                before = off;
            }
        }
    }

    #[test]
    fn a_row_at_the_centre_is_known_exactly() {
        let mut code = vec![0; words(10, 4)];
        encode(Metric::L2, &[0.0; 10], 0.0, 4, &mut code);
        assert_eq!(estimate(&code, 4, &[1.0; 10], 10.0), (0.0, 0.0));
    }
}
