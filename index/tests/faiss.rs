//! Indexes by faiss. Most of it needs the cargo feature `faiss`; the round trip with Python's faiss needs
//! also `SIDENOTE_FAISS_PYTHON`, a Python that has `faiss-cpu`:
//!
//! ```text
//! SIDENOTE_FAISS_PYTHON=venv/bin/python cargo test --release -p sidenote-index --features faiss --test faiss
//! ```

mod common;

use sidenote_index::{Builder, Index, IndexError, Metric, Spec};
use tempfile::tempdir;

/// Fails when a program without faiss opens such an index, or does not say what it needs.
#[cfg(not(feature = "faiss"))]
#[test]
fn without_the_feature_the_error_names_it() {
    let dir = tempdir().unwrap();
    let spec: Spec = "faiss:HNSW32,Flat".parse().unwrap();
    let built = Builder::create(dir.path(), 4, Metric::L2, &spec, 0).err().unwrap();
    common::build(dir.path(), &[1.0; 4], 4, Metric::L2, Spec::Flat);
    let manifest = dir.path().join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("Flat", "faiss:HNSW32,Flat")).unwrap();
    let opened = Index::open(dir.path()).err().unwrap();
    let imported = Builder::import_faiss(dir.path(), &manifest, Metric::L2, None).err().unwrap();
    for error in [built, opened, imported] {
        assert!(matches!(error, IndexError::WithoutFaiss), "{error}");
        assert!(error.to_string().contains("feature `faiss`"), "{error}");
    }
}

#[cfg(feature = "faiss")]
mod with_faiss {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::common::{METRICS, brute_force, build, clustered, recall};
    use super::*;
    use sidenote_index::artefact::{self, ArtefactError, Manifest};
    use sidenote_index::{Hit, VectorFile};

    const DIM: usize = 16;

    fn spec(factory: &str) -> Spec {
        format!("faiss:{factory}").parse().unwrap()
    }

    fn faiss_file(dir: &Path) -> PathBuf {
        artefact::read_manifest(dir).unwrap().path(dir, "index.faiss").unwrap()
    }

    fn floats(path: &Path, rows: &[f32]) {
        let dim = (DIM as u32).to_le_bytes();
        let row = |row: &[f32]| dim.into_iter().chain(row.iter().flat_map(|x| x.to_le_bytes())).collect();
        fs::write(path, rows.chunks(DIM).flat_map(|r| -> Vec<u8> { row(r) }).collect::<Vec<_>>()).unwrap();
    }

