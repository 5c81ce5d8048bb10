//! Held-out instances of three kinds, each measured apart while a model is tuned (Iyer et al. 2022, "OPT-IML: scaling language
//! model instruction meta learning through the lens of generalization", <https://arxiv.org/abs/2212.12017>): those of
//! categories that nothing is learnt of, of tasks that nothing is learnt of whose categories are learnt, and of tasks that are
//! learnt. `sidenote pool split` makes them.

use std::collections::{BTreeSet, HashMap};

use super::config::SplitSection;
use crate::error::{Error, Result};
use crate::eval::tasks::{self, Item};
use crate::pool::text_key;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Categories,
    Tasks,
    Instances,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Categories => "categories",
            Self::Tasks => "tasks",
            Self::Instances => "instances",
        }
    }
}

/// What is held out, while the data is read and checked against it.
pub(super) struct Splits {
    sets: Vec<(Kind, Vec<Item>)>,
    /// Names of the categories and of the tasks that are held out whole.
    categories: BTreeSet<String>,
    tasks: BTreeSet<String>,
    /// The place in `sets` of each text that is held out.
    texts: HashMap<u64, (usize, usize)>,
    seen_categories: BTreeSet<String>,
    seen_tasks: BTreeSet<String>,
}

impl Splits {
    /// # Errors
    /// A file that cannot be read; an instance that does not say its category where that is needed.
    pub fn open(section: &SplitSection) -> Result<Self> {
        let mut splits = Self {
            sets: Vec::new(),
            categories: BTreeSet::new(),
            tasks: BTreeSet::new(),
            texts: HashMap::new(),
            seen_categories: BTreeSet::new(),
            seen_tasks: BTreeSet::new(),
        };
        let given = [
            (Kind::Categories, &section.categories),
            (Kind::Tasks, &section.tasks),
            (Kind::Instances, &section.instances),
        ];
        for (kind, path) in given {
            let Some(path) = path else { continue };
            let items = tasks::read(std::slice::from_ref(path))?;
            for (number, item) in items.iter().enumerate() {
                match kind {
                    Kind::Categories => drop(splits.categories.insert(category(item)?.to_string())),
                    Kind::Tasks => {
                        category(item)?;
                        splits.tasks.insert(item.task());
                    }
                    Kind::Instances => {}
                }
                let key = text_key(&item.instance.input);
                splits.texts.entry(key).or_insert((splits.sets.len(), number));
            }
            splits.sets.push((kind, items));
        }
        Ok(splits)
    }

    /// Refuses an instance of the data that is held out.
    ///
    /// # Errors
    /// Names the line, and what it is of.
    pub fn check(&mut self, item: &Item) -> Result<()> {
        if self.sets.is_empty() {
            return Ok(());
        }
        let task = item.task();
        if !self.categories.is_empty() || !self.tasks.is_empty() {
            let category = category(item)?;
            let held_out = |what: &str, name: &str, setting: &str| {
                let why = format!(
                    "is of the {what} {name}, which is held out ({setting}); leave it out of the data"
                );
                Err(item.fault(why))
            };
            if self.categories.contains(category) {
                return held_out("category", category, "tune.splits.categories");
            }
            if self.tasks.contains(&task) {
                return held_out("task", &task, "tune.splits.tasks");
            }
            if !self.seen_categories.contains(category) {
                self.seen_categories.insert(category.to_string());
            }
        }
        if let Some((set, number)) = self.texts.get(&text_key(&item.instance.input)) {
            let (kind, items) = &self.sets[*set];
            let other = &items[*number];
            let why = format!(
                "has the same text as {}:{}, which is held out (tune.splits.{}); leave it out of the data",
                other.path.display(),
                other.line,
                kind.name()
            );
            return Err(item.fault(why));
        }
        if !self.seen_tasks.contains(&task) {
            self.seen_tasks.insert(task);
        }
        Ok(())
    }

    /// What is to be measured, at most `most` instances of each kind, evenly out of all.
    ///
    /// # Errors
    /// A kind of which nothing is left, as the data has none of its categories or tasks.
    pub fn measured(self, most: usize) -> Result<Vec<(&'static str, Vec<Item>)>> {
        let Self { sets, seen_categories, seen_tasks, .. } = self;
        let mut measured = Vec::new();
        for (kind, items) in sets {
            let belongs = |item: &Item| match kind {
                Kind::Categories => true,
                Kind::Tasks => {
                    item.instance.cluster.as_ref().is_some_and(|name| seen_categories.contains(name))
                }
                Kind::Instances => seen_tasks.contains(&item.task()),
            };
            let items: Vec<Item> = items.into_iter().filter(belongs).collect();
            if items.is_empty() {
                let what = if kind == Kind::Tasks { "categories" } else { "tasks" };
                let why = format!(
                    "the data has none of the {what} of these instances, so that nothing can be measured"
                );
                return Err(Error::setting(format!("tune.splits.{}", kind.name()), why));
            }
            let kept = evenly(items.len(), most).map(|number| items[number].clone()).collect();
            measured.push((kind.name(), kept));
        }
        Ok(measured)
    }
}

