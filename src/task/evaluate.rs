//! Asking a reader every example of a task, and judging what it says.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::calibration::Judged;
use super::multiple_choice::{Permutations, debiased, ordered};
use super::{Example, GivenPassage};
use crate::error::{Error, Result};
use crate::eval::metrics::{best, exact_match, f1, holds, page_recall, r_precision, rouge};
use crate::interrupt;
use crate::progress::Progress;
use crate::reader::{Reader, Source, widened};
use crate::retriever::{Passage, Retriever, SearchOptions};

/// Numbers of passages that recall is measured at, as far as so many are read.
const RECALLS: [usize; 5] = [1, 5, 10, 20, 100];

/// Where passages come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Retrieved for each question.
    #[default]
    Retrieve,
    /// There are none: what the model knows by itself.
    ClosedBook,
    /// Those that come with the question.
    GivenPassages,
    /// Retrieved, and not read: only retrieval is measured.
    RetrieveOnly,
}

/// How to ask.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// Where passages come from.
    pub mode: Mode,
    /// Passages a question.
    pub k: usize,
    /// How they are searched for.
    pub search: SearchOptions,
    /// Orders in which the options of multiple choice are asked.
    pub permutations: Permutations,
}

/// What was said to a question: a line of Atlas's output, and what is known of it beside.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// What was asked.
    pub query: String,
    /// All right answers.
    pub answers: Vec<String>,
    /// What was answered.
    pub generation: String,
    /// What there was to read, best first; a model has not always room for the last ones.
    pub passages: Vec<LinePassage>,
    /// What else the example's line said.
    pub metadata: Value,
    /// Its id.
    pub id: String,
    /// Logarithms of the choices' probabilities, by choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_logits: Option<Map<String, Value>>,
    /// The choices' probabilities, by choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice_probs: Option<Map<String, Value>>,
    /// How sure the reader was, from 0 to 1.
    pub confidence: f64,
    /// Places of the passages that it cites.
    pub citations: Vec<usize>,
    /// How good the answer is, by the name of the measure.
    pub scores: Map<String, Value>,
}

/// A passage that was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinePassage {
    /// Id of its document.
    pub id: String,
    /// Title of its document.
    pub title: String,
    /// What was read of it.
    pub text: String,
    /// The retriever's score.
    pub score: f32,
}

/// Means over all questions.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Questions asked.
    pub questions: usize,
    /// Where passages came from.
    pub mode: Mode,
    /// Passages a question.
    pub k: usize,
    /// Means by the name of the measure, each over the questions that have it: exact_match, f1, rouge_l, accuracy,
    /// recall_at_N, cited (how many answers cite a passage), attribution (of those, how many cite one that holds a right answer);
    /// where the evidence is known, KILT's r_precision, page_recall_at_N, and kilt_exact_match, kilt_f1 and kilt_rouge_l, which
    /// count an answer only if R-precision is 1.
    #[serde(flatten)]
    pub means: Map<String, Value>,
    /// Questions a second.
    pub questions_per_second: f64,
    /// Support and rightness of every answer.
    #[serde(skip)]
    pub judged: Vec<Judged>,
}

/// Asks `reader` all of `examples`, and gives each line to `write` as it is there.
///
/// # Errors
/// A mode without the reader, the index or the passages that it needs; an interruption; what reader and retriever report.
pub fn evaluate(
    reader: Option<&dyn Reader>,
    retriever: Option<&Retriever>,
    examples: &[Example],
    options: &Evaluation,
    write: &mut dyn FnMut(&Line) -> Result<()>,
    progress: Progress,
) -> Result<Summary> {
    let clock = Instant::now();
    let task = progress.task("asking", examples.len() as u64, "questions");
    let mut sums: Vec<(String, f64, usize)> = Vec::new();
    let mut judged = Vec::new();
    for example in examples {
        if interrupt::requested() {
            return Err(Error::Interrupted("what was asked is written; begin again for all of it".into()));
        }
        let passages = passages_of(retriever, example, options)?;
        let line = match (options.mode, reader) {
            (Mode::RetrieveOnly, _) => {
                let mut line = Line::unread(example, passages);
                line.provenance(example);
                line
            }
            (_, Some(reader)) => ask(reader, example, passages, options)?,
            (_, None) => return Err(Error::setting("model", "give a reader, or only retrieve")),
        };
        for (name, value) in &line.scores {
            let value = value.as_f64().unwrap_or(0.0);
            match sums.iter_mut().find(|(had, ..)| had == name) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + value, *count + 1),
                None => sums.push((name.clone(), value, 1)),
            }
        }
        if options.mode != Mode::RetrieveOnly {
            judged.push(Judged::of(&line));
        }
        write(&line)?;
        task.advance(1);
    }
    let means = sums.into_iter().map(|(name, sum, count)| (name, json!(sum / count as f64))).collect();
    let questions_per_second = examples.len() as f64 / clock.elapsed().as_secs_f64().max(1e-9);
    Ok(Summary {
        questions: examples.len(),
        mode: options.mode,
        k: options.k,
        means,
        questions_per_second,
        judged,
    })
}

