//! The corpus, the pool and the questions inside the program.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

const TRAIN: &[u8] = include_bytes!("../../assets/simplewiki/train.jsonl.zst");
const HELD_OUT: &[u8] = include_bytes!("../../assets/simplewiki/heldout.jsonl.zst");
const QUESTIONS: &str = include_str!("../../assets/simplewiki/questions.jsonl");
const POOL: &[u8] = include_bytes!("../../assets/sni/pool.jsonl.zst");
const TARGET: &str = include_str!("../../assets/sni/target.jsonl");
const TARGET_META: &str = include_str!("../../assets/sni/target_meta.json");

/// Articles of the corpus and of the held-out text in the short mode. Both files are shuffled, so
/// a prefix is a fair sample.
const SHORT: (usize, usize) = (1200, 60);
/// Which of the questions is asked.
const QUESTION: usize = 0;

/// Everything unpacked.
pub struct Files {
    /// Articles to index and train on.
    pub train: PathBuf,
    /// Articles to predict.
    pub held_out: PathBuf,
    /// Kind of each held-out article, "ordinary" or "templated", by id.
    pub kinds: HashMap<String, String>,
    /// Instances to select from.
    pub pool: PathBuf,
    /// Unlabelled examples of the target task.
    pub target: PathBuf,
    /// The target task's name.
    pub target_task: String,
    /// A question that the corpus answers.
    pub question: String,
}

/// Writes the files that ship with the program into `out`.
pub fn unpack(out: &Path, short: bool) -> Result<Files> {
    let corpus = out.join("corpus");
    let select = out.join("select");
    for dir in [&corpus, &select] {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    let lines = |n: usize| if short { n } else { usize::MAX };
    let held_out = decompress("heldout", HELD_OUT, lines(SHORT.1))?;
    let kinds = held_out
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|article| Some((article["id"].as_str()?.into(), article["kind"].as_str()?.into())))
        .collect();
    let question = QUESTIONS.lines().nth(QUESTION).and_then(|line| serde_json::from_str::<Value>(line).ok());
    let meta: Value = serde_json::from_str(TARGET_META).unwrap_or_default();
    Ok(Files {
        train: write(corpus.join("train.jsonl"), &decompress("train", TRAIN, lines(SHORT.0))?)?,
        held_out: write(corpus.join("heldout.jsonl"), &held_out)?,
        kinds,
        pool: write(select.join("pool.jsonl"), &decompress("pool", POOL, usize::MAX)?)?,
        target: write(select.join("target.jsonl"), TARGET)?,
        target_task: meta["task"].as_str().unwrap_or_default().into(),
        question: question
            .and_then(|question| Some(question["question"].as_str()?.to_string()))
            .unwrap_or_default(),
    })
}

fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    fs::write(&path, text).map_err(Error::io(&path))?;
    Ok(path)
}

fn decompress(name: &str, bytes: &[u8], lines: usize) -> Result<String> {
    let failed = |why: String| Error::file(format!("the embedded {name}.jsonl.zst"), why);
    let text = zstd::decode_all(bytes).map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8(text).map_err(|e| failed(e.to_string()))?;
    Ok(text.split_inclusive('\n').take(lines).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ships_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = unpack(dir.path(), false).unwrap();
        assert!(fs::read_to_string(&files.train).unwrap().lines().count() >= 3000);
        assert!(files.kinds.values().any(|kind| kind == "ordinary"));
        assert!(files.kinds.values().any(|kind| kind == "templated"));
        assert!(!files.question.is_empty() && !files.target_task.is_empty());
        let short = unpack(&dir.path().join("short"), true).unwrap();
        assert_eq!(fs::read_to_string(&short.train).unwrap().lines().count(), SHORT.0);
        assert_eq!(short.kinds.len(), SHORT.1);
    }
}
