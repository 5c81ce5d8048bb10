//! What a collection promises: the content is what was committed, whatever the history, and a
//! search finds what one exact index of this content finds.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{METRICS, SPECS, build, clustered};
use proptest::prelude::*;
use sidenote_index::artefact::{ArtefactError, Writer};
use sidenote_index::{Builder, Collection, CollectionWriter, Index, IndexError, Metric, Neighbour, Spec};
use tempfile::{TempDir, tempdir};

const DIM: usize = 3;

type Content = BTreeMap<u64, Vec<f32>>;

fn create(dir: &Path, metric: Metric) -> CollectionWriter {
    Collection::create(dir, DIM, metric, Some(Spec::Flat), 1).unwrap()
}

fn content(collection: &Collection) -> Content {
    collection.ids().map(|id| (id, collection.vector(id).unwrap().to_vec())).collect()
}

/// One exact index of the content; the ids of its rows are those of the content in order.
fn one_index(content: &Content, metric: Metric) -> (TempDir, Index) {
    let dir = tempdir().unwrap();
    let rows: Vec<f32> = content.values().flatten().copied().collect();
    let index = build(dir.path(), &rows, DIM, metric, Spec::Flat);
    (dir, index)
}

#[derive(Debug, Clone)]
enum Change {
    Add(Vec<(u64, [i8; DIM])>),
    Upsert(Vec<(u64, [i8; DIM])>),
    Delete(Vec<u64>),
    Commit,
    Compact,
    Reopen,
}

fn change() -> impl Strategy<Value = Change> {
    let rows = prop::collection::btree_map(0u64..60, prop::array::uniform3(-2i8..=2), 0..12);
    let shuffled = || rows.clone().prop_map(|rows| rows.into_iter().collect::<Vec<_>>()).prop_shuffle();
    prop_oneof![
        4 => shuffled().prop_map(Change::Add),
        3 => shuffled().prop_map(Change::Upsert),
        3 => prop::collection::vec(0u64..60, 0..10).prop_map(Change::Delete),
        6 => Just(Change::Commit),
        1 => Just(Change::Compact),
        1 => Just(Change::Reopen),
    ]
}

