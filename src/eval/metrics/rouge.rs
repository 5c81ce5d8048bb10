//! ROUGE (Lin 2004, <https://aclanthology.org/W04-1013>), as Google's rouge-score computes it without stemming.

use std::collections::HashMap;

/// F-measures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    /// Of single words.
    pub rouge1: f64,
    /// Of pairs of words.
    pub rouge2: f64,
    /// Of the longest common subsequence of words.
    pub rouge_l: f64,
}

/// How much of `answer` is in `prediction`, and the other way round.
pub fn rouge(prediction: &str, answer: &str) -> Rouge {
    let (prediction, answer) = (words(prediction), words(answer));
    let longest = common_subsequence(&prediction, &answer);
    Rouge {
        rouge1: of_runs(&prediction, &answer, 1),
        rouge2: of_runs(&prediction, &answer, 2),
        rouge_l: f_measure(longest, prediction.len(), answer.len()),
    }
}

/// Runs of ASCII letters and digits in lower case.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(String::from).collect()
}

fn of_runs(prediction: &[String], answer: &[String], n: usize) -> f64 {
    let mut left: HashMap<&[String], usize> = HashMap::new();
    answer.windows(n).for_each(|run| *left.entry(run).or_default() += 1);
    let mut same = 0;
    for run in prediction.windows(n) {
        if let Some(count) = left.get_mut(run).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    let runs = |text: &[String]| (text.len() + 1).saturating_sub(n);
    f_measure(same, runs(prediction), runs(answer))
}

fn f_measure(same: usize, predicted: usize, wanted: usize) -> f64 {
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (same as f64 / predicted as f64, same as f64 / wanted as f64);
    2.0 * precision * recall / (precision + recall)
}

fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
