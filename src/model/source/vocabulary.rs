//! A `tokenizer.json` out of a vocabulary that came without one.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::corpus::Tokenizer;
use crate::error::Result;

/// Tokens by id, and which of them are not cut out of text like the others.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    pub tokens: Vec<String>,
    /// Ids of tokens that text never gives: control tokens.
    pub special: Vec<usize>,
    /// Ids of tokens that are found in text before anything else.
    pub whole: Vec<usize>,
    /// Ids of tokens that text never gives and that are not special either: bytes, unused ones.
    pub apart: HashSet<usize>,
    /// Ids that stand before every text of a model.
    pub before: Vec<usize>,
    /// Ids that stand after it.
    pub after: Vec<usize>,
}

/// How spaces become `▁` in a SentencePiece vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spaces {
    /// One is put before a text that does not begin with one (transformers' Llama).
    First,
    /// One is put before every text (llama2.c).
    Always,
    /// None is put anywhere (Llama without the prefix).
    Never,
    /// None is put anywhere, and what is unknown is one token (Gemma).
    Gemma,
}

impl Vocabulary {
    /// Byte-level BPE (GPT-2): `merges` in their order, and how text is split before.
    pub fn byte_level(
        &self,
        merges: &[(&str, &str)],
        normalizer: Value,
        pre_tokenizer: Value,
        ignore_merges: bool,
    ) -> Result<Tokenizer> {
        self.build(json!({
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": ignore_merges, "vocab": self.by_id(), "merges": merges,
            },
        }))
    }

    /// SentencePiece's BPE with bytes for what is unknown: of all pairs that make a token, the one
    /// of the highest `score(id)` is merged first.
    pub fn sentencepiece(
        &self,
        score: impl Fn(usize) -> f64,
        unknown: Option<usize>,
        spaces: Spaces,
    ) -> Result<Tokenizer> {
        let merges = self.merges(score);
        let replace =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let (normalizer, pre_tokenizer) = match spaces {
            Spaces::First => (Value::Null, metaspace("first")),
            Spaces::Always => {
                (json!({"type": "Sequence", "normalizers": [prepend, replace(" ", "▁")]}), Value::Null)
            }
            Spaces::Never => (Value::Null, metaspace("never")),
            Spaces::Gemma => (
                replace(" ", "▁"),
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
            ),
        };
        let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if matches!(spaces, Spaces::First | Spaces::Always) {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        self.build(json!({
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown.and_then(|id| self.tokens.get(id)),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false, "vocab": self.by_id(), "merges": merges,
            },
        }))
    }

    fn ids(&self) -> HashMap<&str, usize> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect()
    }

    /// The tokens with their ids, in the order of these: a tokenizer is known by its bytes, which must be the same each time.
    fn by_id(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect()
    }

    /// All pairs of tokens that make a token, the best first: by score, then the longer left side.
    fn merges(&self, score: impl Fn(usize) -> f64) -> Vec<(&str, &str)> {
        let ids = self.ids();
        let never: HashSet<usize> = self.special.iter().chain(&self.apart).copied().collect();
        let part = |text: &str| ids.get(text).is_some_and(|id| !never.contains(id));
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| !never.contains(id)) {
            let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            for (count, (left, right)) in cuts.enumerate() {
                if part(left) && part(right) {
                    merges.push((score(id), count, (left, right)));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        merges.into_iter().map(|(_, _, pair)| pair).collect()
    }

    /// Adds to `parts` what all kinds have.
    fn build(&self, mut parts: Value) -> Result<Tokenizer> {
        let special: HashSet<usize> = self.special.iter().copied().collect();
        let mut added: Vec<usize> = self.special.iter().chain(&self.whole).copied().collect();
        added.sort_unstable();
        added.dedup();
        let added: Vec<Value> = added
            .into_iter()
            .filter_map(|id| self.tokens.get(id).map(|token| (id, token)))
            .map(|(id, content)| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special.contains(&id),
                })
            })
            .collect();
        if let Some(parts) = parts.as_object_mut() {
            parts.insert("version".into(), "1.0".into());
            parts.insert("truncation".into(), Value::Null);
            parts.insert("padding".into(), Value::Null);
            parts.insert("added_tokens".into(), added.into());
            parts.insert("post_processor".into(), self.template());
        }
        Tokenizer::from_bytes(parts.to_string().as_bytes())
    }

    /// What stands around a text, as a post-processor.
    fn template(&self) -> Value {
        if self.before.is_empty() && self.after.is_empty() {
            return Value::Null;
        }
        let token = |&id: &usize| self.tokens.get(id).map(|token| (token.as_str(), id));
        let piece =
            |(token, _): (&str, usize), part: usize| json!({"SpecialToken": {"id": token, "type_id": part}});
        let around = |name: &str, part: usize| {
            let before = self.before.iter().filter_map(token).map(|token| piece(token, part));
            let text = [json!({"Sequence": {"id": name, "type_id": part}})];
            let after = self.after.iter().filter_map(token).map(|token| piece(token, part));
            before.chain(text).chain(after).collect::<Vec<Value>>()
        };
        let named: Map<String, Value> = self
            .before
            .iter()
            .chain(&self.after)
            .filter_map(token)
            .map(|(token, id)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": named,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when anything is written in the order of a hash table, which differs each time: an index and the model that it
    /// was cut for would never fit.
    #[test]
    fn a_vocabulary_gives_the_same_tokenizer_each_time() {
        let tokens = ["<s>", "</s>", "<unk>", "a", "b", "ab", "c", "abc"].map(String::from);
        let vocabulary = Vocabulary {
            tokens: tokens.to_vec(),
            special: vec![0, 1, 2],
            before: vec![0],
            after: vec![1],
            ..Vocabulary::default()
        };
        let identities = |build: &dyn Fn() -> Result<Tokenizer>| {
            let all: HashSet<String> = (0..20).map(|_| build().unwrap().identity().to_string()).collect();
            all.len()
        };
        let merges = [("a", "b"), ("ab", "c")];
        assert_eq!(identities(&|| vocabulary.byte_level(&merges, Value::Null, Value::Null, false)), 1);
        assert_eq!(identities(&|| vocabulary.sentencepiece(|id| id as f64, Some(2), Spaces::First)), 1);
    }
}
