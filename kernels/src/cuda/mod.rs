//! The operations on NVIDIA's GPUs: kernels of `cuda/*.cu`, compiled into the binary and loaded by the driver.
//!
//! Each operation has the name of its CPU version; where that records itself in candle's graph, here forward and
//! backward are two functions over tensors of the device. Nothing depends on the order in which blocks run: no atomics.

mod attention;
mod decode;
mod device;
mod embedding;
mod norm;
mod pointwise;

pub use attention::{
    Attention, AttentionGradients, Bias, Masks, attention, attention_backward, chunked_cross_attention,
    chunked_cross_attention_backward,
};
pub use decode::KvCache;
pub use device::{Device, Storage, Tensor};
pub use embedding::{embedding, embedding_backward};
pub use norm::{NormGradients, Normalised, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use pointwise::{gated, gated_backward, rotary};
