//! FLAN's chains of thought (Longpre et al. 2023): lines of question, answer and reasoning, with a tab between them, in which
//! `\n` stands for a line's end.

use std::path::Path;

use super::super::lines::Lines;
use super::super::{CHAIN_OF_THOUGHT, Instance};
use super::{Visit, stem};
use crate::error::{Error, Result};

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let task = stem(path).trim_end_matches("_train").to_string();
    let mut lines = Lines::open(path)?;
    while let Some((line, text)) = lines.next()? {
        let fields: Vec<_> = text.split('\t').map(|field| field.replace("\\n", "\n")).collect();
        let [question, answer, reasoning] = fields.as_slice() else {
            let why = format!(
                "{} fields; a line is question, answer and reasoning, with tabs between them",
                fields.len()
            );
            return Err(Error::line(path, line, why));
        };
        let instance = Instance {
            input: format!("{}\nLet's think step by step.", question.trim()),
            target: format!("{} The answer is {}.", reasoning.trim(), answer.trim().trim_end_matches('.')),
            task: Some(task.clone()),
            template: Some(CHAIN_OF_THOUGHT.to_string()),
            source: Some("flan-cot".to_string()),
            own: Some(question.trim().to_string()),
            ..Instance::default()
        };
        visit(instance)?;
    }
    Ok(())
}
