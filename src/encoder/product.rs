//! A linear layer of an encoder, in numbers or rounded to 8 bits.

use sidenote_kernels::inference::{PackedLinear, RoundedLinear, Threads};

/// `x W^T + b`, of weights as the encoder's file holds them.
pub(super) enum Product {
    Numbers(PackedLinear),
    Rounded(RoundedLinear),
}

impl Product {
    /// Width of what it reads.
    pub fn input(&self) -> usize {
        match self {
            Self::Numbers(layer) => layer.input(),
            Self::Rounded(layer) => layer.input(),
        }
    }

    /// Width of what it gives.
    pub fn output(&self) -> usize {
        match self {
            Self::Numbers(layer) => layer.output(),
            Self::Rounded(layer) => layer.output(),
        }
    }

    /// `out = x W^T + b`, added to what is in `out` with `accumulate`; `x` is `[rows, in]`, `out` `[rows, out]`.
    pub fn forward(&self, x: &[f32], out: &mut [f32], accumulate: bool, threads: Threads) {
        match self {
            Self::Numbers(layer) => layer.forward(x, out, accumulate, threads),
            Self::Rounded(layer) => layer.forward(x, out, accumulate, threads),
        }
    }
}
