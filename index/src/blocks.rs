//! One bit a dimension, 32 vectors at a time: RaBitQ (Gao and Long, 2024; arXiv 2405.12497) in the
//! layout of "fast scan" (André, Kermarrec and Le Scouarnec, 2015; PVLDB 9).
//!
//! A vector x is taken relative to a centre c, rotated at random, and kept as the signs of what
//! comes out. With r = x - c, o = r / |r|, and the code as a unit vector ō (signs over sqrt(D),
//! rotated back), `<ō, q> / <ō, o>` estimates `<o, q>` for any q (equation 15 and theorem 3.2
//! there), with an error of the order of
//!
//! ```text
//! |q| sqrt((1 - <ō, o>²) / <ō, o>²) / sqrt(D - 1)
//! ```
//!
//! Every metric follows from `<r, q - c>`: the inner product is `<r, q - c> + <r, c> + <c, q>`, and
//! minus the squared distance is `2 <r, q - c> - |r|² - |q - c|²`.
//!
//! A block holds the codes of 32 vectors by groups of four dimensions, 16 bytes a group, as
//! [`simd::estimates`](crate::simd::estimates) reads them: byte `j` of a group has the signs of
//! vector `j` in its low four bits and those of vector `j + 16` in its high four. A query brings a
//! table of 16 bytes for each group: for every pattern of four signs, the sum of its four numbers
//! with those signs, rounded to 255 steps.

use crate::metric::{Metric, dot};
use crate::simd::{GROUP_BYTES, GROUP_MULTIPLE};

pub(crate) use crate::simd::BLOCK;

/// Errors in units of their standard deviation that a bound allows for: the ε₀ of section 3.2.2 of
/// the paper, which 1 row in 35 exceeds.
pub(crate) const CONFIDENCE: f32 = 1.9;

/// Steps of a table.
const STEPS: f32 = 255.0;

/// Groups of four dimensions in a code of `dim` numbers, those that only fill up included.
pub(crate) fn groups(dim: usize) -> usize {
    dim.div_ceil(4).next_multiple_of(GROUP_MULTIPLE)
}

/// Bytes that the codes of a block take.
pub(crate) fn code_bytes(dim: usize) -> usize {
    groups(dim) * GROUP_BYTES
}

/// What is kept of one vector besides its signs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Factors {
    /// The part of the score that does not depend on the query: `<r, c>`, or `-|r|²` under L2.
    pub add: f32,
    /// `|r| / (<ō, o> sqrt(D))`, twice that under L2: times the sum of signs, it estimates what
    /// `<r, q - c>` contributes to the score.
    pub scale: f32,
    /// The deviation of that estimate for `|q - c|` = 1.
    pub error: f32,
}

/// How often `<r, q - c>` counts in a score.
pub(crate) fn weight(metric: Metric) -> f32 {
    match metric {
        Metric::InnerProduct | Metric::Cosine => 1.0,
        Metric::L2 => 2.0,
    }
}

/// Factors of a vector whose residual r has this squared length, `<r, c>`, and sum of absolute
/// rotated numbers.
pub(crate) fn factors(metric: Metric, dim: usize, square: f32, with_centre: f32, absolute: f32) -> Factors {
    let add = match metric {
        Metric::InnerProduct | Metric::Cosine => with_centre,
        Metric::L2 => -square,
    };
    if absolute == 0.0 {
        // The vector is the centre itself: <r, q - c> is 0, exactly.
        return Factors { add, scale: 0.0, error: 0.0 };
    }
    let length = square.sqrt();
    // <ō, o>: between 1 / sqrt(D) and 1, about 0.8 for most.
    let fit = absolute / (length * (dim as f32).sqrt());
    if !fit.is_finite() || fit == 0.0 {
        // Squares too large or too small for f32: nothing is known, so the row is always scored.
        return Factors { add, scale: 0.0, error: f32::INFINITY };
    }
    let spread = (1.0 - fit * fit).max(0.0).sqrt() / fit;
    Factors {
        add,
        scale: weight(metric) * length / (fit * (dim as f32).sqrt()),
        error: weight(metric) * length * spread / ((dim - 1).max(1) as f32).sqrt(),
    }
}

/// Of a rotated residual, the sum of its absolute numbers, and the sum of `other`'s numbers with its
/// signs.
pub(crate) fn sums_of_signs(residual: &[f32], other: &[f32]) -> (f32, f32) {
    // Side by side, so that the compiler can use vector registers.
    const LANES: usize = 16;
    let (mut absolute, mut along) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (residual, other) in residual.chunks(LANES).zip(other.chunks(LANES)) {
        for (lane, (&r, &x)) in residual.iter().zip(other).enumerate() {
            absolute[lane] += r.abs();
            along[lane] += if r >= 0.0 { x } else { -x };
        }
    }
    (absolute.iter().sum(), along.iter().sum())
}

