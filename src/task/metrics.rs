//! What a written answer is worth.

/// SQuAD's normal form: lower case, without punctuation, articles and doubled spaces (Rajpurkar et al. 2016).
pub fn normalised(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words = plain.split_whitespace().filter(|word| !["a", "an", "the"].contains(word));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether two answers are the same in their normal form: 1 or 0.
pub fn exact_match(answer: &str, reference: &str) -> f64 {
    f64::from(u8::from(normalised(answer) == normalised(reference)))
}

/// SQuAD's F1 over the words of the normal forms.
pub fn f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalised(answer), normalised(reference));
    let (a, b): (Vec<&str>, Vec<&str>) = (answer.split(' ').collect(), reference.split(' ').collect());
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    harmonic(overlap(&a, &b), a.len(), b.len())
}

/// ROUGE-N and ROUGE-L (Lin 2004) as F-measures, with the tokens of Google's rouge_score without stemming: runs of
/// lower-case ASCII letters and digits.
pub fn rouge(answer: &str, reference: &str) -> Rouge {
    let (a, b) = (words(answer), words(reference));
    let of = |n: usize| {
        let grams =
            |words: &[String]| -> Vec<String> { words.windows(n).map(|gram| gram.join(" ")).collect() };
        let (a, b) = (grams(&a), grams(&b));
        let refs = |all: &'_ [String]| all.iter().map(String::as_str).collect::<Vec<_>>().len();
        let (count_a, count_b) = (refs(&a), refs(&b));
        let (a, b): (Vec<&str>, Vec<&str>) =
            (a.iter().map(String::as_str).collect(), b.iter().map(String::as_str).collect());
        harmonic(overlap(&a, &b), count_a, count_b)
    };
    Rouge { one: of(1), two: of(2), longest: harmonic(common_subsequence(&a, &b), a.len(), b.len()) }
}

/// F-measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rouge {
    /// Of single words.
    pub one: f64,
    /// Of pairs.
    pub two: f64,
    /// Of the longest common subsequence.
    pub longest: f64,
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    words.filter(|word| !word.is_empty()).map(String::from).collect()
}

/// How many of `a` are in `b`, each of `b` counted once.
fn overlap(a: &[&str], b: &[&str]) -> usize {
    let mut left = b.to_vec();
    let mut found = 0;
    for word in a {
        if let Some(at) = left.iter().position(|other| other == word) {
            left.swap_remove(at);
            found += 1;
        }
    }
    found
}

/// The harmonic mean of precision and recall.
fn harmonic(same: usize, a: usize, b: usize) -> f64 {
    if same == 0 { 0.0 } else { 2.0 * same as f64 / (a + b) as f64 }
}

fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of SQuAD's script and of rouge_score 0.1.2 (use_stemmer = False).
    #[test]
    fn values_of_the_usual_scripts() {
        let (a, b) = ("The cat, it sat on the mat.", "the cat sat on a mat");
        assert_eq!(normalised(a), "cat it sat on mat");
        assert!((f1(a, b) - 8.0 / 9.0).abs() < 1e-9);
        assert_eq!(exact_match("The Beatles!", "beatles"), 1.0);
        assert_eq!((f1("", "x"), f1("", "the"), exact_match("x", "y")), (0.0, 1.0, 0.0));
        for (answer, reference, [one, two, longest]) in GOLDEN {
            let found = rouge(answer, reference);
            for (found, right) in [(found.one, one), (found.two, two), (found.longest, longest)] {
                assert!((found - right).abs() < 1e-6, "{answer:?} {reference:?}: {found} {right}");
            }
        }
    }

    const GOLDEN: [(&str, &str, [f64; 3]); 4] = [
        ("The cat, it sat on the mat.", "the cat sat on a mat", [0.76923077, 0.36363636, 0.76923077]),
        (
            "police kill the gunman; the end",
            "the gunman killed police-man in the end",
            [0.71428571, 0.33333333, 0.57142857],
        ),
        ("", "something", [0.0, 0.0, 0.0]),
        (
            "Naïve café owners know 2 things",
            "naive cafe owners knew two things of café life",
            [0.375, 0.0, 0.25],
        ),
    ];
}
