//! Cutting a document into chunks.

use super::Tokens;

/// A document's tokens, and where its chunks begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunked {
    /// The token stream: the text's tokens, with the end-of-text token before and behind where
    /// there is one. Chunk `c` is `tokens[c * m..(c + 1) * m]`, the last one shorter.
    pub tokens: Vec<u32>,
    /// For each chunk, the byte of the text at which its text begins. The first is 0, and a
    /// chunk's text ends where the next one's begins, so that the texts tile the document.
    pub starts: Vec<usize>,
}

/// Cuts `text`, whose tokens are `tokens`, into chunks of exactly `chunk_tokens` tokens, the last
/// possibly shorter.
///
/// A chunk's text begins with the first character of its first token. A character whose bytes
/// fall on both sides of a cut belongs to the later chunk, and white space that belongs to no
/// token to the earlier one.
///
/// # Panics
/// If `chunk_tokens` is 0.
pub fn cut(text: &str, tokens: &Tokens, end_of_text: Option<u32>, chunk_tokens: usize) -> Chunked {
    let mut stream = Vec::with_capacity(tokens.ids.len() + 2);
    stream.extend(end_of_text);
    stream.extend_from_slice(&tokens.ids);
    stream.extend(end_of_text);
    let before = usize::from(end_of_text.is_some());
    let mut starts = Vec::with_capacity(stream.len().div_ceil(chunk_tokens));
    let mut last = 0;
    for first in (0..stream.len()).step_by(chunk_tokens) {
        if first > 0 {
            let mut offset = tokens.offsets.get(first - before).map_or(text.len(), |o| o.0.min(text.len()));
            while !text.is_char_boundary(offset) {
                offset -= 1;
            }
            last = offset.max(last);
        }
        starts.push(last);
    }
    Chunked { tokens: stream, starts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Tokenizer;
    use proptest::prelude::*;

    /// One token a byte; the tokens of one character share its offsets.
    fn bytes(text: &str) -> Tokens {
        let mut tokens = Tokens::default();
        for (at, c) in text.char_indices() {
            for byte in c.to_string().bytes() {
                tokens.ids.push(byte.into());
                tokens.offsets.push((at, at + c.len_utf8()));
            }
        }
        tokens
    }

    fn texts<'a>(text: &'a str, chunked: &Chunked) -> Vec<&'a str> {
        let ends = chunked.starts.iter().skip(1).copied().chain([text.len()]);
        chunked.starts.iter().zip(ends).map(|(&start, end)| &text[start..end]).collect()
    }

    #[test]
    fn chunks_are_full_but_the_last() {
        let text = "abcdefgh";
        let cut_at_3 = cut(text, &bytes(text), None, 3);
        assert_eq!(texts(text, &cut_at_3), ["abc", "def", "gh"]);
        let with_ends = cut(text, &bytes(text), Some(999), 3);
        assert_eq!(with_ends.tokens.len(), 10);
        assert_eq!(with_ends.tokens[0], 999);
        // [end a b] [c d e] [f g h] [end]: the last chunk has a token but no text.
        assert_eq!(texts(text, &with_ends), ["ab", "cde", "fgh", ""]);
    }

    #[test]
    fn a_split_character_belongs_to_the_later_chunk() {
        let text = "a東b";
        let chunked = cut(text, &bytes(text), None, 2);
        assert_eq!(chunked.tokens.len(), 5);
        assert_eq!(texts(text, &chunked), ["a", "東", "b"]);
    }

    #[test]
    fn a_text_without_tokens_has_only_its_ends() {
        assert_eq!(cut("  ", &Tokens::default(), None, 4).starts.len(), 0);
        assert_eq!(cut("  ", &Tokens::default(), Some(1), 4).tokens, [1, 1]);
        let one_each = cut("  ", &Tokens::default(), Some(1), 1);
        assert_eq!(texts("  ", &one_each), ["  ", ""]);
    }

    proptest! {
        #[test]
        fn texts_tile_the_document(text in "\\PC{0,80}", m in 1usize..9, ends in any::<bool>()) {
            let tokenizer = Tokenizer::train([Ok("a b c".to_string())].into_iter(), 257, &[]).unwrap();
            let tokens = tokenizer.encode(&text).unwrap();
            let chunked = cut(&text, &tokens, ends.then_some(0), m);
            prop_assert_eq!(chunked.starts.len(), chunked.tokens.len().div_ceil(m));
            if !chunked.starts.is_empty() {
                prop_assert_eq!(texts(&text, &chunked).concat(), text);
            }
        }
    }
}