fn split(rows: &[(u64, [i8; DIM])]) -> (Vec<u64>, Vec<f32>) {
    rows.iter().map(|(id, row)| (*id, row.map(|x| f32::from(x) * 0.3))).fold(
        (Vec::new(), Vec::new()),
        |(mut ids, mut all), (id, row)| {
            ids.push(id);
            all.extend(row);
            (ids, all)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Any history of changes, beside a plain map. Fails when `upsert` does not bury the old row,
    /// when a commit takes dead rows along, joins rows in another order than that of their ids or
    /// keeps a dead set that has grown, and when a row that was not committed cannot be deleted.
    #[test]
    fn any_history_equals_a_plain_map(
        changes in prop::collection::vec(change(), 1..25),
        metric in prop::sample::select(METRICS.to_vec()),
        queries in prop::collection::vec(-2i8..=2, 5 * DIM),
        k in 1usize..30,
    ) {
        let dir = tempdir().unwrap();
        let mut writer = create(dir.path(), metric);
        let (mut now, mut committed) = (Content::new(), Content::new());
        for change in changes {
            match change {
                Change::Add(rows) => {
                    let (ids, all) = split(&rows);
                    let added = writer.add(&ids, &all);
                    if ids.iter().any(|id| now.contains_key(id)) {
                        prop_assert!(added.is_err_and(|error| error.to_string().contains("already")));
                    } else {
                        added.unwrap();
                        now.extend(ids.iter().copied().zip(all.chunks(DIM).map(<[f32]>::to_vec)));
                    }
                }
                Change::Upsert(rows) => {
                    let (ids, all) = split(&rows);
                    let there = ids.iter().filter(|id| now.contains_key(id)).count();
                    prop_assert_eq!(writer.upsert(&ids, &all).unwrap(), there);
                    now.extend(ids.iter().copied().zip(all.chunks(DIM).map(<[f32]>::to_vec)));
                }
                Change::Delete(ids) => {
                    let before = now.len();
                    ids.iter().for_each(|id| drop(now.remove(id)));
                    prop_assert_eq!(writer.delete(&ids).unwrap(), before - now.len());
                }
                Change::Commit => {
                    writer.commit().unwrap();
                    committed = now.clone();
                }
                Change::Compact => {
                    writer.compact().unwrap();
                    committed = now.clone();
                    prop_assert!(writer.committed().segments() <= 1);
                    prop_assert_eq!(writer.committed().dead(), 0);
                }
                Change::Reopen => {
                    drop(writer);
                    writer = Collection::write(dir.path()).unwrap();
                    now = committed.clone();
                }
            }
            prop_assert_eq!(writer.len(), now.len());
            prop_assert!((0..60).all(|id| writer.contains(id) == now.contains_key(&id)));
        }
        let collection = Collection::open(dir.path()).unwrap();
        prop_assert!(Collection::verify(dir.path()).unwrap().is_empty());
        prop_assert_eq!(collection.len(), committed.len());
        let (_dir, one) = one_index(&committed, metric);
        let ids: Vec<u64> = committed.keys().copied().collect();
        let mut listed: Vec<u64> = collection.ids().collect();
        listed.sort_unstable();
        prop_assert_eq!(&listed, &ids);
        for id in 0..61 {
            let wanted = ids.binary_search(&id).ok().and_then(|row| one.vector(row as u32));
            prop_assert_eq!(collection.contains(id), wanted.is_some());
            prop_assert_eq!(collection.vector(id), wanted);
        }

        let queries: Vec<f32> = queries.iter().map(|&x| f32::from(x)).collect();
        let named = |found: Vec<Vec<sidenote_index::Hit>>| -> Vec<Vec<Neighbour>> {
            let name = |hit: &sidenote_index::Hit| Neighbour { id: ids[hit.id as usize], score: hit.score };
            found.iter().map(|hits| hits.iter().map(name).collect()).collect()
        };
        let found = collection.search_batch(&queries, k, None).unwrap();
        prop_assert_eq!(&found, &named(one.search_batch(&queries, k, None).unwrap()));
        prop_assert_eq!(&collection.search(&queries[..DIM], k, None).unwrap(), &found[0]);
        let allow = |query: usize, id: u64| (id + query as u64).is_multiple_of(3);
        let found = collection.search_batch(&queries, k, Some(&allow)).unwrap();
        let by_row = |query: usize, row: u32| allow(query, ids[row as usize]);
        prop_assert_eq!(&found, &named(one.search_batch(&queries, k, Some(&by_row)).unwrap()));
        let found = collection.search(&queries[..DIM], k, Some(&|id| id % 2 == 0)).unwrap();
        prop_assert!(found.iter().all(|neighbour| neighbour.id % 2 == 0));
    }
}

#[test]
fn every_kind_of_segment_lives() {
    let (n, dim) = (600, 8);
    let rows = clustered(n, dim, 5, 1);
    for spec in SPECS {
        for metric in METRICS {
            let dir = tempdir().unwrap();
            let mut writer = Collection::create(dir.path(), dim, metric, Some(spec), 1).unwrap();
            for (part, range) in [0..400, 400..550, 550..600].into_iter().enumerate() {
                let ids: Vec<u64> = range.clone().map(|row| 1_000_000_000_000 + row as u64).collect();
                writer.add(&ids, &rows[range.start * dim..range.end * dim]).unwrap();
                writer.commit().unwrap();
                assert_eq!(writer.committed().segments(), part + 1);
            }
            let gone: Vec<u64> = (0..600).step_by(3).map(|row| 1_000_000_000_000 + row).collect();
            assert_eq!(writer.delete(&gone).unwrap(), 200);
            writer.commit().unwrap();
            for compacted in [false, true] {
                if compacted {
                    writer.compact().unwrap();
                }
                let collection = Collection::open(dir.path()).unwrap();
                assert_eq!((collection.len(), collection.segments()), (400, if compacted { 1 } else { 3 }));
                let mut itself = 0;
                for row in 0..n {
                    let found = collection.search(&rows[row * dim..][..dim], 5, None).unwrap();
                    assert_eq!(found.len(), 5);
                    assert!(found.iter().all(|found| !gone.contains(&found.id)));
                    itself += usize::from(found[0].id == 1_000_000_000_000 + row as u64);
                }
                let floor = if metric == Metric::InnerProduct { 0 } else { 395 };
                assert!(itself <= 400 && itself >= floor, "{spec} {metric}: {itself} found themselves");
            }
        }
    }
}

#[test]
fn readers_keep_their_generation_and_one_writer_its_lock() {
    let dir = tempdir().unwrap();
    let mut writer = create(dir.path(), Metric::L2);
    let empty = Collection::open(dir.path()).unwrap();
    assert!(empty.is_empty() && empty.is_current() && empty.search(&[0.0; DIM], 5, None).unwrap().is_empty());
    writer.add(&[1, 2], &[0.0; 2 * DIM]).unwrap();
    assert!(Collection::open(dir.path()).unwrap().is_empty(), "not committed yet");
    assert_eq!(writer.commit().unwrap(), 1);
    assert_eq!(writer.commit().unwrap(), 1, "nothing has changed");
    let one = Collection::open(dir.path()).unwrap();
    assert!(!empty.is_current() && one.is_current());

    writer.upsert(&[2, 3], &[1.0; 2 * DIM]).unwrap();
    writer.compact().unwrap();
    for (collection, wanted) in [(&empty, vec![]), (&one, vec![1, 2])] {
        let found = collection.search(&[0.0; DIM], 5, None).unwrap();
        assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), wanted);
    }
    assert_eq!(one.vector(2).unwrap()[..], [0.0; DIM]);
    assert_eq!(Collection::open(dir.path()).unwrap().vector(2).unwrap()[..], [1.0; DIM]);

    let error = Collection::write(dir.path()).err().unwrap();
    assert!(matches!(&error, IndexError::Locked { dir: d } if d == dir.path()), "{error}");
    writer.delete(&[1]).unwrap();
    drop(writer);
    let writer = Collection::write(dir.path()).unwrap();
    assert_eq!(writer.len(), 3, "an uncommitted deletion must be gone with its writer");
}

