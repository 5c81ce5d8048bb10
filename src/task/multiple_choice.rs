//! Questions with options: `{"question", "options": {"A": ..., "B": ...}, "answer": "A"}` a line.
//!
//! A model that likes some letter better than others is set right by asking with the options in other orders, and taking the mean of
//! what each option got (Atlas, section 3.2).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Example, Fault, id, metadata, passages, text};

/// Orders of the options that are asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Permutations {
    /// As given.
    #[default]
    Single,
    /// Turned round once: as many as there are options.
    Cyclic,
    /// All of them.
    All,
}

impl Permutations {
    /// Orders of `n` options, the given one first: at place `p` of an order stands the number of an option.
    pub fn of(self, n: usize) -> Vec<Vec<usize>> {
        match self {
            Self::Single => vec![(0..n).collect()],
            Self::Cyclic => (0..n).map(|turn| (0..n).map(|place| (place + turn) % n).collect()).collect(),
            Self::All => {
                let mut orders = vec![Vec::new()];
                for _ in 0..n {
                    let longer = |order: &Vec<usize>| {
                        let unused = (0..n).filter(|option| !order.contains(option));
                        unused.map(|option| [order.as_slice(), &[option]].concat()).collect::<Vec<_>>()
                    };
                    orders = orders.iter().flat_map(longer).collect();
                }
                orders
            }
        }
    }
}

/// Most options: all orders of more are too many, and letters end.
const MOST: usize = 8;

/// Reads a line.
pub(super) fn example(line: &Value) -> Result<Example, Fault> {
    let Some(options) = line["options"].as_object() else {
        return Err("there are no \"options\", an object of letters and texts".into());
    };
    let answer = text(line, "answer")?;
    let right = options.keys().position(|letter| *letter == answer);
    let right = right
        .ok_or_else(|| format!("answer {answer:?} is none of {:?}", options.keys().collect::<Vec<_>>()))?;
    if !(2..=MOST).contains(&options.len()) {
        return Err(format!("{} options; from 2 to {MOST} can be asked", options.len()));
    }
    let options: Option<Vec<String>> =
        options.values().map(|option| option.as_str().map(String::from)).collect();
    let options = options.ok_or("an option is no text")?;
    let plain = Example {
        id: id(line),
        question: text(line, "question")?,
        choices: letters(options.len()),
        options,
        passages: passages(line)?,
        metadata: metadata(line, &["id", "question", "options", "answer", "passages"]),
        ..Example::default()
    };
    Ok(Example { answers: vec![letters(MOST)[right].clone()], ..plain })
}

fn letters(n: usize) -> Vec<String> {
    ('A'..='Z').take(n).map(String::from).collect()
}

/// `example` with its options in `order`: asked with them behind the question, and answered by the letter where the right one
/// stands now.
pub fn ordered(example: &Example, order: &[usize]) -> Example {
    let letters = letters(order.len());
    let shown =
        letters.iter().zip(order).map(|(letter, option)| format!(" ({letter}) {}", example.options[*option]));
    let right = example.answers.first().and_then(|answer| letters.iter().position(|letter| letter == answer));
    let place = right.and_then(|right| order.iter().position(|option| *option == right));
    Example {
        question: format!("{} options:{}", example.question, shown.collect::<String>()),
        answers: place.map(|place| letters[place].clone()).into_iter().collect(),
        options: order.iter().map(|option| example.options[*option].clone()).collect(),
        ..example.clone()
    }
}

/// What the options get on average: `shares` has for each order the probabilities of the letters.
pub fn debiased(orders: &[Vec<usize>], shares: &[Vec<f64>]) -> Vec<f64> {
    let mut mean = vec![0.0; orders.first().map_or(0, Vec::len)];
    for (order, shares) in orders.iter().zip(shares) {
        for (option, share) in order.iter().zip(shares) {
            mean[*option] += share / orders.len() as f64;
        }
    }
    mean
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn orders_are_those_asked_for() {
        assert_eq!(Permutations::Single.of(3), [[0, 1, 2]]);
        assert_eq!(Permutations::Cyclic.of(3), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        let all = Permutations::All.of(4);
        let mut distinct = all.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!((all.len(), distinct.len(), &all[0]), (24, 24, &vec![0, 1, 2, 3]));
    }

    #[test]
    fn the_answer_moves_with_its_option() {
        let line = json!({"question": "Q?", "options": {"A": "x", "B": "y", "C": "z"}, "answer": "C"});
        let example = example(&line).unwrap();
        let asked = ordered(&example, &[1, 2, 0]);
        assert_eq!(asked.question, "Q? options: (A) y (B) z (C) x");
        assert_eq!(asked.answers, ["B"]);
        assert_eq!(ordered(&example, &[0, 1, 2]).answers, ["C"]);
    }

    /// Fails when letters are averaged instead of options: this model says "A" whatever stands there, and leans to "y".
    #[test]
    fn a_liking_for_a_letter_is_averaged_out() {
        let orders = Permutations::Cyclic.of(2);
        // Order [x, y], then [y, x].
        let shares = [vec![0.6, 0.4], vec![0.8, 0.2]];
        let mean = debiased(&orders, &shares);
        assert!((mean[0] - 0.4).abs() < 1e-12 && (mean[1] - 0.6).abs() < 1e-12, "{mean:?}");
    }
}
