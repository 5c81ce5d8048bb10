//! Making a static encoder out of a sentence encoder.
//!
//! The idea of model2vec: run every token of the vocabulary through the teacher by itself, reduce
//! the vectors by PCA, and weight rare tokens up. With a corpus, the weights come from the tokens'
//! frequencies in it (smooth inverse frequency, Arora et al. 2017,
//! <https://openreview.net/forum?id=SyK00v5xx>, section 3).

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::folder::{CONFIG, TOKENIZER, WEIGHTS};
use super::linear::{principal_axes, project};
use super::{Encoder, SentenceEncoder, table};
use crate::artefact::write_atomically;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Smooth inverse frequency's constant `a`: a token of this frequency counts half.
const SIF: f64 = 1e-3;

/// Tokens that go through the teacher between two steps of the progress bar.
const STEP: usize = 1024;

/// A static encoder on its way to a folder.
pub struct Distilled {
    tokenizer: Value,
    /// `[vocab, dim]`
    table: Vec<f32>,
    dim: usize,
    config: Value,
}

/// Makes a static encoder of `dim` numbers a token out of `teacher`, weighting tokens by their
/// frequency in `corpus`, or, where that is empty, by Zipf's law over the vocabulary's order.
///
/// # Errors
/// `dim` must be between 1 and the teacher's; its tokenizer must be WordPiece.
pub fn distill(
    teacher: &SentenceEncoder,
    dim: usize,
    corpus: &[&str],
    progress: Progress,
) -> Result<Distilled> {
    if dim == 0 || dim > teacher.dim() {
        let why = format!("{dim} is not between 1 and {}, the width of {}", teacher.dim(), teacher.name());
        return Err(Error::setting("dim", why));
    }
    let vocabulary = Vocabulary::of(teacher)?;
    let (before, after) = special_ids(teacher)?;
    let task = progress.task("token vectors", vocabulary.kept.len() as u64, "tokens");
    let mut vectors = Vec::with_capacity(vocabulary.kept.len() * teacher.dim());
    for ids in vocabulary.kept.chunks(STEP) {
        if crate::interrupt::requested() {
            return Err(Error::Interrupted("nothing was written".into()));
        }
        let texts: Vec<Vec<u32>> = ids.iter().map(|&id| vec![before, id, after]).collect();
        vectors.extend(teacher.pool_ids(&texts)?);
        task.advance(ids.len() as u64);
    }
    drop(task);
    let axes = principal_axes(&vectors, teacher.dim(), dim);
    let mut table = project(&vectors, &axes, teacher.dim());
    let frequencies = vocabulary.frequencies(teacher, corpus)?;
    for (row, frequency) in table.chunks_exact_mut(dim).zip(frequencies) {
        let weight = (SIF / (SIF + frequency)) as f32;
        row.iter_mut().for_each(|x| *x *= weight);
    }
    let config = json!({
        "model_type": table::MODEL_TYPE,
        "architectures": ["StaticModel"],
        "hidden_dim": dim,
        "normalize": true,
        "sif_coefficient": SIF,
        "made_from": {"encoder": teacher.identity(), "texts": corpus.len()},
    });
    Ok(Distilled { tokenizer: vocabulary.tokenizer, table, dim, config })
}

/// The tokens that are kept: all but the special ones and the reserve (`[unused1]`), which no text
/// has. The unknown token stays, first.
struct Vocabulary {
    /// `tokenizer.json` with the new ids, adding no special tokens.
    tokenizer: Value,
    /// The teacher's id of each kept token.
    kept: Vec<u32>,
    /// New id by the teacher's id.
    renumbered: BTreeMap<u32, usize>,
}

