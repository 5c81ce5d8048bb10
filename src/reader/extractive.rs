//! The built-in reader: quotes the sentence that answers best, and makes nothing up.

use std::collections::BTreeSet;

use super::{Answer, Reader, Source, one_line, sentences};
use crate::encoder::{Encoder, normalise_rows};
use crate::error::Result;

/// The weight of the question's words found, beside the cosine, in a sentence's score.
const OVERLAP_WEIGHT: f32 = 0.5;
/// What a question's word counts when only the title of the sentence's document has it.
const IN_TITLE: f32 = 0.5;
/// Share of the question's words, by weight, that an answer has to have.
const FITTING: f32 = 0.2;
/// Taken off a sentence that the passage's border has cut.
const CUT_OFF: f32 = 0.05;
/// Share of the best score that a second sentence needs to be quoted too.
const SECOND: f32 = 0.75;

const SENTENCE_MARKS: [char; 7] = ['.', '!', '?', '…', '。', '！', '？'];
/// Words too common to say what a question is about.
const COMMON: &[&str] = &[
    "a", "about", "after", "an", "and", "any", "are", "as", "at", "be", "been", "before", "but", "by", "can",
    "could", "did", "do", "does", "during", "for", "from", "had", "has", "have", "he", "her", "him", "his",
    "how", "i", "if", "in", "into", "is", "it", "its", "many", "me", "much", "my", "of", "on", "or", "our",
    "she", "should", "so", "some", "tell", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "to", "us", "was", "we", "were", "what", "when", "where", "which", "while",
    "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
];

/// Quotes, out of the sources, the sentence nearest to the question: nearest by the encoder's
/// cosine and by the question's words that the sentence and its title share, each word weighted by
/// its inverse document frequency over the sources' sentences. Nothing is quoted from a source that lacks
/// a name or number of the question, or has too few of its words. A second sentence is quoted if it
/// has words of the question that the first one and its title lack, and is nearly as near.
pub struct Extractive<'a> {
    encoder: &'a dyn Encoder,
}

impl<'a> Extractive<'a> {
    /// A reader that compares with `encoder`.
    pub fn new(encoder: &'a dyn Encoder) -> Self {
        Self { encoder }
    }
}

/// One sentence of a source.
struct Candidate<'s> {
    source: usize,
    text: &'s str,
    terms: BTreeSet<String>,
    cut_off: bool,
}

impl Reader for Extractive<'_> {
    fn name(&self) -> String {
        format!("extractive (encoder {})", self.encoder.name())
    }

    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer> {
        let candidates: Vec<_> =
            sources.iter().enumerate().flat_map(|(number, source)| candidates(number, source)).collect();
        let (quoted, confidence) = self.choose(question, sources, &candidates)?;
        let mut citations: Vec<_> = quoted.iter().map(|quote| quote.source).collect();
        citations.dedup();
        let quotes: Vec<_> =
            quoted.iter().map(|quote| format!("{} [{}]", one_line(quote.text), quote.source + 1)).collect();
        let text = match quotes.is_empty() {
            true => "The passages found do not answer this question.".to_string(),
            false => quotes.join(" "),
        };
        let said: Vec<_> = quoted.iter().map(|quote| one_line(quote.text)).collect();
        let read = sources.iter().map(|source| source.text.len()).collect();
        Ok(Answer { text, generation: said.join(" "), reader: self.name(), citations, confidence, read })
    }
}

