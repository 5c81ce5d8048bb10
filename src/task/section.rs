//! Pre-training without labels: to write a section's text from its title and heading (Atlas, section 2.3).

use super::Example;

/// The task of a passage with a heading; none without.
pub fn example(id: &str, title: &str, section: Option<&str>, text: &str) -> Option<Example> {
    let section = section.filter(|section| !section.is_empty())?;
    (!title.is_empty() && !text.trim().is_empty()).then(|| Example {
        id: id.into(),
        question: format!("{title}, {section}"),
        target: Some(text.trim().into()),
        ..Example::default()
    })
}
