//! Pre-training without labels: to fill the gaps in a passage (Atlas, section 2.3; T5's span corruption, Raffel et al. 2020,
//! <https://arxiv.org/abs/1910.10683>, section 3.1.4), over words, so that the retriever can look for the same text.

use rand::Rng;

use super::Example;

/// Share of the words that are taken out, and the mean words of a gap.
const DENSITY: f64 = 0.15;
const MEAN_LENGTH: f64 = 3.0;
/// Words of a passage at least.
const LEAST: usize = 10;
/// Sentinels that T5 has.
const GAPS: usize = 100;

/// The task of a passage of ten words or more. The question spells sentinels.
pub fn example(id: &str, text: &str, rng: &mut impl Rng) -> Option<Example> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.len() < LEAST {
        return None;
    }
    let masked = ((words.len() as f64 * DENSITY).round() as usize).max(1);
    let gaps = ((masked as f64 / MEAN_LENGTH).round() as usize).clamp(1, GAPS);
    let (gaps_of, kept_of) = (parts(masked, gaps, rng), parts(words.len() - masked, gaps, rng));
    let (mut question, mut target, mut at) = (Vec::new(), Vec::new(), 0);
    for (number, (kept, gap)) in kept_of.into_iter().zip(gaps_of).enumerate() {
        let sentinel = format!("<extra_id_{number}>");
        question.extend(words[at..at + kept].iter().map(ToString::to_string));
        question.push(sentinel.clone());
        target.push(sentinel);
        target.extend(words[at + kept..at + kept + gap].iter().map(ToString::to_string));
        at += kept + gap;
    }
    Some(Example {
        id: id.into(),
        question: question.join(" "),
        target: Some(target.join(" ")),
        ..Example::default()
    })
}

/// `question` as a retriever can look for it: without sentinels.
pub fn without_sentinels(question: &str) -> String {
    let words = question.split(' ').filter(|word| !word.starts_with("<extra_id_"));
    words.collect::<Vec<_>>().join(" ")
}

/// `whole` in `n` parts of 1 at least, drawn evenly.
fn parts(whole: usize, n: usize, rng: &mut impl Rng) -> Vec<usize> {
    let n = n.min(whole).max(1);
    let mut borders = rand::seq::index::sample(rng, whole.saturating_sub(1), n - 1).into_vec();
    borders.sort_unstable();
    let ends = borders.iter().map(|border| border + 1).chain([whole]);
    let starts = std::iter::once(0).chain(borders.iter().map(|border| border + 1));
    ends.zip(starts).map(|(end, start)| end - start).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn question_and_target_are_the_text() {
        let words: Vec<String> = (0..67).map(|i| format!("w{i}")).collect();
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let example = example("d", &words.join(" "), &mut rng).unwrap();
            let target = example.target.unwrap();
            let gaps: Vec<&str> =
                target.split("<extra_id_").skip(1).map(|gap| gap.split_once("> ").unwrap().1).collect();
            let mut filled = example.question.clone();
            for (number, gap) in gaps.iter().enumerate() {
                filled = filled.replace(&format!("<extra_id_{number}>"), gap.trim());
            }
            assert_eq!((filled, gaps.len()), (words.join(" "), 3));
            assert_eq!(without_sentinels(&example.question).split(' ').count(), 57);
        }
        assert!(example("d", "too short", &mut ChaCha8Rng::seed_from_u64(0)).is_none());
    }
}
