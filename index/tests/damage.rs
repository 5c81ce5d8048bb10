//! Missing, foreign and damaged files: an error that names the file, or a search that survives.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{SPECS, build, clustered};
use proptest::prelude::*;
use sidenote_index::artefact::{self, ArtefactError, MANIFEST, Writer, verify};
use sidenote_index::{Collection, Index, IndexError, Metric, Quantizer, Spec};
use tempfile::tempdir;

const ROWS: usize = 150; // enough for the graph to be walked and to have upper layers
const DIM: usize = 5;

fn open_error(dir: &Path) -> ArtefactError {
    match Index::open(dir) {
        Err(IndexError::Artefact(error)) => error,
        Err(other) => panic!("not an artefact's error: {other}"),
        Ok(_) => panic!("opened what must be refused"),
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn no_index_there_and_an_artefact_of_another_kind_or_version() {
    let dir = tempdir().unwrap();
    assert!(matches!(open_error(dir.path()), ArtefactError::Missing { .. }));
    assert!(matches!(open_error(&dir.path().join("absent")), ArtefactError::Missing { .. }));
    Writer::create(dir.path(), "chunk-store", 1).unwrap().commit(serde_json::json!({})).unwrap();
    assert!(matches!(open_error(dir.path()), ArtefactError::WrongKind { .. }));
    Writer::create(dir.path(), "vector-index", 99).unwrap().commit(serde_json::json!({})).unwrap();
    assert!(matches!(open_error(dir.path()), ArtefactError::WrongVersion { .. }));
    Writer::create(dir.path(), "vector-index", 1).unwrap().commit(serde_json::json!({})).unwrap();
    assert!(matches!(open_error(dir.path()), ArtefactError::BadManifest { .. }));
}

#[test]
fn every_file_is_missed_when_gone_or_of_another_length() {
    for spec in SPECS {
        let dir = tempdir().unwrap();
        build(dir.path(), &clustered(ROWS, DIM, 3, 1), DIM, Metric::L2, spec);
        for file in files(dir.path()) {
            let content = fs::read(&file).unwrap();
            let is_manifest = file.ends_with(MANIFEST);
            fs::write(&file, &content[..content.len() - 1]).unwrap();
            let error = open_error(dir.path());
            match is_manifest {
                true => assert!(matches!(error, ArtefactError::BadManifest { .. }), "{error}"),
                false => {
                    assert!(
                        matches!(&error, ArtefactError::Damaged { path, .. } if *path == file),
                        "{error}"
                    );
                }
            }
            fs::remove_file(&file).unwrap();
            let error = open_error(dir.path());
            match is_manifest {
                true => assert!(matches!(error, ArtefactError::Missing { .. }), "{error}"),
                false => {
                    assert!(
                        matches!(&error, ArtefactError::Damaged { path, .. } if *path == file),
                        "{error}"
                    );
                }
            }
            fs::write(&file, &content).unwrap();
            Index::open(dir.path()).unwrap();
        }
    }
}

/// The manifest's own claims are checked against the files before anything is read through them.
#[test]
fn a_manifest_that_contradicts_its_files_is_refused() {
    for (spec, changes) in [
        (Spec::Flat, vec![("\"rows\": 150", "\"rows\": 151"), ("\"dim\": 5", "\"dim\": 0")]),
        (Spec::Flat, vec![("\"rows\": 150", "\"rows\": 18446744073709551615")]),
        (
            Spec::Flat,
            vec![("\"dim\": 5", "\"dim\": 4611686018427387904"), ("Flat", "HNSW8"), ("Flat", "RaBitQ")],
        ),
        (Spec::Sq(Quantizer::Bf16), vec![("\"rows\": 150", "\"rows\": 149"), ("SQbf16", "SQ8")]),
        (Spec::Sq(Quantizer::Int8), vec![("\"dim\": 5", "\"dim\": 6"), ("SQ8", "SQbf16"), ("SQ8", "Flat")]),
        (Spec::RaBitQ { bits: 1 }, vec![("\"rows\": 150", "\"rows\": 4294967296"), ("RaBitQ", "RaBit")]),
        (Spec::Hnsw { m: 8 }, vec![("HNSW8", "HNSW9"), ("HNSW8", "HNSW0"), ("\"entry\": ", "\"entry\": 9")]),
        (Spec::Hnsw { m: 8 }, vec![("\"upper\": [", "\"upper\": [18446744073709551615, ")]),
    ] {
        let dir = tempdir().unwrap();
        build(dir.path(), &clustered(ROWS, DIM, 3, 1), DIM, Metric::L2, spec);
        let path = dir.path().join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        for (old, new) in changes {
            assert!(text.contains(old), "{old} not in {text}");
            fs::write(&path, text.replace(old, new)).unwrap();
            let error = open_error(dir.path());
            assert!(
                matches!(error, ArtefactError::BadManifest { .. } | ArtefactError::Damaged { .. }),
                "{spec}: {old} -> {new}: {error}"
            );
        }
    }
}

/// Everything below a folder, by its path there.
type Files = Vec<(PathBuf, Vec<u8>)>;

fn all_files(dir: &Path) -> Files {
    let mut all = Files::new();
    for path in files(dir) {
        let name = PathBuf::from(path.file_name().unwrap());
        match path.is_dir() {
            true => all.extend(all_files(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes))),
            false => all.push((name, fs::read(path).unwrap())),
        }
    }
    all
}

/// One whole index of each kind, and last a collection of two segments with dead rows.
fn samples() -> &'static [Files] {
    static SAMPLES: OnceLock<Vec<Files>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let rows = clustered(ROWS, DIM, 3, 1);
        let index = |spec| {
            let dir = tempdir().unwrap();
            build(dir.path(), &rows, DIM, Metric::InnerProduct, spec);
            all_files(dir.path())
        };
        let dir = tempdir().unwrap();
        let spec = Some(Spec::RaBitQ { bits: 1 });
        let mut writer = Collection::create(dir.path(), DIM, Metric::Cosine, spec, 1).unwrap();
        for range in [0..100, 100..ROWS] {
            let ids: Vec<u64> = range.clone().map(|row| 10 * row as u64).collect();
            writer.add(&ids, &rows[range.start * DIM..range.end * DIM]).unwrap();
            writer.commit().unwrap();
        }
        writer.delete(&[20, 70, 1010]).unwrap();
        writer.commit().unwrap();
        drop(writer);
        let is_data = |(name, _): &(PathBuf, Vec<u8>)| !name.ends_with("writer.lock");
        let collection = all_files(dir.path()).into_iter().filter(is_data).collect();
        SPECS.into_iter().map(index).chain([collection]).collect()
    })
}

