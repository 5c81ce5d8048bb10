//! Which tasks always have the same answer, as the beginning of a file has that is sorted by its labels.

use std::collections::{BTreeMap, HashMap};

use super::Instance;

/// Fewer instances can have one answer by chance.
const FEWEST: usize = 20;

/// The answers of each task under each of its templates.
#[derive(Default)]
pub struct Answers {
    of: HashMap<(String, Option<String>), Answer>,
}

struct Answer {
    instances: usize,
    /// None where there are several.
    only: Option<String>,
}

impl Answers {
    /// Counts an instance.
    pub fn add(&mut self, instance: &Instance) {
        let task = instance.task_name().to_string();
        let new = || Answer { instances: 0, only: Some(instance.target.clone()) };
        let answer = self.of.entry((task, instance.template.clone())).or_insert_with(new);
        answer.instances += 1;
        if answer.only.as_ref() != Some(&instance.target) {
            answer.only = None;
        }
    }

    /// How many instances of each task have the only answer that there is under their template.
    pub fn constant(self) -> BTreeMap<String, usize> {
        let mut tasks = BTreeMap::new();
        for ((task, _), answer) in self.of {
            if answer.only.is_some() && answer.instances >= FEWEST {
                *tasks.entry(task).or_insert(0) += answer.instances;
            }
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_with_one_answer_are_counted() {
        let mut answers = Answers::default();
        let mut add = |task: &str, template: &str, target: &str, times: usize| {
            for _ in 0..times {
                let template = Some(template.to_string());
                let (task, target) = (Some(task.to_string()), target.to_string());
                answers.add(&Instance { task, template, target, ..Instance::default() });
            }
        };
        add("imdb", "one", "bad", 20);
        add("imdb", "two", "no", 30);
        add("imdb", "two", "yes", 1);
        add("few", "one", "no", 19);
        assert_eq!(answers.constant(), BTreeMap::from([("imdb".to_string(), 20)]));
    }
}
