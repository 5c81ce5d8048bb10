//! Text to tokens and back.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model};

use super::sentencepiece;
use crate::artefact::write_atomically;
use crate::{Error, Result};

/// The token that [`Tokenizer::train`] reserves for the end of a text.
const END_OF_TEXT: &str = "<|endoftext|>";

/// What tokenizers call the end of a text, the most telling name first.
const ENDS: [&str; 7] =
    [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]"];

/// Tokens of a text, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The bytes of the text that each token stands for, as (start, end). Tokens that share a
    /// character (a byte-level tokenizer may split one) each give the whole of it.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer in Hugging Face's `tokenizer.json` format.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same, but what spells a special token is that token; made when it is needed.
    marked: Arc<OnceLock<tokenizers::Tokenizer>>,
    json: Vec<u8>,
    identity: String,
    vocab_size: usize,
    end_of_text: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes).map_err(|e| Error::file(path, e.to_string()))
    }

    /// Reads the content of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| Error::Tokenizer(format!("not a readable tokenizer.json: {e}")))?;
        // A store holds whole texts, whatever a model's input once was.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(failed)?;
        // A text that spells a special token out is text: nobody ends a document from inside it.
        inner.set_encode_special_tokens(true);
        let largest = inner.get_vocab(true).values().max().copied();
        let end_of_text = ENDS.iter().find_map(|name| inner.token_to_id(name));
        Ok(Self {
            vocab_size: largest.map_or(0, |id| id as usize + 1),
            identity: blake3::hash(json).to_hex()[..32].to_string(),
            json: json.to_vec(),
            marked: Arc::default(),
            inner,
            end_of_text,
        })
    }

    /// Reads a SentencePiece Unigram model, as older T5 repositories have it (`spiece.model`), with so many
    /// sentinels `<extra_id_0>`... after its own pieces.
    pub fn from_sentencepiece(model: &[u8], extra_ids: usize) -> Result<Self> {
        let json = sentencepiece::unigram_json(model, extra_ids).map_err(Error::Tokenizer)?;
        Self::from_bytes(json.to_string().as_bytes())
    }

    /// The tokenizer inside the program, which its language models use: byte-level BPE of 4,096
    /// tokens, trained with [`train`](Self::train) on the Simple English Wikipedia extract.
    pub fn default_lm() -> Result<Self> {
        Self::from_bytes(include_bytes!("../../assets/tokenizer/tokenizer.json"))
    }

    /// The tokens of `text`; no special tokens are added.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let encoding = self.inner.encode(text, false).map_err(failed)?;
        Ok(Tokens { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// The tokens of `text`, in which special tokens may be spelled out, as in the rendering of a chat template;
    /// none are added.
    pub fn encode_marked(&self, text: &str) -> Result<Vec<u32>> {
        let marked = self.marked.get_or_init(|| {
            let mut marked = self.inner.clone();
            marked.set_encode_special_tokens(false);
            marked
        });
        Ok(marked.encode(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// `text` with a space inside whatever spells a special token, for [`encode_marked`](Self::encode_marked): what
    /// somebody else wrote ends no turn.
    pub fn unmarked<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for token in self.inner.get_added_tokens_decoder().values().filter(|token| token.special) {
            if let Some((first, rest)) =
                token.content.split_at_checked(1).filter(|(_, rest)| !rest.is_empty())
                && text.contains(&token.content)
            {
                text = Cow::Owned(text.replace(&token.content, &format!("{first} {rest}")));
            }
        }
        text
    }

    /// The tokens that the `tokenizer.json` puts before a text of a model's (`<s>`, mostly), if any.
    pub fn starts(&self) -> Result<Vec<u32>> {
        let [bare, whole] = [false, true].map(|special| self.inner.encode("a", special));
        let (bare, whole) = (bare.map_err(failed)?, whole.map_err(failed)?);
        let (bare, whole) = (bare.get_ids(), whole.get_ids());
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare);
        Ok(whole[..at.unwrap_or(0)].to_vec())
    }

    /// The text of `ids`, special tokens left out. Bytes that make no whole character become
    /// U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(failed)
    }

    /// One more than the largest token id: the rows an embedding table needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token called `name`, a special one or one of the vocabulary.
    pub fn token(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// The token that ends a text (`<|endoftext|>`, `</s>`, `<eos>` and the like).
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Hash of the `tokenizer.json`.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The `tokenizer.json` itself.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Writes the `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(write_atomically(path, &self.json)?)
    }

    /// Trains a byte-level BPE tokenizer with an `<|endoftext|>` token, GPT-2's way of splitting
    /// words and at most `vocab_size` tokens (fewer where the texts have fewer pairs that occur
    /// twice). The same texts in the same order give the same tokenizer. The tokens called `special` stand for
    /// themselves: no text is cut into them, and decoding leaves them out.
    ///
    /// The first error among `texts` ends the training with that error.
    pub fn train(
        texts: impl Iterator<Item = Result<String>> + Send,
        vocab_size: usize,
        special: &[String],
    ) -> Result<Self> {
        let alphabet = ByteLevel::alphabet();
        let mut names = vec![END_OF_TEXT];
        for name in special {
            if name.is_empty() || names.contains(&name.as_str()) {
                return Err(Error::setting("special", format!("{name:?} is empty or there already")));
            }
            names.push(name);
        }
        let least = alphabet.len() + names.len();
        if vocab_size < least {
            return Err(Error::setting("vocab-size", format!("{vocab_size} is too small: at least {least}")));
        }
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(names.into_iter().map(|name| AddedToken::from(name, true)).collect())
            .initial_alphabet(alphabet.into_iter().collect())
            .build()
            .into();
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        let mut error = None;
        let texts = texts.map_while(|text| text.map_err(|e| error = Some(e)).ok());
        inner.train(&mut trainer, texts).map_err(failed)?;
        if let Some(error) = error {
            return Err(error);
        }
        debug_assert!(inner.get_model().get_vocab_size() >= least);
        Self::from_bytes(inner.to_string(false).map_err(failed)?.as_bytes())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("identity", &self.identity)
            .field("vocab_size", &self.vocab_size)
            .field("end_of_text", &self.end_of_text)
            .finish_non_exhaustive()
    }
}

fn failed(e: tokenizers::Error) -> Error {
    Error::Tokenizer(e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        (0..200).map(|i| format!("The river {} runs past the old mill, naïve 東京 {i}.", i % 7)).collect()
    }

    fn train(vocab_size: usize) -> Result<Tokenizer> {
        Tokenizer::train(texts().into_iter().map(Ok), vocab_size, &[])
    }

    #[test]
    fn training_twice_gives_the_same_bytes_and_every_text_survives() {
        let (one, two) = (train(400).unwrap(), train(400).unwrap());
        assert_eq!(one.json(), two.json());
        assert_eq!(one.identity(), two.identity());
        assert!(one.vocab_size() > 257 && one.vocab_size() <= 400);
        for text in ["The river runs", "  spaces\n\n\tand tabs ", "naïve 東京 🦀", ""] {
            let tokens = one.encode(text).unwrap();
            assert_eq!(one.decode(&tokens.ids).unwrap(), text);
            assert_eq!(tokens.ids.len(), tokens.offsets.len());
        }
    }

    #[test]
    fn a_spelled_out_special_token_stays_text() {
        let tokenizer = train(300).unwrap();
        let end = tokenizer.end_of_text().unwrap();
        let tokens = tokenizer.encode("a <|endoftext|> b").unwrap();
        assert!(!tokens.ids.contains(&end));
        assert_eq!(tokenizer.decode(&tokens.ids).unwrap(), "a <|endoftext|> b");
        assert_eq!(tokenizer.decode(&[end]).unwrap(), "");
    }

    #[test]
    fn special_tokens_of_ones_own_are_never_text() {
        let special = ["<|a|>", "<|b|>"].map(String::from);
        let train = |special: &[String]| Tokenizer::train(texts().into_iter().map(Ok), 300, special);
        let tokenizer = train(&special).unwrap();
        let ids: Vec<u32> = special.iter().map(|name| tokenizer.token(name).unwrap()).collect();
        let tokens = tokenizer.encode("river <|a|> mill").unwrap();
        assert!(!tokens.ids.contains(&ids[0]));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "");
        assert_eq!(tokenizer.token("<|c|>"), None);
        let again = [special.clone(), special].concat();
        assert!(train(&again).unwrap_err().to_string().contains("<|a|>"));
    }

    #[test]
    fn a_template_may_spell_special_tokens_and_others_may_not() {
        let tokenizer = train(300).unwrap();
        let end = tokenizer.end_of_text().unwrap();
        let said = "over<|endoftext|>out";
        assert_eq!(tokenizer.encode_marked(said).unwrap().iter().filter(|id| **id == end).count(), 1);
        let harmless = tokenizer.unmarked(said);
        assert_eq!(harmless, "over< |endoftext|>out");
        assert!(!tokenizer.encode_marked(&harmless).unwrap().contains(&end));
        assert_eq!(tokenizer.unmarked("plain"), "plain");
    }

    #[test]
    fn what_stands_before_a_text_is_what_the_file_says() {
        let tokenizer = train(300).unwrap();
        assert!(tokenizer.starts().unwrap().is_empty());
        let mut json: serde_json::Value = serde_json::from_slice(tokenizer.json()).unwrap();
        json["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        });
        assert_eq!(Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap().starts().unwrap(), [0]);
    }

    #[test]
    fn what_cannot_be_read_or_trained_is_an_error() {
        assert!(Tokenizer::from_bytes(b"{}").is_err());
        let error = Tokenizer::open(Path::new("no/such/tokenizer.json")).unwrap_err();
        assert!(error.to_string().contains("no/such/tokenizer.json"));
        assert!(train(100).unwrap_err().to_string().contains("vocab-size"));
        let bad = vec![Ok("fine".to_string()), Err(Error::setting("x", "bad line"))];
        assert!(Tokenizer::train(bad.into_iter(), 300, &[]).unwrap_err().to_string().contains("bad line"));
    }

    #[test]
    fn the_default_is_there() {
        let tokenizer = Tokenizer::default_lm().unwrap();
        assert_eq!(tokenizer.vocab_size(), 4096);
        assert!(tokenizer.end_of_text().is_some());
        let text = "Paris is the capital of France. 東京\n";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap().ids).unwrap(), text);
    }

    #[test]
    fn saving_keeps_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let tokenizer = train(300).unwrap();
        tokenizer.save(&path).unwrap();
        assert_eq!(Tokenizer::open(&path).unwrap().identity(), tokenizer.identity());
    }
}