/// What is done to one file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(u8),
    Cut,
    Extend(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (1u8..).prop_map(Damage::Flip),
        1 => Just(Damage::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Damage::Extend),
    ]
}

/// Writes the sample with one file damaged at `place`, which is scaled to its length. With `agree`,
/// the manifest beside it says its new length. Whether anything is other than it was.
fn write_damaged(
    dir: &Path,
    sample: &Files,
    damaged: usize,
    place: prop::sample::Index,
    damage: &Damage,
    agree: bool,
) -> bool {
    let (damaged_name, old) = &sample[damaged];
    let mut new = old.clone();
    match damage {
        Damage::Flip(_) if old.is_empty() => {}
        Damage::Flip(bits) => new[place.index(old.len())] ^= bits,
        Damage::Cut => new.truncate(place.index(old.len().max(1))),
        Damage::Extend(bytes) => new.extend(bytes),
    }
    for (name, content) in sample {
        let mut content = content.clone();
        if agree && name.ends_with(MANIFEST) && name.parent() == damaged_name.parent() {
            let text = String::from_utf8(content).unwrap();
            let (said, says) = (format!("\"bytes\": {},", old.len()), format!("\"bytes\": {},", new.len()));
            content = text.replace(&said, &says).into();
        }
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, if name == damaged_name { &new } else { &content }).unwrap();
    }
    new != *old
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    /// Any byte changed, any end cut off or put on, in any file, with or without a manifest that
    /// has been made to agree: `verify` tells of every change to data, and what still opens can be
    /// searched and changed without a panic.
    #[test]
    fn damage_never_panics(
        kind in 0usize..=SPECS.len(),
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        damage in damage(),
        agree in any::<bool>(),
    ) {
        let sample = &samples()[kind];
        let damaged = file.index(sample.len());
        let name = &sample[damaged].0;
        let is_collection = kind == SPECS.len();
        // The manifest of a segment is data to the collection.
        let is_data = name != Path::new(MANIFEST);
        let dir = tempdir().unwrap();
        let changed = write_damaged(dir.path(), sample, damaged, place, &damage, agree && is_data);
        let whole = match is_collection {
            true => Collection::verify(dir.path()).is_ok_and(|problems| problems.is_empty()),
            false => verify(dir.path()).is_ok_and(|problems| problems.is_empty()),
        };
        prop_assert!(!(whole && changed && is_data), "{} with {damage:?} is taken for whole", name.display());
        match is_collection {
            true => use_collection(dir.path()),
            false => use_index(dir.path()),
        }
    }
}

