//! What earlier versions have written keeps opening, and finds what it found then.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sidenote_index::artefact::{ArtefactError, MANIFEST, verify};
use sidenote_index::{Collection, Index, IndexError, Metric, Spec};
use tempfile::tempdir;

/// One entry of `expected.json`.
#[derive(Deserialize)]
struct Expected {
    spec: Spec,
    metric: Metric,
    dim: usize,
    rows: usize,
    breadth: Option<usize>,
    #[serde(default)]
    first_id: u64,
    first_row: Vec<f32>,
    #[serde(default)]
    deleted: Vec<u64>,
    queries: Vec<Vec<f32>>,
    found: Vec<Vec<(u64, f32)>>,
}

fn data(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(version)
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn expected(version: &str, name: &str) -> Expected {
    let mut all: serde_json::Value = read(&data(version).join("expected.json"));
    serde_json::from_value(all[name].take()).unwrap()
}

fn assert_found(name: &str, expected: &Expected, found: &[Vec<(u64, f32)>]) {
    assert_eq!(found.len(), expected.queries.len());
    for (found, wanted) in found.iter().zip(&expected.found) {
        let ids = |hits: &[(u64, f32)]| hits.iter().map(|hit| hit.0).collect::<Vec<_>>();
        assert_eq!(ids(found), ids(wanted), "{name}");
        for ((_, score), (_, then)) in found.iter().zip(wanted) {
            // The order of sums may change from version to version.
            assert!((score - then).abs() <= 1e-5 * then.abs().max(1.0), "{name}: {score}, but {then} then");
        }
    }
}

#[test]
fn every_kind_of_index_of_every_version_opens_and_finds_what_it_found() {
    for (version, name) in [
        ("v1", "flat"),
        ("v1", "rabitq"),
        ("v1", "hnsw"),
        ("v2", "rabitq"),
        ("v2", "rabitq4"),
        ("v2", "qg"),
        ("v2", "ivf"),
        ("v2", "ivf4"),
        ("v2", "ivf_qg"),
        ("v2", "sqbf16"),
        ("v2", "sq8"),
    ] {
        let (dir, expected) = (data(version).join(name), expected(version, name));
        assert!(verify(&dir).unwrap().is_empty(), "{name}: the data of this test has changed");
        let mut index = Index::open(&dir).unwrap();
        index.set_breadth(expected.breadth);
        assert_eq!((index.len(), index.dim()), (expected.rows, expected.dim), "{name}");
        assert_eq!((index.metric(), index.spec()), (expected.metric, expected.spec), "{name}");
        assert_eq!(index.vector(0).unwrap(), expected.first_row, "{name}");
        let queries = expected.queries.concat();
        let found = index.search_batch(&queries, expected.found[0].len(), None).unwrap();
        let found: Vec<Vec<_>> =
            found.iter().map(|hits| hits.iter().map(|hit| (hit.id.into(), hit.score)).collect()).collect();
        assert_found(name, &expected, &found);
    }
}

#[test]
fn a_collection_of_version_1_opens_and_goes_on() {
    let expected = expected("v1", "collection");
    let dir = tempdir().unwrap();
    copy(&data("v1").join("collection"), dir.path());
    assert!(Collection::verify(dir.path()).unwrap().is_empty(), "the data of this test has changed");
    let search = |collection: &Collection| {
        let queries = expected.queries.concat();
        let found = collection.search_batch(&queries, expected.found[0].len(), None).unwrap();
        let pairs = found.iter().map(|hits| hits.iter().map(|hit| (hit.id, hit.score)).collect());
        assert_found("collection", &expected, &pairs.collect::<Vec<_>>());
        assert_eq!(collection.vector(expected.first_id).unwrap(), expected.first_row);
        assert!(!expected.deleted.iter().any(|&id| collection.contains(id)));
        assert_eq!((collection.len(), collection.dim()), (expected.rows, expected.dim));
        assert_eq!((collection.metric(), collection.spec()), (expected.metric, Some(expected.spec)));
    };
    search(&Collection::open(dir.path()).unwrap());
    // The writer of today takes it over, next to segments that were written then, and as a whole.
    let mut writer = Collection::write(dir.path()).unwrap();
    writer.add(&[5], &vec![-1.0; expected.dim]).unwrap();
    writer.commit().unwrap();
    assert_eq!(writer.committed().len(), expected.rows + 1);
    writer.delete(&[5]).unwrap();
    writer.compact().unwrap();
    search(writer.committed());
    assert!(Collection::verify(dir.path()).unwrap().is_empty());
}

/// The error says which version was found, and that a newer program is needed.
#[test]
fn a_version_of_the_future_is_refused() {
    for name in ["flat", "collection"] {
        let dir = tempdir().unwrap();
        copy(&data("v1").join(name), dir.path());
        let path = dir.path().join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format_version\": 1", "\"format_version\": 4000")).unwrap();
        let error = match name {
            "flat" => Index::open(dir.path()).err().unwrap(),
            _ => Collection::open(dir.path()).err().unwrap(),
        };
        assert!(matches!(error, IndexError::Artefact(ArtefactError::WrongVersion { found: 4000, .. })));
        assert!(error.to_string().contains("newer"), "{error}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
