//! Cutting text into sentences.

use std::ops::Range;

use crate::retriever::whole_words;

/// Bytes on either side of a passage in which the end of a sentence is looked for: prose has one there.
const WINDOW: usize = 1000;

/// Words before a full stop that do not end a sentence, in lower case.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "rev", "hon", "gen", "col", "capt", "lt", "sgt", "gov", "sen", "rep",
    "pres", "st", "mt", "ft", "vs", "v", "cf", "e.g", "i.e", "viz", "ca", "approx", "c", "b", "d", "fl",
    "fig", "figs", "eq", "no", "nos", "vol", "vols", "ch", "pp", "p", "sec", "ed", "eds", "trans", "al",
    "op", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "mon", "tue",
    "wed", "thu", "fri", "sat", "sun",
];

/// Abbreviations only when a number follows; otherwise these are words that end sentences.
const BEFORE_NUMBER: &[&str] =
    &["no", "nos", "ch", "sec", "p", "fig", "figs", "mar", "sun", "sat", "mon", "wed", "v"];

/// Words that begin sentences but hardly ever names: after "U.S." or "J." they begin a new one.
const STARTERS: &[&str] = &[
    "the", "a", "an", "it", "he", "she", "they", "we", "i", "this", "that", "these", "those", "there", "in",
    "on", "at", "for", "from", "by", "with", "after", "before", "when", "while", "since", "although",
    "however", "but", "and", "its", "his", "her", "their", "some", "many", "most", "as", "if", "so",
];

/// Cuts `text` into sentences, each with the space that follows it: joined, they are `text` again.
///
/// A sentence ends at a blank line, before a list item, at a full stop, question mark, exclamation
/// mark or ellipsis that white space and no small letter follow, and at the ideographic marks
/// without white space. A full stop ends none after a common English abbreviation, an initial
/// ("J. K. Rowling"), an acronym ("U.S. Army") unless a word like "The" follows, or the number of
/// a list item. When in doubt it does not cut.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while let Some(character) = text[at..].chars().next() {
        at += character.len_utf8();
        let end = match character {
            '\n' => break_of_lines(text, at),
            '。' | '！' | '？' | '｡' => {
                Some(skip(text, skip(text, at, is_closing), char::is_whitespace))
            }
            '.' | '!' | '?' | '…' => {
                end_of_sentence(&text[start..], at - start, character).map(|end| start + end)
            }
            _ => None,
        };
        if let Some(end) = end {
            at = end;
            // White space alone is no sentence: it stays with the one before, or leads the next.
            if !text[start..end].trim().is_empty() {
                sentences.push(&text[start..end]);
                start = end;
            }
        }
    }
    if text[start..].trim().is_empty() {
        match sentences.pop() {
            Some(last) => {
                let begin = start - last.len();
                sentences.push(&text[begin..]);
            }
            None if !text.is_empty() => sentences.push(text),
            None => {}
        }
    } else {
        sentences.push(&text[start..]);
    }
    sentences
}

/// The whole sentences of `text` that `range`, in bytes, lies in or touches: what a passage cut at
/// any place says, with nothing cut. Where none ends within 1,000 bytes on either side, as in a log, a
/// table or a transcript, only the words at the borders are made whole.
pub fn whole_sentences(text: &str, range: Range<usize>) -> &str {
    if text.get(range.clone()).is_none() {
        return ""; // the tables of a damaged store
    }
    let first = border(text, range.start.saturating_sub(WINDOW));
    let last = border(text, range.end + WINDOW);
    let (mut begin, mut end, mut at) = (last, first, first);
    for sentence in sentences(&text[first..last]) {
        let next = at + sentence.len();
        if at < range.end && range.start < next {
            begin = begin.min(at);
            end = next;
        }
        at = next;
    }
    // What begins or ends where the window does may be a part of a sentence.
    if (begin == first && first > 0) || (end == last && last < text.len()) {
        return whole_words(&text[first..last], range.start - first..range.end - first).trim();
    }
    text.get(begin..end).unwrap_or_default().trim()
}

