//! Text to vectors.
//!
//! Two kinds of encoder, both read from folders in Hugging Face's layout: [`SentenceEncoder`] is a
//! BERT-family transformer with pooling, exact and slow; [`StaticEncoder`] sums a vector per token,
//! thousands of times faster. [`distill`] makes the second out of the first, and one such static
//! encoder is inside the program as `"default"`.

use std::path::Path;

use sidenote_index::Metric;

use crate::error::Result;
use crate::hub;
use crate::model::decoder::Family;
use crate::model::t5::MODEL_TYPES as T5_TYPES;

mod config;
mod copied;
mod decoder;
pub mod distill;
mod folder;
mod linear;
mod names;
mod network;
mod product;
mod quantise;
mod sentence;
mod settings;
mod t5;
mod table;
mod trainable;
mod wordpiece;

pub(crate) use copied::check_new;
pub use quantise::{Quantised, quantise};
pub use sentence::SentenceEncoder;
pub use table::StaticEncoder;
pub use trainable::TrainableEncoder;

/// Turns texts into vectors of fixed width.
pub trait Encoder: Send + Sync {
    /// Width of the vectors.
    fn dim(&self) -> usize;

    /// Encodes `texts` into a row-major `[texts, dim]` matrix. Under [`Metric::Cosine`] rows have unit length, so
    /// the inner product is the cosine; a text without a single known token gives a zero row.
    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>>;

    /// Encodes `texts` that look for other texts; the same as [`encode`](Self::encode) but for models that were
    /// trained with a prompt before their queries.
    fn encode_queries(&self, texts: &[&str]) -> Result<Vec<f32>> {
        self.encode(texts)
    }

    /// How near two of its vectors are: the cosine, or for models that were trained so the inner product.
    fn metric(&self) -> Metric {
        Metric::Cosine
    }

    /// How the user names this encoder: `"default"` or the folder it was read from.
    fn name(&self) -> &str;

    /// Hash over weights, tokenizer and pooling: two encoders with the same identity give the
    /// same vectors.
    fn identity(&self) -> &str;
}

/// Reads the encoder called `name`: `"default"` is the one inside the program, anything else a
/// folder in Hugging Face's layout, of a sentence encoder of the BERT family or over T5, or a model2vec table; or a decoder,
/// as a folder or a file, whose states are averaged by position.
///
/// # Errors
/// Names the file, and the field or tensor in it, that is missing, misshapen or of a kind that is
/// not read here.
pub fn load(name: &str) -> Result<Box<dyn Encoder>> {
    if hub::resolve(Path::new(name)).is_ok_and(|path| path.is_file()) {
        return Ok(Box::new(decoder::DecoderEncoder::read(name)?));
    }
    let files = folder::Files::open(name)?;
    let kind = files.model_type()?;
    if let Some(family) = config::Family::of(&kind) {
        return Ok(Box::new(SentenceEncoder::read(name, files, family)?));
    }
    match kind.as_str() {
        kind if T5_TYPES.contains(&kind) => Ok(Box::new(t5::T5Encoder::read(name, files)?)),
        table::MODEL_TYPE | table::OWN_MODEL_TYPE => Ok(Box::new(StaticEncoder::read(name, files)?)),
        kind if Family::ALL.iter().any(|family| family.model_type() == kind) => {
            Ok(Box::new(decoder::DecoderEncoder::read(name)?))
        }
        other => Err(files.fault(
            folder::CONFIG,
            format!(
                "model_type {other:?} is not an architecture read here; {:?}, {T5_TYPES:?}, {:?} and {:?} are",
                config::MODEL_TYPES.map(|(name, _)| name),
                table::MODEL_TYPE,
                table::OWN_MODEL_TYPE
            ),
        )),
    }
}

/// Scales each row of `[rows, dim]` to unit length; zero rows stay.
pub(crate) fn normalise_rows(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
}
