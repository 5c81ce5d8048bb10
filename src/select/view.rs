//! What of a row and of an example is compared: its whole input, or its own text and its task's description side by side.

use serde::{Deserialize, Serialize};
use sidenote_index::Metric;

use super::tasks::{BATCH, Tasks};
use super::templates::Template;
use super::{Row, Target};
use crate::encoder::{Encoder, normalise_rows};
use crate::error::Result;

/// What is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// The input's vector `[dim]`.
    #[default]
    Input,
    /// The own text's vector and the task's, each of unit length, `[2 dim]`: inner products are the sums of two cosines.
    OwnAndTask,
}

impl View {
    /// How near two vectors are.
    pub fn metric(self) -> Metric {
        match self {
            Self::Input => Metric::L2,
            // A row without a known word has half a vector or none: that is no nearness.
            Self::OwnAndTask => Metric::InnerProduct,
        }
    }

    /// A score by that metric as the squared distance of vectors that are whole.
    pub fn distance(self, score: f32) -> f32 {
        match self {
            Self::Input => (-score).max(0.0),
            Self::OwnAndTask => (4.0 - 2.0 * score).max(0.0),
        }
    }
}

/// Makes vectors.
pub struct Viewer<'a> {
    encoder: &'a dyn Encoder,
    tasks: Option<&'a Tasks>,
}

impl<'a> Viewer<'a> {
    /// Of [`View::Input`].
    pub fn inputs(encoder: &'a dyn Encoder) -> Self {
        Self { encoder, tasks: None }
    }

    /// Of [`View::OwnAndTask`] where there are tasks, else of inputs.
    pub fn new(encoder: &'a dyn Encoder, tasks: Option<&'a Tasks>) -> Self {
        Self { encoder, tasks }
    }

    /// What is compared.
    pub fn view(&self) -> View {
        if self.tasks.is_some() { View::OwnAndTask } else { View::Input }
    }

    /// The encoder's identity.
    pub fn encoder(&self) -> &str {
        self.encoder.identity()
    }

    /// Width of the vectors.
    pub fn dim(&self) -> usize {
        self.encoder.dim() * if self.tasks.is_some() { 2 } else { 1 }
    }

    /// The vectors of rows, `[rows, dim]`.
    ///
    /// # Errors
    /// What the encoder brings.
    pub fn of_rows(&self, rows: &[Row]) -> Result<Vec<f32>> {
        match self.tasks {
            None => self.encode(rows.iter().map(|row| row.input.as_str())),
            Some(tasks) => {
                let own: Vec<String> = rows.iter().map(|row| tasks.templates().own(row)).collect();
                let own = self.encode(own.iter().map(String::as_str))?;
                let task = rows.iter().map(|row| tasks.vector(tasks.templates().group_of(row)));
                Ok(self.side_by_side(own, task))
            }
        }
    }

    /// The vectors of a target's examples, `[examples, dim]`.
    ///
    /// # Errors
    /// An example without a word that the encoder knows, named.
    pub fn of_target(&self, target: &Target) -> Result<Vec<f32>> {
        let (vectors, task) = match self.tasks {
            None => (self.encode(target.inputs().iter().map(String::as_str))?, None),
            Some(tasks) => {
                let template = Template::of(target.inputs().iter().map(String::as_str));
                let own = target.own().iter().zip(target.inputs());
                let own: Vec<String> =
                    own.map(|(own, input)| own.clone().unwrap_or_else(|| template.own(input))).collect();
                let task = tasks.describe(&template.description(&target.inputs()[0]), self.encoder)?;
                (self.encode(own.iter().map(String::as_str))?, Some(task))
            }
        };
        // A zero vector is equally far from everything: its neighbours would be the first rows.
        let dim = self.encoder.dim();
        if let Some(query) = vectors.chunks(dim).position(|vector| vector.iter().all(|&value| value == 0.0)) {
            let why = "the encoder knows no word of this input; leave the line out";
            return Err(target.error(query, why));
        }
        Ok(match task {
            None => vectors,
            Some(task) => self.side_by_side(vectors, std::iter::repeat(task.as_slice())),
        })
    }

    fn encode<'b>(&self, texts: impl Iterator<Item = &'b str>) -> Result<Vec<f32>> {
        let texts: Vec<&str> = texts.collect();
        let mut vectors = Vec::with_capacity(texts.len() * self.encoder.dim());
        for texts in texts.chunks(BATCH) {
            vectors.extend(self.encoder.encode(texts)?);
        }
        Ok(vectors)
    }

    fn side_by_side<'b>(&self, mut own: Vec<f32>, tasks: impl Iterator<Item = &'b [f32]>) -> Vec<f32> {
        normalise_rows(&mut own, self.encoder.dim());
        own.chunks(self.encoder.dim()).zip(tasks).flat_map(|(own, task)| [own, task].concat()).collect()
    }
}
