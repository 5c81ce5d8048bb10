//! Fused operations with forward **and** backward for training and running language models on
//! candle.
//!
//! candle's own fused operations (`candle_nn::ops::rms_norm`, `layer_norm`, `softmax_last_dim`,
//! `rope`, ...) have no backward: a gradient that meets one stops there without a word. Every
//! operation here is differentiable in every floating-point input named in its documentation.
//!
//! On the CPU in `f32` an operation runs as one fused kernel, and with the feature `candle-cuda` on a GPU in `f32` and
//! `bf16` as kernels of CUDA; on any other device or dtype, and as the reference in the tests, it runs as the plain candle
//! operations in [`composed`].

mod activation;
mod adafactor;
mod adamw;
mod attention;
mod autograd;
mod backward;
mod buffer;
mod cache;
mod clipping;
pub mod composed;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod embedding;
mod feed_forward;
#[cfg(feature = "candle-cuda")]
mod gpu;
mod heads;
pub mod inference;
mod linear;
mod low_rank;
mod master;
#[doc(hidden)]
pub mod matrix;
mod memory;
mod norm;
mod parallel;
mod philox;
mod projection;
mod quantised;
mod recompute;
mod rotary;
mod scope;
mod simd;
mod team;
mod trime;

pub use activation::{Activation, activate, gated, gelu, swiglu};
pub use adafactor::{Adafactor, AdafactorOptions};
pub use adamw::{AdamW, AdamWOptions};
pub use attention::{
    AttentionOptions, RelativeBias, attention, chunked_cross_attention, fusion_in_decoder_attention,
};
pub use backward::backward;
pub use cache::KvCache;
pub use clipping::{Clipping, StepStats};
pub use cross_entropy::{CrossEntropyOptions, linear_cross_entropy, log_sum_exp};
pub use dropout::dropout;
pub use embedding::embedding;
pub use feed_forward::gated_feed_forward;
pub use heads::{merge_heads, split_heads};
pub use linear::{linear, linear_add};
pub use low_rank::linear_low_rank;
pub use matrix::Precision;
pub use memory::{LargeBlocks, keep_freed_memory};
pub use norm::{add_layer_norm, add_rms_norm, layer_norm, rms_norm};
pub use projection::{linear_from_heads, linear_to_heads};
pub use quantised::{Bits, BlockKind, QuantisedLinear};
pub use recompute::{Activations, checkpoint};
pub use rotary::{rotary, rotary_heads};
pub use trime::trime_cross_entropy;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;
