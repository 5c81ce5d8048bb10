//! The same text under other vectors: what an index becomes when its encoder has learnt.

use std::fs;
use std::path::Path;

use sidenote_index::Lock;

use super::generation::{is_there, remove};
use super::meta::{EncoderMeta, IndexMeta, KIND};
use super::part_writer::{Indexing, PartWriter, STORE, VECTORS, commit};
use super::{encode, live_runs, parts};
use crate::corpus::Block;
use crate::encoder::Encoder;
use crate::progress::Progress;
use crate::{Error, Result, interrupt};

/// Writes to `out` the index in `dir` with all that is live of it encoded by `encoder`: the same documents and chunks, in one
/// part. `out` may be `dir` itself, which is then replaced at one stroke; whoever has it open goes on with the old one.
///
/// # Errors
/// Another index in `out`; no index in `dir`, or a damaged one; a full disk; an interruption; another writer at work. None of
/// them changes what is in `out`.
pub fn encode_again(dir: &Path, out: &Path, encoder: &dyn Encoder, progress: Progress) -> Result<IndexMeta> {
    IndexMeta::read(dir)?;
    let elsewhere = fs::canonicalize(out).ok() != fs::canonicalize(dir).ok();
    let check = || match is_there(out, KIND, &[STORE, VECTORS])? {
        true if elsewhere => {
            Err(Error::file(out, "there is an index here already; choose another folder, or remove it"))
        }
        _ => Ok(()),
    };
    check()?;
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let _lock = Lock::acquire(out)?;
    // Another writer may have put one here before the lock was ours.
    check()?;
    let (mut meta, store) = parts::open(dir, parts::store)?;
    let scratch = out.join("encode");
    remove(&scratch)?;
    let live = meta.live();
    meta.dim = encoder.dim();
    meta.settings.encoder = EncoderMeta { name: encoder.name().into(), identity: encoder.identity().into() };
    let spec =
        meta.settings.index.unwrap_or_else(|| sidenote_index::Spec::default_for(live.chunks, meta.dim));
    let seed = meta.settings.seed;
    let metric = encoder.metric();
    let indexing = Indexing { metric, spec, seed, memory: None, lists_of: None, resume: false };
    let mut writer = PartWriter::create(&scratch, store.tokenizer(), store.chunk_size(), meta.dim, indexing)?;
    let task = progress.task("encoding again", live.chunks as u64, "chunks");
    let mut first_document = 0;
    for part in store.parts() {
        for run in live_runs(&store, first_document..first_document + part.documents()) {
            if interrupt::requested() {
                return Err(Error::Interrupted("the index is as it was; run the command again".into()));
            }
            let block = Block::of(part, run.start - first_document..run.end - first_document)?;
            writer.append(&block, &encode(encoder, &block.chunk_texts())?)?;
            task.advance(block.chunks() as u64);
        }
        first_document += part.documents();
    }
    drop(task);
    meta.parts = vec![writer.finish(out, progress)?];
    commit(out, &mut meta, &[None])?;
    remove(&scratch)?;
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{HashedWords, build_index, files, index_of, words, write_corpus};
    use super::super::{Existing, Retriever, delete, verify};
    use super::*;

    /// As an encoder that has learnt: another identity and other vectors.
    struct Turned(HashedWords);

    impl Encoder for Turned {
        fn dim(&self) -> usize {
            self.0.dim()
        }
        fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
            let mut rows = self.0.encode(texts)?;
            rows.chunks_exact_mut(self.0.dim()).for_each(|row| row.rotate_right(1));
            Ok(rows)
        }
        fn name(&self) -> &str {
            "turned"
        }
        fn identity(&self) -> &str {
            "turned"
        }
    }

    #[test]
    fn text_stays_and_vectors_are_new() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 60));
        let (index, out) = (dir.path().join("index"), dir.path().join("out"));
        delete(&index, &["doc-7", "doc-20"]).unwrap();
        let before = files(&index);
        let meta = encode_again(&index, &out, &Turned(words()), Progress::Silent).unwrap();
        assert_eq!(files(&index), before, "the old index is left alone");
        assert_eq!(
            (meta.parts.len(), meta.settings.encoder.name.as_str(), meta.live().documents),
            (1, "turned", 58)
        );
        assert_eq!(verify(&out), [""; 0]);
        assert!(Retriever::open(&out, Some(Box::new(words()))).is_err());
        let turned = Retriever::open(&out, Some(Box::new(Turned(words())))).unwrap();
        let plain = Retriever::open(&index, Some(Box::new(words()))).unwrap();
        let found = |retriever: &Retriever| {
            let passages = retriever.search("w1 w2 w30", 9).unwrap();
            passages
                .into_iter()
                .map(|passage| (passage.id, passage.text, passage.score.to_bits()))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&turned), found(&plain));

        // In its own place, as often as one likes, while somebody reads.
        encode_again(&out, &out, &words(), Progress::Silent).unwrap();
        assert_eq!(found(&turned), found(&plain), "who has opened it goes on");
        let again = Retriever::open(&out, Some(Box::new(words()))).unwrap();
        assert_eq!(found(&again), found(&plain));
        let once = files(&out);
        encode_again(&out, &out, &words(), Progress::Silent).unwrap();
        assert_eq!(files(&out), once);
    }

    #[test]
    fn another_index_is_not_written_over_and_without_one_nothing_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        drop(index_of(dir.path(), 30));
        let (index, other) = (dir.path().join("index"), dir.path().join("other"));
        build_index(&[dir.path().join("corpus.jsonl")], &other, &words(), Existing::Fail).unwrap();
        let before = files(&other);
        let error = encode_again(&index, &other, &Turned(words()), Progress::Silent).unwrap_err().to_string();
        assert!(error.contains(other.to_str().unwrap()) && error.contains("an index here"), "{error}");
        assert!(files(&other) == before);
        let (nowhere, out) = (dir.path().join("nowhere"), dir.path().join("out"));
        let error = encode_again(&nowhere, &out, &words(), Progress::Silent).unwrap_err().to_string();
        assert!(error.contains("nowhere") && !out.exists(), "{error}");
        // Its own place by another name.
        encode_again(&index, &other.join("../index"), &Turned(words()), Progress::Silent).unwrap();
    }

    #[test]
    fn what_is_not_an_index_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = [dir.path().join("corpus.jsonl")];
        write_corpus(&corpus[0], 0, 30);
        let index = dir.path().join("index");
        build_index(&corpus, &index, &words(), Existing::Fail).unwrap();
        let out = dir.path().join("out");
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("manifest.json"), "{\"name\": \"my web page\"}").unwrap();
        assert!(encode_again(&index, &out, &words(), Progress::Silent).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        // A failure half-way leaves what was there.
        let before = files(&index);
        let tired = HashedWords { calls_left: 0.into(), ..words() };
        assert!(encode_again(&index, &index, &tired, Progress::Silent).is_err());
        let mut after = files(&index);
        after.retain(|path, _| !path.starts_with("encode"));
        assert_eq!(after, before);
    }
}