/// Writes the signs of a rotated residual as vector `slot` of a block whose codes are zero there.
pub(crate) fn write_signs(rotated: &[f32], slot: usize, codes: &mut [u8]) {
    let (byte, shift) = (slot % 16, slot / 16 * 4);
    let (whole, rest) = rotated.as_chunks::<4>();
    let mut last = [-1.0; 4];
    last[..rest.len()].copy_from_slice(rest);
    for (group, four) in codes.chunks_exact_mut(GROUP_BYTES).zip(whole.iter().chain([&last])) {
        let [a, b, c, d] = four.map(|x| u8::from(x >= 0.0));
        group[byte] |= (a | b << 1 | c << 2 | d << 3) << shift;
    }
}

/// A rotated vector, ready to meet blocks of codes.
pub(crate) struct Tables {
    /// `[groups, 16]`.
    pub bytes: Vec<u8>,
    /// What one step is worth.
    pub unit: f32,
    /// What sums of zero stand for: minus the sum of all absolute numbers.
    pub shift: f32,
}

impl Tables {
    /// Tables of a rotated vector of `dim` numbers.
    pub fn new(rotated: &[f32]) -> Self {
        let mut tables = Self { bytes: vec![0; code_bytes(rotated.len())], unit: 0.0, shift: 0.0 };
        tables.fill(rotated);
        tables
    }

    /// Makes them those of another vector of as many numbers.
    pub fn fill(&mut self, rotated: &[f32]) {
        let reach = |four: &[f32]| four.iter().map(|x| x.abs()).sum::<f32>();
        let mut largest = 0.0f32;
        let mut total = 0.0;
        for four in rotated.chunks(4) {
            let reach = reach(four);
            largest = largest.max(reach);
            total += reach;
        }
        self.bytes.fill(0);
        self.unit = 2.0 * largest / STEPS;
        self.shift = -total;
        if !(largest > 0.0 && largest.is_finite()) {
            // Nothing to tell apart; and 0 is what the sum of signs of a zero vector is.
            (self.unit, self.shift) = (0.0, 0.0);
            return;
        }
        let inverse = self.unit.recip();
        for (table, four) in self.bytes.chunks_exact_mut(GROUP_BYTES).zip(rotated.chunks(4)) {
            let mut numbers = [0.0; 4];
            numbers[..four.len()].copy_from_slice(four);
            // From the sum with all signs minus, flip one sign at a time.
            let mut sums = [0.0f32; 16];
            sums[0] = reach(four) - numbers.iter().sum::<f32>();
            for pattern in 1..16usize {
                let lowest = pattern.trailing_zeros() as usize;
                sums[pattern] = sums[pattern & (pattern - 1)] + 2.0 * numbers[lowest];
            }
            for (byte, sum) in table.iter_mut().zip(sums) {
                *byte = (sum * inverse + 0.5) as u8;
            }
        }
    }

    /// The standard deviation that rounding to steps gives the sum of signs: that of a step, in
    /// every group.
    pub fn rounding(&self) -> f32 {
        self.unit * (self.bytes.len() as f32 / GROUP_BYTES as f32 / 12.0).sqrt()
    }
}

/// The parts of a query's score that are its own, against a centre.
pub(crate) fn query_base(metric: Metric, query: &[f32], centre: &[f32], residual: &[f32]) -> f32 {
    match metric {
        Metric::InnerProduct | Metric::Cosine => dot(query, centre),
        Metric::L2 => -dot(residual, residual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Scale, estimates};

    #[test]
    fn tables_give_the_sum_of_signs_within_their_rounding() {
        for dim in [1, 3, 16, 100, 384] {
            let vectors: Vec<Vec<f32>> = (0..BLOCK)
                .map(|v| (0..dim).map(|i| ((i * 7 + v * 13) as f32 * 0.37).sin()).collect())
                .collect();
            let mut codes = vec![0; code_bytes(dim)];
            for (slot, vector) in vectors.iter().enumerate() {
                write_signs(vector, slot, &mut codes);
            }
            let query: Vec<f32> = (0..dim).map(|i| (i as f32 * 1.7).cos() - 0.2).collect();
            let tables = Tables::new(&query);
            let mut factors = vec![0.0; 2 * BLOCK];
            factors[BLOCK..].fill(1.0);
            let scale = Scale { unit: tables.unit, shift: tables.shift, base: 0.0 };
            let mut out = [0.0; BLOCK];
            estimates(&codes, &tables.bytes, &factors, scale, f32::NEG_INFINITY, &mut out);
            for (vector, found) in vectors.iter().zip(out) {
                let exact: f32 =
                    vector.iter().zip(&query).map(|(x, q)| if *x >= 0.0 { *q } else { -*q }).sum();
                let worst = tables.unit / 2.0 * groups(dim) as f32 + 1e-3;
                assert!((found - exact).abs() <= worst, "{dim}: {found} {exact}");
                assert!((found - exact).abs() <= 5.0 * tables.rounding() + 1e-3, "{dim}: {found} {exact}");
            }
        }
    }

    #[test]
    fn a_zero_query_and_an_endless_one_make_no_nan() {
        for query in [vec![0.0; 20], vec![f32::MAX; 20]] {
            let tables = Tables::new(&query);
            assert!(tables.unit == 0.0 && tables.shift == 0.0 && tables.rounding() == 0.0);
        }
    }
}
