//! Missing, foreign and damaged files: an error that names the file, or a search that survives.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{SPECS, build, clustered};
use proptest::prelude::*;
use sidenote_index::artefact::{ArtefactError, MANIFEST, Writer, verify};
use sidenote_index::{Index, IndexError, Metric, Spec};
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

/// The names and contents of an index's files.
type Files = Vec<(PathBuf, Vec<u8>)>;

/// One whole index of each kind.
fn samples() -> &'static [Files] {
    static SAMPLES: OnceLock<Vec<Files>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let sample = |spec| {
            let dir = tempdir().unwrap();
            build(dir.path(), &clustered(ROWS, DIM, 3, 1), DIM, Metric::InnerProduct, spec);
            let read = |path: PathBuf| (path.file_name().unwrap().into(), fs::read(path).unwrap());
            files(dir.path()).into_iter().map(read).collect()
        };
        SPECS.into_iter().map(sample).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    /// Any byte changed or any end cut off, in any file, with or without a manifest that has been
    /// made to agree: an error, or an index whose searches come back.
    #[test]
    fn damage_never_panics(
        kind in 0usize..SPECS.len(),
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        flip in 1u8..,
        cut in prop::bool::weighted(0.2),
        agree in any::<bool>(),
    ) {
        let sample = &samples()[kind];
        let damaged = file.index(sample.len());
        let is_manifest = |name: &Path| name == Path::new(MANIFEST);
        let (old_len, place) = (sample[damaged].1.len(), place.index(sample[damaged].1.len().max(1)));
        let agree = agree && cut && !is_manifest(&sample[damaged].0);
        let dir = tempdir().unwrap();
        for (i, (name, content)) in sample.iter().enumerate() {
            let mut content = content.clone();
            if agree && is_manifest(name) {
                let text = String::from_utf8(content).unwrap();
                content = text.replace(&format!("\"bytes\": {old_len}"), &format!("\"bytes\": {place}")).into();
            }
            if i == damaged && !content.is_empty() {
                match cut {
                    true => content.truncate(place),
                    false => content[place] ^= flip,
                }
            }
            fs::write(dir.path().join(name), content).unwrap();
        }
        let opened = Index::open(dir.path());
        let whole = verify(dir.path()).is_ok_and(|problems| problems.is_empty());
        prop_assert!(!whole || is_manifest(&sample[damaged].0) || old_len == 0);
        if let Ok(index) = opened {
            let queries = vec![0.5; 5 * index.dim()];
            let found = index.search_batch(&queries, 10, Some(&|_, id| id % 3 != 0)).unwrap();
            prop_assert!(found.iter().flatten().all(|hit| (hit.id as usize) < index.len()));
            let found = index.search(&queries[..index.dim()], 10, None).unwrap();
            prop_assert!(found.iter().all(|hit| index.vector(hit.id).is_some()));
        }
    }
}
