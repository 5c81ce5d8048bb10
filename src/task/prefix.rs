//! Pre-training without labels: to write the second half of a passage from its first (Atlas, section 2.3).

use super::Example;

/// The task of a passage of two words or more.
pub fn example(id: &str, text: &str) -> Option<Example> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (first, rest) = words.split_at(words.len() / 2);
    (!first.is_empty()).then(|| Example {
        id: id.into(),
        question: first.join(" "),
        target: Some(rest.join(" ")),
        ..Example::default()
    })
}
