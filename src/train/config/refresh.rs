//! When the index is encoded again while its encoder learns.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Stretches of steps, each with a number of steps after which the index is stale: Atlas's `"0-1000:500,1000-:2000"`, or `"500"` for
/// all steps. Before the first step the index is fresh anyway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct RefreshSchedule {
    /// First step, step after the last, and rate.
    stretches: Vec<(usize, usize, usize)>,
}

impl RefreshSchedule {
    /// The last step up to `step`, before which the index is encoded again; 0 where that never was.
    ///
    /// A stretch begins with a refresh of its own, and counts from there.
    pub fn last(&self, step: usize) -> usize {
        let of = |(first, end, rate): &(usize, usize, usize)| {
            let within = step.min(end - 1);
            (step >= *first).then(|| first + (within - first) / rate * rate)
        };
        self.stretches.iter().filter_map(of).max().unwrap_or(0)
    }
}

impl FromStr for RefreshSchedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("{text:?} is no schedule such as \"500\" or \"0-1000:500,1000-:2000\"");
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| fault());
        let mut stretches = Vec::new();
        for part in text.split(',') {
            let (first, end, rate) = match part.split_once(':') {
                None => (0, usize::MAX, number(part)?),
                Some((steps, rate)) => {
                    let (first, end) = steps.split_once('-').ok_or_else(fault)?;
                    let end = if end.trim().is_empty() { usize::MAX } else { number(end)? };
                    (number(first)?, end, number(rate)?)
                }
            };
            let after = stretches.last().map_or(0, |(_, end, _)| *end);
            if rate == 0 || end <= first || first < after {
                return Err(fault());
            }
            stretches.push((first, end, rate));
        }
        Ok(Self { stretches })
    }
}

/// A schedule as it may be written: a number alone is no text in TOML.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Rate(usize),
    Text(String),
}

impl TryFrom<Written> for RefreshSchedule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Rate(rate) => rate.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<RefreshSchedule> for String {
    fn from(schedule: RefreshSchedule) -> Self {
        schedule.to_string()
    }
}

impl fmt::Display for RefreshSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, end, rate)) in self.stretches.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match end {
                &usize::MAX => write!(f, "{comma}{first}-:{rate}")?,
                end => write!(f, "{comma}{first}-{end}:{rate}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refreshes_come_when_the_schedule_says() {
        let points = |text: &str, steps: usize| {
            let schedule: RefreshSchedule = text.parse().unwrap();
            assert_eq!(schedule.to_string().parse::<RefreshSchedule>().unwrap(), schedule);
            let mut points: Vec<usize> = (0..steps).map(|step| schedule.last(step)).collect();
            assert!(points.iter().enumerate().all(|(step, last)| *last <= step) && points.is_sorted());
            points.dedup();
            points
        };
        assert_eq!(points("0-1000:500,1000-:2000", 5500), [0, 500, 1000, 3000, 5000]);
        assert_eq!(points("300", 1000), [0, 300, 600, 900]);
        assert_eq!(points("10-25:10", 100), [0, 10, 20]);
        assert_eq!(points("2-4:1,7-:5", 14), [0, 2, 3, 7, 12]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "0", "5-5:1", "9-5:1", "0-10", "0-10:0", "0-10:5,5-20:5", "-1"] {
            let said = text.parse::<RefreshSchedule>().unwrap_err();
            assert!(said.contains("schedule"), "{text}: {said}");
        }
    }
}
