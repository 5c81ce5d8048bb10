//! SentencePiece's Unigram models (`spiece.model`), which older T5 repositories have alone, as a `tokenizer.json`.
//!
//! The file is a protocol buffer, `ModelProto` of
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>; the tokenizer made of it is
//! the one that transformers makes (`T5Tokenizer`).

use serde_json::{Value, json};
use tokenizers::normalizers::{NormalizerWrapper, Precompiled};

const END: &str = "</s>";
/// How SentencePiece marks the beginning of a word.
const MARK: &str = "▁";

/// Kinds of pieces that are read apart from the text around them.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// `TrainerSpec.ModelType`
const UNIGRAM: u64 = 1;

struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: u64,
}

/// The `tokenizer.json` of T5 for a Unigram model, with `extra_ids` sentinels `<extra_id_0>`... after its pieces,
/// the last first. Texts end with `</s>`.
///
/// # Errors
/// Says what is wrong with the model.
pub(super) fn unigram_json(model: &[u8], extra_ids: usize) -> Result<Value, String> {
    let (mut pieces, mut unknown, mut kind, mut rules) = (Vec::new(), 0, UNIGRAM, &[][..]);
    for field in Fields(model) {
        match field? {
            (1, Field::Bytes(message)) => pieces.push(piece(message)?),
            (2, Field::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    match field? {
                        (3, Field::Number(number)) => kind = number,
                        (40, Field::Number(number)) => unknown = number,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normaliser)) => {
                for field in Fields(normaliser) {
                    if let (2, Field::Bytes(bytes)) = field? {
                        rules = bytes;
                    }
                }
            }
            _ => {}
        }
    }
    if kind != UNIGRAM {
        return Err("is no Unigram model, the kind that T5 has; save the tokenizer as tokenizer.json".into());
    }
    let end = pieces.iter().position(|piece| piece.text == END).ok_or(format!("has no piece {END:?}"))?;
    if usize::try_from(unknown).is_ok_and(|unknown| unknown >= pieces.len()) {
        return Err(format!("its unknown piece is number {unknown}, but there are {}", pieces.len()));
    }
    let sentinels: Vec<String> = (0..extra_ids).rev().map(|i| format!("<extra_id_{i}>")).collect();
    pieces.extend(sentinels.iter().map(|text| Piece { text, score: 0.0, kind: CONTROL }));

    let added =
        pieces.iter().enumerate().filter(|(_, piece)| [UNKNOWN, CONTROL, USER_DEFINED].contains(&piece.kind));
    let added = added.map(|(id, piece)| {
        json!({"id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": piece.kind != USER_DEFINED})
    });
    let normalizer = match rules {
        [] => Value::Null,
        rules => {
            // The library makes room for as many bytes as the rules begin by stating.
            let stated = rules.first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
            if stated as usize > rules.len() {
                return Err("its normalisation rules are cut off".into());
            }
            let rules = Precompiled::from(rules).map_err(|e| format!("normalisation rules: {e}"))?;
            serde_json::to_value(NormalizerWrapper::Precompiled(rules)).map_err(|e| e.to_string())?
        }
    };
    let metaspace =
        json!({"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": true});
    let (text, pair) =
        (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 0}}));
    let stop = json!({"SpecialToken": {"id": END, "type_id": 0}});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, stop],
            "pair": [text, stop, pair, stop],
            "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": pieces.iter().map(|piece| json!([piece.text, piece.score])).collect::<Vec<_>>(),
            "byte_fallback": false,
        },
    }))
}

fn piece(message: &[u8]) -> Result<Piece<'_>, String> {
    let mut piece = Piece { text: "", score: 0.0, kind: 1 };
    for field in Fields(message) {
        match field? {
            (1, Field::Bytes(text)) => {
                piece.text = std::str::from_utf8(text).map_err(|e| format!("a piece is no text: {e}"))?;
            }
            (2, Field::Fixed(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Ok(piece)
}

/// The fields of a protocol buffer's message, with their numbers.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    /// Four bytes, such as an f32.
    Fixed([u8; 4]),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| "is no SentencePiece model, or cut off".to_string());
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn data(file: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/t5_v1_0").join(file)).unwrap()
    }

    /// The tokenizer is the one that transformers made of the same file.
    #[test]
    fn the_tokenizer_is_that_of_transformers() {
        let right: Value = serde_json::from_slice(&data("tokenizer.json")).unwrap();
        // Through text, as it is read: serde_json's parser is off by a bit now and then.
        let ours = unigram_json(&data("spiece.model"), 7).unwrap().to_string();
        assert!(serde_json::from_str::<Value>(&ours).unwrap() == right);
    }

    #[test]
    fn damaged_models_are_refused() {
        let model = data("spiece.model");
        for end in [1, 7, model.len() / 2, model.len() - 1] {
            assert!(unigram_json(&model[..end], 7).is_err(), "{end} bytes");
        }
        for at in (0..model.len()).step_by(7) {
            let mut model = model.clone();
            model[at] ^= 0xff;
            let _ = unigram_json(&model, 7);
        }
        assert!(unigram_json(b"", 7).unwrap_err().contains("</s>"));
        // TrainerSpec { model_type: BPE }
        assert!(unigram_json(&[0x12, 2, 0x18, 2], 7).unwrap_err().contains("tokenizer.json"));
    }
}
