//! The learning rate over a run.

use super::config::{Schedule, TrainingSection};

/// Learning rate of `step`, from 0.
///
/// It rises over the warm-up in a straight line. "constant" then stays level and falls over the last steps ("warm-up,
/// stable, decay"): the level stretch can be made longer afterwards without starting again, which the others
/// cannot.
pub fn learning_rate(training: &TrainingSection, step: usize) -> f64 {
    let up = (step + 1) as f64 / (training.warmup_steps + 1) as f64;
    let left = training.steps.saturating_sub(step) as f64;
    // 1 at the end of the warm-up, above 0 at the last step.
    let of_descent = (left / (training.steps - training.warmup_steps).max(1) as f64).min(1.0);
    let share = match training.schedule {
        Schedule::Constant => (left / (training.decay_steps + 1) as f64).min(1.0),
        Schedule::Linear => of_descent,
        Schedule::Cosine => (1.0 - (std::f64::consts::PI * of_descent).cos()) / 2.0,
        Schedule::InverseSqrt => ((training.warmup_steps + 1) as f64 / (step + 1) as f64).sqrt().min(1.0),
    };
    let fallen = match training.schedule {
        Schedule::InverseSqrt => share.max(training.final_rate),
        _ => training.final_rate + (1.0 - training.final_rate) * share,
    };
    training.learning_rate * up.min(fallen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(settings: &str) -> Vec<f64> {
        let training: TrainingSection =
            toml::from_str(&format!("steps = 10\nlearning_rate = 1.0\nwarmup_steps = 2\n{settings}"))
                .unwrap();
        (0..10).map(|step| learning_rate(&training, step)).collect()
    }

    fn assert_close(rates: &[f64], expected: [f64; 10]) {
        for (rate, expected) in rates.iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
    }

    #[test]
    fn up_level_down() {
        let third = 1.0 / 3.0;
        assert_close(&rates("decay_steps = 4"), [third, 2.0 * third, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]);
        assert_close(
            &rates("decay_steps = 4\nfinal_rate = 0.5"),
            [third, 2.0 * third, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6],
        );
    }

    #[test]
    fn down_in_a_line_along_a_cosine_and_as_the_root() {
        let third = 1.0 / 3.0;
        assert_close(
            &rates("schedule = \"linear\""),
            [
                third,
                2.0 * third,
                1.0,
                7.0 / 8.0,
                6.0 / 8.0,
                5.0 / 8.0,
                4.0 / 8.0,
                3.0 / 8.0,
                2.0 / 8.0,
                1.0 / 8.0,
            ],
        );
        let cosine = |left: f64| 0.1 + 0.9 * (1.0 + (std::f64::consts::PI * (1.0 - left / 8.0)).cos()) / 2.0;
        assert_close(
            &rates("schedule = \"cosine\"\nfinal_rate = 0.1"),
            [
                third,
                2.0 * third,
                1.0,
                cosine(7.0),
                cosine(6.0),
                cosine(5.0),
                cosine(4.0),
                cosine(3.0),
                cosine(2.0),
                cosine(1.0),
            ],
        );
        let root = |step: f64| (3.0 / step).sqrt();
        assert_close(
            &rates("schedule = \"inverse-sqrt\""),
            [
                third,
                2.0 * third,
                1.0,
                root(4.0),
                root(5.0),
                root(6.0),
                root(7.0),
                root(8.0),
                root(9.0),
                root(10.0),
            ],
        );
    }
}
