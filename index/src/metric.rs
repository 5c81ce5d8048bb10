//! How near two vectors are, and the arithmetic of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::IndexError;
pub(crate) use crate::simd::{dot, squared_distance};

/// How near two vectors are. A larger score is nearer under each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// The inner product of the vectors as they are.
    #[serde(rename = "ip")]
    InnerProduct,
    /// The inner product of the vectors scaled to length 1. Rows are stored scaled. A zero vector
    /// has no direction: it stays zero, and its score is 0 with every other.
    #[serde(rename = "cosine")]
    Cosine,
    /// Minus the squared Euclidean distance.
    #[serde(rename = "l2")]
    L2,
}

impl Metric {
    /// The score of two vectors that [`prepare`](Metric::prepare) has seen. This one function
    /// makes every score that the crate reports, so a pair has the same score on every path.
    pub(crate) fn score(self, a: &[f32], b: &[f32]) -> f32 {
        match self {
            Metric::InnerProduct | Metric::Cosine => dot(a, b),
            Metric::L2 => 0.0 - squared_distance(a, b),
        }
    }

    /// Checks a vector from outside and makes it ready for [`score`](Metric::score): to length 1
    /// under cosine, which changes nothing the second time. False when it holds NaN, an infinity, or more than an `f32` can square, which
    /// leaves no way for a score to be NaN.
    pub(crate) fn prepare(self, vector: &mut [f32]) -> bool {
        // In f64 no square of an f32 overflows or vanishes.
        let square: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        // A length of 1 but for the rounding of its numbers is left as it is.
        let is_unit = (square - 1.0).abs() <= 1.5 * f64::from(f32::EPSILON);
        if self == Metric::Cosine && square > 0.0 && square.is_finite() && !is_unit {
            let scale = square.sqrt().recip();
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        }
        square <= f64::from(f32::MAX)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::InnerProduct => "ip",
            Metric::Cosine => "cosine",
            Metric::L2 => "l2",
        })
    }
}

/// What one dimension more gives to rows of these squared lengths so that all become as long as the
/// longest, which the squares then say. In that space the nearest to a query is the row with the
/// largest inner product (Bachrach et al., RecSys 2014).
pub(crate) fn lifts(squares: &mut [f32]) -> Vec<f32> {
    let largest = squares.iter().copied().fold(0.0, f32::max);
    squares.iter_mut().map(|square| (largest - std::mem::replace(square, largest)).sqrt()).collect()
}

impl FromStr for Metric {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        [Metric::InnerProduct, Metric::Cosine, Metric::L2]
            .into_iter()
            .find(|metric| metric.to_string() == text)
            .ok_or_else(|| IndexError::UnknownMetric { text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_agrees_with_the_plain_sum_at_odd_lengths() {
        for n in [0, 1, 2, 15, 16, 17, 31, 33, 100] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 1.3).cos()).collect();
            let plain: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert!((dot(&a, &b) - plain).abs() < 1e-4, "dot at {n}");
            let plain: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
            assert!((squared_distance(&a, &b) - plain).abs() < 1e-4, "distance at {n}");
        }
    }

    #[test]
    fn cosine_scales_to_length_one_even_tiny_vectors_and_leaves_zero() {
        for scale in [1e-30, 1.0, 1e15] {
            let mut v = [3.0 * scale, 4.0 * scale];
            assert!(Metric::Cosine.prepare(&mut v));
            assert!((v[0] - 0.6).abs() < 1e-6 && (v[1] - 0.8).abs() < 1e-6, "{v:?}");
        }
        let mut zero = [0.0; 3];
        assert!(Metric::Cosine.prepare(&mut zero));
        assert_eq!(zero, [0.0; 3]);
        assert_eq!(Metric::Cosine.score(&zero, &[1.0, 0.0, 0.0]), 0.0);
    }

    /// Rows move from segment to segment of a collection and must not change on the way.
    #[test]
    fn scaling_to_length_one_twice_changes_nothing() {
        for n in 0..20_000 {
            let mut once: Vec<f32> = (0..1 + n % 5).map(|i| ((n * 7 + i * 13) as f32 * 0.37).sin()).collect();
            assert!(Metric::Cosine.prepare(&mut once));
            let mut twice = once.clone();
            assert!(Metric::Cosine.prepare(&mut twice));
            assert_eq!(once, twice);
        }
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20] {
            for metric in [Metric::InnerProduct, Metric::Cosine, Metric::L2] {
                assert!(!metric.prepare(&mut [1.0, bad]), "{bad} under {metric}");
            }
        }
    }

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for metric in [Metric::InnerProduct, Metric::Cosine, Metric::L2] {
            assert_eq!(metric.to_string().parse::<Metric>().unwrap(), metric);
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.to_string());
        }
        assert!(matches!("dot".parse::<Metric>(), Err(IndexError::UnknownMetric { .. })));
    }
}
