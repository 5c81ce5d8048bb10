//! A corpus that lives: documents added, replaced and deleted, and the space given back.
//!
//! Each change makes a new generation of the index directory by the swap of its manifest, so that a
//! crash at any moment leaves the old generation or the new one. Readers go on with the generation
//! that they opened; writers wait for nobody: a second one is refused.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sidenote_index::{Lock, Spec};

use super::build::{Cutter, source_name};
use super::generation::{bytes_in, remove};
use super::part_writer::{Indexing, PartWriter, commit, tidy};
use super::same::SameDocument;
use super::tombstones::Tombstones;
use super::unfinished::{CorpusHash, Unfinished};
use super::{IndexMeta, parts};
use crate::corpus::{Block, ChunkStore, Document, Documents, OnError, Skipped, Store};
use crate::encoder::{self, Encoder};
use crate::progress::Progress;
use crate::{Error, Result, interrupt};

/// Documents are rewritten in runs of at most this many.
const RUN: usize = 256;

/// How many unknown ids an error lists.
const LISTED: usize = 20;

/// What to add to an index.
pub struct AddOptions<'a> {
    /// The index.
    pub dir: &'a Path,
    /// Files and folders: see [`Documents`].
    pub corpus: &'a [PathBuf],
    /// The encoder of the index; the one that it names where `None`.
    pub encoder: Option<Box<dyn Encoder>>,
    /// What to do with unusable lines.
    pub on_error: OnError,
    /// Drop an unfinished `add` of another corpus, or of one that has changed.
    pub restart: bool,
}

/// What [`add`] did.
#[derive(Debug, Clone)]
pub struct Added {
    /// The index now.
    pub meta: IndexMeta,
    /// Documents under new ids.
    pub added: usize,
    /// Documents in place of older ones with their ids.
    pub replaced: usize,
    /// Documents that the index held already, word for word.
    pub unchanged: usize,
    /// What was left out of the corpus.
    pub skipped: Skipped,
}

/// What [`delete`] did.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// The index now.
    pub meta: IndexMeta,
    /// Documents deleted.
    pub deleted: usize,
}

/// What [`compact`] did.
#[derive(Debug, Clone)]
pub struct Compacted {
    /// The index now.
    pub meta: IndexMeta,
    /// Parts that there were before.
    pub parts: usize,
    /// Bytes of the index on disk before and after.
    pub bytes: (u64, u64),
}

/// An unfinished `add`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Job {
    /// The index that is added to.
    base: String,
    sources: Vec<String>,
    on_error: OnError,
}

