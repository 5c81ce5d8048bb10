//! What an encoder computes, over slices, without gradients: for text that is read, not learned from.
//!
//! Everything here but [`PackedLinear`] and [`RoundedLinear`] works on the calling thread: texts, or small groups of them, are what
//! threads share out, so that what one computes stays in its core's cache. Each row of a result depends on its own
//! text alone.

mod activation;
mod attention;
mod norm;
mod rounded;

pub use crate::Activation;
pub use crate::matrix::{PackedLinear, Threads};
pub use attention::{Offsets, attend};
pub use norm::layer_norm;
pub use rounded::{RoundedLinear, round_rows};