/// A thousand commits of one row must not leave a thousand segments.
#[test]
fn small_commits_are_joined() {
    let dir = tempdir().unwrap();
    let mut writer = create(dir.path(), Metric::L2);
    let mut most = 0;
    for id in 0..130u64 {
        writer.add(&[(id * 37) % 1000], &[id as f32; DIM]).unwrap();
        writer.commit().unwrap();
        most = most.max(writer.committed().segments());
    }
    assert!((4..=8).contains(&most), "{most} segments");
    assert_eq!(writer.committed().len(), 130);
    // What is on disk is what is in use: a folder a segment, its ids, the manifest and the lock.
    let entries = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(entries, 2 * writer.committed().segments() + 2);
}

#[test]
fn bad_ids_and_vectors_are_refused_by_name_and_change_nothing() {
    let dir = tempdir().unwrap();
    let mut writer = create(dir.path(), Metric::Cosine);
    writer.add(&[7], &[1.0; DIM]).unwrap();
    writer.commit().unwrap();
    writer.add(&[8], &[1.0; DIM]).unwrap();

    let two = [1.0; 2 * DIM];
    for there in [7, 8] {
        let error = writer.add(&[9, there], &two).unwrap_err();
        assert!(matches!(error, IndexError::IdExists { id } if id == there), "{error}");
        assert!(error.to_string().contains("upsert"), "{error}");
    }
    for error in [writer.add(&[9, 9], &two).unwrap_err(), writer.upsert(&[9, 9], &two).unwrap_err()] {
        assert!(matches!(error, IndexError::IdTwice { id: 9 }), "{error}");
    }
    for error in [writer.add(&[9], &two).unwrap_err(), writer.upsert(&[9, 10, 11], &two).unwrap_err()] {
        assert!(matches!(error, IndexError::IdsAndRows { rows: 2, .. }), "{error}");
    }
    let error = writer.add(&[9], &[1.0; DIM + 1]).unwrap_err();
    assert!(matches!(error, IndexError::Length { what: "rows", .. }), "{error}");
    for bad in [f32::NAN, f32::NEG_INFINITY, 1e30] {
        let error = writer.upsert(&[9, 10], &[1.0, 1.0, 1.0, 1.0, bad, 1.0]).unwrap_err();
        assert!(error.to_string().contains("the row of id 10"), "{error}");
    }
    assert_eq!(writer.delete(&[9, 10, 11]).unwrap(), 0, "something of a refused call is there");
    assert_eq!(
        writer.delete(&[8, 8, 9]).unwrap(),
        1,
        "each is deleted once, and what is not there passed over"
    );
    writer.add(&[], &[]).unwrap();
    assert_eq!(writer.commit().unwrap(), 1, "nothing is left that was changed");

    // A zero vector has no direction: it is kept and scores 0.
    writer.add(&[0], &[0.0; DIM]).unwrap();
    writer.commit().unwrap();
    let collection = Collection::open(dir.path()).unwrap();
    let found = collection.search(&[1.0; DIM], usize::MAX, None).unwrap();
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [7, 0]);
    assert_eq!(found[1].score, 0.0);
    assert!(collection.search(&[1.0; DIM], 0, None).unwrap().is_empty());
    let error = collection.search(&[1.0; DIM - 1], 1, None).unwrap_err();
    assert!(matches!(error, IndexError::Length { what: "query", .. }), "{error}");
    let error = collection.search_batch(&[1.0; DIM + 1], 1, None).unwrap_err();
    assert!(matches!(error, IndexError::Length { what: "queries", .. }), "{error}");
    let error = collection.search(&[f32::NAN; DIM], 1, None).unwrap_err();
    assert!(matches!(error, IndexError::NotFinite { what: "query", number: 0 }), "{error}");
}