    /// What holds for every kind, with strings that faiss treats in different ways: trained or not, with
    /// and without a breadth, exact and coarse.
    #[test]
    fn what_every_kind_promises_holds_for_faiss() {
        let rows = clustered(2000, DIM, 20, 1);
        let queries = clustered(30, DIM, 20, 2);
        for (factory, floor) in [
            ("Flat", 1.0),
            ("HNSW16,Flat", 0.98),
            ("IVF16,Flat", 1.0), // 16 lists are all
            ("OPQ8,IVF8,PQ8", 0.6),
            ("PQ8x4fs", 0.4),
            ("SQ8", 0.95),
        ] {
            for metric in METRICS {
                let dir = tempdir().unwrap();
                let index = build(dir.path(), &rows, DIM, metric, spec(factory));
                assert_eq!((index.len(), index.spec()), (2000, spec(factory)));
                assert!(artefact::verify(dir.path()).unwrap().is_empty());
                let on = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| index.search_batch(&queries, 10, None).unwrap())
                };
                let found = on(2);
                assert_eq!(found, on(1), "{factory} {metric}");
                let even = |query: usize, id: u32| (id as usize + query).is_multiple_of(2);
                let filtered = index.search_batch(&queries, 10, Some(&even)).unwrap();
                let rare = |_: usize, id: u32| id.is_multiple_of(500);
                let rarely = index.search_batch(&queries, 10, Some(&rare)).unwrap();
                let (mut mean, mut mean_filtered) = (0.0, 0.0);
                for (q, query) in queries.chunks(DIM).enumerate() {
                    let mut truth = brute_force(&rows, query, metric);
                    mean += recall(&found[q], &truth, 10) / 30.0;
                    for hit in &found[q] {
                        let wanted = truth.iter().find(|(id, _)| *id == hit.id).unwrap().1;
                        assert!((f64::from(hit.score) - wanted).abs() < 1e-4 * wanted.abs().max(1.0));
                    }
                    assert!(found[q].is_sorted_by(|a, b| a > b));
                    truth.retain(|(id, _)| even(q, *id));
                    assert!(filtered[q].len() == 10 && filtered[q].iter().all(|hit| even(q, hit.id)));
                    mean_filtered += recall(&filtered[q], &truth, 10) / 30.0;
                    truth.retain(|(id, _)| rare(q, *id));
                    let ids: Vec<u32> = rarely[q].iter().map(|hit| hit.id).collect();
                    assert_eq!(ids.len(), 4, "all that are allowed");
                }
                assert!(mean >= floor - 1e-9, "{factory} {metric}: recall {mean}");
                assert!(
                    mean_filtered >= floor - 1e-9,
                    "{factory} {metric}: recall {mean_filtered} with a filter"
                );
                let all = index.search(&queries[..DIM], usize::MAX, None).unwrap();
                assert_eq!(all.len(), 2000, "{factory} {metric}");
            }
        }
    }

    /// Fails when the breadth does not get to faiss.
    #[test]
    fn more_breadth_finds_more_and_can_be_tuned() {
        let rows = clustered(6000, DIM, 400, 3);
        let queries = clustered(100, DIM, 400, 4);
        for factory in ["HNSW4,Flat", "IVF100,Flat"] {
            let dir = tempdir().unwrap();
            let mut index = build(dir.path(), &rows, DIM, Metric::L2, spec(factory));
            let mean = |index: &Index| {
                let found = index.search_batch(&queries, 10, None).unwrap();
                let each = queries.chunks(DIM).zip(&found);
                each.map(|(q, hits)| recall(hits, &brute_force(&rows, q, Metric::L2), 10)).sum::<f64>()
                    / 100.0
            };
            index.set_breadth(Some(1));
            let narrow = mean(&index);
            index.set_breadth(Some(200));
            let wide = mean(&index);
            assert!(narrow < 0.8 && wide > 0.95, "{factory}: {narrow} and {wide}");
            index.set_breadth(None);
            let own = mean(&index);
            assert!(narrow < own && own <= wide, "{factory}: {narrow}, {own}, {wide}");
            let tuned = index.tune(&queries, 10, 0.9, None).unwrap();
            assert!(tuned.recall >= 0.9 && tuned.breadth.unwrap() > 1, "{factory}: {tuned:?}");
            // faiss keeps the breadth in the index: it must be back to what it was.
            assert_eq!(mean(&index), own);
        }
    }

    /// faiss trusts its files, so no changed byte may get there.
    #[test]
    fn a_changed_byte_is_found_when_opening() {
        let dir = tempdir().unwrap();
        build(dir.path(), &clustered(50, DIM, 2, 5), DIM, Metric::L2, spec("HNSW8,Flat"));
        let path = faiss_file(dir.path());
        let whole = fs::read(&path).unwrap();
        for place in [0, whole.len() / 3, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[place] ^= 4;
            fs::write(&path, bytes).unwrap();
            let error = Index::open(dir.path()).err().unwrap();
            assert!(
                matches!(&error, IndexError::Artefact(ArtefactError::Damaged { path: p, .. }) if *p == path),
                "{error}"
            );
        }
        fs::write(&path, whole).unwrap();
        Index::open(dir.path()).unwrap();
    }

    #[test]
    fn what_faiss_refuses_and_no_rows_at_all() {
        let dir = tempdir().unwrap();
        let rows = clustered(20, DIM, 2, 6);
        let finish = |factory: &str, rows: &[f32]| -> Result<Manifest, IndexError> {
            let mut builder = Builder::create(dir.path(), DIM, Metric::L2, &spec(factory), 0)?;
            builder.add(rows)?;
            builder.finish()
        };
        for bad in ["Nonsense", "IVF64,Flat", "imported"] {
            let error = finish(bad, &rows).unwrap_err();
            assert!(matches!(&error, IndexError::Faiss { what, .. } if what.contains(bad)), "{error}");
        }
        for factory in ["HNSW8,Flat", "IVF4,Flat"] {
            finish(factory, &[]).unwrap();
            let index = Index::open(dir.path()).unwrap();
            assert!(index.is_empty() && index.search(&rows[..DIM], 3, None).unwrap().is_empty());
        }
    }

    #[test]
    fn a_faiss_file_is_imported_with_its_rows_or_without() {
        let rows = clustered(500, DIM, 5, 7);
        let [from, to, vectors] = [(); 3].map(|()| tempdir().unwrap());
        let built = build(from.path(), &rows, DIM, Metric::L2, spec("HNSW16,SQ8"));
        let file = faiss_file(from.path());
        let query = &rows[3 * DIM..4 * DIM];

        Builder::import_faiss(to.path(), &file, Metric::L2, None).unwrap();
        let index = Index::open(to.path()).unwrap();
        assert_eq!((index.len(), index.spec()), (500, spec("imported")));
        assert_eq!(index.search(query, 1, None).unwrap()[0].id, 3);
        let kept = index.vector(3).unwrap();
        assert!(kept.iter().zip(query).all(|(a, b)| (a - b).abs() < 0.05) && *kept != *query, "SQ8 rounds");

        let path = vectors.path().join("rows.fvecs");
        floats(&path, &rows);
        let mut given = VectorFile::open(&path).unwrap();
        Builder::import_faiss(to.path(), &file, Metric::L2, Some(&mut given)).unwrap();
        let index = Index::open(to.path()).unwrap();
        assert_eq!(index.search(query, 9, None).unwrap(), built.search(query, 9, None).unwrap());
        assert_eq!(index.search(query, 1, None).unwrap(), [Hit { id: 3, score: 0.0 }]);

        floats(&path, &rows[DIM..]);
        let mut short = VectorFile::open(&path).unwrap();
        let garbage = vectors.path().join("garbage.index");
        fs::write(&garbage, [1u8; 100]).unwrap();
        let absent = vectors.path().join("absent.index");
        for (file, metric, vectors, named) in [
            (&file, Metric::Cosine, None, "L2"),
            (&file, Metric::L2, Some(&mut short), "499"),
            (&garbage, Metric::L2, None, "garbage.index"),
            (&absent, Metric::L2, None, "absent.index"),
        ] {
            let error = Builder::import_faiss(to.path(), file, metric, vectors).unwrap_err();
            assert!(matches!(error, IndexError::Faiss { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
        Index::open(to.path()).unwrap(); // as it was
    }

    fn python(code: &str, arguments: &[&Path]) -> Option<String> {
        let python = std::env::var_os("SIDENOTE_FAISS_PYTHON")?;
        let output = Command::new(python).arg("-c").arg(code).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    }

    /// Python reads what was built here and finds the same; what Python has built is imported and found
    /// as Python finds it.
    #[test]
    fn files_go_to_pythons_faiss_and_back() {
        let rows = clustered(1000, DIM, 10, 8);
        let ours = tempdir().unwrap();
        let index = build(ours.path(), &rows, DIM, Metric::L2, spec("HNSW16,Flat"));
        let vectors = ours.path().join("rows.fvecs");
        floats(&vectors, &rows);
        let theirs = ours.path().join("theirs.index");
        let code = "
import sys, numpy, faiss
rows = numpy.fromfile(sys.argv[2], 'float32').reshape(1000, -1)[:, 1:].copy()
found = faiss.read_index(sys.argv[1]).search(rows[:20], 5)[1]
index = faiss.index_factory(rows.shape[1], 'IVF8,Flat')
index.train(rows); index.add(rows); index.nprobe = 8
faiss.write_index(index, sys.argv[3])
ids = numpy.arange(5000, 6000)
renamed = faiss.IndexIDMap(faiss.IndexFlatL2(rows.shape[1])); renamed.add_with_ids(rows, ids)
faiss.write_index(renamed, sys.argv[3] + '.renamed')
faiss.write_index(faiss.IndexFlat(rows.shape[1], faiss.METRIC_L1), sys.argv[3] + '.l1')
print(*numpy.concatenate([found, index.search(rows[:20], 5)[1]]).ravel())
";
        let Some(out) = python(code, &[&faiss_file(ours.path()), &vectors, &theirs]) else {
            eprintln!("skipped: SIDENOTE_FAISS_PYTHON is not set");
            return;
        };
        let ids: Vec<u32> = out.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let found = |index: &Index| -> Vec<u32> {
            let hits = index.search_batch(&rows[..20 * DIM], 5, None).unwrap();
            hits.iter().flatten().map(|hit| hit.id).collect()
        };
        assert_eq!(found(&index), ids[..100]);
        let imported = tempdir().unwrap();
        Builder::import_faiss(imported.path(), &theirs, Metric::L2, None).unwrap();
        assert_eq!(found(&Index::open(imported.path()).unwrap()), ids[100..]);
        // Rows under names of their own, and a metric that is not ours.
        for other in ["theirs.index.renamed", "theirs.index.l1"] {
            let error = Builder::import_faiss(imported.path(), &ours.path().join(other), Metric::L2, None);
            assert!(error.is_err(), "{other}");
        }
    }
}
