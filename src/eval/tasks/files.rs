//! Examples of tasks, read from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::item::Item;
use crate::error::{Error, Result};
use crate::pool::csv::{self, Table};
use crate::pool::lines::Lines;
use crate::pool::{self, Instance, UNKNOWN_TASK, name_choice};

/// Reads files of examples: lines of JSON, plain, gzip or Zstandard (an [`Instance`] each, with `targets` in place of `target`
/// where several answers are right, and an `id` that may be ReCross's `task|split|template|#example`), CSV with MMLU's columns
/// `question, choice0, .., answer` (or without them, as its own files are) or RAFT's `Label` and `ID`, or folders of pools.
///
/// # Errors
/// Names the file and line that cannot be used.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for path in paths {
        for_each(path, &mut |item| {
            items.push(item);
            Ok(())
        })?;
    }
    number(&mut items);
    Ok(items)
}

/// Hands the examples of a file, or of a pool's folder, to `visit` one by one, those without a name unnumbered.
///
/// # Errors
/// What `visit` returns; names the file and line that cannot be used; a file without any.
pub fn for_each(path: &Path, visit: &mut dyn FnMut(Item) -> Result<()>) -> Result<()> {
    let mut count = 0;
    for part in pool::parts(path)? {
        let mut one = |mut item: Item| {
            count += 1;
            // The name of a pool's part is none of a task.
            if part != path {
                item.instance.task.get_or_insert_with(|| UNKNOWN_TASK.into());
            }
            visit(item)
        };
        if csv::is(&part) {
            super::csv::read(&part, Table::open(&part)?)?.into_iter().try_for_each(&mut one)?;
            continue;
        }
        let mut lines = Lines::open(&part)?;
        while let Some((line, text)) = lines.next()? {
            one(of_line(&part, line, text)?)?;
        }
    }
    match count {
        0 => Err(Error::file(path, "holds no examples")),
        _ => Ok(()),
    }
}

fn of_line(path: &Path, line: u64, text: &str) -> Result<Item> {
    let fault = |why: String| Error::Line { path: path.into(), line, why };
    let mut value: Value = serde_json::from_str(text).map_err(|e| fault(e.to_string()))?;
    let id = match &value["id"] {
        Value::String(id) => Some(id.clone()),
        _ => None,
    };
    let references = match value.get("targets").cloned() {
        None => Vec::new(),
        Some(all) => {
            serde_json::from_value::<Vec<String>>(all).map_err(|e| fault(format!("targets: {e}")))?
        }
    };
    if let (Some(first), Some(object)) = (references.first(), value.as_object_mut()) {
        object.entry("target").or_insert_with(|| first.clone().into());
    }
    name_choice(&mut value).map_err(fault)?;
    let mut instance: Instance = serde_json::from_value(value).map_err(|e| fault(e.to_string()))?;
    let parts: Vec<&str> = id.as_deref().map(|id| id.split('|').collect()).unwrap_or_default();
    let mut example = id.clone().unwrap_or_default();
    if let [task, split, template, number] = parts[..] {
        instance.task.get_or_insert_with(|| task.into());
        instance.template.get_or_insert_with(|| template.into());
        example = format!("{task}|{split}|{number}");
    }
    if !instance.choices.is_empty() && !instance.choices.contains(&instance.target) {
        return Err(fault(format!("the target {:?} is none of the choices", instance.target)));
    }
    let references = if references.is_empty() { vec![instance.target.clone()] } else { references };
    Ok(Item { instance, references, example, path: path.into(), line, without_content: None })
}

/// Numbers the examples without a name: those of a task that have as many under each template are taken to come in the
/// same order under all; where they have not, each is one of its own.
fn number(items: &mut [Item]) {
    let mut seen: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate().filter(|(_, item)| item.example.is_empty()) {
        seen.entry((item.task(), item.template().to_string())).or_default().push(i);
    }
    let mut sizes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for ((task, _), all) in &seen {
        sizes.entry(task.clone()).or_default().push(all.len());
    }
    for ((task, template), all) in &seen {
        let even = sizes[task].iter().all(|size| *size == sizes[task][0]);
        for (number, i) in all.iter().enumerate() {
            items[*i].example = match even {
                true => format!("{task}|#{number}"),
                false => format!("{task}|{template}|#{number}"),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn items(name: &str, text: &str) -> Result<Vec<Item>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        read(&[path])
    }

    #[test]
    fn copies_of_an_example_under_templates_are_one() {
        let lines = r#"{"input": "a", "targets": ["Yes", "yes"], "id": "cb|validation|one|#4"}
{"input": "b", "targets": ["True"], "id": "cb|validation|two|#4"}
{"input": "c", "target": "no", "answer_choices": ["yes", "no"], "task": "rte", "template": "x"}
{"input": "d", "target": "yes", "choices": ["yes", "no"], "task": "rte", "template": "y"}"#;
        let items = items("a.jsonl", lines).unwrap();
        assert_eq!(items[0].references, ["Yes", "yes"]);
        assert_eq!((items[0].task().as_str(), items[1].template()), ("cb", "two"));
        assert_eq!(items[0].example, items[1].example);
        assert_eq!(items[2].example, items[3].example);
        assert_eq!((items[2].right(), items[3].right()), (Some(1), Some(0)));
        let few = Item { path: "few/rte/32_shot/0_seed.jsonl".into(), ..items[2].clone() };
        let unnamed = |item: Item| Item { instance: Instance { task: None, ..item.instance }, ..item };
        assert_eq!((unnamed(few).task(), unnamed(items[2].clone()).task()), ("rte".into(), "a".into()));
        let numbered = r#"{"input": "e", "target": 1, "answer_choices": ["first", "second"]}"#;
        assert_eq!(self::items("c.jsonl", numbered).unwrap()[0].instance.target, "second");
    }

    #[test]
    fn a_line_that_is_no_example_is_named() {
        let error = |text: &str| items("b.jsonl", text).unwrap_err().to_string();
        assert!(error("{\"input\": \"a\", \"target\": \"b\"}\n{}").contains("b.jsonl:2"));
        assert!(
            error("{\"input\": \"a\", \"target\": \"b\", \"choices\": [\"c\"]}")
                .contains("none of the choices")
        );
        assert!(error("{\"input\": \"a\", \"target\": 2, \"choices\": [\"c\"]}").contains("the target 2"));
        assert!(error("").contains("no examples"));
    }
}
