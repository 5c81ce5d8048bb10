//! What every kind of index promises, through the public interface.

mod common;

use common::{METRICS, SPECS, brute_force, build, clustered, recall, truth};
use sidenote_index::{Builder, Hit, Index, IndexError, Metric, Spec};
use tempfile::tempdir;

#[test]
fn finds_the_nearest_in_order_for_every_kind_metric_and_odd_dimension() {
    for dim in [1, 2, 3, 17, 64, 65] {
        let rows = clustered(300, dim, 5, dim as u64);
        let queries = clustered(40, dim, 5, 99);
        for metric in METRICS {
            for spec in SPECS {
                let dir = tempdir().unwrap();
                let index = build(dir.path(), &rows, dim, metric, spec);
                let found = index.search_batch(&queries, 10, None).unwrap();
                let mut mean = 0.0;
                for (query, hits) in queries.chunks(dim).zip(&found) {
                    let truth = truth(&index, &rows, query, metric);
                    mean += recall(hits, &truth, 10) / 40.0;
                    assert_eq!(hits.len(), 10);
                    assert!(hits.is_sorted_by(|a, b| a.score > b.score || a.score == b.score && a.id < b.id));
                    for hit in hits {
                        let wanted = truth.iter().find(|(id, _)| *id == hit.id).unwrap().1;
                        let tolerance = 1e-4 * wanted.abs().max(1.0);
                        assert!((f64::from(hit.score) - wanted).abs() < tolerance, "{spec} {metric} {dim}");
                    }
                }
                let floor = match spec {
                    Spec::Flat | Spec::Sq(_) => 1.0,
                    // Half of the lists are probed, with queries from elsewhere than the rows; and by
                    // inner product the nearest rows may be in any list.
                    Spec::Ivf { .. } => 0.9,
                    _ => 0.98,
                };
                assert!(mean >= floor - 1e-9, "{spec} {metric} dim {dim}: recall {mean}");
            }
        }
    }
}

#[test]
fn a_batch_equals_its_queries_alone_on_any_number_of_threads() {
    let (n, dim) = (9000, 24); // more than one segment
    let rows = clustered(n, dim, 20, 1);
    let queries = clustered(70, dim, 20, 2); // more than one group
    for metric in METRICS {
        for spec in SPECS {
            // A graph of all would take long to build.
            let rows = if let Spec::Hnsw { .. } = spec { &rows[..1000 * dim] } else { &rows };
            let dir = tempdir().unwrap();
            let index = build(dir.path(), rows, dim, metric, spec);
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| index.search_batch(&queries, 7, None).unwrap())
            };
            let batch = on(1);
            assert_eq!(batch, on(3), "{spec} {metric}");
            for (query, hits) in queries.chunks(dim).zip(&batch) {
                assert_eq!(&index.search(query, 7, None).unwrap(), hits, "{spec} {metric}");
            }
        }
    }
}

/// Far from the origin the matrix product's form of the distance cancels: only the exact scores
/// behind the sieve keep the order. Fails when `scan_many` keeps the products' scores, or when
/// `rounding` is 0.
#[test]
fn a_flat_batch_is_exact_where_rounding_is_worst() {
    let (n, dim) = (2000, 12);
    let rows: Vec<f32> = clustered(n, dim, 3, 5).iter().map(|x| 1000.0 + x).collect();
    let queries: Vec<f32> = clustered(8, dim, 3, 6).iter().map(|x| 1000.0 + x).collect();
    let dir = tempdir().unwrap();
    let index = build(dir.path(), &rows, dim, Metric::L2, Spec::Flat);
    for (query, hits) in queries.chunks(dim).zip(index.search_batch(&queries, 10, None).unwrap()) {
        let truth = brute_force(&rows, query, Metric::L2);
        let ids: Vec<u32> = hits.iter().map(|hit| hit.id).collect();
        let wanted: Vec<u32> = truth[..10].iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, wanted);
    }
}

