//! An index that was added to, deleted from and compacted must be what an index built of its
//! documents is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::neighbours::{ABSENT, Neighbours, compute, precompute};
use super::testing::{HashedWords, build_index, files, index_of, words, write_corpus};
use super::*;
use crate::corpus::OnError;
use crate::progress::Progress;
use crate::train::Order;

fn add_with(dir: &Path, corpus: &Path, encoder: HashedWords, restart: bool) -> Result<Added> {
    let corpus = [corpus.to_path_buf()];
    let encoder: Option<Box<dyn Encoder>> = Some(Box::new(encoder));
    let options = AddOptions { dir, corpus: &corpus, encoder, on_error: OnError::Fail, restart };
    add(options, Progress::Silent)
}

fn add_to(dir: &Path, corpus: &Path) -> Added {
    add_with(dir, corpus, words(), false).unwrap()
}

fn open(dir: &Path) -> Retriever {
    Retriever::open(dir, Some(Box::new(words()))).unwrap()
}

/// The text of document `d` in version `version`.
fn text(d: usize, version: usize) -> String {
    let count = 1 + (d * 13 + version * 29) % 50;
    (0..count).map(|w| format!("w{} ", (d * 31 + w * w * 17 + version) % 97)).collect()
}

/// Writes documents under their numbers and versions.
fn write_versions(path: &Path, documents: &[(usize, usize)]) {
    let line = |&(d, version): &(usize, usize)| {
        serde_json::json!({"id": format!("d{d}"), "title": format!("T{d}"), "text": text(d, version)})
            .to_string()
    };
    fs::write(path, documents.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
}

/// The documents of a store that are not deleted, in order.
fn live(store: &Store) -> Vec<(String, String)> {
    let live = (0..store.documents()).filter(|&d| store.document_is_live(d));
    live.map(|d| (store.document(d).id.into(), store.document(d).text.into())).collect()
}

/// What a chunk is, whatever its number.
fn name(store: &Store, c: usize) -> (String, usize) {
    let chunk = store.chunk(c);
    (store.document(chunk.document).id.into(), chunk.start)
}

/// Searches, neighbours and the training text of `ours` are those of `fresh`.
fn assert_same(ours: &Retriever, fresh: &Retriever) {
    let (store, other) = (ours.store(), fresh.store());
    assert_eq!(live(store), live(other));
    assert_eq!((ours.meta().live(), ours.index().live()), (fresh.meta().live(), other.chunks()));
    for query in ["w1 w2 w3", "w50", "w17 w33 w4 w4"] {
        let found = |retriever: &Retriever| {
            let hits = retriever.search(query, 1000).unwrap();
            let mut hits: Vec<_> =
                hits.into_iter().map(|p| ((p.score * 1e4).round() as i64, p.id, p.text)).collect();
            hits.sort();
            hits
        };
        assert_eq!(found(ours), found(fresh), "{query}");
    }
    let scores = |retriever: &Retriever| {
        let store = retriever.store();
        let table = compute(retriever, store, 3, Ranking::Vectors, Progress::Silent).unwrap();
        let mut of_chunk = BTreeMap::new();
        for c in 0..store.chunks() {
            assert!(table.of(c).iter().all(|&id| id == ABSENT || store.is_live(id as usize)));
            if store.is_live(c) {
                let scores: Vec<_> = table.scores_of(c).iter().map(|s| (s * 1e4).round()).collect();
                of_chunk.insert(name(store, c), scores);
            } else {
                assert!(table.of(c).iter().all(|&id| id == ABSENT), "a deleted chunk has neighbours");
            }
        }
        of_chunk
    };
    assert_eq!(scores(ours), scores(fresh));
    let read = |store: &Store| {
        let mut order = Order::new(store, 2, 64, 7);
        let mut read = BTreeMap::new();
        for step in 0.. {
            let batch = order.batch(step);
            if order.epoch() > 0 {
                return read;
            }
            for c in batch.into_iter().flatten() {
                assert!(store.is_live(c), "deleted text is trained on");
                *read.entry(name(store, c)).or_insert(0) += 1;
            }
        }
        read
    };
    assert_eq!(read(store), read(other));
}

#[test]
fn whatever_is_done_to_it_an_index_is_that_of_its_documents() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, index) = (dir.path().join("corpus.jsonl"), dir.path().join("index"));
    let mut random = ChaCha8Rng::seed_from_u64(5);
    // The documents that should be there, in the order of their numbers.
    let mut expected: Vec<(usize, usize)> = (0..60).map(|d| (d, 0)).collect();
    write_versions(&corpus, &expected);
    build_index(std::slice::from_ref(&corpus), &index, &words(), Existing::Fail).unwrap();
    let mut identities = vec![open(&index).identity()];
    for step in 1..=14 {
        let changed = match step % 5 {
            0 => {
                let compacted = compact(&index, None, Progress::Silent).unwrap();
                assert_eq!((compacted.meta.parts.len(), compacted.meta.dead()), (1, Counts::default()));
                assert!(compacted.parts > 1 && compacted.bytes.1 < compacted.bytes.0);
                true
            }
            2 | 4 => {
                let mut ids = Vec::new();
                expected.retain(|(d, _)| {
                    let goes = random.random_range(0..5) == 0;
                    ids.extend(goes.then(|| format!("d{d}")));
                    !goes
                });
                ids.extend(ids.first().cloned());
                assert_eq!(delete(&index, &ids).unwrap().deleted, ids.len() - 1);
                true
            }
            _ => {
                let mut new: Vec<(usize, usize)> = Vec::new();
                for _ in 0..random.random_range(1..25) {
                    let d = random.random_range(0..90);
                    if new.iter().all(|(other, _)| *other != d) {
                        new.push((d, random.random_range(0..2)));
                    }
                }
                write_versions(&corpus, &new);
                let (unchanged, new): (Vec<_>, Vec<_>) = new.into_iter().partition(|d| expected.contains(d));
                let replaced = new.iter().filter(|(d, _)| expected.iter().any(|(e, _)| e == d)).count();
                let added = add_to(&index, &corpus);
                assert_eq!(
                    (added.unchanged, added.replaced, added.added),
                    (unchanged.len(), replaced, new.len() - replaced)
                );
                expected.retain(|(e, _)| new.iter().all(|(d, _)| d != e));
                expected.extend(&new);
                !new.is_empty()
            }
        };
        assert_eq!(verify(&index), [""; 0], "step {step}");
        let fresh = dir.path().join(format!("fresh-{step}"));
        write_versions(&corpus, &expected);
        build_index(std::slice::from_ref(&corpus), &fresh, &words(), Existing::Fail).unwrap();
        let (ours, fresh) = (open(&index), open(&fresh));
        assert_same(&ours, &fresh);
        if step % 5 == 0 {
            let stores = [&ours, &fresh].map(|retriever| retriever.meta().parts[0].store.identity.clone());
            assert_eq!(stores[0], stores[1], "a compacted store has the bytes of one built anew");
        }
        assert_eq!(!identities.contains(&ours.identity()), changed, "each generation has its identity");
        identities.push(ours.identity());
    }
}

