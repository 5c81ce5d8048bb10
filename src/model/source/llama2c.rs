//! llama2.c's files: a header of seven numbers, then f32 weights in a fixed order; the vocabulary
//! is in a file beside (github.com/karpathy/llama2.c, version 0 of its format).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::chat::ChatTemplate;
use super::vocabulary::{Spaces, Vocabulary};
use super::{Checkpoint, Stored};
use crate::corpus::{Mapped, Tokenizer};
use crate::error::{Error, Result};

/// Bytes of the header.
const HEADER: usize = 28;
/// Ids of what begins and ends a text.
const UNKNOWN: usize = 0;
const BOS: usize = 1;
const EOS: usize = 2;
/// Ids of the 256 bytes, from here on.
const BYTES: usize = 3;

pub(super) struct Llama2c {
    path: PathBuf,
    map: Mapped<u8>,
    config: Value,
    vocab_size: usize,
    tensors: BTreeMap<String, Place>,
}

struct Place {
    start: usize,
    shape: Vec<usize>,
    /// Heads whose rows are paired, as Meta has them; transformers has them in halves.
    heads: Option<usize>,
}

impl Llama2c {
    /// Whether a file that begins with `bytes` can be one.
    pub fn looks_like(bytes: &[u8]) -> bool {
        header(bytes).is_some()
    }

    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::whole(path)?;
        let fault = |why: &str| Error::file(path, why);
        let header = header(&map).ok_or_else(|| fault("the first 28 bytes are no header of llama2.c's"))?;
        let [d, hidden, layers, heads, kv_heads, vocab, context] = header.map(|n| n.unsigned_abs() as usize);
        // A head of its own is told by a negative vocabulary.
        let tied = header[5] > 0;
        let kv = d / heads * kv_heads;
        let mut tensors = BTreeMap::new();
        let mut at = HEADER;
        let mut place = |name: String, shape: &[usize], heads: Option<usize>| {
            let start = at;
            at = shape.iter().try_fold(4usize, |bytes, &n| bytes.checked_mul(n))?.checked_add(at)?;
            tensors.insert(name, Place { start, shape: shape.to_vec(), heads });
            Some(())
        };
        let stacks: [(&str, &[usize], Option<usize>); 9] = [
            ("input_layernorm", &[d], None),
            ("self_attn.q_proj", &[d, d], Some(heads)),
            ("self_attn.k_proj", &[kv, d], Some(kv_heads)),
            ("self_attn.v_proj", &[kv, d], None),
            ("self_attn.o_proj", &[d, d], None),
            ("post_attention_layernorm", &[d], None),
            ("mlp.gate_proj", &[hidden, d], None),
            ("mlp.down_proj", &[d, hidden], None),
            ("mlp.up_proj", &[hidden, d], None),
        ];
        let mut all = || {
            place("model.embed_tokens.weight".into(), &[vocab, d], None)?;
            for (name, shape, heads) in stacks {
                for layer in 0..layers {
                    place(format!("model.layers.{layer}.{name}.weight"), shape, heads)?;
                }
            }
            place("model.norm.weight".into(), &[d], None)?;
            // Cosines and sines, which are computed here.
            place(String::new(), &[context, d / heads], None)?;
            if !tied {
                place("lm_head.weight".into(), &[vocab, d], None)?;
            }
            Some(())
        };
        all().ok_or_else(|| fault("the header's sizes are larger than any file"))?;
        tensors.remove("");
        if at != map.len() {
            let why = format!("{} bytes, but its header asks for {at}; is the file whole?", map.len());
            return Err(fault(&why));
        }
        let config = json!({
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "torch_dtype": "float32",
            "vocab_size": vocab,
            "hidden_size": d,
            "intermediate_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": d / heads,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "rope_scaling": null,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": tied,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        });
        Ok(Self { path: path.to_path_buf(), map, config, vocab_size: vocab, tensors })
    }

    /// The vocabulary's file: `tokenizer.bin`, or the only `tok*.bin` beside the weights.
    fn vocabulary(&self) -> Result<PathBuf> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let usual = folder.join("tokenizer.bin");
        if usual.exists() {
            return Ok(usual);
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("tok") && name.ends_with(".bin") && path != self.path {
                found.push(path);
            }
        }
        match (found.pop(), found.is_empty()) {
            (Some(path), true) => Ok(path),
            (None, _) => {
                Err(Error::file(usual, "the vocabulary is missing: llama2.c's tokenizer.bin or tok512.bin"))
            }
            _ => Err(Error::file(usual, "there are several tok*.bin; give the right one this name")),
        }
    }
}

