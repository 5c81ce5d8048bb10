//! What the benches share: the articles that ship in the repository, and an index over them.

// Each bench is a crate of its own and uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::Criterion;
use sidenote::corpus::{Block, Document, Documents, OnError, Tokenizer};
use sidenote::encoder;
use sidenote::progress::Progress;
use sidenote::retriever::{BuildOptions, Existing, Retriever, build};

/// Tokens in a chunk, as in `sidenote index build`.
pub const CHUNK_TOKENS: usize = 64;

/// Few and short measurements: a bench takes less than a minute.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args()
}

/// A file of the Simple English Wikipedia extract, `"train"` or `"heldout"`.
pub fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("assets/simplewiki/{name}.jsonl.zst"))
}

/// The articles of [`corpus`].
pub fn articles(name: &str) -> Vec<Document> {
    let documents = Documents::open(&[corpus(name)], OnError::Fail).expect("the corpus is there");
    documents.collect::<Result<_, _>>().expect("a good corpus")
}

/// The articles of [`corpus`] cut into chunks.
pub fn chunks(name: &str) -> Block {
    let tokenizer = Tokenizer::default_lm().expect("a tokenizer");
    Block::new(&articles(name), &tokenizer, CHUNK_TOKENS).expect("good articles")
}

/// The index that `sidenote index build` makes of [`corpus`], in the folder `out`.
pub fn index(name: &str, out: &Path) -> Retriever {
    let encoder = encoder::load("default").expect("an encoder");
    let options = BuildOptions {
        memory: None,
        corpus: &[corpus(name)],
        out,
        encoder: encoder.as_ref(),
        tokenizer: &Tokenizer::default_lm().expect("a tokenizer"),
        chunk_tokens: CHUNK_TOKENS,
        index: None,
        seed: 0,
        on_error: OnError::Fail,
        existing: Existing::Fail,
    };
    build(&options, Progress::Silent).expect("a good corpus");
    Retriever::open(out, None).expect("a good index")
}
