//! What a pool holds of the texts that a model is to be evaluated on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::Instance;
use super::artefact::parts;
use super::formats::records_of;
use super::ngrams::{self, WORDS};
use crate::error::{Error, Result};

/// A shorter text is looked for whole, if it has so many words: fewer stand in texts of any kind.
const FEWEST: usize = 6;

/// Runs of words of the evaluation files.
pub struct Evaluation {
    /// Runs of each length that there are, and the examples that have them.
    runs: BTreeMap<usize, HashMap<u64, Vec<u32>>>,
    /// The file of each example.
    file_of: Vec<u32>,
    found: HashSet<u32>,
    files: Vec<Contamination>,
}

/// What was found of one evaluation file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contamination {
    /// The file, or the folder of a pool.
    pub file: PathBuf,
    /// Its examples.
    pub examples: usize,
    /// Those without a text that is long enough to be looked for.
    pub too_short: usize,
    /// How many of them share a run of 13 words with some row of the pool, or stand in one whole.
    pub found: usize,
    /// Rows of the pool that do so, of each task.
    pub tasks: BTreeMap<String, usize>,
}

impl Evaluation {
    /// Reads the evaluation files: JSON Lines, a JSON array, Parquet, CSV or the folder of a pool, of which every text counts
    /// that has six words or more.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let mut all =
            Self { runs: BTreeMap::new(), file_of: Vec::new(), found: HashSet::new(), files: Vec::new() };
        for file in files {
            all.add(file)?;
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let (mut examples, mut too_short) = (0, 0);
        for part in parts(path)? {
            records_of(&part, &mut |_, row| {
                let example = self.file_of.len() as u32;
                self.file_of.push(self.files.len() as u32);
                examples += 1;
                let texts: usize = row.values().map(|value| self.add_texts(value, example)).sum();
                too_short += usize::from(texts == 0);
                Ok(())
            })?;
        }
        if examples == 0 {
            return Err(Error::file(path, "there is no example here; give an evaluation file with some"));
        }
        self.files.push(Contamination {
            file: path.to_path_buf(),
            examples,
            too_short,
            ..Contamination::default()
        });
        Ok(())
    }

    /// How many texts there are that are long enough.
    fn add_texts(&mut self, value: &Value, example: u32) -> usize {
        match value {
            Value::String(text) => {
                let words = ngrams::words(text);
                let n = words.len().min(WORDS);
                if n < FEWEST {
                    return 0;
                }
                let of_length = self.runs.entry(n).or_default();
                for run in ngrams::runs(&words, n) {
                    let examples = of_length.entry(run).or_default();
                    if examples.last() != Some(&example) {
                        examples.push(example);
                    }
                }
                1
            }
            Value::Array(list) => list.iter().map(|value| self.add_texts(value, example)).sum(),
            Value::Object(fields) => fields.values().map(|value| self.add_texts(value, example)).sum(),
            _ => 0,
        }
    }

    /// Whether an evaluation file has a run of words of this instance; counted if so.
    pub fn touches(&mut self, instance: &Instance) -> bool {
        let mut files = HashSet::new();
        // An instruction of no named task may hold the text itself.
        let asked = if instance.task.is_some() { instance.own_text() } else { &instance.input };
        for text in [asked, &instance.target] {
            let words = ngrams::words(text);
            for (n, of_length) in &self.runs {
                for evaluated in ngrams::runs(&words, *n).filter_map(|run| of_length.get(&run)).flatten() {
                    self.found.insert(*evaluated);
                    files.insert(self.file_of[*evaluated as usize]);
                }
            }
        }
        for file in &files {
            let task = instance.task_name().to_string();
            *self.files[*file as usize].tasks.entry(task).or_insert(0) += 1;
        }
        !files.is_empty()
    }

    /// What was found of each file.
    pub fn report(mut self) -> Vec<Contamination> {
        for example in &self.found {
            self.files[self.file_of[*example as usize] as usize].found += 1;
        }
        self.files
    }
}

#[cfg(test)]
mod tests {
    use super::super::Instance;
    use super::*;

    #[test]
    fn runs_of_thirteen_words_and_whole_short_texts_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval.jsonl");
        let long: Vec<String> = (0..20).map(|i| format!("w{i}")).collect();
        let lines = [
            serde_json::json!({"premise": long.join(" "), "label": 1}),
            serde_json::json!({"sentences": ["The man turned on the faucet.", "Yes or no?"]}),
            serde_json::json!({"text": "nobody ever wrote such a thing down before"}),
        ];
        std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
        let mut evaluation = Evaluation::open(std::slice::from_ref(&path)).unwrap();
        let mut touches = |input: &str| {
            let task = Some("t".to_string());
            evaluation.touches(&Instance { input: input.to_string(), task, ..Instance::default() })
        };
        assert!(touches(&format!("So: {}, and more", long[3..16].join(", "))));
        assert!(!touches(&long[3..15].join(" ")), "twelve words are no run");
        assert!(touches("Why? the man turned ON the faucet and left"));
        assert!(!touches("Yes or no? The man turned on the"));
        let report = evaluation.report();
        assert_eq!((report[0].examples, report[0].found), (3, 2));
        assert_eq!(report[0].tasks["t"], 2);
        assert_eq!(report[0].too_short, 0);
        // Two files with a text in common both have it, and what is too short is said.
        let other = dir.path().join("other.jsonl");
        let same = serde_json::json!({"passage": format!("{} then", long.join(" ")), "question": "Why?"});
        std::fs::write(&other, format!("{same}\n{same}\n{{\"text\": \"too short\"}}\n")).unwrap();
        let mut evaluation = Evaluation::open(&[path.clone(), other]).unwrap();
        assert!(evaluation.touches(&Instance { input: long.join(" "), ..Instance::default() }));
        let found: Vec<_> =
            evaluation.report().iter().map(|of| (of.examples, of.found, of.too_short)).collect();
        assert_eq!(found, [(3, 1, 0), (3, 2, 1)]);
        std::fs::write(&path, "\n").unwrap();
        assert!(Evaluation::open(&[path]).is_err());
    }
}
