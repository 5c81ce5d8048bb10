//! From which support on an answer is given, and how often it is then right.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Line;
use crate::artefact::write_atomically;
use crate::error::{Error, Result};
use crate::eval::metrics::holds;

/// An answer as it is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// How far the evidence supports it, from 0 to 1: the reader's confidence where a passage says the answer.
    pub support: f64,
    /// Whether it says a right answer.
    pub right: bool,
}

impl Judged {
    pub(super) fn of(line: &Line) -> Self {
        let support = if line.citations.is_empty() { 0.0 } else { line.confidence };
        Self { support, right: holds(&line.generation, &line.answers) }
    }
}

/// The least support with which a reader's answers are given, and what that is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Whose answers they were.
    pub reader: String,
    /// The least support.
    pub threshold: f64,
    /// Of the answers given with it, the share that is right; none where none is given.
    pub precision: Option<f64>,
    /// Of all right answers, the share that is given; none where none is right.
    pub recall: Option<f64>,
    /// Questions that these were measured on, which are not those that the threshold was chosen on.
    pub questions: usize,
    /// Of these, the answers given.
    pub answered: usize,
}

impl Calibration {
    /// Chooses the threshold on every other answer, and measures it on the rest: the lowest with the wanted `precision`,
    /// or where none is wanted that with the largest F1 of precision and recall.
    ///
    /// # Errors
    /// Too few answers, or none that is right.
    pub fn of(reader: &str, judged: &[Judged], precision: Option<f64>) -> Result<Self> {
        let half = |rest: usize| judged.iter().copied().skip(rest).step_by(2).collect::<Vec<_>>();
        let (chosen_on, measured_on) = (half(0), half(1));
        if !chosen_on.iter().any(|answer| answer.right && answer.support > 0.0) || measured_on.is_empty() {
            let why =
                "no answer of these questions is right and supported; give more questions, or easier ones";
            return Err(Error::setting("calibrate", why));
        }
        // Without support nothing is answered.
        let mut thresholds: Vec<f64> = chosen_on.iter().map(|a| a.support).filter(|s| *s > 0.0).collect();
        thresholds.sort_by(f64::total_cmp);
        thresholds.dedup();
        let threshold = match precision {
            Some(wanted) => {
                let reaches =
                    |t: &f64| measure(&chosen_on, *t).0.is_some_and(|precision| precision >= wanted);
                thresholds.into_iter().find(reaches).ok_or_else(|| {
                    Error::setting(
                        "precision",
                        format!("{wanted} is reached with no threshold; ask for less"),
                    )
                })?
            }
            None => {
                let f1 = |t: f64| match measure(&chosen_on, t) {
                    (Some(p), Some(r), _) if p + r > 0.0 => 2.0 * p * r / (p + r),
                    _ => 0.0,
                };
                // The lowest of equals.
                thresholds.into_iter().rev().max_by(|a, b| f1(*a).total_cmp(&f1(*b))).unwrap_or(0.0)
            }
        };
        let (precision, recall, answered) = measure(&measured_on, threshold);
        Ok(Self {
            reader: reader.into(),
            threshold,
            precision,
            recall,
            questions: measured_on.len(),
            answered,
        })
    }

    /// Refuses another reader than the one that this is for.
    ///
    /// # Errors
    /// Names both.
    pub fn check(&self, reader: &str) -> Result<()> {
        if self.reader == reader {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: "readers".into(),
            left: format!("{reader:?}"),
            right: format!("{:?} of the calibration", self.reader),
            hint: "calibrate this one with `sidenote eval qa --calibrate`".into(),
        })
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::file(path, e.to_string()))?;
        Ok(write_atomically(path, text.as_bytes())?)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// A file that is missing or says something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
    }
}

/// Precision, recall, and answers given from a support of `threshold` on.
fn measure(judged: &[Judged], threshold: f64) -> (Option<f64>, Option<f64>, usize) {
    let given = judged.iter().filter(|answer| answer.support >= threshold);
    let (answered, right) = (given.clone().count(), given.filter(|answer| answer.right).count());
    let all = judged.iter().filter(|answer| answer.right).count();
    let share = |of: usize| (of > 0).then(|| right as f64 / of as f64);
    (share(answered), share(all), answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every other answer is like the one before it, so that both halves are the same: right from 0.5 on, but one at 0.9.
    fn judged() -> Vec<Judged> {
        let one = |support: f64, right: bool| [Judged { support, right }; 2];
        let supports =
            [(0.1, false), (0.3, false), (0.4, true), (0.5, true), (0.6, true), (0.7, true), (0.9, false)];
        supports.into_iter().flat_map(|(support, right)| one(support, right)).collect()
    }

    #[test]
    fn thresholds_by_hand() {
        let best = Calibration::of("r", &judged(), None).unwrap();
        // From 0.4 on 4 of 5 are right, and no right one is lost.
        assert_eq!((best.threshold, best.precision, best.recall), (0.4, Some(0.8), Some(1.0)));
        assert_eq!((best.questions, best.answered), (7, 5));
        let lax = Calibration::of("r", &judged(), Some(0.6)).unwrap();
        assert_eq!((lax.threshold, lax.precision), (0.3, Some(4.0 / 6.0)));
        assert!(Calibration::of("r", &judged(), Some(0.95)).unwrap_err().to_string().contains("0.95"));
        assert!(Calibration::of("r", &judged()[..4], None).is_err());
    }

    #[test]
    fn another_reader_is_refused() {
        let calibration = Calibration::of("model a", &judged(), None).unwrap();
        calibration.check("model a").unwrap();
        let said = calibration.check("model b").unwrap_err().to_string();
        assert!(said.contains("model a") && said.contains("model b"), "{said}");
    }
}
