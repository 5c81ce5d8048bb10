//! Several indexes searched as one find what one index over the same live rows finds.

mod common;

use common::{METRICS, SEED, SPECS, build, clustered};
use proptest::prelude::*;
use sidenote_index::{Bitmap, Builder, Hit, Index, IndexError, Metric, Segments, Spec};
use tempfile::{TempDir, tempdir};

const DIM: usize = 4;

fn index(rows: &[f32], metric: Metric, spec: Spec) -> (TempDir, Index) {
    let dir = tempdir().unwrap();
    let index = build(dir.path(), rows, DIM, metric, spec);
    (dir, index)
}

/// The rows cut into parts of these lengths, with the dead ones marked.
fn segments(
    rows: &[f32],
    lengths: &[usize],
    dead: &[bool],
    metric: Metric,
    spec: Spec,
) -> (Vec<TempDir>, Segments) {
    let (mut dirs, mut parts, mut first) = (Vec::new(), Vec::new(), 0);
    for &len in lengths {
        let (dir, index) = index(&rows[first * DIM..][..len * DIM], metric, spec);
        let mut bits = Bitmap::new(len);
        (0..len).filter(|row| dead[first + row]).for_each(|row| {
            bits.set(row);
        });
        dirs.push(dir);
        parts.push((index, (bits.count_ones() > 0).then_some(bits)));
        first += len;
    }
    (dirs, Segments::new(parts).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Scores, order and ties by id are those of one Flat index over the live rows. Rows are drawn
    /// from few values, so that many are equal. Fails when the parts' hits are merged without
    /// sorting, when ids are not shifted, or when dead rows are not asked for.
    #[test]
    fn flat_parts_equal_one_flat_index(
        lengths in prop::collection::vec(0usize..30, 1..6),
        values in prop::collection::vec(-2i8..=2, 150 * DIM),
        dead in prop::collection::vec(prop::bool::weighted(0.3), 150),
        queries in prop::collection::vec(-2i8..=2, 6 * DIM),
        metric in prop::sample::select(METRICS.to_vec()),
        k in 0usize..40,
        modulus in 1u32..4,
    ) {
        let float = |values: &[i8]| -> Vec<f32> { values.iter().map(|&x| f32::from(x) * 0.7).collect() };
        let n: usize = lengths.iter().sum();
        let (rows, queries, dead) = (float(&values[..n * DIM]), float(&queries), &dead[..n]);
        let (_dirs, parts) = segments(&rows, &lengths, dead, metric, Spec::Flat);
        let (_dir, one) = index(&rows, metric, Spec::Flat);
        prop_assert_eq!((parts.len(), parts.live()), (n, dead.iter().filter(|d| !**d).count()));
        for id in 0..n as u32 + 2 {
            prop_assert_eq!(parts.vector(id), one.vector(id));
            prop_assert_eq!(parts.is_live(id), (id as usize) < n && !dead[id as usize]);
        }
        let live = |_: usize, id: u32| !dead[id as usize];
        prop_assert_eq!(
            parts.search_batch(&queries, k, None).unwrap(),
            one.search_batch(&queries, k, Some(&live)).unwrap()
        );
        let filter = |query: usize, id: u32| (id + query as u32).is_multiple_of(modulus);
        prop_assert_eq!(
            parts.search_batch(&queries, k, Some(&filter)).unwrap(),
            one.search_batch(&queries, k, Some(&|query, id| live(query, id) && filter(query, id))).unwrap()
        );
        let query = &queries[..DIM];
        prop_assert_eq!(
            parts.search(query, k, Some(&|id| id % 2 == 0)).unwrap(),
            one.search(query, k, Some(&|id| live(0, id) && id % 2 == 0)).unwrap()
        );
    }
}

/// All `k` are found in every kind of index, however many rows around the query are dead.
#[test]
fn dead_rows_cost_no_recall() {
    let rows = clustered(900, DIM, 6, 3);
    let dead: Vec<bool> = (0..900).map(|id| id % 10 != 0).collect();
    for spec in SPECS {
        for metric in METRICS {
            let (_dirs, parts) = segments(&rows, &[400, 1, 499], &dead, metric, spec);
            let (_dir, one) = index(&rows, metric, Spec::Flat);
            for query in rows.chunks(DIM).step_by(90) {
                let wanted = one.search(query, 10, Some(&|id| !dead[id as usize])).unwrap();
                let found = parts.search(query, 10, None).unwrap();
                let rounded = matches!(spec, Spec::Sq(_));
                let same = |hit: &&Hit| {
                    wanted.iter().any(|other| other.id == hit.id && (rounded || other.score == hit.score))
                };
                let same = found.iter().filter(same).count();
                assert!(found.len() == 10 && same >= 9, "{spec} {metric}: {found:?} {wanted:?}");
            }
        }
    }
}

/// A part passes on what its hits score, each query its own: fails where a batch mixes them up (a query
/// then looks for what scores as high as another's), where the first parts pass on more than they have, and
/// where rows that score as high as the last one are left out.
#[test]
fn what_parts_pass_on_hides_nothing() {
    let mut rows = clustered(1500, DIM, 40, 5);
    // One of the nearest to each query is in a later part, with another just like it.
    let queries: Vec<f32> = clustered(30, DIM, 40, 5);
    for (i, query) in queries.chunks_exact(DIM).enumerate() {
        for row in [1100 + i, 1300 + i] {
            rows[row * DIM..][..DIM].copy_from_slice(query);
        }
    }
    let dead: Vec<bool> = (0..1500).map(|id| id % 7 == 3).collect();
    for spec in SPECS.into_iter().filter(|spec| !matches!(spec, Spec::Sq(_))) {
        let (_dirs, mut parts) = segments(&rows, &[5, 700, 0, 395, 400], &dead, Metric::L2, spec);
        // All lists are probed: what is missed is not missed by these.
        if matches!(spec, Spec::Ivf { .. }) {
            (0..5).for_each(|part| parts.set_breadth(part, Some(usize::MAX)));
        }
        let (_dir, one) = index(&rows, Metric::L2, Spec::Flat);
        let found = parts.search_batch(&queries, 10, None).unwrap();
        let wanted = one.search_batch(&queries, 10, Some(&|_, id| !dead[id as usize])).unwrap();
        let same =
            |(found, wanted): (&Vec<Hit>, &Vec<Hit>)| found.iter().filter(|hit| wanted.contains(hit)).count();
        let right: usize = found.iter().zip(&wanted).map(same).sum();
        assert!(right >= 291, "{spec}: {right} of 300");
        for (found, query) in found.iter().zip(queries.chunks_exact(DIM)) {
            assert_eq!(found, &parts.search(query, 10, None).unwrap(), "{spec}");
        }
    }
}

/// Parts that share their lists find, with as many lists probed, what one index with these lists finds. Fails where a part's
/// rows go to other lists, where a query's lists are not those of all parts, or where too few rows end the search.
#[test]
fn parts_that_share_their_lists_are_searched_like_one() {
    let rows = clustered(3000, DIM, 60, 3);
    let queries = clustered(40, DIM, 60, 4);
    let dead: Vec<bool> = (0..3000).map(|id| id % 3 == 1).collect();
    for spec in ["IVF40,RaBitQ", "IVF40,RaBitQ4", "IVF40_QG32,RaBitQ"] {
        let spec: Spec = spec.parse().unwrap();
        for metric in METRICS {
            let first = tempdir().unwrap();
            build(first.path(), &rows[..1000 * DIM], DIM, metric, spec);
            let with_its_lists = |rows: &[f32]| {
                let dir = tempdir().unwrap();
                let builder = Builder::create(dir.path(), DIM, metric, &spec, SEED).unwrap();
                let mut builder = builder.lists_of(first.path()).unwrap();
                builder.add(rows).unwrap();
                builder.finish().unwrap();
                let index = Index::open(dir.path()).unwrap();
                (dir, index)
            };
            let (_dir, mut one) = with_its_lists(&rows);
            // The first has rows in few of the lists.
            let lengths = [3, 0, 997, 1, 1999];
            let (mut next, mut dirs) = (0, Vec::new());
            let [mut all, mut live] = [(); 2].map(|()| Segments::empty(DIM, metric));
            for len in lengths {
                let (dir, index) = with_its_lists(&rows[next * DIM..][..len * DIM]);
                all.push(index, None).unwrap();
                let mut bits = Bitmap::new(len);
                (0..len).filter(|row| dead[next + row]).for_each(|row| {
                    bits.set(row);
                });
                live.push(Index::open(dir.path()).unwrap(), Some(bits)).unwrap();
                dirs.push(dir);
                next += len;
            }
            let is_live = |_: usize, id: u32| !dead[id as usize];
            let is_one_of_few =
                |query: usize, id: u32| is_live(query, id) && (id as usize + query).is_multiple_of(250);
            for breadth in [1, 4, 40] {
                one.set_breadth(Some(breadth));
                for part in 0..lengths.len() {
                    all.set_breadth(part, Some(breadth));
                    live.set_breadth(part, Some(breadth));
                }
                for k in [1, 10, 200] {
                    let what = format!("{spec} {metric} {breadth} {k}");
                    let wanted = one.search_batch(&queries, k, None).unwrap();
                    assert!(all.search_batch(&queries, k, None).unwrap() == wanted, "{what}");
                    // How many more lists a filter is worth is a guess, and another one for parts.
                    let found = live.search_batch(&queries, k, None).unwrap();
                    assert!(
                        found.iter().all(|hits| hits.len() == k && hits.iter().all(|hit| is_live(0, hit.id)))
                    );
                    let wanted = one.search_batch(&queries, k, Some(&is_live)).unwrap();
                    assert!(breadth < 40 || found == wanted, "{what}, live ones");
                }
                let wanted = one.search_batch(&queries, 5, Some(&is_one_of_few)).unwrap();
                assert!(wanted.iter().all(|hits| hits.len() == 5));
                assert!(
                    live.search_batch(&queries, 5, Some(&is_one_of_few)).unwrap() == wanted,
                    "{spec} {breadth}, few"
                );
            }
        }
    }
}

/// The same lists, but codes of other bits: fails where a query is prepared once for both.
#[test]
fn parts_of_other_bits_find_their_own_rows() {
    let rows = clustered(2000, DIM, 40, 3);
    let queries = clustered(40, DIM, 40, 4);
    let (mut parts, mut dirs) = (Segments::empty(DIM, Metric::L2), Vec::new());
    for spec in ["IVF20,RaBitQ", "IVF20,RaBitQ4"] {
        let (dir, index) = index(&rows, Metric::L2, spec.parse().unwrap());
        parts.push(index, None).unwrap();
        dirs.push(dir);
    }
    parts.set_breadth(0, Some(20));
    parts.set_breadth(1, Some(20));
    let (_dir, one) = index(&rows, Metric::L2, Spec::Flat);
    let wanted = one.search_batch(&queries, 5, None).unwrap();
    let found = parts.search_batch(&queries, 10, None).unwrap();
    // Each row twice.
    let both = |id: u32| [id, id + 2000];
    let right = |(found, wanted): (&Vec<Hit>, &Vec<Hit>)| {
        let ids = wanted.iter().flat_map(|hit| both(hit.id));
        ids.filter(|id| found.iter().any(|hit| hit.id == *id)).count()
    };
    let right: usize = found.iter().zip(&wanted).map(right).sum();
    assert!(right >= 392, "{right} of 400");
}

#[test]
fn lists_are_taken_over_from_an_index_of_the_same_kind_only() {
    let rows = clustered(300, DIM, 6, 3);
    let there = tempdir().unwrap();
    let lists: Spec = "IVF8,RaBitQ".parse().unwrap();
    build(there.path(), &rows, DIM, Metric::L2, lists);
    let codes = tempdir().unwrap();
    build(codes.path(), &rows, DIM, Metric::L2, Spec::RaBitQ { bits: 1 });
    let more: Spec = "IVF9,RaBitQ".parse().unwrap();
    for (dir, dim, metric, spec, seed, why) in [
        (&there, DIM + 1, Metric::L2, lists, SEED, "dimension 4"),
        (&there, DIM, Metric::Cosine, lists, SEED, "metric l2"),
        (&there, DIM, Metric::L2, more, SEED, "spec IVF8,RaBitQ"),
        (&there, DIM, Metric::L2, lists, SEED + 1, "seed"),
        (&codes, DIM, Metric::L2, Spec::RaBitQ { bits: 1 }, SEED, "has none"),
    ] {
        let new = tempdir().unwrap();
        let builder = Builder::create(new.path(), dim, metric, &spec, seed).unwrap();
        let error = builder.lists_of(dir.path()).err().unwrap().to_string();
        assert!(error.contains(why) && error.contains(dir.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_batch_does_not_depend_on_the_number_of_threads() {
    let rows = clustered(300, DIM, 6, 3);
    let (_dirs, parts) = segments(&rows, &[100, 0, 200], &[false; 300], Metric::L2, Spec::Flat);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| parts.search_batch(&rows, 5, None).unwrap())
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn nothing_to_find_and_everything() {
    let none = Segments::empty(DIM, Metric::Cosine);
    assert!(none.is_empty() && none.vector(0).is_none() && !none.is_live(0));
    assert_eq!(none.search_batch(&[1.0; 3 * DIM], 5, None).unwrap(), vec![vec![]; 3]);
    assert!(matches!(none.search(&[f32::NAN; DIM], 1, None), Err(IndexError::NotFinite { number: 0, .. })));
    assert!(matches!(none.search(&[1.0; 3], 1, None), Err(IndexError::Length { found: 3, .. })));

    let rows = clustered(5, DIM, 1, 3);
    let (_dirs, parts) = segments(&rows, &[2, 3], &[true; 5], Metric::L2, Spec::RaBitQ { bits: 1 });
    assert_eq!((parts.len(), parts.live()), (5, 0));
    assert!(parts.search(&rows[..DIM], 5, None).unwrap().is_empty());
    assert!(matches!(parts.search(&[f32::NAN; DIM], 1, None), Err(IndexError::NotFinite { .. })));
    let (_dirs, parts) = segments(&rows, &[2, 3], &[false; 5], Metric::L2, Spec::RaBitQ { bits: 1 });
    assert_eq!(parts.search(&rows[4 * DIM..], usize::MAX, None).unwrap().len(), 5);
    assert_eq!(parts.search(&rows[4 * DIM..], 1, None).unwrap(), [Hit { id: 4, score: 0.0 }]);
    assert_eq!(parts.search_batch(&rows, 0, None).unwrap(), vec![vec![]; 5]);
    assert!(parts.search_batch(&[], 3, None).unwrap().is_empty());
    assert_eq!(parts.parts().map(Index::len).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let rows = clustered(6, DIM, 1, 3);
    let one = || index(&rows, Metric::L2, Spec::Flat);
    assert!(matches!(Segments::new(Vec::new()), Err(IndexError::Parts { .. })));
    let (_a, cosine) = index(&rows, Metric::Cosine, Spec::Flat);
    let (_b, l2) = one();
    let error = Segments::new(vec![(l2, None), (cosine, None)]).err().unwrap().to_string();
    assert!(error.contains("part 1") && error.contains("cosine") && error.contains("l2"), "{error}");
    let dir = tempdir().unwrap();
    Builder::create(dir.path(), DIM + 1, Metric::L2, &Spec::Flat, 1).unwrap().finish().unwrap();
    let (_c, l2) = one();
    let wider = Index::open(dir.path()).unwrap();
    assert!(matches!(Segments::new(vec![(l2, None), (wider, None)]), Err(IndexError::Parts { .. })));
    let (_d, l2) = one();
    let error = Segments::new(vec![(l2, Some(Bitmap::new(7)))]).err().unwrap().to_string();
    assert!(error.contains("6 rows") && error.contains("7 bits"), "{error}");
}
