//! GGUF, the files of llama.cpp: weights, configuration, tokenizer and chat template in one.

mod config;
mod file;
mod names;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde_json::Value;

use super::blocks::{BlockKind, Blocks};
use super::chat::ChatTemplate;
use super::{Checkpoint, Stored};
use crate::corpus::Tokenizer;
use crate::error::{Error, Result};
use file::File;
use names::{Architecture, Change, Heads, ROPE_FACTORS};

pub(super) struct Gguf {
    file: File,
    config: Value,
    /// By transformers' names: llama.cpp's, and what to undo.
    tensors: BTreeMap<String, (String, Change)>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let name = file.needed_text("general.architecture")?;
        let architecture = Architecture::from_name(name).ok_or_else(|| {
            let why = format!("{name:?} is not read here; llama, qwen2, qwen3, gemma3 and gpt2 are");
            file.fault("general.architecture", why)
        })?;
        let config = config::config(&file, architecture)?;
        let mut tensors = BTreeMap::new();
        for name in file.tensors().filter(|name| *name != ROPE_FACTORS) {
            let (theirs, change) = architecture.tensor(name).ok_or_else(|| {
                file.fault(name, format!("no tensor of {} has this name", architecture.name()))
            })?;
            tensors.insert(theirs, (name.to_string(), change));
        }
        Ok(Self { file, config, tensors })
    }

    /// Puts the rows of a head back in two halves.
    fn unpair(&self, blocks: Blocks, heads: Heads) -> Result<Blocks> {
        let field = match heads {
            Heads::Query => "num_attention_heads",
            Heads::Key => "num_key_value_heads",
        };
        let heads = self.config[field].as_u64().unwrap_or(0) as usize;
        let rows = blocks.shape().first().copied().unwrap_or(0);
        if heads == 0 || !rows.is_multiple_of(2 * heads) {
            let why = format!("{rows} rows are not those of {heads} heads ({field})");
            return Err(Error::file(&self.file.path, why));
        }
        let half = rows / heads / 2;
        // A bias is a column of single values here.
        let order = move |row: usize| {
            let (head, within) = (row / (2 * half), row % (2 * half));
            head * 2 * half + 2 * (within % half) + within / half
        };
        match blocks.shape() {
            [_] => {
                let shape = blocks.shape().to_vec();
                let column = Blocks::new(blocks.kind(), vec![rows, 1], blocks.bytes().to_vec())?;
                Blocks::new(blocks.kind(), shape, column.rows(order)?.bytes().to_vec())
            }
            _ => blocks.rows(order),
        }
    }
}

impl Checkpoint for Gguf {
    fn weights(&self) -> &Path {
        &self.file.path
    }

    fn config(&self) -> &Value {
        &self.config
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read(&self, name: &str) -> Result<Stored> {
        let (theirs, change) = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.file.path, format!("tensor {name} is missing")))?;
        let blocks = self.file.tensor(theirs)?;
        let stored = match *change {
            Change::None => blocks,
            Change::Paired(heads) => self.unpair(blocks, heads)?,
            Change::Transposed => return Ok(Stored::Dense(blocks.dequantise()?.t()?.contiguous()?)),
            Change::PlusOne => return Ok(Stored::Dense((blocks.dequantise()? - 1.0)?)),
        };
        Ok(match stored.kind() {
            BlockKind::F32 => Stored::Dense(stored.dense(DType::F32)?),
            BlockKind::F16 => Stored::Dense(stored.dense(DType::F16)?),
            BlockKind::BF16 => Stored::Dense(stored.dense(DType::BF16)?),
            _ => Stored::Blocks(stored),
        })
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        vocabulary::tokenizer(&self.file)
    }

    fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let field = "tokenizer.chat_template";
        let Some(template) = self.file.text(field)? else { return Ok(None) };
        let [bos, eos] = ["bos", "eos"].map(|name| vocabulary::special(&self.file, name));
        let template = ChatTemplate::new(template, bos?, eos?);
        template.map(Some).map_err(|e| self.file.fault(field, e))
    }

    fn end_tokens(&self) -> Vec<u32> {
        vocabulary::ends(&self.file)
    }
}

/// All tensors of a file by its own names, whatever it describes.
#[cfg(test)]
pub(super) fn blocks(path: &Path) -> Result<Vec<(String, Blocks)>> {
    let file = File::open(path)?;
    file.tensors().map(|name| Ok((name.to_string(), file.tensor(name)?))).collect()
}
