//! The tokenizer, out of a file's metadata.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::super::vocabulary::{Spaces, Vocabulary};
use super::file::{File, Value};
use crate::corpus::Tokenizer;
use crate::error::Result;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

// Values of TYPES.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Control tokens that end what a model says, whatever a file gives as its one end of sequence.
const ENDS: [&str; 9] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
    "<eos>",
];

// How GPT-2, Llama 3 and Qwen 2 split a text into words.
const GPT2_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// The id in `tokenizer.ggml.{name}_token_id`, where there is a token of that number.
fn id(file: &File, name: &str) -> Result<Option<usize>> {
    let Some(id) = file.integer(&format!("tokenizer.ggml.{name}_token_id"))? else { return Ok(None) };
    let count = match file.get(TOKENS) {
        Some(Value::List(tokens)) => tokens.len(),
        _ => 0,
    };
    // Some writers give 2^32 - 1 for "none".
    Ok(usize::try_from(id).ok().filter(|&id| id < count))
}

/// The text of the special token `name` ("bos", "eos").
pub(super) fn special(file: &File, name: &str) -> Result<Option<String>> {
    let (Some(id), Some(Value::List(tokens))) = (id(file, name)?, file.get(TOKENS)) else { return Ok(None) };
    Ok(tokens.get(id).and_then(text).map(String::from))
}

/// Tokens that end what a model says.
pub(super) fn ends(file: &File) -> Vec<u32> {
    let mut ends: Vec<usize> =
        ["eos", "eot", "eom"].into_iter().filter_map(|name| id(file, name).ok()?).collect();
    if let (Some(Value::List(tokens)), Some(Value::List(types))) = (file.get(TOKENS), file.get(TYPES)) {
        let named = tokens.iter().zip(types).enumerate().filter(|(_, (token, kind))| {
            **kind == Value::Integer(CONTROL) && text(token).is_some_and(|token| ENDS.contains(&token))
        });
        ends.extend(named.map(|(id, _)| id));
    }
    let mut seen = Vec::new();
    for end in ends.into_iter().filter_map(|id| u32::try_from(id).ok()) {
        if !seen.contains(&end) {
            seen.push(end);
        }
    }
    seen
}

/// The tokenizer that the metadata describe.
pub(super) fn tokenizer(file: &File) -> Result<Tokenizer> {
    let model = file.needed_text(MODEL)?;
    if !matches!(model, "gpt2" | "llama") {
        return Err(file.fault(MODEL, format!("{model:?} is not read here; \"gpt2\" and \"llama\" are")));
    }
    let tokens = file.list(TOKENS, |value| text(value).map(String::from))?;
    let mut tokens = tokens.ok_or_else(|| file.fault(TOKENS, "this metadata key is missing"))?;
    let integer = |value: &Value| match value {
        &Value::Integer(n) => Some(n),
        _ => None,
    };
    let types = file.list(TYPES, integer)?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        let why = format!("{} types of {} tokens", types.len(), tokens.len());
        return Err(file.fault(TYPES, why));
    }
    let gemma =
        model == "llama" && file.text("general.architecture")?.is_some_and(|name| name.starts_with("gemma"));
    if gemma {
        // Runs of spaces stand there as they are; in text they have become ▁ when they are looked up.
        for token in tokens.iter_mut().filter(|token| token.len() > 1 && token.bytes().all(|b| b == b' ')) {
            *token = "▁".repeat(token.len());
        }
    }
    let of_type = |wanted: &[i64]| {
        types
            .iter()
            .enumerate()
            .filter(|(_, kind)| wanted.contains(kind))
            .map(|(id, _)| id)
            .collect::<Vec<_>>()
    };
    let mut vocabulary = Vocabulary {
        special: of_type(&[CONTROL, UNKNOWN]),
        whole: of_type(&[USER_DEFINED]),
        apart: of_type(&[BYTE, UNUSED]).into_iter().collect(),
        tokens,
        ..Vocabulary::default()
    };
    if gemma {
        let tokens = &vocabulary.tokens;
        vocabulary.whole.retain(|&id| !tokens[id].chars().all(|c| c == '▁'));
    }
    let pre = file.text(PRE)?.unwrap_or_default();
    let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let flag = |name: &str| file.bool(&format!("tokenizer.ggml.{name}"));
    if flag("add_bos_token")?.unwrap_or(model == "llama" || llama3) {
        vocabulary.before.extend(id(file, "bos")?);
    }
    if flag("add_eos_token")?.unwrap_or(false) {
        vocabulary.after.extend(id(file, "eos")?);
    }
    match model {
        "gpt2" => byte_level(file, vocabulary, &types, pre),
        _ => sentencepiece(file, vocabulary, gemma, flag("add_space_prefix")?),
    }
    .map_err(|e| file.fault("tokenizer.ggml", e))
}

