//! The pool's rows nearest to the target's unlabelled examples, by vectors.
//!
//! - DEFT: Ivison, Smith, Hajishirzi, Dasigi: *Data-Efficient Finetuning Using Cross-Task Nearest Neighbors*, Findings of ACL
//!   2023: the union of the examples' neighbours.
//! - RDS+: Ivison, Zhang, Brahman, Koh, Dasigi: *Large-Scale Data Selection for Instruction Tuning*, 2025: round robin over the
//!   examples; with a decoder as the encoder its vectors are the paper's.
//! - task-aware, Sidenote's own: DEFT's union by the sum of two cosines, that of the own texts without instruction or template
//!   ([`templates`](super::templates)) and that of the tasks' descriptions ([`tasks`](super::tasks)). Whole inputs are near
//!   by what they are about, whatever is asked of it.
//!
//! Only inputs are compared, never targets. Examples and pool rows go through the same encoder with the same truncation, every
//! example is searched for, and rows are told apart by their number, so two rows with the same text can both be chosen.

use super::nearest::{Order, rank};
use super::selector::{Ranking, Selector};
use super::tasks::Tasks;
use super::vectors::{Place, Vectors};
use super::view::{View, Viewer};
use super::{Pool, Target};
use crate::encoder::Encoder;
use crate::error::Result;
use crate::progress::Progress;

/// Nearest rows, by an encoder's vectors.
pub struct Nearest {
    encoder: Box<dyn Encoder>,
    view: View,
    place: Place,
    order: Order,
    k: Option<usize>,
    tasks: Option<Tasks>,
    vectors: Option<Vectors>,
}

impl Nearest {
    /// By the vectors that `encoder` gives to that `view` of rows and examples, those of the pool in `place`; `k` neighbours of
    /// each example, or as many as are needed.
    pub fn new(encoder: Box<dyn Encoder>, view: View, place: Place, order: Order, k: Option<usize>) -> Self {
        Self { encoder, view, place, order, k, tasks: None, vectors: None }
    }
}

impl Selector for Nearest {
    fn rank(
        &mut self,
        pool: &Pool,
        target: Option<&Target>,
        n: usize,
        progress: Progress,
    ) -> Result<Ranking> {
        let target = super::needed(target)?;
        if self.view == View::OwnAndTask && self.tasks.is_none() {
            self.tasks = Some(Tasks::of_pool(pool, self.encoder.as_ref())?);
        }
        let viewer = Viewer::new(self.encoder.as_ref(), self.tasks.as_ref());
        let queries = viewer.of_target(target)?;
        let vectors = match self.vectors.take() {
            Some(vectors) => vectors,
            None => Vectors::of_pool(pool, &viewer, &self.place, progress)?,
        };
        let vectors = self.vectors.insert(vectors);
        rank(pool, target, (n, self.k), self.order, |k| vectors.search(&queries, k, progress))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::selector::{Amount, choose};
    use super::super::tests::{pool, target};
    use super::*;

    /// Angles on a circle: the input's number in degrees. "none" is a word it does not know. Counts what it encodes.
    #[derive(Clone, Default)]
    struct Circle(Arc<AtomicUsize>);

    impl Encoder for Circle {
        fn dim(&self) -> usize {
            2
        }
        fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
            self.0.fetch_add(texts.len(), Ordering::Relaxed);
            Ok(texts
                .iter()
                .flat_map(|text| {
                    match text.split(' ').next_back().and_then(|word| word.parse::<f32>().ok()) {
                        Some(degrees) => [degrees.to_radians().cos(), degrees.to_radians().sin()],
                        None => [0.0, 0.0],
                    }
                })
                .collect())
        }
        fn name(&self) -> &str {
            "circle"
        }
        fn identity(&self) -> &str {
            "circle"
        }
    }

    fn nearest(dir: &Path, order: Order, k: Option<usize>) -> Nearest {
        let place = Place::Scratch(dir.join("scratch"));
        Nearest::new(Box::new(Circle::default()), View::Input, place, order, k)
    }

