//! Texts that are scored, each after a question.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::WritingModel;
use crate::model::generate::Score;

/// Most tokens of questions that are read side by side, padding included.
const TOKENS: usize = 4096;

/// Questions with texts to score after each: a pair that is added twice is scored once.
#[derive(Default)]
pub(super) struct Pairs {
    questions: Vec<(Vec<u32>, Vec<Vec<u32>>)>,
    of_question: HashMap<Vec<u32>, usize>,
    of_text: HashMap<(usize, Vec<u32>), usize>,
}

/// Where the score of a pair is found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize, usize);

/// The scores of all pairs.
pub(super) struct Scores(Vec<Vec<Score>>);

impl Scores {
    pub fn get(&self, place: Place) -> &Score {
        &self.0[place.0][place.1]
    }
}

impl Pairs {
    /// Adds a question, at least a token, and a text that shall be scored after it.
    pub fn add(&mut self, question: &[u32], text: &[u32]) -> Place {
        let number = *self.of_question.entry(question.to_vec()).or_insert_with(|| {
            self.questions.push((question.to_vec(), Vec::new()));
            self.questions.len() - 1
        });
        let texts = &mut self.questions[number].1;
        let at = *self.of_text.entry((number, text.to_vec())).or_insert_with(|| {
            texts.push(text.to_vec());
            texts.len() - 1
        });
        Place(number, at)
    }

    /// How many questions there are.
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Scores all pairs, questions of like length side by side, at most `batch` texts at a time. `done` is told of so many more
    /// questions.
    ///
    /// # Errors
    /// When the network fails; an interruption.
    pub fn score(&self, model: &WritingModel, batch: usize, done: &dyn Fn(u64)) -> Result<Scores> {
        let length = |number: usize| self.questions[number].0.len();
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|number| length(*number));
        let mut scores = vec![Vec::new(); self.len()];
        let mut rest = order.as_slice();
        while let Some(first) = rest.first() {
            if interrupt::requested() {
                let why = format!("{} of {} questions were asked", self.len() - rest.len(), self.len());
                return Err(Error::Interrupted(why));
            }
            // In order, so that the last is the longest.
            let fits = |count: &usize| count * length(rest[count - 1]) <= TOKENS;
            let count = (1..=rest.len().min(batch.max(1))).take_while(fits).last().unwrap_or(1);
            debug_assert!(length(*first) > 0);
            let (group, others) = rest.split_at(count);
            rest = others;
            let questions: Vec<&[u32]> =
                group.iter().map(|number| self.questions[*number].0.as_slice()).collect();
            let rows: Vec<(usize, &[u32])> = group
                .iter()
                .enumerate()
                .flat_map(|(row, number)| {
                    self.questions[*number].1.iter().map(move |text| (row, text.as_slice()))
                })
                .collect();
            let mut scored = model.generator(None).score_each(&questions, &rows, batch)?.into_iter();
            for number in group {
                scores[*number] = scored.by_ref().take(self.questions[*number].1.len()).collect();
            }
            done(count as u64);
        }
        Ok(Scores(scores))
    }
}