impl Extractive<'_> {
    /// The one or two candidates to quote, or none if none fits, and the score of the better one, from 0 to 1.
    fn choose<'c, 's>(
        &self,
        question: &str,
        sources: &[Source<'_>],
        candidates: &'c [Candidate<'s>],
    ) -> Result<(Vec<&'c Candidate<'s>>, f64)> {
        let wanted = content_terms(question);
        if candidates.is_empty() || wanted.is_empty() {
            return Ok((Vec::new(), 0.0));
        }
        let titles: Vec<_> = sources.iter().map(|source| content_terms(source.title)).collect();
        let mut said = titles.clone();
        for candidate in candidates {
            said[candidate.source].extend(candidate.terms.iter().cloned());
        }
        let names = names(question);
        let weights = weights(&wanted, candidates);
        let total: f32 = weights.iter().sum();
        let overlaps = candidates.iter().map(|candidate| {
            let found = wanted.iter().zip(&weights).map(|(term, weight)| {
                match (candidate.terms.contains(term), titles[candidate.source].contains(term)) {
                    (true, _) => *weight,
                    (false, true) => IN_TITLE * weight,
                    (false, false) => 0.0,
                }
            });
            found.sum::<f32>() / total
        });
        let cosines = self.cosines(question, sources, candidates)?;
        let mut fitting: Vec<(f32, usize)> = overlaps
            .zip(cosines)
            .enumerate()
            .filter(|(at, (overlap, _))| {
                *overlap >= FITTING && names.is_subset(&said[candidates[*at].source])
            })
            .map(|(at, (overlap, cosine))| {
                let penalty = if candidates[at].cut_off { CUT_OFF } else { 0.0 };
                (OVERLAP_WEIGHT * overlap + (1.0 - OVERLAP_WEIGHT) * cosine - penalty, at)
            })
            .collect();
        // A stable sort: of equals the one from the nearer source comes first.
        fitting.sort_by(|a, b| b.0.total_cmp(&a.0));
        let Some(&(best, first)) = fitting.first() else { return Ok((Vec::new(), 0.0)) };
        let second = fitting[1..].iter().find(|(score, at)| {
            let said = |term| {
                candidates[first].terms.contains(term) || titles[candidates[first].source].contains(term)
            };
            let adds = wanted.iter().any(|term| candidates[*at].terms.contains(term) && !said(term));
            *score >= SECOND * best && adds
        });
        let mut chosen = vec![&candidates[first]];
        if let Some(&(_, second)) = second {
            // Two sentences of one source are quoted in its order.
            let earlier = candidates[second].source == candidates[first].source && second < first;
            chosen.insert(usize::from(!earlier), &candidates[second]);
        }
        Ok((chosen, f64::from(best).clamp(0.0, 1.0)))
    }

    /// The cosine between the question and each candidate, read under its document's title.
    fn cosines(
        &self,
        question: &str,
        sources: &[Source<'_>],
        candidates: &[Candidate<'_>],
    ) -> Result<Vec<f32>> {
        let titled = candidates.iter().map(|candidate| match sources[candidate.source].title {
            "" => candidate.text.to_string(),
            title => format!("{title}: {}", candidate.text),
        });
        let texts: Vec<String> = titled.collect();
        let texts: Vec<&str> = std::iter::once(question).chain(texts.iter().map(String::as_str)).collect();
        let mut vectors = self.encoder.encode(&texts)?;
        normalise_rows(&mut vectors, self.encoder.dim());
        let (question, rest) = vectors.split_at(self.encoder.dim());
        let cosine = |vector: &[f32]| question.iter().zip(vector).map(|(a, b)| a * b).sum();
        Ok(rest.chunks(self.encoder.dim()).map(cosine).collect())
    }
}

fn candidates<'s>(number: usize, source: &Source<'s>) -> Vec<Candidate<'s>> {
    let all = sentences(source.text);
    let last = all.len().saturating_sub(1);
    let candidate = |(place, text): (usize, &'s str)| {
        let text = text.trim();
        let begins = !text.starts_with(|c: char| c.is_lowercase() || ",.;:)%".contains(c));
        let ends =
            text.trim_end_matches(['"', '\'', ')', ']', '”', '’', '»', '」']).ends_with(SENTENCE_MARKS);
        let cut_off = (place == 0 && !begins) || (place == last && !ends);
        Candidate { source: number, text, terms: content_terms(text), cut_off }
    };
    all.into_iter().enumerate().map(candidate).filter(|candidate| !candidate.terms.is_empty()).collect()
}

/// The inverse document frequency of each wanted word over the candidates, as BM25 has it:
/// ln(1 + (n - df + 0.5) / (df + 0.5)). A word that none of them has weighs the most.
fn weights(wanted: &BTreeSet<String>, candidates: &[Candidate<'_>]) -> Vec<f32> {
    let n = candidates.len() as f32;
    let weight = |term| {
        let df = candidates.iter().filter(|candidate| candidate.terms.contains(term)).count() as f32;
        (1.0 + (n - df + 0.5) / (df + 0.5)).ln()
    };
    wanted.iter().map(weight).collect()
}

/// The words of `text` that say what it is about: in lower case, without the endings of plurals
/// and possessives, without the commonest English words.
fn content_terms(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'' && c != '’')
        .map(|word| word.trim_matches(['\'', '’']).to_lowercase())
        .map(|word| word.strip_suffix("'s").or(word.strip_suffix("’s")).unwrap_or(&word).to_string())
        .filter(|word| !word.is_empty() && !COMMON.contains(&word.as_str()))
        .map(singular)
        .collect()
}

/// The names and numbers in `question`: words, after the first, that begin with a capital or a digit.
fn names(question: &str) -> BTreeSet<String> {
    let words = question.split_whitespace().skip(1);
    let named = words.filter(|word| {
        word.trim_start_matches(|c: char| !c.is_alphanumeric())
            .starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit())
    });
    named.flat_map(content_terms).collect()
}

