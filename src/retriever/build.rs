//! A corpus into an index directory.

use std::fs;
use std::path::{Path, PathBuf};

use sidenote_index::{Bytes, Lock, Spec};

use super::encode;
use super::generation::is_there;
use super::meta::{EncoderMeta, IndexMeta, IndexPart, KIND, Settings};
use super::part_writer::{Indexing, PartWriter, STORE, VECTORS, commit};
use super::unfinished::{CorpusHash, PartMeta, Unfinished};
use crate::corpus::{Block, Document, Documents, OnError, Tokenizer, next_batch};
use crate::encoder::Encoder;
use crate::progress::{Progress, Task};
use crate::{Error, Result, interrupt};

/// Far more than a vector can say something about.
const MOST_CHUNK_TOKENS: usize = 1 << 16;

/// What to do about an index, or an unfinished build of one, that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Refuse.
    #[default]
    Fail,
    /// Continue an unfinished build; leave a finished index of the same corpus and settings.
    Resume,
    /// Build anew. The old index stays until the new one takes its place.
    Replace,
}

/// What to build an index of, and how.
pub struct BuildOptions<'a> {
    /// Files and folders: see [`Documents`].
    pub corpus: &'a [PathBuf],
    /// The directory of the index.
    pub out: &'a Path,
    /// What makes the vectors.
    pub encoder: &'a dyn Encoder,
    /// What the chunks are cut with.
    pub tokenizer: &'a Tokenizer,
    /// Tokens in a full chunk.
    pub chunk_tokens: usize,
    /// The kind of index; chosen by the number of chunks where `None`.
    pub index: Option<Spec>,
    /// Seed of the kinds of index that use chance.
    pub seed: u64,
    /// Bound on the memory of its own that building the index over the vectors may take.
    pub memory: Option<Bytes>,
    /// What to do with unusable lines.
    pub on_error: OnError,
    /// What to do about an index that is there.
    pub existing: Existing,
}

/// Builds an index directory: reads the corpus in parts, cuts each into chunks and encodes them,
/// then joins the parts into a store and a nearest-neighbour index and makes them the directory's
/// at one stroke.
///
/// The parts are kept in `out/build` as they are done. After a crash or an interruption
/// [`Existing::Resume`] reads the corpus again, finds it unchanged by its hash, and continues
/// behind the last whole part; the index it ends with has the same bytes as one built in one go.
///
/// # Errors
/// What [`Documents`] reports; an index or unfinished build that is in the way; a resumed build
/// whose corpus or settings have changed (the error says what); a full disk. None of them touches
/// an index that is there.
pub fn build(options: &BuildOptions, progress: Progress) -> Result<IndexMeta> {
    let settings = Settings {
        sources: options.corpus.iter().map(|path| source_name(path)).collect(),
        tokenizer: options.tokenizer.identity().into(),
        chunk_tokens: options.chunk_tokens,
        encoder: EncoderMeta {
            name: options.encoder.name().into(),
            identity: options.encoder.identity().into(),
        },
        index: options.index,
        seed: options.seed,
    };
    if !(1..=MOST_CHUNK_TOKENS).contains(&options.chunk_tokens) {
        let why = format!("{} is not from 1 to {MOST_CHUNK_TOKENS}", options.chunk_tokens);
        return Err(Error::setting("--chunk-tokens", why));
    }
    let out = options.out;
    // Nothing is written before it is known that what is there is ours.
    is_there(out, KIND, &[STORE, VECTORS])?;
    Unfinished::of(out, "build")?.settings::<Settings>()?;
    let mut documents = Documents::open(options.corpus, options.on_error)?;
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let _lock = Lock::acquire(out)?;
    let finished = is_there(out, KIND, &[STORE, VECTORS])?;
    let unfinished = Unfinished::of(out, "build")?;
    let started: Option<Settings> = unfinished.settings()?;
    match options.existing {
        Existing::Fail if finished => {
            return Err(Error::file(
                out,
                "there is an index here; use --force to replace it, or another --out",
            ));
        }
        Existing::Fail if started.is_some() => {
            let why = "an unfinished build is here; continue it with --resume, or remove this folder";
            return Err(Error::file(unfinished.dir(), why));
        }
        Existing::Resume if finished && started.is_none() => {
            return unchanged(out, &settings, documents, progress);
        }
        Existing::Resume => {
            if let Some(started) = started {
                settings_agree("the unfinished build", unfinished.dir(), &started, &settings)?;
            }
        }
        Existing::Replace => unfinished.remove()?,
        Existing::Fail => {}
    }
    unfinished.begin(&settings)?;

    let mut hash = CorpusHash::default();
    let cutter = Cutter {
        encoder: options.encoder,
        tokenizer: options.tokenizer,
        chunk_tokens: options.chunk_tokens,
        wanted: &|_| true,
        go_on: "run the command again with --resume",
        begin_again: "remove that folder to begin again",
    };
    let parts = cutter.collect(&unfinished, &mut documents, &mut hash, progress)?;
    let kind = (options.index, options.seed, options.memory);
    let part = cutter.join(&unfinished, &parts, kind, &[], out, progress)?;
    let mut meta = IndexMeta {
        settings,
        dim: options.encoder.dim(),
        parts: vec![part],
        skipped: documents.skipped().clone(),
        corpus: Some(hash.value()),
    };
    commit(out, &mut meta, &[None])?;
    unfinished.remove()?;
    Ok(meta)
}