/// The last border between characters of `text` that is not after `at`, in bytes.
pub(super) fn border(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// `text` with every run of white space and control characters, line breaks too, made one space: a
/// document's text does not steer the terminal that it is shown on.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// The end of the white space after a line break at `at`, if it parts two sentences.
fn break_of_lines(text: &str, at: usize) -> Option<usize> {
    let next = skip(text, at, char::is_whitespace);
    let rest = &text[next..];
    let blank_line = text[at..next].contains('\n');
    let bullet = ["- ", "* ", "• ", "+ ", "#"].iter().any(|mark| rest.starts_with(mark));
    let unnumbered = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let numbered =
        unnumbered.len() < rest.len() && (unnumbered.starts_with(". ") || unnumbered.starts_with(") "));
    (blank_line || bullet || numbered).then_some(next)
}

/// The end, with the white space behind it, of the sentence whose mark `mark` lies before `at`, if
/// the sentence ends there. `text` starts with the sentence.
fn end_of_sentence(text: &str, at: usize, mark: char) -> Option<usize> {
    let closed = skip(text, at, |c| is_closing(c) || matches!(c, '.' | '!' | '?' | '…'));
    let end = skip(text, closed, char::is_whitespace);
    if end == closed {
        return None;
    }
    let next = text[end..].trim_start_matches(is_opening);
    let follower = next.chars().next()?;
    if follower.is_lowercase() {
        return None;
    }
    if mark == '.'
        && closes_its_word(&text[..at - 1], &text[at..closed])
        && is_abbreviation(&text[..at - 1], next)
    {
        return None;
    }
    Some(end)
}

/// Whether `closing`, which follows the full stop after `before`, closes no more than the quote that the last word
/// began with.
fn closes_its_word(before: &str, closing: &str) -> bool {
    let opening = match closing {
        "" => return true,
        "\"" => '"',
        "”" => '“',
        "’" => '‘',
        _ => return false,
    };
    before.strip_suffix(last_word(before)).is_some_and(|rest| rest.ends_with(opening))
}

/// What `before` ends with that no space, bracket, dash or opening quote parts; may be empty.
fn last_word(before: &str) -> &str {
    let parts = |c: char| c.is_whitespace() || matches!(c, '(' | '[' | '"' | '“' | '‘' | '—' | '–' | '/');
    before.rsplit(parts).next().unwrap_or_default()
}

/// Whether the full stop after `before` belongs to a word, given what comes `after` it.
fn is_abbreviation(before: &str, after: &str) -> bool {
    let word = last_word(before);
    if word.is_empty() {
        return false;
    }
    if before.trim() == word && word.chars().all(|c| c.is_ascii_digit()) {
        return true; // "1. First item"
    }
    let number_follows = after.starts_with(|c: char| c.is_ascii_digit());
    let lower = word.to_lowercase();
    let is_initials = lower.split('.').all(|part| {
        let mut letters = part.chars();
        letters.next().is_some_and(char::is_alphabetic) && letters.next().is_none()
    });
    if is_initials && word.starts_with(char::is_uppercase) {
        let next: String = after.chars().take_while(|c| c.is_alphabetic()).collect();
        return !STARTERS.contains(&next.to_lowercase().as_str());
    }
    ABBREVIATIONS.contains(&lower.as_str()) && (number_follows || !BEFORE_NUMBER.contains(&lower.as_str()))
}

fn skip(text: &str, at: usize, what: impl Fn(char) -> bool) -> usize {
    text.len() - text[at..].trim_start_matches(what).len()
}

fn is_closing(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）')
}

fn is_opening(c: char) -> bool {
    matches!(c, '"' | '\'' | '(' | '[' | '{' | '“' | '‘' | '«' | '「' | '『' | '（')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        let sentences = sentences(text);
        assert_eq!(sentences.concat(), text, "text was lost");
        sentences.into_iter().map(str::trim).collect()
    }

    #[test]
    fn sentences_end_at_their_marks() {
        assert_eq!(cut("One. Two! Three? Four"), ["One.", "Two!", "Three?", "Four"]);
        assert_eq!(cut("He said \"Stop.\" Then he left."), ["He said \"Stop.\"", "Then he left."]);
        assert_eq!(cut("Really?! Yes... No."), ["Really?!", "Yes...", "No."]);
        assert_eq!(
            cut("It ends (so it is said.) \"Why?\" they asked. 7 came."),
            ["It ends (so it is said.)", "\"Why?\" they asked.", "7 came."]
        );
        assert_eq!(cut("wait... for it"), ["wait... for it"]);
        assert_eq!(
            cut("これは文です。次の文「はい！」です。"),
            ["これは文です。", "次の文「はい！」", "です。"]
        );
    }

    #[test]
    fn stops_inside_a_sentence_do_not_cut() {
        for whole in [
            "Dr. Smith met Mr. Jones at 3.14 p.m. near St. Paul's.",
            "Pi is 3.14159 and e is 2.718.",
            "See sidenote.rs or example.com for more, e.g. The Guide, vol. 2, no. 5, pp. 3.",
            "J. K. Rowling and George R. R. Martin wrote books.",
            "The U.S. Army and the U.N. Security Council met.",
            "Smith et al. Proved it in Sept. 2019 (cf. Jones).",
            "He was born c. 1450, d. 1520.",
            "Alcibiades (\"c.\" 450–404 BC), called “Mr.” Alcibiades, was a general.",
        ] {
            assert_eq!(cut(whole), [whole]);
        }
    }

    #[test]
    fn words_that_look_like_abbreviations_still_end_sentences() {
        assert_eq!(cut("He said no. Then he left."), ["He said no.", "Then he left."]);
        assert_eq!(cut("They saw the sun. Later it rained."), ["They saw the sun.", "Later it rained."]);
        assert_eq!(cut("He lives in the U.S. The rest moved."), ["He lives in the U.S.", "The rest moved."]);
        assert_eq!(cut("It was in 1999. Then it was over."), ["It was in 1999.", "Then it was over."]);
        assert_eq!(cut("\"He knew Mr.\" Then he left."), ["\"He knew Mr.\"", "Then he left."]);
        assert_eq!(cut("He said \"no.\" Then he left."), ["He said \"no.\"", "Then he left."]);
    }

    #[test]
    fn layout_parts_sentences() {
        assert_eq!(
            cut("A heading\n\nThe text\nruns on here. End.\n"),
            ["A heading", "The text\nruns on here.", "End."]
        );
        assert_eq!(
            cut("Three things:\n- one\n- two\n1. Three and more."),
            ["Three things:", "- one", "- two", "1. Three and more."]
        );
        assert_eq!(cut("1. First. 2. Second."), ["1. First.", "2. Second."]);
        assert_eq!(cut(""), [""; 0]);
        assert_eq!(sentences(" \n\n "), [" \n\n "]);
        assert_eq!(sentences("\n\n A.  \n\n\n"), ["\n\n A.  \n\n\n"]);
    }

    #[test]
    fn a_passage_is_widened_to_whole_sentences() {
        let text = "Ä one. B two. C three. D four.";
        let whole = |part: &str| {
            let start = text.find(part).unwrap();
            whole_sentences(text, start..start + part.len())
        };
        assert_eq!(whole("w"), "B two.");
        assert_eq!(whole("B two. C"), "B two. C three.");
        assert_eq!(whole("wo. C thr"), "B two. C three.");
        assert_eq!(whole("e. B two. "), "Ä one. B two.");
        assert_eq!(whole(text), text);
        assert_eq!(whole_sentences(text, 3..3), "Ä one.");
        assert_eq!(whole_sentences(text, 500..600), "");
        assert_eq!(whole_sentences("", 0..0), "");
    }

    /// Fails when a text without sentences is read whole.
    #[test]
    fn where_no_sentence_ends_words_are_made_whole() {
        let log: String = (0..20_000).map(|i| format!("{i:05} GET /images/{i} 200\n")).collect();
        let at = |part: &str| log.find(part).unwrap();
        assert_eq!(
            whole_sentences(&log, at("00 GET /images/10000")..at("01 GET /images/10001")),
            "10000 GET /images/10000 200\n10001"
        );
        // On either side: passages after each other would all begin where the text does.
        let led = format!("A log. It begins so: {log}");
        let start = led.find("begins").unwrap();
        assert_eq!(whole_sentences(&led, start..start + 12), "begins so: 00000");
        let closed = format!("{log}This is its end. No more.");
        let start = closed.find("99 200\nThis").unwrap();
        assert_eq!(whole_sentences(&closed, start..start + 10), "19999 200\nThis");
        // Words that do not end either are cut with the window, between characters.
        let thai = "กขค".repeat(10_000);
        let found = whole_sentences(&thai, 30_000..30_300);
        assert!(found.len().abs_diff(2_300) < 4, "{}", found.len());
    }

    #[test]
    fn a_line_has_nothing_that_steers_a_terminal() {
        assert_eq!(one_line(" a\u{1b}[31m b\r\nc\u{7}\u{0}\u{9b}d "), "a [31m b c d");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "[A-Ca-c .!?。\\n\"'(é1…\u{3000}-]{0,60}") {
            let sentences = sentences(&text);
            prop_assert_eq!(sentences.concat(), text.clone());
            // Only a text of nothing but space is a sentence without a word or mark.
            prop_assert!(text.trim().is_empty() || sentences.iter().all(|s| !s.trim().is_empty()));
        }

        #[test]
        fn any_text_is_cut_without_panic(text in "\\PC{0,60}") {
            prop_assert_eq!(sentences(&text).concat(), text);
        }
    }
}