#[test]
fn folders_that_are_no_collection_are_refused() {
    let dir = tempdir().unwrap();
    let artefact_error = |error: Option<IndexError>| match error {
        Some(IndexError::Artefact(error)) => error,
        Some(error) => panic!("not an artefact's error: {error}"),
        None => panic!("opened what must be refused"),
    };
    for path in [dir.path().to_path_buf(), dir.path().join("absent")] {
        assert!(matches!(artefact_error(Collection::open(&path).err()), ArtefactError::Missing { .. }));
        assert!(matches!(artefact_error(Collection::write(&path).err()), ArtefactError::Missing { .. }));
        assert!(Collection::verify(&path).is_err());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "asking must write nothing");
    let index = dir.path().join("index");
    Builder::create(&index, DIM, Metric::L2, &Spec::Flat, 1).unwrap().finish().unwrap();
    let before = fs::read_dir(&index).unwrap().count();
    for error in [
        Collection::open(&index).err(),
        Collection::write(&index).err(),
        Collection::create(&index, DIM, Metric::L2, None, 1).err(),
    ] {
        assert!(matches!(artefact_error(error), ArtefactError::WrongKind { .. }));
    }
    assert_eq!(fs::read_dir(&index).unwrap().count(), before);

    let made = dir.path().join("made");
    drop(create(&made, Metric::L2));
    let error = Collection::create(&made, DIM, Metric::L2, None, 1).err().unwrap();
    assert!(matches!(&error, IndexError::CollectionExists { dir } if *dir == made), "{error}");
    Writer::create(&made, "vector-collection", 99).unwrap().commit(serde_json::json!({})).unwrap();
    assert!(matches!(artefact_error(Collection::open(&made).err()), ArtefactError::WrongVersion { .. }));

    for dim in [0, Builder::MAX_DIM + 1] {
        let error = Collection::create(&dir.path().join("new"), dim, Metric::L2, None, 1).err().unwrap();
        assert!(matches!(error, IndexError::Dimension { .. }), "{error}");
    }
    let odd = Some(Spec::Hnsw { m: 1 });
    let error = Collection::create(&dir.path().join("new"), DIM, Metric::L2, odd, 1).err().unwrap();
    assert!(matches!(error, IndexError::UnknownSpec { .. }), "{error}");
    assert!(!dir.path().join("new").exists());
}

