//! The operations on NVIDIA's GPUs: kernels of `cuda/*.cu`, compiled into the binary and loaded by the driver.
//!
//! Each operation has the name of its CPU version; where that records itself in candle's graph, here forward and
//! backward are two functions over tensors of the device. Nothing depends on the order in which blocks run: no atomics.

mod attention;
mod cross_entropy;
mod decode;
mod device;
mod embedding;
mod matmul;
mod norm;
mod optimiser;
mod pointwise;
mod quantised;
mod topk;

pub use attention::{
    Attention, AttentionGradients, Bias, Masks, attention, attention_backward, chunked_cross_attention,
    chunked_cross_attention_backward,
};
pub use cross_entropy::{CrossEntropy, linear_cross_entropy, linear_cross_entropy_backward};
pub use decode::KvCache;
#[cfg(feature = "candle-cuda")]
pub(crate) use decode::decode;
pub use device::{Device, Storage, Tensor};
pub use embedding::{embedding, embedding_backward};
pub use matmul::{linear, linear_backward, linear_input_gradient, linear_weight_gradient};
pub use norm::{NormGradients, Normalised, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use optimiser::{Adafactor, AdamW, Clip, Variable, clip};
pub use pointwise::{dropout, gated, gated_backward, merge_heads, rotary, split_heads};
pub use quantised::QuantisedLinear;
pub use topk::{Best, BinaryCodes, top_k};
