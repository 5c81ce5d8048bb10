//! LoRA (Hu et al. 2021, "LoRA: low-rank adaptation of large language models", section 4.1,
//! <https://arxiv.org/abs/2106.09685>): `W + alpha / r B A`.

use serde::{Deserialize, Serialize};

use super::change::Part;

/// A low-rank matrix beside some weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// r.
    pub rank: usize,
    /// What the product counts, times the rank.
    pub alpha: f64,
    /// Whether it counts alpha over the root of the rank (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>).
    pub rslora: bool,
    /// Names of the layers, or the ends of their names; the usual ones of the model's family where there are none.
    pub targets: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, rslora: false, targets: Vec::new() }
    }
}

impl Lora {
    /// What B A is multiplied by, for matrices of this rank.
    pub fn scale(&self, rank: usize) -> f64 {
        let rank = rank.max(1) as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// A, spread as PEFT does it, and B, which is nothing at first.
    pub(super) fn parts(&self, module: &str, input: usize, output: usize) -> Vec<Part> {
        // As wide as the uniform distribution up to 1 / sqrt(in).
        let deviation = (3.0 * input as f32).powf(-0.5);
        let part = |end: &str, shape: [usize; 2], deviation| Part {
            name: format!("{module}.{end}"),
            shape: shape.to_vec(),
            mean: 0.0,
            deviation,
        };
        vec![
            part("lora_A.weight", [self.rank, input], deviation),
            part("lora_B.weight", [output, self.rank], 0.0),
        ]
    }
}