#[test]
fn equal_rows_come_by_id() {
    let dim = 20;
    let one = clustered(1, dim, 1, 3);
    let rows = one.repeat(500);
    for metric in METRICS {
        for spec in SPECS {
            let dir = tempdir().unwrap();
            let index = build(dir.path(), &rows, dim, metric, spec);
            let batch = index.search_batch(&one.repeat(5), 6, None).unwrap();
            for hits in batch {
                assert_eq!(hits.len(), 6);
                assert!(hits.iter().all(|hit| hit.score == hits[0].score));
                if !matches!(spec, Spec::Hnsw { .. }) {
                    assert_eq!(hits.iter().map(|hit| hit.id).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
                }
            }
        }
    }
}

#[test]
fn a_filter_keeps_recall() {
    let (n, dim) = (3000, 16);
    let rows = clustered(n, dim, 10, 11);
    let queries = clustered(20, dim, 10, 12);
    for metric in METRICS {
        for spec in SPECS {
            let dir = tempdir().unwrap();
            let index = build(dir.path(), &rows, dim, metric, spec);
            for modulus in [2, 50, 1000] {
                // Each query of the batch has its own filter.
                let allow = |query: usize, id: u32| (id as usize + query).is_multiple_of(modulus);
                let found = index.search_batch(&queries, 10, Some(&allow)).unwrap();
                let mut mean = 0.0;
                for (q, (query, hits)) in queries.chunks(dim).zip(&found).enumerate() {
                    assert!(hits.iter().all(|hit| allow(q, hit.id)));
                    let mut truth = truth(&index, &rows, query, metric);
                    truth.retain(|(id, _)| allow(q, *id));
                    assert_eq!(hits.len(), truth.len().min(10), "{spec} {metric} 1 in {modulus}");
                    mean += recall(hits, &truth, 10) / 20.0;
                }
                assert!(mean >= 0.98, "{spec} {metric} 1 in {modulus}: recall {mean}");
            }
            assert!(index.search(&queries[..dim], 10, Some(&|_| false)).unwrap().is_empty());
        }
    }
}

#[test]
fn codes_and_graphs_keep_recall_on_larger_data() {
    for (spec, n, dim) in [
        (Spec::RaBitQ { bits: 1 }, 17_000, 96),
        (Spec::RaBitQ { bits: 1 }, 5000, 20),
        (Spec::Hnsw { m: 16 }, 2000, 48),
    ] {
        let rows = clustered(n + 50, dim, n / 100, 21);
        let (queries, rows) = rows.split_at(50 * dim);
        for metric in METRICS {
            let dir = tempdir().unwrap();
            let index = build(dir.path(), rows, dim, metric, spec);
            let found = index.search_batch(queries, 10, None).unwrap();
            let each = queries.chunks(dim).zip(&found);
            let mean: f64 =
                each.map(|(q, hits)| recall(hits, &brute_force(rows, q, metric), 10)).sum::<f64>() / 50.0;
            assert!(mean >= 0.98, "{spec} {metric} {n} x {dim}: recall {mean}");
        }
    }
}

#[test]
fn none_some_and_more_than_all() {
    let dim = 9;
    let rows = clustered(30, dim, 2, 31);
    for spec in SPECS {
        let dir = tempdir().unwrap();
        let index = build(dir.path(), &rows, dim, Metric::L2, spec);
        assert!(index.search(&rows[..dim], 0, None).unwrap().is_empty());
        for k in [30, 31, usize::MAX] {
            let mut ids: Vec<u32> =
                index.search(&rows[..dim], k, None).unwrap().iter().map(|hit| hit.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..30).collect::<Vec<u32>>(), "{spec}, k = {k}");
        }
        let row = |id| index.vector(id).unwrap();
        assert_eq!(index.search(&row(0), 1, None).unwrap(), [Hit { id: 0, score: 0.0 }]);
        assert!(index.search_batch(&[], 5, None).unwrap().is_empty());
        assert_eq!(index.search_batch(&rows[..3 * dim], 0, None).unwrap(), vec![vec![]; 3]);
        match spec {
            Spec::Sq(_) => assert!(row(29).iter().zip(&rows[29 * dim..]).all(|(a, b)| (a - b).abs() < 0.03)),
            _ => assert_eq!(row(29), &rows[29 * dim..]),
        }
        assert!(index.vector(30).is_none() && index.vector(u32::MAX).is_none());
    }
}

#[test]
fn an_empty_index_and_one_row() {
    for spec in SPECS {
        for metric in METRICS {
            let dir = tempdir().unwrap();
            let index = build(dir.path(), &[], 5, metric, spec);
            assert!(index.is_empty() && index.vector(0).is_none());
            assert!(index.search(&[1.0; 5], 3, None).unwrap().is_empty());
            assert_eq!(index.search_batch(&[1.0; 10], 3, None).unwrap(), vec![vec![]; 2]);
            let index = build(dir.path(), &[1.0; 5], 5, metric, spec);
            assert_eq!((index.len(), index.dim(), index.metric(), index.spec()), (1, 5, metric, spec));
            assert_eq!(index.search(&[1.0; 5], 3, None).unwrap().len(), 1);
        }
    }
}