fn byte_level(file: &File, mut vocabulary: Vocabulary, types: &[i64], pre: &str) -> Result<Tokenizer> {
    // A few writers spell ordinary tokens as text; the vocabulary is in the byte alphabet.
    let alphabet = byte_alphabet();
    let letters: std::collections::HashSet<char> = alphabet.iter().copied().collect();
    for (token, &kind) in vocabulary.tokens.iter_mut().zip(types) {
        if !matches!(kind, CONTROL | USER_DEFINED) && token.chars().any(|c| !letters.contains(&c)) {
            *token = token.bytes().map(|byte| alphabet[usize::from(byte)]).collect();
        }
    }
    let merges = file.list(MERGES, |value| text(value)?.split_once(' '))?;
    let merges = merges.ok_or_else(|| file.fault(MERGES, "this metadata key is missing"))?;
    let known: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    for (i, (left, right)) in merges.iter().enumerate() {
        let parts = [*left, *right, &format!("{left}{right}")];
        if let Some(part) = parts.iter().find(|part| !known.contains_key(**part)) {
            return Err(file.fault(MERGES, format!("element {i} has {part:?}, which is no token")));
        }
    }
    let bytes = |split: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split});
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let sequence = |parts: Vec<Json>| json!({"type": "Sequence", "pretokenizers": parts});
    let gpt2_file = file.text("general.architecture")? == Some("gpt2");
    let (pre_tokenizer, normalizer, ignore_merges) = match pre {
        "gpt-2" | "gpt2" => (bytes(true), Json::Null, false),
        "" if gpt2_file => (bytes(true), Json::Null, false),
        "smollm" => (
            sequence(vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)]),
            Json::Null,
            false,
        ),
        "llama-bpe" | "llama3" | "llama-v3" => {
            (sequence(vec![split(LLAMA3_SPLIT), bytes(false)]), Json::Null, true)
        }
        "qwen2" | "deepseek-r1-qwen" => {
            (sequence(vec![split(QWEN2_SPLIT), bytes(false)]), json!({"type": "NFC"}), false)
        }
        // What llama.cpp does where nothing better is known.
        "default" | "" => {
            let parts = [r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"];
            let parts = parts.into_iter().map(split).chain([bytes(false)]).collect();
            (sequence(parts), Json::Null, false)
        }
        other => {
            let why = format!("{other:?} is not read here; gpt-2, smollm, llama-bpe, qwen2 and default are");
            return Err(file.fault(PRE, why));
        }
    };
    vocabulary.byte_level(&merges, normalizer, pre_tokenizer, ignore_merges)
}

fn sentencepiece(
    file: &File,
    vocabulary: Vocabulary,
    gemma: bool,
    prefix: Option<bool>,
) -> Result<Tokenizer> {
    let number = |value: &Value| match value {
        &Value::Float(x) if !x.is_nan() => Some(x),
        _ => None,
    };
    let scores = file.list(SCORES, number)?;
    let scores = scores.ok_or_else(|| file.fault(SCORES, "this metadata key is missing"))?;
    if scores.len() != vocabulary.tokens.len() {
        let why = format!("{} scores of {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(file.fault(SCORES, why));
    }
    let unknown = id(file, "unknown")?;
    match gemma {
        // Gemma's scores do not follow the order of its merges; the order of its tokens does.
        true => vocabulary.sentencepiece(|id| -(id as f64), unknown, Spaces::Gemma),
        false => {
            let spaces = if prefix.unwrap_or(true) { Spaces::First } else { Spaces::Never };
            vocabulary.sentencepiece(|id| scores[id], unknown, spaces)
        }
    }
}

/// GPT-2's letters of the 256 bytes.
fn byte_alphabet() -> Vec<char> {
    let plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    (0..256)
        .map(|byte| if plain(byte) { byte } else { others.next().unwrap_or(byte) })
        .filter_map(char::from_u32)
        .collect()
}