/// A reader that opens while generations come and go gets one of them, never an error. Fails when
/// `Collection::open` does not look again.
#[test]
fn opening_in_the_middle_of_commits_gives_one_generation() {
    let dir = tempdir().unwrap();
    let mut writer = create(dir.path(), Metric::L2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let opened = std::thread::scope(|scope| {
        let read = || {
            let mut opened = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let collection = Collection::open(dir.path()).unwrap();
                let all = content(&collection);
                let generation = collection.generation();
                // Generation g has the ids 0..g, but for those that g has deleted.
                assert!(all.values().all(|row| row[0] as u64 <= generation), "{generation}: {all:?}");
                assert_eq!(all.len() as u64, generation.min(3), "{generation}: {all:?}");
                assert!(Collection::verify(dir.path()).unwrap().is_empty());
                opened += 1;
            }
            opened
        };
        let readers = [scope.spawn(read), scope.spawn(read)];
        for generation in 1..=150u64 {
            writer.add(&[generation], &[generation as f32; DIM]).unwrap();
            if generation > 3 {
                writer.delete(&[generation - 3]).unwrap();
            }
            assert_eq!(writer.commit().unwrap(), generation);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        readers.map(|reader| reader.join().unwrap())
    });
    assert!(opened.iter().all(|&opened| opened > 0), "{opened:?}");
}

/// A segment that comes to a larger one of lists takes these over, one that is joined of both trains its own, and so does a
/// compacted one. A file's name tells its content.
#[test]
fn segments_share_their_lists_until_they_are_joined() {
    let rows = clustered(3000, DIM, 30, 2);
    let dir = tempdir().unwrap();
    let spec: Spec = "IVF20,RaBitQ".parse().unwrap();
    let mut writer = Collection::create(dir.path(), DIM, Metric::L2, Some(spec), 1).unwrap();
    let mut next = 0;
    let mut centroids_after = |count: usize| {
        let ids: Vec<u64> = (next as u64..(next + count) as u64).collect();
        writer.add(&ids, &rows[next * DIM..][..count * DIM]).unwrap();
        writer.commit().unwrap();
        next += count;
        if count == 0 {
            writer.compact().unwrap();
        }
        let mut names: Vec<(String, String)> = Vec::new();
        for folder in fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()) {
            let files =
                fs::read_dir(folder.path()).into_iter().flatten().map(|file| file.unwrap().file_name());
            let mut files = files.map(|name| name.into_string().unwrap());
            names.extend(
                files
                    .find(|name| name.starts_with("centroids."))
                    .map(|name| (folder.file_name().into_string().unwrap(), name)),
            );
        }
        names.sort();
        names.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    let first = centroids_after(900);
    assert_eq!(first.len(), 1);
    let second = centroids_after(300);
    assert_eq!(second, [first[0].clone(), first[0].clone()]);
    let joined = centroids_after(1500);
    assert!(joined.len() == 1 && joined != first, "{joined:?} after {first:?}");
    let added = centroids_after(100);
    assert!(added.len() == 2 && added[0] == added[1]);
    let compacted = centroids_after(0);
    assert!(compacted.len() == 1 && compacted[0] != added[0]);
    assert!(Collection::verify(dir.path()).unwrap().is_empty());
    let collection = Collection::open(dir.path()).unwrap();
    assert_eq!(collection.search(&rows[2799 * DIM..][..DIM], 1, None).unwrap()[0].id, 2799);
}