#[test]
fn what_has_not_changed_is_not_encoded_again() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 300));
    let (index, corpus) = (dir.path().join("index"), dir.path().join("corpus.jsonl"));
    let before = files(&index);
    let counting = HashedWords { calls_left: AtomicUsize::new(1000), ..words() };
    let added = add_with(&index, &corpus, counting, false).unwrap();
    assert_eq!((added.added, added.replaced, added.unchanged), (0, 0, 300));
    assert!(files(&index) == before, "nothing to do leaves everything as it is");
    let never = HashedWords { calls_left: AtomicUsize::new(0), ..words() };
    assert!(add_with(&index, &corpus, never, false).is_ok(), "something was encoded");
}

/// Writes a file below `dir`; where it is.
fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// The ids and texts of what is live in the index `dir`, which must be sound.
fn held(dir: &Path) -> Vec<(String, String)> {
    assert_eq!(verify(dir), [""; 0]);
    live(open(dir).store())
}

/// How many documents were new, in place of older ones, and there already.
fn counts(added: &Added) -> (usize, usize, usize) {
    (added.added, added.replaced, added.unchanged)
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(id, text)| (id.into(), text.into())).collect()
}

#[test]
fn a_line_without_an_id_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index");
    let lines = |folder: &str, texts: &[&str]| {
        let lines: Vec<_> = texts.iter().map(|text| serde_json::json!({"text": text}).to_string()).collect();
        write(dir.path(), &format!("{folder}/train.jsonl"), &lines.join("\n"))
    };
    build_index(&[lines("d1", &["w1 w2", "w3"])], &index, &words(), Existing::Fail).unwrap();
    let other = lines("d2", &["w4", "w3"]);
    assert_eq!(counts(&add_to(&index, &other)), (1, 0, 1));
    let mut expected = pairs(&[("train#1", "w1 w2"), ("train#2", "w3"), ("train#1~2", "w4")]);
    assert_eq!(held(&index), expected);
    assert_eq!(counts(&add_to(&index, &other)), (0, 0, 2));
    // Those behind a new line are what they were.
    assert_eq!(counts(&add_to(&index, &lines("d1", &["w5", "w1 w2", "w3"]))), (1, 0, 2));
    expected.extend(pairs(&[("train#1~3", "w5")]));
    assert_eq!(held(&index), expected);
    // The number of one that has gone is free, and what is behind it is still known.
    delete(&index, &["train#1"]).unwrap();
    compact(&index, None, Progress::Silent).unwrap();
    assert_eq!(counts(&add_to(&index, &lines("d2", &["w4", "w3"]))), (0, 0, 2));
}

