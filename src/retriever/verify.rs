//! Checking an index directory end to end.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::bm25;
use super::hybrid::words_key;
use super::meta::{Counts, IndexMeta, IndexPart};
use super::parts;
use crate::artefact::{self, MANIFEST, Manifest};
use crate::corpus::{ChunkStore, Store};

/// Reads every byte of the index in `dir` and returns all that is wrong with it: hashes and
/// lengths of all files, the stores' tables, the marks of deleted documents, and whether manifest,
/// stores and vectors belong together. Empty for a sound index.
pub fn verify(dir: &Path) -> Vec<String> {
    loop {
        let before = fs::read(dir.join(MANIFEST)).ok();
        let problems = verify_once(dir);
        // A writer may have put a new generation in place meanwhile, and removed the old one.
        if problems.is_empty() || before == fs::read(dir.join(MANIFEST)).ok() {
            return problems;
        }
    }
}

fn verify_once(dir: &Path) -> Vec<String> {
    let (manifest, meta) = match IndexMeta::read_manifest(dir) {
        Ok(read) => read,
        Err(e) => return vec![e.to_string()],
    };
    let mut problems = Vec::new();
    let mut all_of = |dir: &Path| match artefact::verify(dir) {
        Ok(found) => problems.extend(found.iter().map(|problem| problem.to_string())),
        Err(e) => problems.push(e.to_string()),
    };
    all_of(dir);
    for part in &meta.parts {
        for piece in [&part.store, &part.vectors] {
            match piece.path(dir) {
                Ok(path) => all_of(&path),
                Err(e) => return vec![e.to_string()],
            }
        }
    }
    if !problems.is_empty() {
        // What the tables of damaged files say is of no interest.
        return problems;
    }
    match parts::both(dir, &manifest, &meta) {
        Ok((store, _)) => check(dir, &manifest, &meta, &store),
        Err(e) => vec![e.to_string()],
    }
}

/// What files that are whole by themselves may still contradict each other in.
fn check(dir: &Path, manifest: &Manifest, meta: &IndexMeta, store: &Store) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, (part, chunks)) in meta.parts.iter().zip(store.parts()).enumerate() {
        let folder = chunks.dir().display();
        problems.extend(chunks.check().into_iter().map(|problem| format!("{folder}: {problem}")));
        let mut stated = vec![(part.counts, counts_of(chunks, |_| true), "")];
        if let Some(bits) = store.dead(number) {
            stated.push((part.dead(), counts_of(chunks, |d| bits.get(d)), "deleted "));
        }
        for (stated, found, what) in stated {
            problems.extend(differences(stated, found).map(|(name, stated, found)| {
                format!("{}: states {stated} {what}{name}, but there are {found}", dir.display())
            }));
        }
    }
    let first = store.parts().next();
    if first.is_some_and(|first| first.tokenizer().identity() != meta.settings.tokenizer) {
        problems.push(format!("{}: states another tokenizer than its store's", dir.display()));
    }
    if store.chunk_size() != meta.settings.chunk_tokens {
        let (stated, found) = (meta.settings.chunk_tokens, store.chunk_size());
        problems.push(format!("{}: states {stated} chunk tokens, but there are {found}", dir.display()));
    }
    let stray = manifest.files.keys().filter(|name| !meta.parts.iter().any(|part| marks(part, name)));
    problems.extend(stray.map(|name| format!("{}: no part has the marks {name:?}", dir.display())));
    problems.extend(bm25::verify(dir, &words_key(store.parts().map(ChunkStore::identity))));
    let mut seen = HashSet::new();
    for d in (0..store.documents()).filter(|&d| store.document_is_live(d)) {
        if !seen.insert(store.document(d).id) {
            problems.push(format!("{}: the id {:?} is there twice", dir.display(), store.document(d).id));
        }
    }
    problems
}

fn marks(part: &IndexPart, name: &str) -> bool {
    part.dead.as_ref().is_some_and(|dead| dead.file == name)
}

fn counts_of(store: &ChunkStore, of: impl Fn(usize) -> bool) -> Counts {
    (0..store.documents()).filter(|&d| of(d)).fold(Counts::default(), |sum, d| {
        sum.plus(Counts {
            documents: 1,
            chunks: store.chunks_of(d).len(),
            tokens: store.tokens_in(d),
            text_bytes: store.document(d).text.len(),
        })
    })
}

fn differences(stated: Counts, found: Counts) -> impl Iterator<Item = (&'static str, usize, usize)> {
    [
        ("documents", stated.documents, found.documents),
        ("chunks", stated.chunks, found.chunks),
        ("tokens", stated.tokens, found.tokens),
        ("bytes of text", stated.text_bytes, found.text_bytes),
    ]
    .into_iter()
    .filter(|(_, stated, found)| stated != found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retriever::testing::{build_index, files, index_of, words, write_corpus};
    use crate::retriever::{Existing, Retriever};

    #[test]
    fn every_flipped_or_lost_byte_is_found_and_searching_does_not_panic() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 40));
        let index = dir.path().join("index");
        assert_eq!(verify(&index), [""; 0]);
        // The lock is empty and means nothing.
        for (name, bytes) in files(&index).into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
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
        let (our, their) = (&ours.parts[0], &theirs.parts[0]);
        for (our, their) in [(&our.store, &their.store), (&our.vectors, &their.vectors)] {
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
        fs::write(index.join(MANIFEST), manifest.replace(&ours.parts[0].store.folder, "../other")).unwrap();
        let error = Retriever::open(&index, Some(Box::new(words()))).unwrap_err().to_string();
        assert!(error.contains("leads out"), "{error}");
        let counted = manifest.replace("\"documents\": 40", "\"documents\": 41");
        fs::write(index.join(MANIFEST), counted).unwrap();
        assert!(verify(&index).iter().any(|p| p.contains("states 41 documents, but there are 40")));
    }
}