impl Vocabulary {
    fn of(teacher: &SentenceEncoder) -> Result<Self> {
        let text = teacher.tokenizer().to_string(false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let mut tokenizer: Value =
            serde_json::from_str(&text).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let model = &tokenizer["model"];
        let (Some("WordPiece"), Some(unknown), Some(vocabulary)) =
            (model["type"].as_str(), model["unk_token"].as_str(), model["vocab"].as_object())
        else {
            let why = format!("its tokenizer is {}, but only WordPiece can be distilled", model["type"]);
            return Err(Error::setting(teacher.name(), why));
        };
        let unknown = unknown.to_string();
        let added = tokenizer["added_tokens"].as_array().cloned().unwrap_or_default();
        let special =
            |token: &str| added.iter().any(|a| a["content"] == token) || token.starts_with("[unused");
        let mut tokens: Vec<(bool, u64, String)> = vocabulary
            .iter()
            .map(|(token, id)| (*token != unknown, id.as_u64().unwrap_or(0), token.clone()))
            .filter(|(known, _, token)| !known || !special(token))
            .collect();
        tokens.sort();
        let kept: Vec<u32> = tokens.iter().map(|(_, id, _)| *id as u32).collect();
        let renumbered = kept.iter().enumerate().map(|(new, &old)| (old, new)).collect();
        let vocabulary = tokens.into_iter().enumerate().map(|(new, (_, _, token))| (token, new.into()));
        tokenizer["model"]["vocab"] = Value::Object(vocabulary.collect());
        let unknown_added = added.into_iter().filter(|a| a["content"] == unknown.as_str()).map(|mut a| {
            a["id"] = 0.into();
            a
        });
        tokenizer["added_tokens"] = Value::Array(unknown_added.collect());
        for part in ["post_processor", "padding", "truncation"] {
            tokenizer[part] = Value::Null;
        }
        Ok(Self { tokenizer, kept, renumbered })
    }

    /// Share of each kept token among all the tokens of `corpus`; without a corpus, Zipf's law over
    /// the vocabulary's order, which WordPiece vocabularies have by frequency.
    fn frequencies(&self, teacher: &SentenceEncoder, corpus: &[&str]) -> Result<Vec<f64>> {
        let mut counts = vec![0f64; self.kept.len()];
        for text in corpus {
            let encoding = teacher.tokenizer().encode_fast(*text, false);
            for id in encoding.map_err(|e| Error::Tokenizer(e.to_string()))?.get_ids() {
                if let Some(&new) = self.renumbered.get(id) {
                    counts[new] += 1.0;
                }
            }
        }
        let total: f64 = counts.iter().sum();
        if total > 0.0 {
            return Ok(counts.into_iter().map(|count| count / total).collect());
        }
        let harmonic: f64 = (1..=self.kept.len()).map(|rank| 1.0 / rank as f64).sum();
        Ok((1..=self.kept.len()).map(|rank| 1.0 / (rank as f64 * harmonic)).collect())
    }
}

/// What the teacher's tokenizer puts before and after a text (`[CLS]` and `[SEP]`).
fn special_ids(teacher: &SentenceEncoder) -> Result<(u32, u32)> {
    let encoding = teacher.tokenizer().encode_fast("", true).map_err(|e| Error::Tokenizer(e.to_string()))?;
    match encoding.get_ids() {
        &[before, after] => Ok((before, after)),
        other => {
            let why = format!("its tokenizer puts {} special tokens around a text, not two", other.len());
            Err(Error::setting(teacher.name(), why))
        }
    }
}

/// Reads texts to distil with: the `"text"` of each line of a `.jsonl` file, else each line that is
/// not blank.
///
/// # Errors
/// Names the line that is not JSON or has no text.
pub fn read_texts(path: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    let content = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(lines.map(|(_, line)| line.to_string()).collect());
    }
    lines
        .map(|(i, line)| match serde_json::from_str::<Line>(line) {
            Ok(line) => Ok(line.text),
            Err(e) => Err(Error::line(path, i as u64 + 1, e.to_string())),
        })
        .collect()
}

impl Distilled {
    /// Tokens in the table.
    pub fn tokens(&self) -> usize {
        self.table.len() / self.dim
    }

    /// Writes the encoder to the folder `dir`, rows rounded to eight bits, as
    /// [`StaticEncoder`](super::StaticEncoder) reads it and model2vec does too.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let (mut codes, mut scales) = (Vec::with_capacity(self.table.len()), Vec::new());
        for row in self.table.chunks_exact(self.dim) {
            let scale = row.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
            codes.extend(row.iter().map(|x| (x / scale.max(f32::MIN_POSITIVE)).round() as i8 as u8));
            scales.extend(scale.to_le_bytes());
        }
        let view = |dtype, shape, data| {
            TensorView::new(dtype, shape, data).map_err(|e| Error::file(dir.join(WEIGHTS), e.to_string()))
        };
        let tensors = [
            ("embeddings", view(Dtype::I8, vec![self.tokens(), self.dim], &codes)?),
            ("weights", view(Dtype::F32, vec![self.tokens()], &scales)?),
        ];
        let weights = safetensors::serialize(tensors, None)
            .map_err(|e| Error::file(dir.join(WEIGHTS), e.to_string()))?;
        let config = format!("{:#}\n", self.config);
        write_atomically(&dir.join(WEIGHTS), &weights)?;
        write_atomically(&dir.join(TOKENIZER), self.tokenizer.to_string().as_bytes())?;
        write_atomically(&dir.join(CONFIG), config.as_bytes())?;
        Ok(())
    }
}
