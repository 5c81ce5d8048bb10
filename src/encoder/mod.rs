//! Text to vectors.

use crate::error::Result;

/// Turns texts into vectors of fixed width.
pub trait Encoder: Send + Sync {
    /// Width of the vectors.
    fn dim(&self) -> usize;

    /// Encodes `texts` into a row-major `[texts, dim]` matrix. Rows have unit length, so the
    /// inner product is the cosine; a text without a single known token gives a zero row.
    fn encode(&self, texts: &[&str]) -> Result<Vec<f32>>;

    /// How the user names this encoder: `"default"` or the folder it was read from.
    fn name(&self) -> &str;

    /// Hash over weights, tokenizer and pooling: two encoders with the same identity give the
    /// same vectors.
    fn identity(&self) -> &str;
}

/// Reads the encoder called `name`: `"default"` is the one inside the program, anything else a
/// folder in Hugging Face's layout.
pub fn load(name: &str) -> Result<Box<dyn Encoder>> {
    Err(crate::Error::setting("encoder", format!("no encoder called {name:?}")))
}
