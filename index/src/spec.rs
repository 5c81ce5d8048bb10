//! Which kind of index to build, in the manner of faiss's index strings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::IndexError;

/// Vectors of this many numbers in all (32 MiB) are read through in a few milliseconds; above it
/// codes pay.
const FLAT_NUMBERS: usize = 8 << 20;
/// Above so many rows a scan of all codes takes more than a millisecond or two, and building a
/// graph pays.
const SCANNED_ROWS: usize = 500_000;
/// Lists of an inverted file: a scan of more centroids than these takes longer than the lists.
const MOST_SCANNED: usize = 1 << 16;
const MOST_LISTS: usize = 1 << 22;

/// In what numbers rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantizer {
    /// `"SQbf16"`: the upper half of an `f32`, rounded to the nearest.
    Bf16,
    /// `"SQ8"`: one of 256 steps from the least to the largest number of the row, each row with its
    /// own. (faiss's `SQ8` has them for each dimension, from training rows.)
    Int8,
}

/// A string for faiss's `index_factory`, such as `"HNSW32,Flat"`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Factory {
    /// ASCII, filled up with zeros.
    bytes: [u8; Factory::MAX],
}

impl Factory {
    /// The most characters that it can have.
    pub const MAX: usize = 96;
    /// What the index of a faiss file from elsewhere has in place of one: it cannot be built.
    pub const IMPORTED: Self = {
        let (name, mut bytes, mut i) = (b"imported", [0; Self::MAX], 0);
        while i < name.len() {
            bytes[i] = name[i];
            i += 1;
        }
        Self { bytes }
    };

    /// None for what cannot be one: nothing, too long, or with other characters than faiss uses.
    pub fn new(text: &str) -> Option<Self> {
        let good = (1..=Self::MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        let mut bytes = [0; Self::MAX];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        good.then_some(Self { bytes })
    }

    /// The string.
    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|&b| b == 0).unwrap_or(Self::MAX);
        std::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

impl fmt::Display for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Which kind of index to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spec {
    /// `"Flat"`: compare the query with every row. Exact; nothing to build.
    Flat,
    /// `"SQbf16"` and `"SQ8"`: as `Flat`, over rows that are kept in 16 or 8 bits a number. Exact for
    /// the rows as they are kept.
    Sq(Quantizer),
    /// `"HNSW32"`: a navigable small-world graph (Malkov and Yashunin, 2016; arXiv 1603.09320).
    Hnsw {
        /// Links of a node in each upper layer; twice as many in the lowest. From 4 to 128.
        m: usize,
    },
    /// `"RaBitQ"` with one bit a dimension, `"RaBitQ4"` with four: scan 1-bit codes, then score
    /// exactly the rows that their error bound leaves (Gao and Long, 2024; arXiv 2405.12497). The
    /// bits after the first are read only for rows that the first leaves, and save reading most of
    /// their vectors. Builds in one pass.
    RaBitQ {
        /// Bits a dimension, from 1 to 8.
        bits: usize,
    },
    /// `"QG32"`: a graph whose nodes hold the 1-bit codes of their neighbours (SymphonyQG; Gou et
    /// al., 2024; arXiv 2411.12229). The fastest search for more than some hundred thousand rows.
    Graph {
        /// Links of a node: a multiple of 32, up to 128.
        degree: usize,
    },
    /// `"IVF1024,RaBitQ"`: rows in lists around centroids, and a scan of the 1-bit codes of the
    /// lists nearest to the query only (Jégou, Douze and Schmid, 2011). For more rows than a
    /// graph can be built over; about as many lists as 4 to 16 times the root of their number.
    /// With `"IVF1024,RaBitQ4"` more bits are read for the rows that the first leaves, as in
    /// `"RaBitQ4"`.
    Ivf {
        /// Lists, from 1 to 65,536; to 4,194,304 with a graph.
        lists: usize,
        /// Links of a centroid in the graph that finds the nearest lists, as in `"IVF65536_QG32,RaBitQ"`; without
        /// one the centroids' codes are scanned.
        graph: Option<usize>,
        /// Bits a dimension, from 1 to 8.
        bits: usize,
    },
    /// `"faiss:HNSW32,Flat"`: whatever faiss's `index_factory` makes of the string after the colon.
    /// Needs the cargo feature `faiss`.
    Faiss(Factory),
}

impl Spec {
    /// What to build for `n` rows of `dim` numbers when nobody has said: `Flat` while a query can
    /// read all rows in a few milliseconds, `RaBitQ` while it can read all codes in that time, and a
    /// graph above.
    pub fn default_for(n: usize, dim: usize) -> Self {
        match n {
            _ if n.saturating_mul(dim) <= FLAT_NUMBERS => Spec::Flat,
            0..=SCANNED_ROWS => Spec::RaBitQ { bits: 1 },
            _ => Spec::Graph { degree: 32 },
        }
    }

