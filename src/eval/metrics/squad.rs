//! Exact match and F1 as the official script of SQuAD v1.1 has them (Rajpurkar et al. 2016,
//! <https://arxiv.org/abs/1606.05250>, section 6.1).

use std::collections::HashMap;

const ARTICLES: [&str; 3] = ["a", "an", "the"];

/// In lower case, without ASCII punctuation and English articles, words one space apart.
pub fn normalise(text: &str) -> String {
    let lower = text.to_lowercase();
    let bare: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // An article is one wherever no letter or digit stands beside it, as a regular expression's \b sees it.
    let mut kept = String::with_capacity(bare.len());
    let mut rest = bare.as_str();
    while let Some(first) = rest.chars().next() {
        let of_word = first.is_alphanumeric();
        let end = rest.find(|c: char| c.is_alphanumeric() != of_word).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        kept.push_str(if ARTICLES.contains(&run) { " " } else { run });
        rest = after;
    }
    // What Python takes for white space beyond Unicode's.
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    kept.split(space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// 1 where both are the same once normalised, else 0.
pub fn exact_match(prediction: &str, answer: &str) -> f64 {
    f64::from(u8::from(normalise(prediction) == normalise(answer)))
}

/// The harmonic mean of precision and recall over normalised words; 0 where they share none.
pub fn f1(prediction: &str, answer: &str) -> f64 {
    let (prediction, answer) = (normalise(prediction), normalise(answer));
    let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).count() as f64;
    let mut left: HashMap<&str, usize> = HashMap::new();
    answer.split(' ').filter(|word| !word.is_empty()).for_each(|word| *left.entry(word).or_default() += 1);
    let mut same = 0.0;
    for word in prediction.split(' ') {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            same += 1.0;
        }
    }
    if same == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (same / words(&prediction), same / words(&answer));
    2.0 * precision * recall / (precision + recall)
}