fn use_index(dir: &Path) {
    let Ok(index) = Index::open(dir) else { return };
    let queries = vec![0.5; 5 * index.dim()];
    let found = index.search_batch(&queries, 10, Some(&|_, id| id % 3 != 0)).unwrap();
    assert!(found.iter().flatten().all(|hit| (hit.id as usize) < index.len()));
    let found = index.search(&queries[..index.dim()], 10, None).unwrap();
    assert!(found.iter().all(|hit| index.vector(hit.id).is_some()));
}

fn use_collection(dir: &Path) {
    if let Ok(collection) = Collection::open(dir) {
        let queries = vec![0.5; 5 * collection.dim()];
        let found = collection.search_batch(&queries, 10, Some(&|_, id| id % 3 != 0)).unwrap();
        assert!(found.iter().flatten().all(|found| found.id % 3 != 0));
        collection.search(&queries[..collection.dim()], 10, None).unwrap();
        let there = (0..ROWS as u64 * 10).filter(|id| collection.contains(*id)).count();
        let vectors = collection.ids().filter(|id| collection.vector(*id).is_some()).count();
        assert!(there <= ROWS && vectors <= ROWS);
    }
    // What comes of changing it may be an error; the manifest is whole all the same.
    if let Ok(mut writer) = Collection::write(dir) {
        let row = vec![0.5; writer.committed().dim()];
        let _ = writer.delete(&[0, 10, 20, 30, 1200]);
        let _ = writer.upsert(&[10], &row);
        let _ = writer.commit();
        let _ = writer.compact();
        artefact::read_manifest(dir).unwrap();
    }
}

/// Files that are whole, but not of one piece: those of another generation, or of another segment.
#[test]
fn a_collection_put_together_from_two_is_found_out() {
    let sample = samples().last().unwrap();
    let at = |dir: &Path| {
        sample.iter().for_each(|(name, content)| {
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), content).unwrap();
        })
    };
    let swap = |dir: &Path, a: &str, b: &str| {
        fs::rename(dir.join(a), dir.join("aside")).unwrap();
        fs::rename(dir.join(b), dir.join(a)).unwrap();
        fs::rename(dir.join("aside"), dir.join(b)).unwrap();
    };
    let dir = tempdir().unwrap();
    at(dir.path());
    assert!(Collection::verify(dir.path()).unwrap().is_empty());
    swap(dir.path(), "segment-000000", "segment-000001");
    let error = Collection::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("segment-000000"), "{error}");
    assert_eq!(Collection::verify(dir.path()).unwrap().len(), 2);

    // A segment of the same length from elsewhere.
    at(dir.path());
    let other = dir.path().join("segment-000001");
    build(&other, &clustered(ROWS - 100, DIM, 3, 99), DIM, Metric::Cosine, Spec::RaBitQ { bits: 1 });
    let error = Collection::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("segment-000001") && error.contains("hash"), "{error}");
    assert!(!Collection::verify(dir.path()).unwrap().is_empty());
}

/// Hashes can be made to agree by whoever writes the files; an order that is not there cannot.
#[test]
fn ids_that_do_not_ascend_are_found_out() {
    let dir = tempdir().unwrap();
    let mut writer = Collection::create(dir.path(), 1, Metric::L2, None, 1).unwrap();
    writer.add(&[1, 2, 3], &[1.0, 2.0, 3.0]).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let manifest = artefact::read_manifest(dir.path()).unwrap();
    let path = manifest.path(dir.path(), "ids-000000.u64").unwrap();
    let ids: Vec<u8> = [1u64, 3, 2].iter().flat_map(|id| id.to_le_bytes()).collect();
    fs::write(&path, &ids).unwrap();
    let text = fs::read_to_string(dir.path().join(MANIFEST)).unwrap();
    let (old, new) = (&manifest.files["ids-000000.u64"].blake3, blake3::hash(&ids).to_hex());
    fs::write(dir.path().join(MANIFEST), text.replace(old, &new)).unwrap();
    let problems = Collection::verify(dir.path()).unwrap();
    assert!(matches!(&problems[..], [ArtefactError::Damaged { path: p, .. }] if *p == path), "{problems:?}");
}
