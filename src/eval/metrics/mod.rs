//! How good an answer is, and what was found for it.

mod provenance;
mod rouge;
mod squad;

pub use provenance::{page_recall, r_precision};
pub use rouge::{Rouge, rouge};
pub use squad::{exact_match, f1, normalise};

/// Whether `text` holds one of `answers`, both normalised as [`exact_match`] does it, as whole words: the measure of
/// retrieval for questions without judgements (Chen et al. 2017, <https://arxiv.org/abs/1704.00051>, section 5.1), and
/// of attribution for a passage that is cited. An answer of which nothing is left is held by no text.
pub fn holds(text: &str, answers: &[impl AsRef<str>]) -> bool {
    let text = normalise(text);
    let words: Vec<&str> = text.split(' ').collect();
    answers.iter().any(|answer| {
        let answer = normalise(answer.as_ref());
        let answer: Vec<&str> = answer.split(' ').filter(|word| !word.is_empty()).collect();
        !answer.is_empty() && words.windows(answer.len()).any(|window| window == answer)
    })
}

/// The largest of what `measure` gives for any of `answers`, 0 for none.
pub fn best(answers: &[impl AsRef<str>], measure: impl Fn(&str) -> f64) -> f64 {
    answers.iter().map(|answer| measure(answer.as_ref())).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Fails when articles are cut out of words, punctuation parts words, or repeated words count more than once.
    #[test]
    fn scores_are_those_of_the_official_script_and_of_rouge_score() {
        let golden = include_str!("../../../tests/data/metrics/golden.jsonl");
        let mut lines = 0;
        for line in golden.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let prediction = line["prediction"].as_str().unwrap();
            let answers: Vec<&str> =
                line["answers"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
            assert_eq!(normalise(prediction), line["normalised"], "{line}");
            let rouge = |of: fn(&Rouge) -> f64| best(&answers, |answer| of(&rouge(prediction, answer)));
            for (name, found) in [
                ("exact_match", best(&answers, |answer| exact_match(prediction, answer))),
                ("f1", best(&answers, |answer| f1(prediction, answer))),
                ("rouge1", rouge(|r| r.rouge1)),
                ("rouge2", rouge(|r| r.rouge2)),
                ("rougeL", rouge(|r| r.rouge_l)),
            ] {
                let expected = line[name].as_f64().unwrap();
                assert!((found - expected).abs() < 1e-12, "{name}: {found}, not {expected}: {line}");
            }
            lines += 1;
        }
        assert!(lines > 80);
    }

    #[test]
    fn a_text_holds_an_answer_as_whole_words() {
        let text = "Alan Turing was born in London, on 23 June 1912.";
        assert!(holds(text, &["june 1912"]) && holds(text, &["nothing", "The London"]));
        assert!(!holds(text, &["June 19"]) && !holds(text, &["1912 June"]) && !holds(text, &["the", ""]));
        assert!(!holds("", &["x"]) && !holds(text, &[""; 0]));
    }
}