fn passages_of(
    retriever: Option<&Retriever>,
    example: &Example,
    options: &Evaluation,
) -> Result<Vec<LinePassage>> {
    match (options.mode, retriever) {
        (Mode::ClosedBook, _) => Ok(Vec::new()),
        (Mode::GivenPassages, _) => {
            let given = example.given()?;
            let line = |given: &GivenPassage| LinePassage {
                id: given.id.clone(),
                title: given.title.clone(),
                text: given.text.clone(),
                score: 0.0,
            };
            Ok(given.iter().take(options.k).map(line).collect())
        }
        (_, Some(retriever)) => {
            let found = retriever.search_with(&example.question, options.k, &options.search)?;
            let line = |passage: Passage| LinePassage {
                text: widened(retriever, &passage).to_string(),
                id: passage.id,
                title: passage.title,
                score: passage.score,
            };
            Ok(found.into_iter().map(line).collect())
        }
        (_, None) => Err(Error::setting("index", "give the index to retrieve from")),
    }
}

fn ask(
    reader: &dyn Reader,
    example: &Example,
    passages: Vec<LinePassage>,
    options: &Evaluation,
) -> Result<Line> {
    let sources: Vec<Source<'_>> =
        passages.iter().map(|p| Source { title: &p.title, text: &p.text, score: p.score }).collect();
    if example.choices.is_empty() {
        let answer = reader.answer(&example.question, &sources)?;
        let mut line = Line::unread(example, Vec::new());
        (line.generation, line.confidence, line.citations) =
            (answer.generation, answer.confidence, answer.citations);
        if !example.answers.is_empty() {
            line.judge(example, &passages);
        }
        line.passages = passages;
        line.recall(example);
        line.provenance(example);
        return Ok(line);
    }
    // Options in each order are a question of its own; other choices are asked as they are.
    let orders = match example.options.len() {
        0 => Permutations::Single.of(example.choices.len()),
        n => options.permutations.of(n),
    };
    let mut shares = Vec::with_capacity(orders.len());
    for order in &orders {
        let asked = if example.options.is_empty() { example.clone() } else { ordered(example, order) };
        shares.push(reader.choose(&asked.question, &sources, &example.choices)?);
    }
    let mean = debiased(&orders, &shares);
    let right = |shares: &[f64]| {
        let place = largest(shares);
        f64::from(u8::from(
            place.is_some_and(|place| example.answers.first() == Some(&example.choices[place])),
        ))
    };
    let mut line = Line::unread(example, Vec::new());
    line.passages = passages;
    line.scores.insert("accuracy".into(), right(&shares[0]).into());
    if orders.len() > 1 {
        line.scores.insert("debiased_accuracy".into(), right(&mean).into());
    }
    if let Some(place) = largest(&mean) {
        (line.generation, line.confidence) = (example.choices[place].clone(), mean[place]);
    }
    let by_choice = |value: fn(f64) -> f64| {
        let values = example.choices.iter().zip(&mean);
        Some(values.map(|(choice, share)| (choice.clone(), json!(value(*share)))).collect())
    };
    (line.choice_probs, line.choice_logits) =
        (by_choice(|share| share), by_choice(|share| share.max(1e-300).ln()));
    Ok(line)
}

fn largest(shares: &[f64]) -> Option<usize> {
    (0..shares.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b]).then(b.cmp(a)))
}

impl Line {
    /// A line without an answer.
    fn unread(example: &Example, passages: Vec<LinePassage>) -> Self {
        let mut line = Self {
            query: example.question.clone(),
            answers: example.answers.clone(),
            generation: String::new(),
            passages,
            metadata: example.metadata.clone(),
            id: example.id.clone(),
            choice_logits: None,
            choice_probs: None,
            confidence: 0.0,
            citations: Vec::new(),
            scores: Map::new(),
        };
        line.recall(example);
        line
    }

    /// Where the first passage that holds an answer stands.
    fn recall(&mut self, example: &Example) {
        if self.passages.is_empty() || example.answers.is_empty() || !example.choices.is_empty() {
            return;
        }
        let first = self.passages.iter().position(|passage| passage.holds(&example.answers));
        for n in RECALLS.into_iter().filter(|n| *n <= self.passages.len()) {
            let found = first.is_some_and(|first| first < n);
            self.scores.insert(format!("recall_at_{n}"), f64::from(u8::from(found)).into());
        }
    }

