//! (IA)3 (Liu et al. 2022, "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning",
//! section 3.3, <https://arxiv.org/abs/2205.05638>): keys, values and what is between the feed-forward layer's halves
//! are scaled, number by number.

use serde::{Deserialize, Serialize};

use super::change::Part;
use super::method::names;

/// Learned scales.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ia3 {
    /// Names of the layers, or the ends of their names; the usual ones of the model's family where there are none.
    pub targets: Vec<String>,
    /// Those among them whose input is scaled in place of their output.
    pub feed_forward: Vec<String>,
}

impl Ia3 {
    /// The scales, which are 1 at first: `[1, in]` of an input, `[out, 1]` of an output.
    pub(super) fn parts(&self, module: &str, input: usize, output: usize) -> Vec<Part> {
        let of_input = self.feed_forward.iter().any(|target| names(target, module));
        let shape = if of_input { vec![1, input] } else { vec![output, 1] };
        vec![Part { name: format!("{module}.ia3_l"), shape, mean: 1.0, deviation: 0.0 }]
    }
}
