//! Batch calibration: what a model holds for likely whatever the question is taken off its scores, after Zhou et al. 2024
//! (<https://arxiv.org/abs/2309.17249>).

use std::collections::BTreeMap;

use super::{Answered, Item, highest};

/// The measure's name.
const MEASURE: &str = "batch_calibrated";

/// Measures those of `answered` again, one for each of `items`, whose task and template have the same choices in all of several items:
/// by each choice's log-probability less its mean over these items. No right answer is looked at for that.
///
/// The mean is of log-probabilities, where the paper has the logarithm of the mean probability, so that no item outweighs the rest
/// where choices are of many tokens.
pub fn calibrate(items: &[Item], answered: &mut [Answered]) {
    let mut groups: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (i, one) in answered.iter().enumerate() {
        groups.entry((one.task.clone(), one.template.clone())).or_default().push(i);
    }
    for group in groups.values() {
        let choices = &items[group[0]].instance.choices;
        let same = group.iter().all(|i| items[*i].instance.choices == *choices);
        if group.len() == 1 || choices.is_empty() || !same {
            continue;
        }
        let mean = |at: usize| {
            group.iter().map(|i| answered[*i].choices[at].logprob).sum::<f64>() / group.len() as f64
        };
        let means: Vec<f64> = (0..choices.len()).map(mean).collect();
        for i in group {
            let one = &mut answered[*i];
            let Some(right) = one.right else { continue };
            let answer = highest(one.choices.iter().zip(&means).map(|(choice, mean)| choice.logprob - mean));
            one.scores.insert(MEASURE, f64::from(u8::from(answer == right)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Choice;
    use super::*;
    use crate::pool::Instance;

    /// An item of a template with these choices, what is right, and what a model makes of it.
    fn item(template: &str, choices: &[&str], right: Option<usize>, logprobs: &[f64]) -> (Item, Answered) {
        let choices: Vec<String> = choices.iter().map(ToString::to_string).collect();
        let instance = Instance { choices, ..Instance::default() };
        let choice = |logprob: &f64| Choice {
            logprob: *logprob,
            tokens: 1,
            characters: 1,
            alone: 0.0,
            without_content: None,
            instruction: None,
        };
        let answered = Answered {
            task: "task".into(),
            template: template.into(),
            example: String::new(),
            scores: BTreeMap::new(),
            right,
            choices: logprobs.iter().map(choice).collect(),
            written: None,
        };
        let (references, path) = (Vec::new(), std::path::PathBuf::new());
        let item =
            Item { instance, references, example: String::new(), path, line: 1, without_content: None };
        (item, answered)
    }

    #[test]
    fn what_is_likely_everywhere_is_no_answer() {
        let yes_no = ["yes", "no"];
        let (items, mut answered): (Vec<_>, Vec<_>) = [
            item("leaning", &yes_no, Some(0), &[-1.0, -3.0]),
            item("leaning", &yes_no, Some(1), &[-1.0, -1.5]),
            item("leaning", &yes_no, Some(1), &[-1.0, -3.5]),
            // Not to be judged, but asked: without it "no" would have a mean of -2.67.
            item("leaning", &yes_no, None, &[-1.0, -5.6]),
            item("other choices", &yes_no, Some(0), &[-1.0, -3.0]),
            item("other choices", &["no", "yes"], Some(0), &[-1.0, -3.0]),
            item("alone", &yes_no, Some(0), &[-1.0, -3.0]),
            item("in writing", &[], None, &[]),
            item("in writing", &[], None, &[]),
        ]
        .into_iter()
        .unzip();
        calibrate(&items, &mut answered);
        // The mean of "no" is -3.4.
        let found: Vec<Option<f64>> = answered.iter().map(|one| one.scores.get(MEASURE).copied()).collect();
        let mut wanted = [Some(0.0), Some(1.0), Some(0.0)].to_vec();
        wanted.resize(9, None);
        assert_eq!(found, wanted);
    }
}
