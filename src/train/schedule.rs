//! The learning rate over a run: up, level, down ("warm-up, stable, decay"). A level stretch can be
//! made longer afterwards without starting again, which a cosine cannot.

use super::config::TrainingSection;

/// Learning rate of `step`, from 0.
pub fn learning_rate(training: &TrainingSection, step: usize) -> f64 {
    let up = (step + 1) as f64 / (training.warmup_steps + 1) as f64;
    let down = training.steps.saturating_sub(step) as f64 / (training.decay_steps + 1) as f64;
    training.learning_rate * up.min(down).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_level_down() {
        let training: TrainingSection =
            toml::from_str("steps = 10\nlearning_rate = 1.0\nwarmup_steps = 2\ndecay_steps = 4").unwrap();
        let rates: Vec<f64> = (0..10).map(|step| learning_rate(&training, step)).collect();
        let expected = [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2];
        for (rate, expected) in rates.iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
    }
}
