//! Which kind of index to build, in the manner of faiss's index strings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::IndexError;

/// Vectors of this many numbers in all (32 MiB) are read through in a few milliseconds; above it
/// codes pay.
const FLAT_NUMBERS: usize = 8 << 20;

/// Which kind of index to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spec {
    /// `"Flat"`: compare the query with every row. Exact; nothing to build.
    Flat,
    /// `"HNSW32"`: a navigable small-world graph (Malkov and Yashunin, 2016; arXiv 1603.09320).
    Hnsw {
        /// Links of a node in each upper layer; twice as many in the lowest. From 4 to 128.
        m: usize,
    },
    /// `"RaBitQ"`: scan 1-bit codes, then score exactly the rows that their error bound leaves
    /// (Gao and Long, 2024; arXiv 2405.12497). Builds in one pass.
    RaBitQ,
}

impl Spec {
    /// What to build for `n` rows of `dim` numbers when nobody has said: `Flat` while a query can
    /// read all rows in a few milliseconds, `RaBitQ` above.
    pub fn default_for(n: usize, dim: usize) -> Self {
        if n.saturating_mul(dim) <= FLAT_NUMBERS { Spec::Flat } else { Spec::RaBitQ }
    }

    /// The error for values that [`FromStr`] would not have let through.
    pub(crate) fn check(self) -> Result<Self, IndexError> {
        match self {
            Spec::Hnsw { m } if !(4..=128).contains(&m) => {
                Err(IndexError::UnknownSpec { text: self.to_string() })
            }
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Flat => f.write_str("Flat"),
            Spec::Hnsw { m } => write!(f, "HNSW{m}"),
            Spec::RaBitQ => f.write_str("RaBitQ"),
        }
    }
}

impl FromStr for Spec {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        let unknown = || IndexError::UnknownSpec { text: text.into() };
        match text.to_ascii_lowercase().as_str() {
            "flat" => Ok(Spec::Flat),
            "rabitq" => Ok(Spec::RaBitQ),
            lower => {
                let m = lower.strip_prefix("hnsw").ok_or_else(unknown)?;
                Spec::Hnsw { m: m.parse().map_err(|_| unknown())? }.check()
            }
        }
    }
}

impl TryFrom<String> for Spec {
    type Error = IndexError;

    fn try_from(text: String) -> Result<Self, IndexError> {
        text.parse()
    }
}

impl From<Spec> for String {
    fn from(spec: Spec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for spec in [Spec::Flat, Spec::Hnsw { m: 4 }, Spec::Hnsw { m: 128 }, Spec::RaBitQ] {
            assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
        }
        for bad in ["", "flat ", "HNSW", "HNSW3", "HNSW129", "HNSW-8", "IVF1024,PQ32"] {
            let error = bad.parse::<Spec>().unwrap_err();
            assert!(matches!(&error, IndexError::UnknownSpec { text } if text == bad), "{bad:?}: {error}");
        }
    }

    #[test]
    fn the_default_turns_from_flat_to_codes_as_rows_grow() {
        assert_eq!(Spec::default_for(0, 384), Spec::Flat);
        assert_eq!(Spec::default_for(10_000, 384), Spec::Flat);
        assert_eq!(Spec::default_for(100_000, 384), Spec::RaBitQ);
        assert_eq!(Spec::default_for(usize::MAX, 384), Spec::RaBitQ);
    }
}
