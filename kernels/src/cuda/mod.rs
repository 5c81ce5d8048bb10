//! The operations on NVIDIA's GPUs: kernels of `cuda/*.cu`, compiled into the binary and loaded by the driver.
//!
//! Each operation has the name of its CPU version; where that records itself in candle's graph, here forward and
//! backward are two functions over tensors of the device. Nothing depends on the order in which blocks run: no atomics.

mod attention;
mod device;
mod norm;
mod pointwise;

pub use attention::{Attention, AttentionGradients, Masks, attention, attention_backward};
pub use device::{Device, Storage, Tensor};
pub use norm::{NormGradients, Normalised, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use pointwise::{gated, gated_backward, rotary};