fn singular(word: String) -> String {
    if word.len() < 4 || word.ends_with("ss") || word.ends_with("us") || word.ends_with("is") {
        return word;
    }
    match (word.strip_suffix("ies"), word.strip_suffix('s')) {
        (Some(stem), _) if stem.len() > 2 => format!("{stem}y"),
        (_, Some(stem)) => stem.to_string(),
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of words hashed to 64 places; knows nothing of meaning.
    struct Words;

    impl Encoder for Words {
        fn dim(&self) -> usize {
            64
        }
        fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
            let encode = |text: &&str| {
                let mut vector = vec![0.0f32; 64];
                for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()) {
                    let hash = word.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
                    vector[hash as usize % 64] += 1.0;
                }
                let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
                vector.into_iter().map(move |value| value / norm.max(1e-9))
            };
            Ok(texts.iter().flat_map(encode).collect())
        }
        fn name(&self) -> &str {
            "words"
        }
        fn identity(&self) -> &str {
            "words"
        }
    }

    const SOURCES: [Source<'static>; 3] = [
        Source {
            title: "Mercury (planet)",
            text: "is named after the god. Mercury is the smallest planet. It has no moons.\nA year takes 88 days, as",
            score: 0.9,
        },
        Source {
            title: "Alan Turing",
            text: "He was an English mathematician. Turing was born in London on 23 June 1912. He died in 1954.",
            score: 0.8,
        },
        Source {
            title: "",
            text: "Cheese is made from milk. Moons of Jupiter were found by Galileo.",
            score: 0.1,
        },
    ];

    fn ask(question: &str) -> Answer {
        Extractive::new(&Words).answer(question, &SOURCES).unwrap()
    }

    #[test]
    fn the_fitting_sentence_is_quoted_and_cited() {
        let answer = ask("Which is the smallest planet?");
        assert_eq!(answer.text, "Mercury is the smallest planet. [1]");
        assert_eq!(answer.citations, [0]);
        assert_eq!(answer.reader, "extractive (encoder words)");
        assert_eq!(ask("When was Alan Turing born?").text, "Turing was born in London on 23 June 1912. [2]");
        assert_eq!(ask("what is cheese made from?").text, "Cheese is made from milk. [3]");
        assert_eq!(ask("Who found the moons of Jupiter?").citations, [2]);
    }

    #[test]
    fn the_title_says_whom_a_sentence_is_about() {
        assert_eq!(ask("In 1954, did Turing die?").text, "He died in 1954. [2]");
        assert_eq!(ask("Does the planet Mercury have moons?").citations[0], 0);
    }

    #[test]
    fn two_sentences_are_quoted_when_each_has_its_part() {
        let answer = ask("Was Turing born in London, and what did the English mathematician do?");
        assert_eq!(
            answer.text,
            "He was an English mathematician. [2] Turing was born in London on 23 June 1912. [2]"
        );
        assert_eq!(answer.citations, [1]);
    }

    #[test]
    fn what_the_sources_do_not_say_is_not_invented() {
        for question in ["Who is the king of Zyblon?", "", "Who is it?", "?!", "photosynthesis chlorophyll"] {
            let answer = ask(question);
            assert_eq!(answer.text, "The passages found do not answer this question.", "{question}");
            assert!(answer.citations.is_empty());
        }
        // Of a king much is said here, of Zyblon nothing.
        let king = Source { title: "King", text: "The king rules. A king is a man.", score: 1.0 };
        let reader = Extractive::new(&Words);
        assert!(reader.answer("Who is the king?", &[king]).unwrap().citations == [0]);
        assert!(reader.answer("Who is the king of Zyblon?", &[king]).unwrap().citations.is_empty());
        assert!(reader.answer("Who was the king in 1848?", &[king]).unwrap().citations.is_empty());
        assert!(reader.answer("Which planet?", &[]).unwrap().citations.is_empty());
        let blank = Source { title: "planet", text: " \n ", score: 0.0 };
        assert!(reader.answer("Which planet?", &[blank]).unwrap().citations.is_empty());
    }

    #[test]
    fn a_sentence_cut_by_the_border_comes_second() {
        let whole = "Snow leopards live in Asia.";
        let cut = "snow leopards live in Asia.";
        let sources = [cut, whole].map(|text| Source { title: "", text, score: 0.0 });
        let answer = Extractive::new(&Words).answer("Where do snow leopards live?", &sources).unwrap();
        assert_eq!(answer.text, "Snow leopards live in Asia. [2]");
    }

    #[test]
    fn terms_leave_out_what_does_not_matter() {
        let terms: Vec<_> =
            content_terms("What are the cities' names in Turing’s glass bus?").into_iter().collect();
        assert_eq!(terms, ["bus", "city", "glass", "name", "turing"]);
    }
}