    /// Whether the right documents were found, each counted where its first passage stands, and what the answer is worth by that.
    fn provenance(&mut self, example: &Example) {
        if example.evidence.is_empty() {
            return;
        }
        let mut pages: Vec<&str> = Vec::new();
        for passage in &self.passages {
            if !pages.contains(&passage.id.as_str()) {
                pages.push(&passage.id);
            }
        }
        let precision = r_precision(&example.evidence, &pages);
        let recalls = RECALLS.into_iter().filter(|n| *n <= self.passages.len());
        let mut scores = vec![("r_precision".to_string(), precision)];
        scores.extend(
            recalls.map(|n| (format!("page_recall_at_{n}"), page_recall(&example.evidence, &pages, n))),
        );
        for measure in ["exact_match", "f1", "rouge_l"] {
            if let Some(score) = self.scores.get(measure).and_then(Value::as_f64) {
                scores.push((format!("kilt_{measure}"), if precision == 1.0 { score } else { 0.0 }));
            }
        }
        self.scores.extend(scores.into_iter().map(|(name, score)| (name, score.into())));
    }

    fn judge(&mut self, example: &Example, passages: &[LinePassage]) {
        let said = self.generation.clone();
        let of = |measure: &dyn Fn(&str) -> f64| best(&example.answers, measure);
        let mut score = |name: &str, value: f64| _ = self.scores.insert(name.into(), value.into());
        score("exact_match", of(&|answer| exact_match(&said, answer)));
        score("f1", of(&|answer| f1(&said, answer)));
        score("rouge_l", of(&|answer| rouge(&said, answer).rouge_l));
        if !passages.is_empty() {
            let cited = &self.citations;
            score("cited", f64::from(u8::from(!cited.is_empty())));
            if !cited.is_empty() {
                let right = cited.iter().any(|place| passages[*place].holds(&example.answers));
                score("attribution", f64::from(u8::from(right)));
            }
        }
    }
}

impl LinePassage {
    fn holds(&self, answers: &[String]) -> bool {
        holds(&self.text, answers) || holds(&self.title, answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recall_is_of_the_first_passages() {
        let passage = |text: &str| LinePassage {
            id: String::new(),
            title: String::new(),
            text: text.into(),
            score: 0.0,
        };
        let example = Example { answers: vec!["Moon".into()], ..Example::default() };
        let of =
            |texts: &[&str]| Line::unread(&example, texts.iter().map(|text| passage(text)).collect()).scores;
        let scores = of(&["the sun", "the moon", "a", "b", "c", "d"]);
        assert_eq!((&scores["recall_at_1"], &scores["recall_at_5"]), (&json!(0.0), &json!(1.0)));
        assert!(scores.get("recall_at_10").is_none(), "so many were not read");
        assert_eq!(of(&["a", "b", "c", "d", "e", "the moon"])["recall_at_5"], 0.0);
        assert!(of(&[]).is_empty());
        let lettered = Example { choices: vec!["A".into()], ..example.clone() };
        assert!(
            Line::unread(&lettered, vec![passage("moon")]).scores.is_empty(),
            "a letter is in no passage"
        );
    }
    /// Fails when a document counts once for each of its passages, or an answer without the right documents counts for KILT.
    #[test]
    fn an_answer_counts_for_kilt_where_its_documents_are_right() {
        let set = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect();
        let example = Example {
            answers: vec!["moon".into()],
            evidence: vec![set(&["1", "2"]), set(&["3"])],
            ..Example::default()
        };
        let scored = |ids: &[&str], said: &str| {
            let passage = |id: &&str| LinePassage {
                id: id.to_string(),
                title: String::new(),
                text: "text".into(),
                score: 0.0,
            };
            let passages: Vec<LinePassage> = ids.iter().map(passage).collect();
            let mut line = Line::unread(&example, passages.clone());
            line.generation = said.into();
            line.judge(&example, &passages);
            line.provenance(&example);
            line.scores
        };
        // The first two documents are 2 and 1; all words of the answer are right, and half of those given: F1 2/3.
        let right = scored(&["2", "2", "1", "9", "3"], "moon light");
        assert_eq!((&right["r_precision"], &right["kilt_exact_match"]), (&json!(1.0), &json!(0.0)));
        assert!((right["kilt_f1"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12, "{right:?}");
        // {1, 2} takes the first place, 9 the second, 3 the third.
        assert_eq!((&right["page_recall_at_1"], &right["page_recall_at_5"]), (&json!(0.5), &json!(1.0)));
        let wrong = scored(&["2", "9", "1"], "moon");
        assert_eq!((&wrong["exact_match"], &wrong["kilt_exact_match"]), (&json!(1.0), &json!(0.0)));
        assert_eq!((&wrong["r_precision"], &wrong["page_recall_at_1"]), (&json!(0.5), &json!(0.0)));
        let unread = scored(&[], "moon");
        assert_eq!((&unread["r_precision"], &unread["kilt_f1"]), (&json!(0.0), &json!(0.0)));
        assert!(Line::unread(&Example::default(), Vec::new()).scores.is_empty());
    }
}
