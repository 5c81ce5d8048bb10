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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::artefact::MANIFEST;
    use crate::retriever::testing::{build_index, files, index_of, words, write_corpus};
    use crate::retriever::{Existing, Retriever};

    #[test]
    fn every_flipped_or_lost_byte_is_found_and_searching_does_not_panic() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 40));
        let index = dir.path().join("index");
        assert_eq!(verify(&index), [""; 0]);
        for (name, bytes) in files(&index) {
            let path = index.join(&name);
            let step = (bytes.len() / 25).max(1);
            for at in (0..bytes.len()).step_by(step) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x81;
                fs::write(&path, &damaged).unwrap();
                // A manifest has bytes that mean nothing (spaces, the program's version).
                if name.file_name().unwrap() != MANIFEST {
                    assert!(!verify(&index).is_empty(), "{} at {at}", name.display());
                }
                if let Ok(retriever) = Retriever::open(&index, Some(Box::new(words()))) {
                    let _ = retriever.search("w1 w2 w3", 500);
                    (0..retriever.store().chunks()).for_each(|c| drop(retriever.store().neighbour_tokens(c)));
                    retriever.store().check();
                }
            }
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
            assert!(!verify(&index).is_empty(), "{} cut short", name.display());
            assert!(Retriever::open(&index, Some(Box::new(words()))).is_err());
            fs::remove_file(&path).unwrap();
            assert!(!verify(&index).is_empty(), "{} missing", name.display());
            assert!(Retriever::open(&index, Some(Box::new(words()))).is_err());
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(verify(&index), [""; 0]);
    }

    #[test]
    fn pieces_of_another_index_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 40));
        let index = dir.path().join("index");
        let (corpus, other) = (dir.path().join("other.jsonl"), dir.path().join("other"));
        write_corpus(&corpus, 500, 40);
        let theirs = build_index(&[corpus], &other, &words(), Existing::Fail).unwrap();
        let ours = IndexMeta::read(&index).unwrap();
        for (our, their) in [(&ours.store, &theirs.store), (&ours.vectors, &theirs.vectors)] {
            let aside = dir.path().join("aside");
            fs::rename(index.join(&our.folder), &aside).unwrap();
            fs::rename(other.join(&their.folder), index.join(&our.folder)).unwrap();
            let error = Retriever::open(&index, Some(Box::new(words()))).unwrap_err().to_string();
            assert!(error.contains(&our.identity) && error.contains(&their.identity), "{error}");
            assert!(verify(&index).iter().any(|p| p.contains(&our.identity)));
            fs::rename(index.join(&our.folder), other.join(&their.folder)).unwrap();
            fs::rename(aside, index.join(&our.folder)).unwrap();
        }
        assert_eq!(verify(&index), [""; 0]);
        let manifest = fs::read_to_string(index.join(MANIFEST)).unwrap();
        fs::write(index.join(MANIFEST), manifest.replace(&ours.store.folder, "../other")).unwrap();
        let error = Retriever::open(&index, Some(Box::new(words()))).unwrap_err().to_string();
        assert!(error.contains("leads out"), "{error}");
        let counted = manifest.replace("\"documents\": 40", "\"documents\": 41");
        fs::write(index.join(MANIFEST), counted).unwrap();
        assert!(verify(&index).iter().any(|p| p.contains("states 41 documents, but there are 40")));
    }
}