/// Seven numbers that a network can have: width, hidden width, layers, heads, key heads,
/// vocabulary (negative: a head of its own), context.
fn header(bytes: &[u8]) -> Option<[i32; 7]> {
    let mut numbers = [0i32; 7];
    for (number, bytes) in numbers.iter_mut().zip(bytes.get(..HEADER)?.chunks_exact(4)) {
        *number = i32::from_le_bytes(bytes.try_into().ok()?);
    }
    let [d, hidden, layers, heads, kv_heads, vocab, context] = numbers;
    let sizes = [d, hidden, layers, heads, kv_heads, context].iter().all(|n| (1..=1 << 20).contains(n));
    let fits = sizes && layers <= 1 << 12 && vocab != 0 && vocab.unsigned_abs() <= 1 << 24;
    (fits && d % (2 * heads) == 0 && heads % kv_heads == 0).then_some(numbers)
}

impl Checkpoint for Llama2c {
    fn weights(&self) -> &Path {
        &self.path
    }

    fn config(&self) -> &Value {
        &self.config
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read(&self, name: &str) -> Result<Stored> {
        let fault = || Error::file(&self.path, format!("tensor {name} is missing"));
        let place = self.tensors.get(name).ok_or_else(fault)?;
        let bytes = 4 * place.shape.iter().product::<usize>();
        let bytes = self.map.get(place.start..place.start + bytes).ok_or_else(fault)?;
        let tensor = Tensor::from_raw_buffer(bytes, DType::F32, &place.shape, &Device::Cpu)?;
        let Some(heads) = place.heads else { return Ok(Stored::Dense(tensor)) };
        let (rows, columns) = tensor.dims2()?;
        let halves = tensor.reshape((heads, rows / heads / 2, 2, columns))?.transpose(1, 2)?;
        Ok(Stored::Dense(halves.contiguous()?.reshape((rows, columns))?))
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let path = self.vocabulary()?;
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let mut at = 4usize; // The longest token's length, which nobody needs.
        let mut scores = Vec::new();
        let mut vocabulary = Vocabulary::default();
        for id in 0..self.vocab_size {
            let fault =
                || Error::file(&path, format!("token {id}: the file ends before it; is it this model's?"));
            let mut take = |n: usize| {
                let piece = bytes.get(at..at.checked_add(n)?)?;
                at += n;
                Some(piece)
            };
            let mut word = || -> Option<[u8; 4]> { take(4)?.try_into().ok() };
            let score = f32::from_le_bytes(word().ok_or_else(fault)?);
            let length = i32::from_le_bytes(word().ok_or_else(fault)?);
            let text = usize::try_from(length).ok().and_then(&mut take).ok_or_else(fault)?;
            let text = String::from_utf8_lossy(text).replace(' ', "▁");
            scores.push(f64::from(score));
            vocabulary.tokens.push(match id {
                UNKNOWN => "<unk>".into(),
                BOS => "<s>".into(),
                EOS => "</s>".into(),
                _ => text,
            });
        }
        vocabulary.special = vec![UNKNOWN, BOS, EOS];
        vocabulary.apart = (BYTES..BYTES + 256).collect();
        vocabulary.before = vec![BOS];
        let made = vocabulary.sentencepiece(|id| scores[id], Some(UNKNOWN), Spaces::Always);
        made.map_err(|e| Error::file(&path, e.to_string()))
    }

    fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        Ok(None)
    }

    fn end_tokens(&self) -> Vec<u32> {
        // Stories begin with the first; after one has ended the next would begin.
        vec![BOS as u32, EOS as u32]
    }
}
