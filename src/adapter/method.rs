//! The methods, as a configuration names them.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::change::{Change, Part};
use super::{BitFit, Ia3, Lora, Prefix, Prompt};
use crate::error::{Error, Result};

/// How a model is changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// Low-rank matrices beside weights.
    Lora(Lora),
    /// Scales of keys, values and feed-forward layers.
    Ia3(Ia3),
    /// Biases.
    BitFit(BitFit),
    /// Embeddings before the text.
    Prompt(Prompt),
    /// Keys and values before the text.
    Prefix(Prefix),
}

impl Method {
    /// Refuses what changes nothing.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let positive = |name: &str, value: usize| match value {
            1.. => Ok(()),
            0 => Err(Error::setting(format!("adapter.{name}"), "must be at least 1")),
        };
        match self {
            Self::Lora(lora) => {
                positive("rank", lora.rank)?;
                match lora.alpha.is_finite() && lora.alpha != 0.0 {
                    true => Ok(()),
                    false => Err(Error::setting("adapter.alpha", "must be a number other than 0")),
                }
            }
            Self::Ia3(_) | Self::BitFit(_) => Ok(()),
            Self::Prompt(prompt) => positive("tokens", prompt.tokens),
            Self::Prefix(prefix) => positive("tokens", prefix.tokens),
        }
    }

    /// The layers that a method changes, or the ends of their names.
    pub fn targets(&self) -> &[String] {
        match self {
            Self::Lora(lora) => &lora.targets,
            Self::Ia3(ia3) => &ia3.targets,
            _ => &[],
        }
    }

    /// Whether the layer `module` is one of those.
    pub(super) fn selects(&self, module: &str) -> bool {
        self.targets().iter().any(|target| names(target, module))
    }

    /// The tensors of a layer that is changed.
    pub(super) fn parts(&self, module: &str, input: usize, output: usize) -> Vec<Part> {
        match self {
            Self::Lora(lora) => lora.parts(module, input, output),
            Self::Ia3(ia3) => ia3.parts(module, input, output),
            _ => Vec::new(),
        }
    }

    /// What the tensors of a layer's [`parts`](super::Adapter::parts), in their order, do to it.
    pub fn change(&self, tensors: &[Tensor]) -> Option<Change> {
        match (self, tensors) {
            (Self::Lora(lora), [a, b]) => {
                let scale = lora.scale(a.dims()[0]);
                Some(Change::LowRank { a: a.clone(), b: b.clone(), scale })
            }
            (Self::Ia3(_), [l]) => Some(match l.dims() {
                [1, _] => Change::ScaleInput(l.clone()),
                _ => Change::ScaleOutput(l.clone()),
            }),
            _ => None,
        }
    }

    /// The same method with the layers that are usually changed in models of the type `model_type` (transformers' name
    /// of the family), where it names none.
    pub fn with_usual_targets(mut self, model_type: &str) -> Self {
        let strings = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        match &mut self {
            Self::Lora(lora) if lora.targets.is_empty() => {
                lora.targets = strings(match model_type {
                    "gpt2" => &["c_attn"],
                    "bloom" => &["query_key_value"],
                    "t5" | "mt5" => &["q", "v"],
                    _ => &["q_proj", "v_proj"],
                });
            }
            Self::Ia3(ia3) if ia3.targets.is_empty() => {
                let (attention, feed_forward): (&[&str], _) = match model_type {
                    "gpt2" => (&["c_attn"], "mlp.c_proj"),
                    "bloom" => (&["query_key_value"], "mlp.dense_4h_to_h"),
                    "t5" | "mt5" => (&["k", "v"], "wo"),
                    "opt" => (&["k_proj", "v_proj"], "fc2"),
                    _ => (&["k_proj", "v_proj"], "down_proj"),
                };
                ia3.feed_forward = strings(&[feed_forward]);
                ia3.targets = [strings(attention), ia3.feed_forward.clone()].concat();
            }
            _ => {}
        }
        self
    }
}

/// Whether `target` is the name of the layer `module`, or the end of it.
pub fn names(target: &str, module: &str) -> bool {
    module.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_is_a_whole_part_of_it() {
        assert!(names("q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(names("mlp.c_proj", "transformer.h.1.mlp.c_proj"));
        assert!(!names("mlp.c_proj", "transformer.h.1.attn.c_proj"));
        assert!(!names("o", "decoder.block.0.layer.2.DenseReluDense.wo"));
        assert!(names("wo", "wo"));
    }

    #[test]
    fn the_usual_layers_stand_in_where_none_are_named() {
        let usual = Method::Ia3(Ia3::default()).with_usual_targets("t5");
        assert_eq!(usual.targets(), ["k", "v", "wo"]);
        let own = Method::Lora(Lora { targets: vec!["o".into()], ..Lora::default() });
        assert_eq!(own.clone().with_usual_targets("t5"), own);
    }
}
