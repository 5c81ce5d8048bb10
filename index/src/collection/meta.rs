//! What the manifest of a collection says, and what its files are called.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Metric, Spec};

/// The artefact's kind.
pub(super) const KIND: &str = "vector-collection";
/// Version of what the manifest and the files hold.
pub(super) const VERSION: u32 = 1;
/// Where a writer keeps what is not committed.
pub(super) const UNFINISHED: &str = "unfinished";

/// The `meta` of the manifest.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    pub dim: usize,
    pub metric: Metric,
    /// The kind of every segment; none for [`Spec::default_for`] its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Spec>,
    pub seed: u64,
    /// How many commits have changed the collection.
    pub generation: u64,
    /// The number of the next segment; none is given twice.
    pub next: u64,
    /// Oldest first.
    pub segments: Vec<SegmentMeta>,
}

/// One segment: an index in a folder, the ids of its rows, and which of them are dead.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SegmentMeta {
    pub number: u64,
    /// BLAKE3 hash of the index's manifest, and so of all its files.
    pub manifest: String,
    pub rows: usize,
    pub dead: usize,
}

impl SegmentMeta {
    pub fn folder(&self, dir: &Path) -> PathBuf {
        dir.join(folder_name(self.number))
    }
}

pub(super) fn folder_name(number: u64) -> String {
    format!("segment-{number:06}")
}

/// The data file with the ids of a segment's rows.
pub(super) fn ids_name(number: u64) -> String {
    format!("ids-{number:06}.u64")
}

/// The data file with the set of a segment's dead rows.
pub(super) fn dead_name(number: u64) -> String {
    format!("dead-{number:06}.u64")
}

/// Whether a file or folder of this name in a collection's folder is one that a writer makes and
/// may remove; the manifest and the lock are not.
pub(super) fn is_ours(name: &str) -> bool {
    let numbered = |prefix: &str, end: &dyn Fn(&str) -> bool| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            digits >= 6 && end(&rest[digits..])
        })
    };
    let is_file = |end: &str| end.starts_with('.') && (end.ends_with(".u64") || end.ends_with(".u64.tmp"));
    name == UNFINISHED
        || numbered("segment-", &|end| end.is_empty())
        || numbered("ids-", &is_file)
        || numbered("dead-", &is_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_writer_makes_is_ours() {
        for name in [
            folder_name(7),
            folder_name(12_345_678),
            "ids-000007.0123456789ab.u64".into(),
            ids_name(7) + ".tmp",
            dead_name(7) + ".tmp",
            UNFINISHED.into(),
        ] {
            assert!(is_ours(&name), "{name}");
        }
        for name in [
            "manifest.json",
            "writer.lock",
            "segment-old",
            "segment-000007.bak",
            "ids-.u64",
            "ids-notes.txt",
            "",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
