//! BitFit (Ben Zaken et al. 2022, "BitFit: simple parameter-efficient fine-tuning for transformer-based masked
//! language models", <https://arxiv.org/abs/2106.10199>): only the biases are trained, those of norms included.
//!
//! PEFT has it as a LoRA with `bias = "all"`; its file is written with low-rank matrices of zeros, which change nothing.

use serde::{Deserialize, Serialize};

/// The model's biases. A family that has none (Llama, T5) cannot be tuned so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitFit {}
