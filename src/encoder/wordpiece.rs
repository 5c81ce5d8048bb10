//! BERT's tokenizer for plain ASCII text, where it is a short loop. `tokenizers` keeps offsets and
//! walks Unicode's tables for every character, which would take nearly all of a static encoder's time.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::Tokenizer;

/// Text to WordPiece ids, the same as [`Tokenizer::encode`] without special tokens gives.
pub(super) struct WordPiece {
    /// For text that the short loop does not cover.
    tokenizer: Tokenizer,
    /// `None` where the tokenizer is not the uncased BERT one.
    plain: Option<Plain>,
}

struct Plain {
    /// Pieces that start a word, and pieces that continue one, without their prefix.
    starts: HashMap<Box<[u8]>, u32>,
    continues: HashMap<Box<[u8]>, u32>,
    unknown: u32,
    longest_word: usize,
}

/// The parts of `tokenizer.json` that must be as in uncased BERT.
#[derive(Deserialize)]
struct Settings {
    added_tokens: Vec<serde_json::Value>,
    normalizer: Normalizer,
    pre_tokenizer: PreTokenizer,
    model: Model,
}

#[derive(Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    kind: String,
    clean_text: bool,
    lowercase: bool,
}

#[derive(Deserialize)]
struct PreTokenizer {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: HashMap<String, u32>,
}

impl WordPiece {
    pub fn new(tokenizer: Tokenizer) -> Self {
        let plain = tokenizer.to_string(false).ok().and_then(|json| Plain::new(&json));
        Self { tokenizer, plain }
    }

    /// Ids of the tokens of `text`.
    pub fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        // A bracket may begin an added token such as "[UNK]".
        match &self.plain {
            Some(plain) if text.bytes().all(|b| b.is_ascii() && b != b'[') => Ok(plain.encode(text)),
            _ => Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec()),
        }
    }
}

impl Plain {
    fn new(json: &str) -> Option<Self> {
        let Settings { added_tokens, normalizer, pre_tokenizer, model } = serde_json::from_str(json).ok()?;
        let bracketed =
            |token: &serde_json::Value| token["content"].as_str().is_some_and(|t| t.starts_with('['));
        let uncased_bert = normalizer.kind == "BertNormalizer"
            && normalizer.clean_text
            && normalizer.lowercase
            && pre_tokenizer.kind == "BertPreTokenizer"
            && model.kind == "WordPiece"
            && added_tokens.iter().all(bracketed);
        if !uncased_bert {
            return None;
        }
        let unknown = *model.vocab.get(&model.unk_token)?;
        let (mut starts, mut continues) = (HashMap::new(), HashMap::new());
        for (token, id) in model.vocab {
            match token.strip_prefix(&model.continuing_subword_prefix) {
                Some(rest) => continues.insert(rest.as_bytes().into(), id),
                None => starts.insert(token.as_bytes().into(), id),
            };
        }
        Some(Self { starts, continues, unknown, longest_word: model.max_input_chars_per_word })
    }

    /// `text` must be ASCII.
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut word = Vec::with_capacity(32);
        for byte in text.bytes() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => self.finish(&mut word, &mut ids),
                // Other control characters are taken out, and what stood around them is joined.
                byte if byte.is_ascii_control() => {}
                byte if byte.is_ascii_punctuation() => {
                    self.finish(&mut word, &mut ids);
                    word.push(byte);
                    self.finish(&mut word, &mut ids);
                }
                byte => word.push(byte.to_ascii_lowercase()),
            }
        }
        self.finish(&mut word, &mut ids);
        ids
    }

    /// Adds the longest pieces that `word` is made of, or the unknown token, and empties it.
    fn finish(&self, word: &mut Vec<u8>, ids: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let begin = ids.len();
        let mut rest: &[u8] = word;
        if word.len() > self.longest_word {
            rest = &[];
            ids.push(self.unknown);
        }
        while !rest.is_empty() {
            let pieces = if ids.len() == begin { &self.starts } else { &self.continues };
            let longest = (1..=rest.len()).rev().find_map(|n| Some((n, *pieces.get(&rest[..n])?)));
            let Some((n, id)) = longest else {
                ids.truncate(begin);
                ids.push(self.unknown);
                break;
            };
            ids.push(id);
            rest = &rest[n..];
        }
        word.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(include_bytes!("../../assets/encoder/tokenizer.json")).unwrap()
    }

    fn agree(ours: &WordPiece, text: &str) {
        let theirs = ours.tokenizer.encode(text, false).unwrap();
        assert_eq!(ours.encode(text).unwrap(), theirs.get_ids(), "{text:?}");
    }

    #[test]
    fn plain_text_gets_the_ids_of_tokenizers() {
        let ours = WordPiece::new(tokenizer());
        assert!(ours.plain.is_some(), "the default encoder's tokenizer is uncased BERT's");
        for text in [
            "",
            " \t\r\n ",
            "The Boundary-layer (in 1958) isn't unaffable; e.g. x=3.14!",
            "a\u{0}b\u{7}c\u{7f}d\u{b}e",
            "[UNK] and [CLS] stand here",
            "Zürich 日本 naïve",
            &"x".repeat(100),
            &"x".repeat(101),
            "qzxv##ing ##ing",
        ] {
            agree(&ours, text);
        }
    }

    #[test]
    fn every_ascii_character_is_treated_alike() {
        let ours = WordPiece::new(tokenizer());
        (0..128u8).for_each(|b| agree(&ours, &format!("Wing{0}span {0}", char::from(b))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_text_gets_the_ids_of_tokenizers(text in "([a-zA-Z]{1,12}[ .,\n]|\\PC|[\\x00-\\x7f]){0,20}") {
            thread_local!(static OURS: WordPiece = WordPiece::new(tokenizer()));
            OURS.with(|ours| agree(ours, &text));
        }
    }
}