    /// An inverted file for `n` rows: of about four times as many lists as the root of `n`.
    pub fn inverted_for(n: usize) -> Self {
        let lists = (4.0 * (n as f64).sqrt()) as usize;
        Spec::Ivf { lists: lists.clamp(16, MOST_SCANNED).next_power_of_two(), graph: None, bits: 1 }
    }

    /// Which of the indexes that are `there`, each of a kind and so many rows, has the lists that an index of this kind over
    /// `rows` rows takes over ([`Builder::lists_of`](crate::Builder::lists_of)): the largest of the same kind, unless that is
    /// smaller, for lists that were trained on fewer rows say less of these than their own would. None for kinds without lists.
    pub fn lists_among(self, rows: usize, there: impl Iterator<Item = (Self, usize)>) -> Option<usize> {
        let Spec::Ivf { .. } = self else { return None };
        let same = there.enumerate().filter(|(_, (spec, there))| *spec == self && *there >= rows);
        same.max_by_key(|(_, (_, there))| *there).map(|(number, _)| number)
    }

    /// The error for values that [`FromStr`] would not have let through.
    pub(crate) fn check(self) -> Result<Self, IndexError> {
        let good = match self {
            Spec::Flat | Spec::Sq(_) | Spec::Faiss(_) => true,
            Spec::Hnsw { m } => (4..=128).contains(&m),
            Spec::RaBitQ { bits } => (1..=8).contains(&bits),
            Spec::Graph { degree } => (32..=128).contains(&degree) && degree.is_multiple_of(32),
            Spec::Ivf { lists, graph, bits } => {
                let most = if graph.is_some() { MOST_LISTS } else { MOST_SCANNED };
                let degree = graph.is_none_or(|degree| Spec::Graph { degree }.check().is_ok());
                (1..=most).contains(&lists) && degree && (1..=8).contains(&bits)
            }
        };
        if good { Ok(self) } else { Err(IndexError::UnknownSpec { text: self.to_string() }) }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Flat => f.write_str("Flat"),
            Spec::Sq(Quantizer::Bf16) => f.write_str("SQbf16"),
            Spec::Sq(Quantizer::Int8) => f.write_str("SQ8"),
            Spec::Hnsw { m } => write!(f, "HNSW{m}"),
            Spec::RaBitQ { bits: 1 } => f.write_str("RaBitQ"),
            Spec::RaBitQ { bits } => write!(f, "RaBitQ{bits}"),
            Spec::Graph { degree } => write!(f, "QG{degree}"),
            Spec::Ivf { lists, graph, bits } => {
                write!(f, "IVF{lists}")?;
                graph.map_or(Ok(()), |degree| write!(f, "_{}", Spec::Graph { degree }))?;
                write!(f, ",{}", Spec::RaBitQ { bits: *bits })
            }
            Spec::Faiss(factory) => write!(f, "faiss:{factory}"),
        }
    }
}

