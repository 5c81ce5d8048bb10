//! How much memory of its own a build takes at the most, known before it begins. Files that it has
//! mapped or written do not count: those are the system's to keep or to drop.

use std::fmt;
use std::str::FromStr;

use crate::graph::Layout;
use crate::{IndexError, Spec, planes};

const MIB: u64 = 1 << 20;
/// For any build: pieces of files on their way to disk, and what the program itself needs.
const ALWAYS: u64 = 16 * MIB;
/// Rows that a block of codes is made of at a time: see `rabitq::SEGMENT`.
const ENCODED: u64 = 512 * 32;

/// The most bytes that building `spec` over so many rows takes on so many threads.
pub(crate) fn need(spec: Spec, rows: usize, dim: usize, threads: usize) -> Bytes {
    let (n, row, threads) = (rows as u64, 4 * dim as u64, threads as u64);
    // A code with its factors; what the allocator leaves unused comes to a quarter.
    let codes = |bits: usize| {
        let planes = if bits > 1 { 8 * planes::words(dim, bits) as u64 } else { 0 };
        ENCODED * (row / 32 + 16 + planes) * 5 / 4 + threads * 16 * row
    };
    Bytes(match spec {
        Spec::Flat | Spec::Sq(_) => ALWAYS + 16 * row,
        // faiss has all that it builds in memory: rows, or less, and links.
        Spec::Faiss(_) => ALWAYS + n * (row + 1024),
        Spec::RaBitQ { bits } => ALWAYS + codes(bits),
        Spec::Graph { degree } => {
            // Squared lengths and scales, then ids by parts or the links that lead to some of the rows; a strip
            // of records; and a leaf with its products, and leaders, on each thread.
            let record = 4 * Layout::new(dim, degree).stride() as u64;
            ALWAYS + 56 * n + (16 * MIB).max(record) + 8 * MIB + threads * (2048 * row + 6 * MIB)
        }
        Spec::Ivf { lists, graph, bits } => {
            // The centroids a few times, ids of the sample, a list for each row and its place; rows of the
            // sample and of a strip on each thread; and what the graph of centroids takes.
            let graph =
                graph.map_or(0, |degree| need(Spec::Graph { degree }, lists, dim, threads as usize).0);
            let (lists, strip) = (lists as u64, 8192 * row + 24 * MIB);
            let sample = n.min(64 * lists.min(1024)) * row * if lists > 1024 { threads } else { 1 };
            ALWAYS + 20 * n + 6 * lists * row + 1024 * lists + sample + codes(bits) + threads * strip + graph
        }
        Spec::Hnsw { m } => ALWAYS + n * (64 * m as u64 + 1024) + 16 * row,
    })
}

/// A number of bytes, written like `512MiB` or `4GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Largest first.
const UNITS: [(&str, u64); 7] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..4].iter().find(|(_, bytes)| self.0 >= *bytes);
        match unit {
            // Rounded up, so that what is shown is enough where it is asked for.
            Some((name, bytes)) if !self.0.is_multiple_of(*bytes) => {
                write!(f, "{:.1}{name}", (self.0 as f64 / *bytes as f64 * 10.0).ceil() / 10.0)
            }
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        let unknown = || IndexError::UnknownSize { text: text.into() };
        let trimmed = text.trim();
        let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &trimmed[digits.len()..];
        let scale = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            lower => UNITS.iter().find(|(name, _)| name.to_ascii_lowercase() == lower).ok_or_else(unknown)?.1,
        };
        let digits = digits.trim_end();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(unknown());
        }
        let number: f64 = digits.parse().map_err(|_| unknown())?;
        let bytes = number * scale as f64;
        if bytes < 1.0 || bytes >= u64::MAX as f64 {
            return Err(unknown());
        }
        Ok(Self(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nonsense_is_refused_by_name() {
        for (text, bytes) in [
            ("4GiB", 4 << 30),
            ("512MiB", 512 << 20),
            ("1.5gib", 3 << 29),
            ("2 GB", 2_000_000_000),
            ("100", 100),
            ("64kB", 64_000),
            ("7B", 7),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for bad in
            ["", "GiB", "four", "-1GiB", "1e9", "4XiB", "0", "0.1", "1..2MB", "99999999999TiB", "4 Gi B"]
        {
            let error = bad.parse::<Bytes>().unwrap_err();
            assert!(matches!(&error, IndexError::UnknownSize { text } if text == bad), "{bad:?}: {error}");
        }
        for bytes in [1, 1023, 1 << 20, (1 << 30) + 1, 5 << 40] {
            let shown = Bytes(bytes).to_string();
            let back = shown.parse::<Bytes>().unwrap();
            assert!(back.0 >= bytes && back.0 as f64 <= 1.1 * bytes as f64, "{bytes} shown as {shown}");
        }
    }

    #[test]
    fn more_rows_and_threads_need_more_and_lists_less_than_a_graph() {
        let graph = |rows, threads| need(Spec::Graph { degree: 32 }, rows, 384, threads);
        assert!(graph(2_000_000, 2) > graph(1_000_000, 2) && graph(1000, 4) > graph(1000, 2));
        assert!(
            need(Spec::Ivf { lists: 1024, graph: None, bits: 1 }, 100_000_000, 384, 2)
                < graph(100_000_000, 2)
        );
        assert!(need(Spec::Flat, usize::MAX >> 8, 384, 2) < Bytes(64 * MIB));
    }
}
