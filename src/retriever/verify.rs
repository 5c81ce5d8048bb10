//! Checking an index directory end to end.

use std::path::Path;

use sidenote_index::Index;

use super::meta::IndexMeta;
use crate::artefact;
use crate::corpus::Store;

/// Reads every byte of the index in `dir` and returns all that is wrong with it: hashes and
/// lengths of all files, the store's tables, and whether manifest, store and vectors belong
/// together. Empty for a sound index.
pub fn verify(dir: &Path) -> Vec<String> {
    let meta = match IndexMeta::read(dir) {
        Ok(meta) => meta,
        Err(e) => return vec![e.to_string()],
    };
    let mut problems = Vec::new();
    for (what, piece) in [("store", &meta.store), ("vectors", &meta.vectors)] {
        let outcome = piece.path(dir).and_then(|path| {
            problems.extend(artefact::verify(&path)?.iter().map(|problem| problem.to_string()));
            meta.check_piece(dir, what, piece, &artefact::read_manifest(&path)?.identity())
        });
        problems.extend(outcome.err().map(|e| e.to_string()));
    }
    if !problems.is_empty() {
        // What the tables of damaged files say is of no interest.
        return problems;
    }
    let opened = meta.store.path(dir).and_then(|path| Store::open(&path));
    let (store, index) = match (opened, meta.vectors.path(dir).map(|path| Index::open(&path))) {
        (Ok(store), Ok(Ok(index))) => (store, index),
        (store, index) => {
            problems.extend(store.err().map(|e| e.to_string()));
            problems.extend(index.map_or_else(|e| Some(e.to_string()), |i| i.err().map(|e| e.to_string())));
            return problems;
        }
    };
    problems.extend(store.check().into_iter().map(|problem| format!("{}: {problem}", store.dir().display())));
    let counts = [
        ("documents", meta.documents, store.documents()),
        ("chunks", meta.chunks, store.chunks()),
        ("tokens", meta.tokens, store.tokens()),
        ("bytes of text", meta.text_bytes, store.text_bytes()),
        ("chunk tokens", meta.settings.chunk_tokens, store.chunk_size()),
        ("vectors", meta.chunks, index.len()),
        ("numbers in a vector", meta.dim, index.dim()),
    ];
    for (what, stated, found) in counts {
        if stated != found {
            problems.push(format!("{}: states {stated} {what}, but there are {found}", dir.display()));
        }
    }
    if meta.settings.tokenizer != store.tokenizer().identity() {
        problems.push(format!("{}: states another tokenizer than its store's", dir.display()));
    }
    problems
}
