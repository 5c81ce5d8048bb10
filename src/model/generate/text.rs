//! From tokens to text as they come: on character borders, and up to a stop string.

use crate::corpus::Tokenizer;
use crate::error::Result;

/// Tokens of the prompt that the first new token is read after, so that it keeps the space before it.
const CONTEXT: usize = 4;

/// A character has at most four bytes, and a token at least one; more tokens than this without a whole character
/// will not make one.
const PENDING: usize = 8;

/// The text of tokens that come one by one. Each is decoded with those just before it, never with all.
#[derive(Debug, Clone)]
struct Decoding {
    /// What is not yet decoded, after a few tokens that are.
    tokens: Vec<u32>,
    /// How many of `tokens` were decoded.
    decoded: usize,
}

impl Decoding {
    fn after(prompt: &[u32]) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self { decoded: tokens.len(), tokens }
    }

    /// What `token` adds in whole characters.
    fn push(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.tokens.push(token);
        let new = self.new_text(tokenizer)?;
        let whole = !new.ends_with('\u{fffd}') || self.tokens.len() - self.decoded > PENDING;
        if new.is_empty() || !whole {
            return Ok(String::new());
        }
        // The tokens of this piece are what the next one is decoded after.
        self.tokens.drain(..self.decoded);
        self.decoded = self.tokens.len();
        Ok(new)
    }

    fn new_text(&self, tokenizer: &Tokenizer) -> Result<String> {
        let before = tokenizer.decode(&self.tokens[..self.decoded])?;
        let all = tokenizer.decode(&self.tokens)?;
        Ok(all.get(before.len()..).unwrap_or_default().to_string())
    }
}

/// A text as it is written: whole characters, up to the first stop string.
#[derive(Debug, Clone)]
pub struct Text {
    decoding: Decoding,
    /// What may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl Text {
    /// A text that goes on from `prompt`.
    pub fn after(prompt: &[u32]) -> Self {
        Self { decoding: Decoding::after(prompt), held: String::new(), stopped: false }
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What `token` adds to the text; nothing from a stop string on.
    pub fn push(&mut self, token: u32, tokenizer: &Tokenizer, stop: &[String]) -> Result<String> {
        let new = self.decoding.push(token, tokenizer)?;
        Ok(self.release(&new, stop))
    }

    /// What is left at the end.
    pub fn finish(&mut self, tokenizer: &Tokenizer, stop: &[String]) -> Result<String> {
        let new = self.decoding.new_text(tokenizer)?;
        self.decoding.decoded = self.decoding.tokens.len();
        let mut rest = self.release(&new, stop);
        rest.push_str(&std::mem::take(&mut self.held));
        Ok(rest)
    }

    fn release(&mut self, new: &str, stop: &[String]) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(new);
        if let Some(at) = stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = stop.iter().map(|stop| beginning(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Length of the longest end of `text` that `stop` begins with.
fn beginning(text: &str, stop: &str) -> usize {
    let borders = stop.char_indices().map(|(at, _)| at).rev();
    borders.into_iter().find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &str, stop: &[String]) -> (Vec<String>, bool) {
        let tokenizer = Tokenizer::default_lm().unwrap();
        let mut out = Text::after(&tokenizer.encode("a prompt").unwrap().ids);
        let mut pieces = Vec::new();
        for token in tokenizer.encode(text).unwrap().ids {
            pieces.push(out.push(token, &tokenizer, stop).unwrap());
            if out.stopped() {
                break;
            }
        }
        pieces.push(out.finish(&tokenizer, stop).unwrap());
        (pieces, out.stopped())
    }

    #[test]
    fn characters_come_whole() {
        // The tokenizer has no tokens for these characters, so that each is several tokens.
        let (pieces, _) = written(" naïve 東京 🦀🦀 end", &[]);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert!(pieces.iter().any(|piece| piece == "🦀"), "{pieces:?}");
        assert_eq!(pieces.concat(), " naïve 東京 🦀🦀 end");
        // Half a character is shown for what it is, at the end.
        let tokenizer = Tokenizer::default_lm().unwrap();
        let crab = tokenizer.encode("🦀").unwrap().ids;
        let mut text = Text::after(&[]);
        assert_eq!(text.push(crab[0], &tokenizer, &[]).unwrap(), "");
        assert_eq!(text.finish(&tokenizer, &[]).unwrap(), "\u{fffd}");
        // Bytes that never make a character are not held back for ever.
        let mut text = Text::after(&[]);
        let shown: Vec<String> = (0..40).map(|_| text.push(crab[0], &tokenizer, &[]).unwrap()).collect();
        assert!(shown.concat().chars().count() > 20, "{shown:?}");
    }

    /// Broken once: nothing held back that may begin a stop string.
    #[test]
    fn a_stop_string_is_found_across_tokens_and_left_out() {
        let stops = |all: &[&str]| all.iter().map(|stop| stop.to_string()).collect::<Vec<_>>();
        for (text, stop, expected) in [
            ("one two\n\nthree", stops(&["\n\n"]), "one two"),
            ("one two three", stops(&["o thr", "wo"]), "one t"),
            ("one two", stops(&["two three"]), "one two"),
            ("aaaaab", stops(&["aab"]), "aaa"),
            ("東京京都", stops(&["京都"]), "東京"),
            ("xyz", stops(&["x"]), ""),
        ] {
            let (pieces, stopped) = written(text, &stop);
            assert_eq!(pieces.concat(), expected, "{text} {stop:?}");
            assert_eq!(stopped, expected != text, "{text} {stop:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the tokens and the stop strings, what comes out is the text up to one of them. (Of two that
        /// overlap it is the one that is complete first, not the one that begins first.)
        #[test]
        fn pieces_make_up_the_text_before_the_first_stop(text in "[ab 京🦀]{0,30}", stop in prop::collection::vec("[ab 京🦀]{1,4}", 0..3)) {
            let (pieces, stopped) = written(&text, &stop);
            let shown = pieces.concat();
            let rest = text.strip_prefix(shown.as_str());
            prop_assert!(rest.is_some(), "{:?} is no beginning of {:?}", shown, text);
            prop_assert!(!stop.iter().any(|stop| shown.contains(stop.as_str())), "{:?}", shown);
            let here = |stop: &String| rest.is_some_and(|rest| rest.starts_with(stop.as_str()));
            prop_assert_eq!(stopped, stop.iter().any(here));
            prop_assert_eq!(stopped, rest != Some(""));
        }
    }
}