/// Adds documents to the index in `options.dir`, cut and encoded as those that are there. A document
/// whose id is there replaces the old one; one that has not changed at all is left alone. One that states no id is known
/// again by its file's path or, as a line of a file, by its text (see [`Documents::beside`]): a file that was edited
/// replaces its old text, a line with another text is a new document.
///
/// What is done is kept in `dir/add`: the same call goes on after a crash or an interruption. The
/// index changes at one stroke at the end.
///
/// # Errors
/// What [`Documents`] reports; another encoder; an unfinished `add` of another corpus; another
/// writer at work. None of them changes the index.
pub fn add(options: AddOptions, progress: Progress) -> Result<Added> {
    let dir = options.dir;
    let _lock = lock(dir)?;
    let (mut meta, store) = parts::open(dir, parts::store)?;
    let encoder = match options.encoder {
        Some(encoder) => encoder,
        None => encoder::load(&meta.settings.encoder.name)?,
    };
    meta.check_encoder(dir, encoder.as_ref())?;
    let unfinished = Unfinished::of(dir, "add")?;
    let sources: Vec<String> = options.corpus.iter().map(|path| source_name(path)).collect();
    let job = Job { base: meta.identity(), sources, on_error: options.on_error };
    let mut documents = Documents::open(options.corpus, options.on_error)?.beside(&store);
    match unfinished.settings::<Job>()? {
        Some(started) if started.base != job.base || options.restart => unfinished.remove()?,
        Some(started) if started != job => {
            let why = format!(
                "adding {} was begun here and not finished; run that command again, or drop it with --restart",
                started.sources.join(" ")
            );
            return Err(Error::file(unfinished.dir(), why));
        }
        _ => {}
    }
    unfinished.begin(&job)?;

    let same = SameDocument::of(&store);
    let changed =
        |document: &Document| !live(&same, &store, &document.id).any(|d| equal(&store, d, document));
    let cutter = Cutter {
        encoder: encoder.as_ref(),
        tokenizer: store.tokenizer(),
        chunk_tokens: store.chunk_size(),
        wanted: &changed,
        go_on: "run the same command again to go on",
        begin_again: "begin again with --restart",
    };
    let mut hash = CorpusHash::default();
    let work = match cutter.collect(&unfinished, &mut documents, &mut hash, progress) {
        Ok(work) => work,
        Err(e) => {
            if unfinished.settings::<Job>()?.is_none() {
                // Nothing was done that could be gone on with.
                unfinished.remove()?;
            }
            return Err(e);
        }
    };
    let read: usize = work.iter().map(|part| part.documents).sum();
    let new: usize = work.iter().map(|part| part.kept).sum();
    let skipped = documents.skipped().clone();
    let mut replaced = 0;
    if new > 0 {
        let kind = (meta.settings.index, meta.settings.seed, None);
        let mut part = cutter.join(&unfinished, &work, kind, &meta.parts, dir, progress)?;
        part.breadth = meta.breadth_of(part.index);
        let mut tombstones = Tombstones::of(&store, &meta);
        let added = ChunkStore::open(&part.store.path(dir)?)?;
        for id in (0..new).map(|d| added.document(d).id) {
            replaced += usize::from(live(&same, &store, id).next().is_some());
            live(&same, &store, id).for_each(|d| tombstones.add(d));
        }
        let mut dead = tombstones.bury(&mut meta);
        if meta.live().documents == 0 {
            // Nothing of the old parts is left, so none of them stays.
            (meta.parts, dead) = Default::default();
        }
        meta.parts.push(part);
        dead.push(None);
        meta.corpus = None;
        meta.skipped.extend(&skipped);
        let sources =
            job.sources.into_iter().filter(|s| !meta.settings.sources.contains(s)).collect::<Vec<_>>();
        meta.settings.sources.extend(sources);
        commit(dir, &mut meta, &dead)?;
    }
    unfinished.remove()?;
    Ok(Added { meta, added: new - replaced, replaced, unchanged: read - new, skipped })
}

/// Deletes the documents `ids` from the index in `dir`: they are never found again, nor read from in
/// any other way. Their space is given back by [`compact`].
///
/// # Errors
/// Ids that no document has: the error lists them, and nothing is deleted. Another writer at work.
pub fn delete<S: AsRef<str>>(dir: &Path, ids: &[S]) -> Result<Deleted> {
    let _lock = lock(dir)?;
    let (mut meta, store) = parts::open(dir, parts::store)?;
    let same = SameDocument::of(&store);
    let mut tombstones = Tombstones::of(&store, &meta);
    let mut unknown: Vec<&str> = Vec::new();
    for id in ids.iter().map(S::as_ref) {
        let mut found = live(&same, &store, id).peekable();
        if found.peek().is_none() && !unknown.contains(&id) {
            unknown.push(id);
        }
        found.for_each(|d| tombstones.add(d));
    }
    if !unknown.is_empty() {
        let more = match unknown.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let listed: Vec<String> = unknown.iter().take(LISTED).map(|id| format!("{id:?}")).collect();
        let why = format!("no document has the id {}{more}; nothing was deleted", listed.join(", "));
        return Err(Error::file(dir, why));
    }
    let before = meta.live().documents;
    let dead = tombstones.bury(&mut meta);
    let deleted = before - meta.live().documents;
    if deleted > 0 {
        meta.corpus = None;
        commit(dir, &mut meta, &dead)?;
    }
    Ok(Deleted { meta, deleted })
}

