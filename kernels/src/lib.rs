//! Fused operations with forward **and** backward for training and running language models on
//! candle.
//!
//! candle's own fused operations (`candle_nn::ops::rms_norm`, `layer_norm`, `softmax_last_dim`,
//! `rope`, ...) have no backward: a gradient that meets one stops there without a word. Every
//! operation here is differentiable in every floating-point input named in its documentation.
//!
//! On the CPU in `f32` an operation runs as one fused kernel; on any other device or dtype, and as
//! the reference in the tests, it runs as the plain candle operations in [`composed`].

mod activation;
mod adamw;
mod attention;
mod autograd;
pub mod composed;
mod cross_entropy;
mod heads;
mod matrix;
mod memory;
mod norm;
mod parallel;
mod rotary;
mod simd;

pub use activation::{gelu, swiglu};
pub use adamw::{AdamW, AdamWOptions, StepStats};
pub use attention::{AttentionOptions, attention};
pub use cross_entropy::linear_cross_entropy;
pub use heads::{merge_heads, split_heads};
pub use memory::keep_freed_memory;
pub use norm::{layer_norm, rms_norm};
pub use rotary::rotary;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;
