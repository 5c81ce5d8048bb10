//! What the tests of this folder share.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sidenote_index::{Bytes, Spec};

use super::{BuildOptions, Existing, IndexMeta, Retriever, build};
use crate::corpus::{OnError, Tokenizer};
use crate::encoder::Encoder;
use crate::progress::Progress;
use crate::{Error, Result};

/// Counts hashed words; fails when it has been called too often.
pub struct HashedWords {
    pub name: String,
    pub calls_left: AtomicUsize,
}

pub fn words() -> HashedWords {
    HashedWords { name: "words".into(), calls_left: AtomicUsize::new(usize::MAX) }
}

impl Encoder for HashedWords {
    fn dim(&self) -> usize {
        48
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Error::setting("encoder", "gave up"));
        }
        let mut rows = vec![0f32; texts.len() * self.dim()];
        for (row, text) in rows.chunks_exact_mut(self.dim()).zip(texts) {
            for word in text.split_whitespace() {
                let hash = blake3::hash(word.as_bytes());
                row[usize::from(hash.as_bytes()[0]) % 48] += 1.0;
            }
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x /= length.max(1.0));
        }
        Ok(rows)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> &str {
        &self.name
    }
}

/// Writes `documents` JSON lines of uneven length, numbered from `first`.
pub fn write_corpus(path: &Path, first: usize, documents: usize) {
    let lines: Vec<String> = (first..first + documents)
        .map(|d| {
            let words: Vec<String> =
                (0..3 + d * 7 % 41).map(|w| format!("w{}", (d * 31 + w * w * 17) % 97)).collect();
            let text = words.join(if d % 3 == 0 { " " } else { " é " });
            serde_json::json!({"id": format!("doc-{d}"), "title": format!("Title {d}"), "text": text})
                .to_string()
        })
        .collect();
    fs::write(path, lines.join("\n")).unwrap();
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::train((0..97).map(|w| Ok(format!("w{w} w{w} é é"))), 320, &[]).unwrap()
}

/// A corpus of `documents` documents in `dir`, and an index over it in `dir/index`.
pub fn index_of(dir: &Path, documents: usize) -> Retriever {
    let corpus = dir.join("corpus.jsonl");
    write_corpus(&corpus, 0, documents);
    build_index(&[corpus], &dir.join("index"), &words(), Existing::Fail).unwrap();
    Retriever::open(&dir.join("index"), Some(Box::new(words()))).unwrap()
}

pub fn build_index(
    corpus: &[PathBuf],
    out: &Path,
    encoder: &HashedWords,
    existing: Existing,
) -> Result<IndexMeta> {
    build_kind(corpus, out, encoder, existing, None, None)
}

/// How an index is built where a test says nothing else.
pub fn options<'a>(
    corpus: &'a [PathBuf],
    out: &'a Path,
    encoder: &'a dyn Encoder,
    tokenizer: &'a Tokenizer,
    chunk_tokens: usize,
) -> BuildOptions<'a> {
    BuildOptions {
        corpus,
        out,
        encoder,
        tokenizer,
        chunk_tokens,
        index: None,
        seed: 0,
        memory: None,
        on_error: OnError::Fail,
        existing: Existing::Fail,
    }
}

/// The text of `documents` documents as `tokenizer` cuts it, by way of an index in `dir`.
pub fn store_of(dir: &Path, documents: usize, tokenizer: &Tokenizer) -> crate::corpus::Store {
    let corpus = [dir.join("corpus.jsonl")];
    write_corpus(&corpus[0], 0, documents);
    let out = dir.join("index");
    build(&options(&corpus, &out, &words(), tokenizer, 16), Progress::Silent).unwrap();
    super::open_store(&out).unwrap()
}

/// An index of a kind, within a bound on memory.
pub fn build_kind(
    corpus: &[PathBuf],
    out: &Path,
    encoder: &HashedWords,
    existing: Existing,
    index: Option<Spec>,
    memory: Option<Bytes>,
) -> Result<IndexMeta> {
    let tokenizer = tokenizer();
    let options = BuildOptions { index, memory, existing, ..options(corpus, out, encoder, &tokenizer, 16) };
    build(&options, Progress::Silent)
}

/// Every file below `dir`, by its path there.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
    all
}