/// The numbers of at most `most` out of `count`, evenly over all.
pub(super) fn evenly(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = count.min(most);
    (1..=taken).map(move |number| (number * count).div_ceil(taken) - 1)
}

fn category(item: &Item) -> Result<&str> {
    let why = "names no cluster, so that nobody can tell whether its category is held out (tune.splits)";
    item.instance.cluster.as_deref().ok_or_else(|| item.fault(why))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn write(dir: &Path, name: &str, rows: &[(&str, &str, &str)]) -> PathBuf {
        let line = |(input, task, cluster): &(&str, &str, &str)| {
            let cluster =
                if cluster.is_empty() { String::new() } else { format!(",\"cluster\":\"{cluster}\"") };
            format!("{{\"input\":\"{input}\",\"target\":\"x\",\"task\":\"{task}\"{cluster}}}\n")
        };
        fs::write(dir.join(name), rows.iter().map(line).collect::<String>()).unwrap();
        dir.join(name)
    }

    /// Fails when only the beginning of a file is measured, whose other tasks come later.
    #[test]
    fn what_is_measured_comes_from_everywhere() {
        let of = |count: usize, most: usize| evenly(count, most).collect::<Vec<_>>();
        assert_eq!(of(3, 5), [0, 1, 2]);
        assert_eq!(of(7, 3), [2, 4, 6]);
        assert_eq!(of(10, 2), [4, 9]);
        assert!(of(0, 5).is_empty() && of(5, 0).is_empty());
        let many = of(1000, 256);
        assert_eq!((many.len(), many[255]), (256, 999));
        assert!(many.windows(2).all(|pair| (3..=4).contains(&(pair[1] - pair[0]))), "{many:?}");
    }

    fn section(dir: &Path) -> SplitSection {
        SplitSection {
            categories: Some(write(dir, "c.jsonl", &[("a", "rte", "nli"), ("b", "cb", "nli")])),
            tasks: Some(write(dir, "t.jsonl", &[("d", "imdb", "sentiment"), ("e", "duorc", "qa")])),
            instances: Some(write(dir, "i.jsonl", &[("f g", "yelp", "sentiment"), ("h", "squad", "qa")])),
        }
    }

    /// Fails when an instance of any of the three kinds can be learnt from.
    #[test]
    fn what_is_held_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path());
        let error = |row: (&str, &str, &str)| {
            let data = write(dir.path(), "data.jsonl", &[("z", "yelp", "sentiment"), row]);
            let mut splits = Splits::open(&section).unwrap();
            let found = tasks::for_each(&data, &mut |item| splits.check(&item));
            found.err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(error(("new", "yelp", "sentiment")), "");
        assert!(error(("new", "anli", "nli")).contains("data.jsonl:2: is of the category nli"));
        assert!(error(("new", "imdb", "sentiment")).contains("data.jsonl:2: is of the task imdb"));
        assert!(
            error((" F  g", "yelp", "sentiment")).contains("i.jsonl:1"),
            "white space and case are no difference"
        );
        assert!(error(("b", "yelp", "sentiment")).contains("c.jsonl:2"), "whatever its task is");
        assert!(error(("new", "yelp", "")).contains("names no cluster"));
    }

    #[test]
    fn each_kind_is_measured_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let section = section(dir.path());
        let data = write(dir.path(), "data.jsonl", &[("z", "yelp", "sentiment")]);
        let mut splits = Splits::open(&section).unwrap();
        tasks::for_each(&data, &mut |item| splits.check(&item)).unwrap();
        let tasks_of = |items: &[Item]| items.iter().map(Item::task).collect::<Vec<_>>();
        let measured = splits.measured(10).unwrap();
        let found: Vec<_> = measured.iter().map(|(name, items)| (*name, tasks_of(items))).collect();
        // duorc's category and the task squad are not learnt.
        assert_eq!(
            found,
            [
                ("categories", vec!["rte".to_string(), "cb".into()]),
                ("tasks", vec!["imdb".into()]),
                ("instances", vec!["yelp".into()])
            ]
        );
        assert!(
            Splits::open(&section)
                .unwrap()
                .measured(10)
                .unwrap_err()
                .to_string()
                .contains("tune.splits.tasks")
        );
        let mut splits = Splits::open(&section).unwrap();
        tasks::for_each(&data, &mut |item| splits.check(&item)).unwrap();
        assert_eq!(tasks_of(&splits.measured(1).unwrap()[0].1), ["cb"]);
    }
}