#[test]
fn a_zero_vector_has_cosine_zero_with_all() {
    for spec in SPECS {
        let dir = tempdir().unwrap();
        let rows = [[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]].concat();
        let index = build(dir.path(), &rows, 2, Metric::Cosine, spec);
        let hits = index.search(&[2.0, 4.0], 3, None).unwrap();
        assert_eq!(hits.iter().map(|hit| hit.id).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(hits[1].score, 0.0);
        let hits = index.search(&[0.0, 0.0], 3, None).unwrap();
        assert_eq!(hits, [0, 1, 2].map(|id| Hit { id, score: 0.0 }));
    }
}

#[test]
fn the_same_rows_make_the_same_bytes_however_they_are_added() {
    let dim = 33;
    let rows = clustered(700, dim, 4, 41);
    for spec in SPECS {
        let dir = tempdir().unwrap();
        let whole = build(dir.path(), &rows, dim, Metric::Cosine, spec).identity().to_string();
        // Over the old index, which stays usable until then, and in uneven pieces.
        let old = Index::open(dir.path()).unwrap();
        let mut builder = Builder::create(dir.path(), dim, Metric::Cosine, &spec, 1).unwrap();
        for piece in rows.chunks(dim * 13) {
            builder.add(piece).unwrap();
        }
        builder.add(&[]).unwrap();
        let manifest = builder.finish().unwrap();
        assert_eq!(manifest.identity(), whole, "{spec}");
        assert_eq!(Index::open(dir.path()).unwrap().identity(), whole);
        assert_eq!(old.search(&rows[..dim], 1, None).unwrap()[0].id, 0);
        assert!(sidenote_index::artefact::verify(dir.path()).unwrap().is_empty());
        let other = build(dir.path(), &rows[dim..], dim, Metric::Cosine, spec);
        assert_ne!(other.identity(), whole);
        assert_eq!((old.len(), other.len()), (700, 699));
    }
}

#[test]
fn bad_vectors_are_refused_by_name() {
    let dir = tempdir().unwrap();
    for dim in [0, Builder::MAX_DIM + 1] {
        let error = Builder::create(dir.path(), dim, Metric::L2, &Spec::Flat, 1).err().unwrap();
        assert!(matches!(error, IndexError::Dimension { dim: d } if d == dim), "{error}");
    }
    let error = Builder::create(dir.path(), 3, Metric::L2, &Spec::Hnsw { m: 1000 }, 1).err().unwrap();
    assert!(matches!(error, IndexError::UnknownSpec { .. }), "{error}");

    let mut builder = Builder::create(dir.path(), 3, Metric::L2, &Spec::Flat, 1).unwrap();
    builder.add(&[1.0; 6]).unwrap();
    let error = builder.add(&[1.0; 7]).unwrap_err();
    assert_eq!(error.to_string(), "rows: 7 numbers, which is not a multiple of the dimension 3");
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let error = builder.add(&[0.0, 0.0, 0.0, 1.0, bad, 1.0]).unwrap_err();
        assert!(matches!(error, IndexError::NotFinite { what: "row", number: 3 }), "{error}");
    }
    builder.finish().unwrap();

    let index = Index::open(dir.path()).unwrap();
    assert_eq!(index.len(), 2, "rows of a refused slice must not be added");
    let error = index.search(&[1.0; 6], 1, None).unwrap_err();
    assert_eq!(error.to_string(), "query: 6 numbers, which is not the dimension 3");
    let error = index.search_batch(&[1.0; 4], 1, None).unwrap_err();
    assert!(matches!(error, IndexError::Length { what: "queries", found: 4, dim: 3, .. }), "{error}");
    let error = index.search_batch(&[1.0, 1.0, 1.0, f32::NAN, 0.0, 0.0], 1, None).unwrap_err();
    assert!(matches!(error, IndexError::NotFinite { what: "query", number: 1 }), "{error}");
}

/// The largest numbers that are let in still sort, though their distances overflow.
#[test]
fn huge_and_tiny_numbers_sort() {
    let rows = [1.8e19f32, -1.8e19, 1e-38, 0.0, 3e18, -1e-45];
    for spec in SPECS {
        for metric in METRICS {
            let dir = tempdir().unwrap();
            let index = build(dir.path(), &rows, 1, metric, spec);
            for hits in index.search_batch(&rows, 6, None).unwrap() {
                assert_eq!(hits.len(), 6, "{spec} {metric}");
                assert!(hits.is_sorted_by(|a, b| a.score >= b.score), "{spec} {metric}: {hits:?}");
            }
            for &query in &rows {
                let wanted = truth(&index, &rows, &[query], metric)[0].1;
                let found = f64::from(index.search(&[query], 1, None).unwrap()[0].score);
                assert!(
                    (found - wanted).abs() <= 1e-5 * wanted.abs() + f64::from(f32::MIN_POSITIVE),
                    "{spec} {metric} {query}: {found} {wanted}"
                );
            }
        }
    }
}

/// Fails when a breadth is multiplied before it is bounded by the number of rows.
#[test]
fn any_breadth_at_all_is_taken() {
    let (n, dim) = (3000, 16);
    let rows = clustered(n, dim, 10, 51);
    for spec in SPECS {
        let dir = tempdir().unwrap();
        let mut index = build(dir.path(), &rows, dim, Metric::L2, spec);
        // Thirty-two times the last but one is nothing at all.
        for breadth in [0, 1, n - 1, n, 1 << (usize::BITS - 5), usize::MAX] {
            index.set_breadth(Some(breadth));
            let hits = index.search(&rows[..dim], 10, None).unwrap();
            assert_eq!(hits.len(), 10, "{spec} at {breadth}");
            let hits = index.search(&rows[..dim], 10, Some(&|id| id % 2 == 0)).unwrap();
            assert_eq!((hits.len(), hits[0].id), (10, 0), "{spec} at {breadth}");
        }
    }
}