/// Rewrites what is live of the index in `dir` into one part, without encoding anything again, and
/// removes the rest. Documents keep their ids and their order. `index` asks for another kind of
/// index than the one that the index was built with; where the kind stays, so does what [`tune`](super::tune()) has found.
///
/// # Errors
/// A damaged index; a full disk; an interruption; another writer at work. None of them changes the
/// index.
pub fn compact(dir: &Path, index: Option<Spec>, progress: Progress) -> Result<Compacted> {
    let _lock = lock(dir)?;
    let (mut meta, (store, vectors)) = parts::open(dir, parts::both)?;
    let before = bytes_in(dir);
    let count = meta.parts.len();
    let live = meta.live();
    if index.is_some() {
        meta.settings.index = index;
    }
    let spec = meta.settings.index.unwrap_or_else(|| Spec::default_for(live.chunks, meta.dim));
    let scratch = dir.join("compact");
    remove(&scratch)?;
    if meta.parts.iter().all(|part| part.dead.is_none() && part.index == spec) && count == 1 {
        // A compaction that was killed right after its swap has yet to give its space back.
        tidy(dir, &IndexMeta::read_manifest(dir)?.0, &meta)?;
        return Ok(Compacted { meta, parts: 1, bytes: (before, bytes_in(dir)) });
    }
    let (metric, seed) = (vectors.metric(), meta.settings.seed);
    let indexing = Indexing { metric, spec, seed, memory: None, lists_of: None, resume: false };
    let mut writer = PartWriter::create(&scratch, store.tokenizer(), store.chunk_size(), meta.dim, indexing)?;
    let task = progress.task("rewriting", live.chunks as u64, "chunks");
    let mut first_document = 0;
    for part in store.parts() {
        for run in live_runs(&store, first_document..first_document + part.documents()) {
            if interrupt::requested() {
                return Err(Error::Interrupted("the index is as it was; run the command again".into()));
            }
            let rows: Vec<f32> = run
                .clone()
                .flat_map(|d| store.chunks_of(d))
                .flat_map(|c| vectors.vector(c as u32).unwrap_or_default().into_owned())
                .collect();
            let block = Block::of(part, run.start - first_document..run.end - first_document)?;
            writer.append(&block, &rows)?;
            task.advance(block.chunks() as u64);
        }
        first_document += part.documents();
    }
    drop(task);
    let mut part = writer.finish(dir, progress)?;
    part.breadth = meta.breadth_of(spec);
    meta.parts = vec![part];
    commit(dir, &mut meta, &[None])?;
    remove(&scratch)?;
    Ok(Compacted { meta, parts: count, bytes: (before, bytes_in(dir)) })
}

/// The right to change the index in `dir`, which must be there.
fn lock(dir: &Path) -> Result<Lock> {
    IndexMeta::read(dir)?;
    Ok(Lock::acquire(dir)?)
}

/// Runs of documents in `all` that are live, each of at most [`RUN`].
pub(super) fn live_runs(store: &Store, all: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut next = all.start;
    std::iter::from_fn(move || {
        let start = (next..all.end).find(|&d| store.document_is_live(d))?;
        let end = (start..all.end.min(start + RUN)).find(|&d| !store.document_is_live(d));
        next = end.unwrap_or(all.end.min(start + RUN));
        Some(start..next)
    })
}

/// The documents with this id that are not deleted.
fn live<'a>(same: &'a SameDocument, store: &'a Store, id: &str) -> impl Iterator<Item = usize> + use<'a> {
    same.by_id(store, id).into_iter().map(|d| d as usize).filter(|&d| store.document_is_live(d))
}

/// Whether document `d` says what `document` says.
fn equal(store: &Store, d: usize, document: &Document) -> bool {
    let found = store.document(d);
    found.title == document.title
        && found.section == document.section.as_deref()
        && found.source == document.source
        && found.text == document.text
}