#[test]
fn a_file_replaces_what_it_was_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, index) = (dir.path(), dir.path().join("index"));
    let stated = write(dir, "stated.jsonl", "{\"id\": \"d\", \"text\": \"w0\"}");
    write(dir, "notes/b.md", "w1");
    write(dir, "notes/b.txt", "w2");
    write(dir, "notes/sub/c.txt", "w3");
    let notes = dir.join("notes");
    build_index(&[stated, notes.clone()], &index, &words(), Existing::Fail).unwrap();
    let built = pairs(&[("d", "w0"), ("b", "w1"), ("b~2", "w2"), ("sub/c", "w3")]);
    assert_eq!(held(&index), built);
    // Alone, by its own path, and then with its folder.
    assert_eq!(counts(&add_to(&index, &write(dir, "notes/b.txt", "w4"))), (0, 1, 0));
    assert_eq!(counts(&add_to(&index, &write(dir, "notes/sub/c.txt", "w5"))), (0, 1, 0));
    assert_eq!(counts(&add_to(&index, &notes)), (0, 0, 3));
    let store = open_store(&index).unwrap();
    let is_there = |d: usize| store.document_is_live(d) && store.document(d).source == "notes/sub/c.txt";
    assert!((0..store.documents()).any(is_there), "the source that tells it from others of its name");
    // Others of the same name.
    write(dir, "other/b.txt", "w6");
    assert_eq!(counts(&add_to(&index, &dir.join("other"))), (1, 0, 0));
    assert_eq!(counts(&add_to(&index, &write(dir, "other/b.txt", "w7"))), (0, 1, 0));
    assert_eq!(counts(&add_to(&index, &write(dir, "d.txt", "w8"))), (1, 0, 0));
    let expected = [("d", "w0"), ("b", "w1"), ("b~2", "w4"), ("sub/c", "w5"), ("b~3", "w7"), ("d~2", "w8")];
    assert_eq!(held(&index), pairs(&expected));
}

