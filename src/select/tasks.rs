//! What a pool's tasks are about, as vectors: by the words that their inputs have in common.

use std::collections::{HashMap, HashSet};

use super::Pool;
use super::templates::{Template, Templates};
use crate::encoder::{Encoder, normalise_rows};
use crate::error::Result;

/// Texts encoded at a time.
pub const BATCH: usize = 256;

/// The tasks of a pool, one of each task and template name, and what tells their descriptions apart.
///
/// A description is an instruction or a template's words. Nearly all say "the following" or "answer"; what a task asks for is in
/// the words that few have. So a description's vector is the sum of its words' vectors, each times the square of its inverse
/// document frequency ln((N + 1) / (n + 1)) (Spärck Jones 1972), n of N descriptions having it, at unit length.
pub struct Tasks {
    templates: Templates,
    /// Descriptions that have a word.
    with: HashMap<String, usize>,
    /// `[groups, dim]`.
    vectors: Vec<f32>,
    dim: usize,
}

impl Tasks {
    /// Reads the pool twice.
    ///
    /// # Errors
    /// A pool that changed; what the encoder brings.
    pub fn of_pool(pool: &Pool, encoder: &dyn Encoder) -> Result<Self> {
        let templates = Templates::of_pool(pool)?;
        let mut described: Vec<Option<String>> = vec![None; templates.groups()];
        pool.for_each(|_, _, row| {
            let group = templates.group_of(&row);
            described[group].get_or_insert_with(|| templates.template(group).description(&row.input));
            Ok(())
        })?;
        let described: Vec<Vec<String>> =
            described.iter().map(|text| words(text.as_deref().unwrap_or_default())).collect();
        let mut with = HashMap::new();
        for words in &described {
            for word in words.iter().collect::<HashSet<_>>() {
                *with.entry(word.clone()).or_insert(0) += 1;
            }
        }
        let mut tasks = Self { templates, with, vectors: Vec::new(), dim: encoder.dim() };
        tasks.vectors = tasks.vectors_of(&described, encoder)?;
        Ok(tasks)
    }

    /// What tells own texts from templates.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// The vector of a group's description; zero where the encoder knows no word of it.
    pub fn vector(&self, group: usize) -> &[f32] {
        &self.vectors[group * self.dim..][..self.dim]
    }

    /// The vector of another description.
    ///
    /// # Errors
    /// What the encoder brings.
    pub fn describe(&self, description: &str, encoder: &dyn Encoder) -> Result<Vec<f32>> {
        self.vectors_of(&[words(description)], encoder)
    }

    fn vectors_of(&self, described: &[Vec<String>], encoder: &dyn Encoder) -> Result<Vec<f32>> {
        let mut distinct: Vec<&str> = described.iter().flatten().map(String::as_str).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut of_words = HashMap::new();
        for words in distinct.chunks(BATCH) {
            let mut vectors = encoder.encode(words)?;
            normalise_rows(&mut vectors, self.dim);
            of_words.extend(words.iter().copied().zip(vectors.chunks(self.dim).map(<[f32]>::to_vec)));
        }
        let count = (self.templates.groups() + 1) as f32;
        let mut vectors = vec![0f32; described.len() * self.dim];
        for (vector, words) in vectors.chunks_mut(self.dim).zip(described) {
            for word in words {
                let with = self.with.get(word).copied().unwrap_or(0) + 1;
                let weight = (count / with as f32).ln().powi(2);
                vector.iter_mut().zip(&of_words[word.as_str()]).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        normalise_rows(&mut vectors, self.dim);
        Ok(vectors)
    }
}

impl Template {
    /// What the task is about: the template's words in `input`, or where it has none the whole input.
    pub fn description(&self, input: &str) -> String {
        let fixed = self.fixed(input);
        if fixed.is_empty() { input.to_string() } else { fixed }
    }
}

/// Words and signs, in lower case.
fn words(text: &str) -> Vec<String> {
    super::templates::words(text).into_iter().map(|(from, to)| text[from..to].to_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word is a direction of its own, whichever text it stands in.
    struct Letters;

    impl Encoder for Letters {
        fn dim(&self) -> usize {
            26
        }
        fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
            let mut vectors = vec![0f32; 26 * texts.len()];
            for (vector, text) in vectors.chunks_mut(26).zip(texts) {
                text.bytes()
                    .filter(u8::is_ascii_lowercase)
                    .for_each(|b| vector[usize::from(b - b'a')] += 1.0);
            }
            Ok(vectors)
        }
        fn name(&self) -> &str {
            "letters"
        }
        fn identity(&self) -> &str {
            "letters"
        }
    }

    /// Fails when words that all tasks have count, or rare ones do not count by the square.
    #[test]
    fn a_task_is_its_rare_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let mut lines = String::new();
        for (task, instruction) in [("one", "a b"), ("two", "a c"), ("three", "a c d")] {
            for row in 0..9 {
                let input = format!("{instruction}: {row} x{row} z");
                lines += &format!("{}\n", serde_json::json!({"input": input, "target": "t", "task": task}));
            }
        }
        std::fs::write(&path, lines).unwrap();
        let pool = Pool::open(&path).unwrap();
        let tasks = Tasks::of_pool(&pool, &Letters).unwrap();
        let close = |found: &[f32], wanted: &[(usize, f32)]| {
            let length = wanted.iter().map(|(_, x)| x * x).sum::<f32>().sqrt();
            for (at, x) in found.iter().enumerate() {
                let wanted = wanted.iter().find(|(letter, _)| *letter == at).map_or(0.0, |(_, x)| x / length);
                assert!((x - wanted).abs() < 1e-6, "{found:?}");
            }
        };
        // Of three descriptions all have "a" and "z", two "c", one "b" or "d".
        let (rare, half) = ((4f32 / 2.0).ln().powi(2), (4f32 / 3.0).ln().powi(2));
        close(tasks.vector(0), &[(1, 1.0)]);
        close(tasks.vector(1), &[(2, 1.0)]);
        close(tasks.vector(2), &[(2, half), (3, rare)]);
        // A word that no task has counts most.
        let new = 4f32.ln().powi(2);
        close(&tasks.describe("A c e", &Letters).unwrap(), &[(2, half), (4, new)]);
    }
}