    #[test]
    fn neighbours_come_from_the_whole_pool() {
        // More rows than one batch, and the last batch is not full.
        let (dir, pool) = pool(&[("a", 300), ("b", 21)]);
        let target = [target(dir.path(), &["x 10", "x 15.2"])];
        let select = |n, k: Option<usize>| {
            let mut selector = nearest(dir.path(), Order::Union, k);
            choose(
                &mut selector,
                &pool,
                &target,
                &Amount { keep_depth: k.is_some(), ..Amount::exactly(n) },
                Progress::Silent,
            )
        };
        let rows = |selection: &super::super::Selection| {
            selection.rows.iter().map(|row| row.row).collect::<Vec<_>>()
        };

        let selection = select(4, None).unwrap();
        // Rows 10 and 310 share an angle, as do 15 and 315.
        assert_eq!(rows(&selection), [10, 15, 310, 315]);
        assert_eq!(selection.neighbours[0][0].ids, [10, 310]);
        assert!(selection.neighbours[0][1].distances[0] > 0.0);
        let angle = 0.2f32.to_radians();
        assert!((selection.neighbours[0][1].distances[0] - (2.0 - 2.0 * angle.cos())).abs() < 1e-6);

        // However deep the search has to go, the rule is the same.
        for n in [1, 2, 7, 40, 320, 321] {
            let selection = select(n, None).unwrap();
            assert_eq!(selection.rows.len(), n);
            assert!(selection.rows.iter().all(|row| row.attribution_frequency > 0));
            let depth = selection.neighbours[0][0].ids.len();
            assert_eq!(selection.rows, select(n, Some(depth)).unwrap().rows);
            assert_eq!(selection.rows, select(n, Some(1000)).unwrap().rows);
        }
        assert_eq!(select(4, Some(50)).unwrap().neighbours[0][1].ids.len(), 50);
        let why = select(40, Some(3)).unwrap_err().to_string();
        assert!(why.contains("only 6 rows") && why.contains("-k"), "{why}");
        assert!(select(322, None).unwrap_err().to_string().contains("321 rows"));
        assert!(select(1, Some(0)).is_err());
        assert!(!dir.path().join("scratch").exists());
    }

    #[test]
    fn targets_take_turns_and_the_size_is_exact() {
        let (dir, pool) = pool(&[("a", 300)]);
        let targets = [target(dir.path(), &["x 10"]), target(dir.path(), &["x 200", "x 220"])];
        for order in [Order::Union, Order::RoundRobin] {
            let mut selector = nearest(dir.path(), order, None);
            let selection =
                choose(&mut selector, &pool, &targets, &Amount::exactly(9), Progress::Silent).unwrap();
            assert_eq!((selection.rows.len(), selection.shares.as_slice()), (9, [5, 4].as_slice()));
            assert_eq!(selection.rows.iter().filter(|chosen| chosen.row < 100).count(), 5);
            assert_eq!(selection.neighbours[1].len(), 2);
        }
        // What both want counts once, and the size is exact all the same.
        let same = [target(dir.path(), &["x 10"]), target(dir.path(), &["x 10"])];
        let mut selector = nearest(dir.path(), Order::RoundRobin, None);
        let selection = choose(&mut selector, &pool, &same, &Amount::exactly(7), Progress::Silent).unwrap();
        assert_eq!(selection.rows.iter().map(|row| row.row).collect::<Vec<_>>(), [7, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn vectors_are_kept_and_gone_on_with() {
        let (dir, mine) = pool(&[("a", 4200)]);
        let target = [target(dir.path(), &["x 10"])];
        let folder = dir.path().join("vectors");
        let run_on = |pool: &Pool, view: View| -> Result<_> {
            let circle = Circle::default();
            let mut selector =
                Nearest::new(Box::new(circle.clone()), view, Place::Kept(folder.clone()), Order::Union, None);
            let selection = choose(&mut selector, pool, &target, &Amount::exactly(5), Progress::Silent)?;
            Ok((selection, circle.0.load(Ordering::Relaxed)))
        };
        let run = |pool: &Pool| run_on(pool, View::Input);
        let (first, encoded) = run(&mine).unwrap();
        assert_eq!(encoded, 4201);
        let (again, encoded) = run(&mine).unwrap();
        assert_eq!((again, encoded), (first.clone(), 1), "only the example is encoded again");
        // Cut off within the second part: the first is taken as it is.
        fs::remove_file(folder.join("part-00001/manifest.json")).unwrap();
        let (again, encoded) = run(&mine).unwrap();
        assert_eq!((again, encoded), (first, 4200 - 4096 + 1));
        let why = run_on(&mine, View::OwnAndTask).unwrap_err().to_string();
        assert!(why.contains("vectors do not match: own texts and tasks here, inputs in"), "{why}");
        let (_other_dir, other) = pool(&[("a", 4201)]);
        let why = run(&other).unwrap_err().to_string();
        assert!(why.contains("pools do not match") && why.contains("--vectors"), "{why}");
    }

    #[test]
    fn an_example_of_unknown_words_is_named() {
        let (dir, pool) = pool(&[("a", 3)]);
        let target = [target(dir.path(), &["x 1", "none"])];
        let mut selector = nearest(dir.path(), Order::Union, None);
        let why = choose(&mut selector, &pool, &target, &Amount::exactly(1), Progress::Silent)
            .unwrap_err()
            .to_string();
        assert!(why.contains(".jsonl:2:"), "{why}");
    }
}