/// Cuts a corpus into chunks and encodes them.
pub(super) struct Cutter<'a> {
    pub encoder: &'a dyn Encoder,
    pub tokenizer: &'a Tokenizer,
    pub chunk_tokens: usize,
    /// The documents to take, of all that are read.
    pub wanted: &'a dyn Fn(&Document) -> bool,
    /// What to do after an interruption.
    pub go_on: &'a str,
    /// What to do when the corpus has changed meanwhile.
    pub begin_again: &'a str,
}

impl Cutter<'_> {
    /// Reads the whole corpus and leaves all its parts on disk, making those that are not there.
    pub fn collect(
        &self,
        unfinished: &Unfinished,
        documents: &mut Documents,
        hash: &mut CorpusHash,
        progress: Progress,
    ) -> Result<Vec<PartMeta>> {
        let task = progress.task("cutting and encoding", documents.total_bytes() / 1000, "kB");
        let mut shown = 0;
        let mut parts = unfinished.parts()?;
        if !parts.is_empty() {
            progress.note(format!("going on behind part {} of the unfinished work", parts.len()));
        }
        for (number, part) in parts.iter().enumerate() {
            let batch = next_batch(documents)?;
            batch.iter().for_each(|document| hash.add(document));
            if batch.len() != part.documents || hash.value() != part.corpus {
                let place = batch
                    .first()
                    .map_or("its end".into(), |d| format!("document {:?} of {}", d.id, d.source));
                return Err(Error::Mismatch {
                    what: format!("the corpus and the unfinished build in {}", unfinished.dir().display()),
                    left: format!("another text within {} documents from {place}", part.documents),
                    right: format!("part {}", number + 1),
                    hint: format!("the corpus has changed since; {}", self.begin_again),
                });
            }
            show(&task, documents, &mut shown);
        }
        loop {
            self.stop_if_asked()?;
            let mut batch = next_batch(documents)?;
            if batch.is_empty() {
                return Ok(parts);
            }
            batch.iter().for_each(|document| hash.add(document));
            let read = batch.len();
            batch.retain(self.wanted);
            let block = Block::new(&batch, self.tokenizer, self.chunk_tokens)?;
            let texts = block.chunk_texts();
            let rows = encode(self.encoder, &texts)?;
            let part =
                PartMeta { documents: read, kept: batch.len(), chunks: texts.len(), corpus: hash.value() };
            unfinished.keep(parts.len(), &block, &rows, &part)?;
            parts.push(part);
            show(&task, documents, &mut shown);
        }
    }

    /// Joins the parts of the work into one part of the index in `out`, under a manifest yet to be
    /// written: with the kind of index, which goes by the number of chunks where it is not given,
    /// the seed, and the bound on memory. Beside larger parts of the same kind it takes over their lists, where they have any.
    /// What an interrupted run has built of it is made use of.
    pub fn join(
        &self,
        unfinished: &Unfinished,
        parts: &[PartMeta],
        (index, seed, memory): (Option<Spec>, u64, Option<Bytes>),
        beside: &[IndexPart],
        out: &Path,
        progress: Progress,
    ) -> Result<IndexPart> {
        let chunks: usize = parts.iter().map(|part| part.chunks).sum();
        let dim = self.encoder.dim();
        let index = index.unwrap_or_else(|| Spec::default_for(chunks, dim));
        let metric = self.encoder.metric();
        let there = beside.iter().map(|part| (part.index, part.counts.chunks));
        let lender = index.lists_among(chunks, there).map(|number| &beside[number]);
        let lists_of = lender.map(|part| part.vectors.path(out)).transpose()?;
        let indexing =
            Indexing { metric, spec: index, seed, memory, lists_of: lists_of.as_deref(), resume: true };
        let mut writer =
            PartWriter::create(unfinished.dir(), self.tokenizer, self.chunk_tokens, dim, indexing)?;
        let task = progress.task("joining", chunks as u64, "chunks");
        for (number, part) in parts.iter().enumerate() {
            self.stop_if_asked()?;
            let (block, rows) = unfinished.read(number)?;
            writer.append(&block, &rows)?;
            task.advance(part.chunks as u64);
        }
        drop(task);
        writer.finish(out, progress)
    }

    fn stop_if_asked(&self) -> Result<()> {
        match interrupt::requested() {
            true => Err(Error::Interrupted(format!("what was done is kept; {}", self.go_on))),
            false => Ok(()),
        }
    }
}

