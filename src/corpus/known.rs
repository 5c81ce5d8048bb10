//! The documents of a store, for a corpus that is read again without stating ids.

use std::cell::LazyCell;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use super::block::text_hash;
use super::files::{SourceFile, parse_name};
use super::{Store, StoredDocument};

/// The live documents of a store, by their ids and by what one without a stated id is known again by.
pub(super) struct Known<'a> {
    store: &'a Store,
    /// Hashes of all ids, sorted.
    ids: Vec<u64>,
    /// Those whose ids were made: (hash of the file's name or, of a line, of its text; document), sorted.
    made: Vec<(u64, u32)>,
}

impl<'a> Known<'a> {
    pub fn of(store: &'a Store) -> Self {
        let (mut ids, mut made) = (Vec::new(), Vec::new());
        for d in (0..store.documents()).filter(|&d| store.document_is_live(d)) {
            let document = store.document(d);
            ids.push(key_of(document.id));
            if parse_name(document.source).is_some_and(|(_, format, _)| format.is_one_document()) {
                made.push((key_of(last(document.source)), d as u32));
            } else if is_of_line(document.id) {
                made.push((key(store.text_hash(d)), d as u32));
            }
        }
        ids.sort_unstable();
        made.sort_unstable();
        Self { store, ids, made }
    }

    /// Whether a document has this id; that two ids have one hash costs the second no more than a number behind it.
    pub fn has(&self, id: &str) -> bool {
        self.ids.binary_search(&key_of(id)).is_ok()
    }

    /// The documents that `text` of `file` may be, the likeliest first: by the longest source that the file's path ends
    /// with, then by the same text. With another text it can only be a whole file, under a source that says as much as
    /// the file's name in this corpus.
    pub fn find(&self, file: &SourceFile, text: &str) -> Vec<StoredDocument<'a>> {
        let whole = file.format.is_one_document();
        let key = key_of(if whole { last(&file.name) } else { text });
        let path = LazyCell::new(|| absolute(&file.path));
        let is_it = |document: &StoredDocument| {
            path.ends_with(document.source)
                && (document.text == text || (whole && Path::new(document.source).ends_with(&file.name)))
        };
        let first = self.made.partition_point(|&(k, _)| k < key);
        let with_key = self.made[first..].iter().take_while(|entry| entry.0 == key);
        let mut found: Vec<StoredDocument<'a>> =
            with_key.map(|&(_, d)| self.store.document(d as usize)).filter(is_it).collect();
        found.sort_by_key(|d| (Reverse(d.source.len()), d.text != text, d.id.len(), d.id));
        found
    }
}

/// Whether an id looks as if it was made of a line: `train#7`, or `train#7~2` where that was taken.
fn is_of_line(id: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    id.rsplit_once('#').is_some_and(|(_, line)| line.split('~').all(is_number))
}

/// The file's own name in a source.
fn last(source: &str) -> &str {
    source.rsplit('/').next().unwrap_or(source)
}

/// The whole path, spelt as sources are.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    path.to_string_lossy().into_owned().into()
}

fn key_of(text: &str) -> u64 {
    key(&text_hash(text))
}

fn key(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte))
}