#[test]
fn which_of_two_files_of_one_name_was_edited_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, index) = (dir.path(), dir.path().join("index"));
    let both = [write(dir, "d1/a.txt", "w1"), write(dir, "d2/a.txt", "w2")];
    build_index(&both, &index, &words(), Existing::Fail).unwrap();
    assert_eq!(counts(&add_to(&index, &both[1])), (0, 0, 1));
    write(dir, "d2/a.txt", "w3");
    let before = files(&index);
    let error = add_with(&index, &both[1], words(), false).unwrap_err().to_string();
    assert!(error.contains("d2/a.txt") && error.contains("[\"a\", \"a~2\"]"), "{error}");
    assert!(files(&index) == before);
    let encoder: Option<Box<dyn Encoder>> = Some(Box::new(words()));
    let options = AddOptions { dir: &index, corpus: &both, encoder, on_error: OnError::Fail, restart: false };
    assert_eq!(counts(&add(options, Progress::Silent).unwrap()), (0, 1, 1));
    assert_eq!(held(&index), pairs(&[("a", "w1"), ("a~2", "w3")]));
}

#[test]
fn what_was_tuned_stays_with_its_kind_of_index() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 300));
    let (index, more) = (dir.path().join("index"), dir.path().join("more.jsonl"));
    let breadths = |dir: &Path| -> Vec<Option<usize>> {
        IndexMeta::read(dir).unwrap().parts.iter().map(|part| part.breadth).collect()
    };
    compact(&index, Some("HNSW4".parse().unwrap()), Progress::Silent).unwrap();
    let options = TuneOptions { dir: &index, recall: 0.99, k: 5, queries: &[], sample: 60, encoder: None };
    let tuned = tune(options, Progress::Silent).unwrap().meta.parts[0].breadth;
    assert!(tuned.is_some());
    write_corpus(&more, 300, 20);
    add_to(&index, &more);
    assert_eq!(breadths(&index), [tuned, tuned]);
    compact(&index, None, Progress::Silent).unwrap();
    assert_eq!(breadths(&index), [tuned]);
    let again = dir.path().join("again");
    encode_again(&index, &again, &words(), Progress::Silent).unwrap();
    assert_eq!(breadths(&again), [None], "other vectors");
    compact(&index, Some("RaBitQ".parse().unwrap()), Progress::Silent).unwrap();
    assert_eq!(breadths(&index), [None], "another kind");
}

#[test]
fn ids_that_are_not_there_are_listed_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 30));
    let index = dir.path().join("index");
    delete(&index, &["doc-3"]).unwrap();
    let before = files(&index);
    let error = delete(&index, &["doc-1", "doc-3", "nobody", "doc-2", "nobody"]).unwrap_err().to_string();
    assert!(error.contains("\"doc-3\", \"nobody\"; nothing was deleted"), "{error}");
    assert!(!error.contains("doc-1"), "{error}");
    let many: Vec<String> = (0..30).map(|i| format!("x{i}")).collect();
    assert!(delete(&index, &many).unwrap_err().to_string().contains("\"x19\" and 10 more"));
    assert!(files(&index) == before);
}

#[test]
fn an_index_can_lose_all_its_documents_and_get_others() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 12));
    let (index, corpus) = (dir.path().join("index"), dir.path().join("corpus.jsonl"));
    let ids: Vec<String> = (0..12).map(|d| format!("doc-{d}")).collect();
    delete(&index, &ids).unwrap();
    assert_eq!(verify(&index), [""; 0]);
    assert!(open(&index).search("w1 w2", 5).unwrap().is_empty());
    let compacted = compact(&index, None, Progress::Silent).unwrap();
    assert_eq!(compacted.meta.live(), Counts::default());
    assert_eq!(verify(&index), [""; 0]);
    assert!(open(&index).search("w1 w2", 5).unwrap().is_empty());
    write_corpus(&corpus, 50, 3);
    assert_eq!(add_to(&index, &corpus).meta.parts.len(), 1, "the empty part is gone");
    assert_eq!((verify(&index), open(&index).meta().live().documents), (vec![], 3));
    // Every document replaced: the old part goes as a whole.
    fs::write(&corpus, fs::read_to_string(&corpus).unwrap().replace("Title", "New title")).unwrap();
    let added = add_to(&index, &corpus);
    assert_eq!((added.replaced, added.meta.parts.len(), added.meta.dead()), (3, 1, Counts::default()));
    assert!(open(&index).search("w1 w2", 1).unwrap()[0].title.starts_with("New title"));
}