fn show(task: &Task, documents: &Documents, shown: &mut u64) {
    let read = documents.bytes_read() / 1000;
    task.advance(read - *shown);
    *shown = read;
}

/// A finished index is the end of a resumed build where corpus and settings are still the same.
fn unchanged(out: &Path, settings: &Settings, documents: Documents, progress: Progress) -> Result<IndexMeta> {
    let meta = IndexMeta::read(out)?;
    let Some(corpus) = &meta.corpus else {
        let why = "there is an index here to which documents were added or deleted since it was built; \
                   there is nothing to resume (--force builds it anew)";
        return Err(Error::file(out, why));
    };
    settings_agree("the index", out, &meta.settings, settings)?;
    let mut hash = CorpusHash::default();
    for document in documents {
        hash.add(&document?);
    }
    if hash.value() != *corpus {
        return Err(Error::Mismatch {
            what: format!("the corpus and the index in {}", out.display()),
            left: format!("documents with the hash {}", hash.value()),
            right: format!("documents with the hash {corpus}"),
            hint: "the corpus has changed; build the index again with --force".into(),
        });
    }
    progress.note("the index is finished already, and corpus and settings have not changed");
    Ok(meta)
}

fn settings_agree(what: &str, dir: &Path, there: &Settings, asked: &Settings) -> Result<()> {
    let differences = there.differences(asked);
    if differences.is_empty() {
        return Ok(());
    }
    let why = format!(
        "{what} here was made with other settings: {}; use the same, or begin again with --force",
        differences.join("; ")
    );
    Err(Error::file(dir, why))
}

