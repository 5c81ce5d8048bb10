//! The networks: decoders of many families, and RETRO (chunked cross-attention) over any of them.

mod adapted;
mod attached;
pub mod batch;
mod cache;
pub mod decoder;
pub mod generate;
pub(crate) mod layers;
pub(crate) mod matrix;
pub(crate) mod normal;
pub(crate) mod place;
mod precision;
pub mod reading;
pub mod retro;
pub mod source;
pub(crate) mod store;
pub mod t5;
#[cfg(test)]
pub(crate) mod testing;
pub mod weights;
pub(crate) mod whole;
mod writer;

pub use adapted::Wanted;
pub use cache::Cache;
pub use decoder::{Decoder, DecoderConfig};
pub use layers::Dropout;
pub use precision::Precision;
pub use retro::{Initialisation, Retrieved, Retro, RetroConfig};
pub use source::Source;
pub use store::{LanguageModel, Network, Trainable};
pub use t5::EncoderDecoder;
pub use writer::{Writer, WritingModel};

/// Larger sizes of a network are taken for a slip of the hand.
const LARGEST: usize = 1 << 20;
