//! The networks: a Llama-style decoder, and RETRO (chunked cross-attention) over it.

pub mod batch;
mod cache;
pub mod config;
pub mod decoder;
pub mod generate;
mod layers;
pub mod retro;
pub mod source;
mod store;
pub mod weights;

pub use cache::Cache;
pub use config::{DecoderConfig, Initialisation, RetroConfig};
pub use decoder::Decoder;
pub use retro::{Retrieved, Retro};
pub use source::Source;
pub use store::{LanguageModel, Network, Trainable};