pub(super) fn source_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::artefact::MANIFEST;
    use crate::retriever::testing::{HashedWords, build_index, build_kind, files, words, write_corpus};
    use crate::retriever::{Retriever, verify};

    const DOCUMENTS: usize = 1000;

    fn giving_up_after(calls: usize) -> HashedWords {
        HashedWords { calls_left: AtomicUsize::new(calls), ..words() }
    }

    #[test]
    fn a_build_that_stops_anywhere_resumes_to_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = [dir.path().join("corpus.jsonl")];
        write_corpus(&corpus[0], 0, DOCUMENTS);
        let whole = dir.path().join("whole");
        let meta = build_index(&corpus, &whole, &words(), Existing::Fail).unwrap();
        assert_eq!(
            (meta.live().documents, meta.settings.sources.as_slice()),
            (DOCUMENTS, &["corpus.jsonl".into()][..])
        );
        let whole = files(&whole);
        for calls in [0, 30, 45, 60, 75] {
            let out = dir.path().join(format!("stopped-{calls}"));
            let error = build_index(&corpus, &out, &giving_up_after(calls), Existing::Fail).unwrap_err();
            assert!(error.to_string().contains("gave up"));
            if calls > 0 {
                let error = build_index(&corpus, &out, &words(), Existing::Fail).unwrap_err().to_string();
                assert!(error.contains("--resume") && error.contains("build"), "{error}");
            }
            // A part torn by a crash, and the leavings of a join.
            fs::create_dir_all(out.join("build/part-000099")).unwrap();
            fs::create_dir_all(out.join("build/store")).unwrap();
            fs::write(out.join("build/store/text.utf8.tmp"), "half").unwrap();
            build_index(&corpus, &out, &words(), Existing::Resume).unwrap();
            assert_eq!(files(&out), whole, "stopped after {calls} calls");
        }
    }

    /// Fails when what an interrupted run has made of the index itself is not made use of, or counts
    /// twice.
    #[test]
    fn a_graph_that_was_cut_off_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = [dir.path().join("corpus.jsonl")];
        write_corpus(&corpus[0], 0, DOCUMENTS);
        let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
        let build = |out: &Path, existing, memory: Option<&str>| {
            let memory = memory.map(|size| size.parse().unwrap());
            build_kind(&corpus, out, &words(), existing, Some(Spec::Graph { degree: 32 }), memory)
        };
        let meta = build(&whole, Existing::Fail, Some("1GiB")).unwrap();
        assert!(meta.live().chunks > 1000, "too few for the build to be noted");
        let error = build(&out, Existing::Fail, Some("8MiB")).unwrap_err().to_string();
        assert!(error.contains("QG32") && error.contains("8MiB") && error.contains("allow"), "{error}");
        // Where the records of the graph are to be written in the end.
        let obstacle = out.join("build/vectors/nodes.f32.tmp");
        fs::create_dir_all(&obstacle).unwrap();
        let error = build(&out, Existing::Resume, None).unwrap_err().to_string();
        assert!(error.contains("nodes.f32.tmp"), "{error}");
        fs::remove_dir(&obstacle).unwrap();
        // Its name goes on with since when the system has been up.
        let mut files_there =
            fs::read_dir(out.join("build/vectors")).unwrap().map(|entry| entry.unwrap().path());
        let is_links = |path: &std::path::PathBuf| path.to_string_lossy().contains("last-links-0.");
        let links = files_there.find(is_links).expect("links that are whole");
        let bytes = fs::read(&links).unwrap();
        fs::write(&links, &bytes[8..]).unwrap();
        let error = build(&out, Existing::Resume, None).unwrap_err().to_string();
        assert!(error.contains("last-links-0."), "{error}");
        fs::write(&links, &bytes).unwrap();
        build(&out, Existing::Resume, None).unwrap();
        assert_eq!(files(&out), files(&whole));
    }

    #[test]
    fn a_damaged_part_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = [dir.path().join("corpus.jsonl")];
        write_corpus(&corpus[0], 0, DOCUMENTS);
        let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
        build_index(&corpus, &whole, &words(), Existing::Fail).unwrap();
        build_index(&corpus, &out, &giving_up_after(60), Existing::Fail).unwrap_err();
        let part = out.join("build/part-000001");
        let tokens = fs::read_dir(&part)
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("tokens"));
        let mut bytes = fs::read(tokens.as_ref().unwrap()).unwrap();
        bytes[8] ^= 1;
        fs::write(tokens.unwrap(), bytes).unwrap();
        build_index(&corpus, &out, &words(), Existing::Resume).unwrap();
        assert_eq!(files(&out), files(&whole));
    }

    #[test]
    fn resuming_with_another_corpus_or_other_settings_says_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, out) = ([dir.path().join("corpus.jsonl")], dir.path().join("out"));
        write_corpus(&corpus[0], 0, DOCUMENTS);
        build_index(&corpus, &out, &giving_up_after(60), Existing::Fail).unwrap_err();
        let other = HashedWords { name: "others".into(), ..words() };
        let error = build_index(&corpus, &out, &other, Existing::Resume).unwrap_err().to_string();
        assert!(error.contains("the encoder was \"words\"") && error.contains("now \"others\""), "{error}");
        let text = fs::read_to_string(&corpus[0]).unwrap();
        fs::write(&corpus[0], text.replace("Title 300", "Title three hundred")).unwrap();
        let error = build_index(&corpus, &out, &words(), Existing::Resume).unwrap_err().to_string();
        assert!(error.contains("doc-256") && error.contains("changed"), "{error}");
        // A change behind what is done is no change; without the old build, nothing is compared.
        write_corpus(&corpus[0], 0, DOCUMENTS + 5);
        build_index(&corpus, &out, &words(), Existing::Resume).unwrap();
        assert_eq!(verify(&out), [""; 0]);
    }

    #[test]
    fn an_index_is_replaced_only_when_asked_and_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, out) = ([dir.path().join("corpus.jsonl")], dir.path().join("out"));
        write_corpus(&corpus[0], 0, 300);
        let old = build_index(&corpus, &out, &words(), Existing::Fail).unwrap();
        let before = files(&out);
        let again = build_index(&corpus, &out, &words(), Existing::Resume).unwrap();
        assert_eq!((&again, &files(&out)), (&old, &before), "resuming what is finished changes nothing");
        write_corpus(&corpus[0], 7, 600);
        let error = build_index(&corpus, &out, &words(), Existing::Fail).unwrap_err().to_string();
        assert!(error.contains("--force"), "{error}");
        let error = build_index(&corpus, &out, &words(), Existing::Resume).unwrap_err().to_string();
        assert!(error.contains("changed") && error.contains("--force"), "{error}");
        build_index(&corpus, &out, &giving_up_after(20), Existing::Replace).unwrap_err();
        assert_eq!(verify(&out), [""; 0], "the old index is still there");
        assert_eq!(Retriever::open(&out, Some(Box::new(words()))).unwrap().store().documents(), 300);
        build_index(&corpus, &out, &words(), Existing::Resume).unwrap();
        assert_eq!(verify(&out), [""; 0]);
        assert_eq!(
            fs::read_dir(&out).unwrap().count(),
            4,
            "manifest, store, vectors, lock; the old ones are gone"
        );
        let fresh = dir.path().join("fresh");
        build_index(&corpus, &fresh, &words(), Existing::Fail).unwrap();
        assert_eq!(files(&out), files(&fresh));
    }

    #[test]
    fn forcing_mends_a_damaged_index() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, out) = ([dir.path().join("corpus.jsonl")], dir.path().join("out"));
        write_corpus(&corpus[0], 0, 30);
        let meta = build_index(&corpus, &out, &words(), Existing::Fail).unwrap();
        let before = files(&out);
        let text = before.keys().find(|name| name.to_str().unwrap().contains("text.")).unwrap();
        fs::write(out.join(text), vec![b'x'; meta.live().text_bytes]).unwrap();
        assert!(!verify(&out).is_empty());
        build_index(&corpus, &out, &words(), Existing::Replace).unwrap();
        assert_eq!(files(&out), before);
        fs::write(out.join(MANIFEST), "{").unwrap();
        assert!(build_index(&corpus, &out, &words(), Existing::Fail).is_err());
        build_index(&corpus, &out, &words(), Existing::Replace).unwrap();
        assert_eq!(files(&out), before);
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, out) = ([dir.path().join("corpus.jsonl")], dir.path().join("out"));
        write_corpus(&corpus[0], 0, 30);
        fs::create_dir_all(out.join("build")).unwrap();
        fs::write(out.join("build/main.o"), "object").unwrap();
        for existing in [Existing::Fail, Existing::Resume, Existing::Replace] {
            let error = build_index(&corpus, &out, &words(), existing).unwrap_err().to_string();
            assert!(error.contains("another --out"), "{error}");
        }
        assert_eq!(fs::read(out.join("build/main.o")).unwrap(), b"object");
        fs::remove_dir_all(out.join("build")).unwrap();
        fs::write(out.join(MANIFEST), "{\"name\": \"my web page\"}").unwrap();
        assert!(build_index(&corpus, &out, &words(), Existing::Replace).is_err());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn a_build_that_crashed_while_clearing_up_is_cleared_up() {
        let dir = tempfile::tempdir().unwrap();
        let (corpus, out) = ([dir.path().join("corpus.jsonl")], dir.path().join("out"));
        write_corpus(&corpus[0], 0, 30);
        build_index(&corpus, &out, &words(), Existing::Fail).unwrap();
        let before = files(&out);
        fs::create_dir_all(out.join("build-finished/part-000003")).unwrap();
        build_index(&corpus, &out, &words(), Existing::Resume).unwrap();
        assert_eq!(files(&out), before);
    }
}
