//! MMLU's CSV: a question, its choices and the number of the right one (or its letter).

use std::path::Path;

use super::super::item::Item;
use crate::error::{Error, Result};
use crate::pool::Instance;
use crate::pool::csv::LETTERS;

/// Whether a file with this header is one.
pub fn is(header: &[String]) -> bool {
    let ends = (header.first().map(String::as_str), header.last().map(String::as_str));
    ends == (Some("question"), Some("answer")) && (2..=LETTERS.len()).contains(&(header.len() - 2))
}

/// The rows of a file, as lm-evaluation-harness puts them: the question, a lettered line for each choice, `Answer:`.
pub fn read(path: &Path, choices: usize, rows: Vec<(u64, Vec<String>)>) -> Result<Vec<Item>> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let task = ["_test", "_dev", "_val"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or(&stem);
    let item = |(line, row): (u64, Vec<String>)| {
        let (question, answer) = (row[0].trim(), row[row.len() - 1].trim());
        let right = answer.parse().ok().or_else(|| LETTERS.iter().position(|letter| *letter == answer));
        let Some(right) = right.filter(|right| *right < choices) else {
            let why = format!("the answer {answer:?} is none of the {choices} choices");
            return Err(Error::Line { path: path.into(), line, why });
        };
        let lettered: String = LETTERS
            .iter()
            .zip(&row[1..=choices])
            .map(|(letter, text)| format!("{letter}. {text}\n"))
            .collect();
        let instance = Instance {
            input: format!("{question}\n{lettered}Answer:"),
            target: LETTERS[right].into(),
            task: Some(task.to_string()),
            choices: LETTERS[..choices].iter().map(ToString::to_string).collect(),
            ..Instance::default()
        };
        let references = vec![instance.target.clone()];
        Ok(Item {
            instance,
            references,
            example: String::new(),
            path: path.into(),
            line,
            without_content: None,
        })
    };
    rows.into_iter().map(item).collect()
}