#[test]
fn an_addition_that_stops_goes_on_and_the_index_is_whole_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 50));
    let (index, more) = (dir.path().join("index"), dir.path().join("more.jsonl"));
    write_corpus(&more, 40, 900);
    let whole = dir.path().join("whole");
    copy(&index, &whole);
    add_to(&whole, &more);
    let before = open(&index).identity();
    let giving_up = |calls| HashedWords { calls_left: AtomicUsize::new(calls), ..words() };
    for calls in [0, 25, 40] {
        assert!(add_with(&index, &more, giving_up(calls), false).is_err());
        assert_eq!((verify(&index), open(&index).identity()), (vec![], before.clone()));
    }
    let other = dir.path().join("other.jsonl");
    write_corpus(&other, 2000, 5);
    let error = add_with(&index, &other, words(), false).unwrap_err().to_string();
    assert!(error.contains("more.jsonl") && error.contains("--restart"), "{error}");
    let encoder = giving_up(40);
    add_with(&index, &more, encoder, false).unwrap();
    assert!(files(&index) == files(&whole), "the same bytes as in one go");
    // A changed corpus is told; --restart begins again; a change of the index makes the work void.
    write_corpus(&more, 3000, 900);
    assert!(add_with(&index, &more, giving_up(25), false).is_err());
    write_corpus(&more, 3001, 900);
    let error = add_with(&index, &more, words(), false).unwrap_err().to_string();
    assert!(error.contains("changed") && error.contains("--restart"), "{error}");
    assert!(add_with(&index, &more, giving_up(25), true).is_err());
    delete(&index, &["doc-7"]).unwrap();
    assert_eq!(add_to(&index, &more).added, 900);
    assert_eq!(verify(&index), [""; 0]);
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path: PathBuf = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn readers_go_on_with_the_generation_that_they_opened() {
    let dir = tempfile::tempdir().unwrap();
    let reader = index_of(dir.path(), 60);
    let (index, more) = (dir.path().join("index"), dir.path().join("more.jsonl"));
    let out = dir.path().join("neighbours");
    precompute(&reader, None, 2, Ranking::Vectors, &out, false, Progress::Silent).unwrap();
    Neighbours::open_for(&out, &index).unwrap();
    let before = reader.search("w1 w2 w3", 20).unwrap();
    write_corpus(&more, 55, 20);
    add_to(&index, &more);
    delete(&index, &["doc-1", "doc-2", "doc-60"]).unwrap();
    compact(&index, None, Progress::Silent).unwrap();
    assert_eq!(reader.search("w1 w2 w3", 20).unwrap(), before);
    assert!(open(&index).search("w1 w2 w3", 200).unwrap().iter().all(|p| p.id != "doc-1"));
    let error = Neighbours::open_for(&out, &index).err().unwrap().to_string();
    assert!(error.contains(&reader.identity()), "{error}");
}