impl FromStr for Spec {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        let unknown = || IndexError::UnknownSpec { text: text.into() };
        if let Some(factory) = text.strip_prefix("faiss:") {
            return Factory::new(factory).map(Spec::Faiss).ok_or_else(unknown);
        }
        let lower = text.to_ascii_lowercase();
        if let Some((lists, codes)) = lower.strip_prefix("ivf").and_then(|rest| rest.split_once(',')) {
            let (lists, graph) = match lists.split_once('_') {
                Some((lists, graph)) => match graph.parse() {
                    Ok(Spec::Graph { degree }) => (lists, Some(degree)),
                    _ => return Err(unknown()),
                },
                None => (lists, None),
            };
            // `parse` would take a sign too.
            let digits = lists.bytes().all(|b| b.is_ascii_digit());
            let lists = lists.parse().ok().filter(|_| digits).ok_or_else(unknown)?;
            let Ok(Spec::RaBitQ { bits }) = codes.parse() else { return Err(unknown()) };
            return Spec::Ivf { lists, graph, bits }.check().map_err(|_| unknown());
        }
        let (name, number) = lower.split_at(lower.trim_end_matches(|c: char| c.is_ascii_digit()).len());
        let number = if number.is_empty() { None } else { Some(number.parse().map_err(|_| unknown())?) };
        match (name, number) {
            ("flat", None) => Spec::Flat,
            ("sqbf", Some(16)) => Spec::Sq(Quantizer::Bf16),
            ("sq", Some(8)) => Spec::Sq(Quantizer::Int8),
            ("rabitq", bits) => Spec::RaBitQ { bits: bits.unwrap_or(1) },
            ("qg", Some(degree)) => Spec::Graph { degree },
            ("hnsw", Some(m)) => Spec::Hnsw { m },
            _ => return Err(unknown()),
        }
        .check()
        .map_err(|_| unknown())
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
        for spec in [
            Spec::Flat,
            Spec::Sq(Quantizer::Bf16),
            Spec::Sq(Quantizer::Int8),
            Spec::Hnsw { m: 4 },
            Spec::Hnsw { m: 128 },
            Spec::RaBitQ { bits: 1 },
            Spec::RaBitQ { bits: 8 },
            Spec::Graph { degree: 64 },
            Spec::Ivf { lists: 1, graph: None, bits: 1 },
            Spec::Ivf { lists: MOST_SCANNED, graph: None, bits: 8 },
            Spec::Ivf { lists: MOST_LISTS, graph: Some(64), bits: 1 },
            Spec::Faiss(Factory::IMPORTED),
            Spec::Faiss(Factory::new(&"x".repeat(Factory::MAX)).unwrap()),
        ] {
            assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
        }
        for bad in [
            "",
            "flat ",
            "Flat1",
            "SQ",
            "SQ4",
            "SQbf8",
            "SQfp16",
            "HNSW",
            "HNSW3",
            "HNSW129",
            "HNSW-8",
            "RaBitQ0",
            "RaBitQ9",
            "QG",
            "QG33",
            "QG160",
            "IVF1024,PQ32",
            "IVF1024",
            "IVF,RaBitQ",
            "IVF0,RaBitQ",
            "IVF+8,RaBitQ",
            "IVF65537,RaBitQ",
            "IVF16,RaBitQ9",
            "IVF16,IVF16,RaBitQ",
            "IVF4194305_QG32,RaBitQ",
            "IVF16_QG33,RaBitQ",
            "IVF16_HNSW32,RaBitQ",
            "IVF16_,RaBitQ",
            "faiss:",
            "faiss:HNSW32, Flat",
        ] {
            let error = bad.parse::<Spec>().unwrap_err();
            assert!(matches!(&error, IndexError::UnknownSpec { text } if text == bad), "{bad:?}: {error}");
        }
    }

    #[test]
    fn the_default_turns_from_flat_to_codes_as_rows_grow() {
        assert_eq!(Spec::default_for(0, 384), Spec::Flat);
        assert_eq!(Spec::default_for(10_000, 384), Spec::Flat);
        assert_eq!(Spec::default_for(100_000, 384), Spec::RaBitQ { bits: 1 });
        assert_eq!(Spec::default_for(usize::MAX, 384), Spec::Graph { degree: 32 });
    }
}