#[test]
fn opening_never_sees_a_half_changed_index() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 40));
    let (index, more) = (dir.path().join("index"), dir.path().join("more.jsonl"));
    write_corpus(&more, 100, 3);
    let opened = AtomicUsize::new(0);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let reader = open(&index);
                assert!(matches!(live(reader.store()).len(), 40 | 43));
                assert_eq!(verify(&index), [""; 0]);
                opened.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut rounds = 0;
        while rounds < 6 || opened.load(Ordering::SeqCst) < 10 {
            add_to(&index, &more);
            delete(&index, &["doc-100", "doc-101", "doc-102"]).unwrap();
            rounds += 1;
        }
        over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 9));
    let (index, corpus) = (dir.path().join("index"), dir.path().join("corpus.jsonl"));
    let held = sidenote_index::Lock::acquire(&index).unwrap();
    let before = files(&index);
    let errors = [
        add_with(&index, &corpus, words(), false).unwrap_err(),
        delete(&index, &["doc-1"]).unwrap_err(),
        compact(&index, None, Progress::Silent).unwrap_err(),
        build_index(&[corpus], &index, &words(), Existing::Replace).unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains(index.to_str().unwrap()), "{error}");
        assert!(error.to_string().contains("writ"), "{error}");
    }
    assert!(files(&index) == before);
    drop(held);
    delete(&index, &["doc-1"]).unwrap();
}

#[test]
fn another_kind_of_index_can_be_asked_for_when_compacting() {
    let dir = tempfile::tempdir().unwrap();
    let before = index_of(dir.path(), 40).search("w1 w2", 9).unwrap();
    let index = dir.path().join("index");
    let spec = "RaBitQ".parse().unwrap();
    let compacted = compact(&index, Some(spec), Progress::Silent).unwrap();
    assert_eq!(compacted.meta.kinds(), "RaBitQ");
    assert_eq!(verify(&index), [""; 0]);
    let after = open(&index).search("w1 w2", 9).unwrap();
    let ids = |passages: &[Passage]| passages.iter().map(|p| p.chunk).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before));
    // There is nothing left to do, and that is no new generation.
    let identity = compacted.meta.identity();
    assert_eq!(compact(&index, None, Progress::Silent).unwrap().meta.identity(), identity);
}

#[test]
fn what_a_kill_right_after_the_swap_left_goes_with_the_next_compaction() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 40));
    let index = dir.path().join("index");
    delete(&index, &["doc-1"]).unwrap();
    let old = files(&index);
    compact(&index, None, Progress::Silent).unwrap();
    let compacted = files(&index);
    // The pieces of the old generation are there still, and the folder that was worked in.
    let pieces = old.into_iter().filter(|(path, _)| !compacted.contains_key(path));
    for (path, bytes) in pieces.chain([("compact/store/tokens.u32".into(), vec![1; 4])]) {
        let path = index.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    assert!(files(&index).len() > compacted.len() + 3);
    let again = compact(&index, None, Progress::Silent).unwrap();
    assert!(again.bytes.1 < again.bytes.0, "{:?}", again.bytes);
    assert!(files(&index) == compacted);
    assert!(!index.join("compact").exists());
}

#[test]
fn a_changed_index_is_no_finished_build() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 9));
    let (index, corpus) = (dir.path().join("index"), dir.path().join("corpus.jsonl"));
    delete(&index, &["doc-1"]).unwrap();
    let error = build_index(&[corpus], &index, &words(), Existing::Resume).unwrap_err().to_string();
    assert!(error.contains("nothing to resume") && error.contains("--force"), "{error}");
}

#[test]
fn damaged_marks_are_found_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(index_of(dir.path(), 40));
    let index = dir.path().join("index");
    delete(&index, &["doc-1", "doc-5"]).unwrap();
    let marks = files(&index).into_keys().find(|name| name.to_str().unwrap().starts_with("dead-0.")).unwrap();
    let sound = fs::read(index.join(&marks)).unwrap();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 4;
        fs::write(index.join(&marks), &damaged).unwrap();
        assert!(verify(&index).iter().any(|problem| problem.contains("dead-0.")));
        assert!(Retriever::open(&index, Some(Box::new(words()))).is_err());
    }
    fs::write(index.join(&marks), &sound).unwrap();
    assert_eq!(verify(&index), [""; 0]);
    let manifest = index.join(crate::artefact::MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"documents\": 2,", "\"documents\": 3,")).unwrap();
    let problems = verify(&index);
    assert!(
        problems.iter().any(|p| p.contains("states 3 deleted documents, but there are 2")),
        "{problems:?}"
    );
}
