//! What a T5 looks like, as its `config.json` says it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sidenote_kernels::Activation;

use crate::error::{Error, Result};
use crate::model::LARGEST;

/// The `model_type` of T5 (v1.0, v1.1, LM-adapted, Flan-T5) and of mT5, the same network that never scales its
/// head's input.
pub const MODEL_TYPES: [&str; 2] = ["t5", "mt5"];

/// An encoder-decoder in the terms of transformers' `T5Config` and `MT5Config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct T5Config {
    /// `"t5"` or `"mt5"`.
    pub model_type: String,
    /// Number of rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub d_model: usize,
    /// Width of one attention head.
    pub d_kv: usize,
    /// Width inside the feed-forward layers.
    pub d_ff: usize,
    /// Blocks of the encoder.
    pub num_layers: usize,
    /// Blocks of the decoder; as many as the encoder has where the file does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_decoder_layers: Option<usize>,
    /// Attention heads. Their widths need not add up to `d_model`.
    pub num_heads: usize,
    /// Entries a head has in the table of relative biases.
    #[serde(default = "default_buckets")]
    pub relative_attention_num_buckets: usize,
    /// All distances from here on share a bucket.
    #[serde(default = "default_distance")]
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in RMSNorm.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f32,
    /// The feed-forward layer: `"relu"` (v1.0), `"gated-gelu"` (v1.1 and later), or other activations, each
    /// alone or after `gated-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed_forward_proj: Option<String>,
    /// False for checkpoints with an output head of their own. (transformers 5 writes true for all, and
    /// `scale_decoder_outputs`.)
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Whether the head's input is multiplied by `d_model^-0.5`; where the file does not say, if the head is
    /// the embedding table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_decoder_outputs: Option<bool>,
    /// What the decoder reads first; the padding token where the file does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder_start_token_id: Option<u32>,
    /// What rows of a batch are filled up with.
    #[serde(default)]
    pub pad_token_id: u32,
    /// All else that the file says; it is written back.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

fn default_buckets() -> usize {
    32
}

fn default_distance() -> usize {
    128
}

fn default_eps() -> f32 {
    1e-6
}

fn yes() -> bool {
    true
}

impl T5Config {
    /// Share of the numbers that are dropped while it is trained; transformers' 0.1 where the file does not say.
    pub fn dropout_rate(&self) -> f32 {
        self.rest.get("dropout_rate").and_then(Value::as_f64).unwrap_or(0.1) as f32
    }

    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, of another kind, or impossible.
    pub fn from_json(config: &Value) -> Result<Self> {
        let config: Self = serde_json::from_value(config.clone())
            .map_err(|e| Error::setting("config.json", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Refuses shapes that no network can have.
    pub fn check(&self) -> Result<()> {
        if !MODEL_TYPES.contains(&self.model_type.as_str()) {
            let why =
                format!("{:?} is no encoder-decoder read here; one of {MODEL_TYPES:?} is", self.model_type);
            return Err(Error::setting("model_type", why));
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_decoder_layers", self.decoder_layers()),
            ("num_heads", self.num_heads),
        ];
        for (name, size) in sizes {
            if !(1..=LARGEST).contains(&size) {
                return Err(Error::setting(name, format!("{size}: expected 1 to {LARGEST}")));
            }
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        // The encoder has a quarter of the buckets for single distances each way, the decoder half of them, and
        // the distances after those up to the largest share the rest.
        if !(4..=LARGEST).contains(&buckets) {
            return Err(Error::setting(
                "relative_attention_num_buckets",
                format!("{buckets}: expected 4 to {LARGEST}"),
            ));
        }
        if !(buckets / 2 + 1..=LARGEST).contains(&distance) {
            let why =
                format!("{distance}: expected more than half of the {buckets} buckets, {LARGEST} at most");
            return Err(Error::setting("relative_attention_max_distance", why));
        }
        if ![self.start_token(), self.pad_token_id].iter().all(|&id| (id as usize) < self.vocab_size) {
            let why = format!(
                "{} or pad_token_id {} is outside the vocabulary of {}",
                self.start_token(),
                self.pad_token_id,
                self.vocab_size
            );
            return Err(Error::setting("decoder_start_token_id", why));
        }
        self.activation().map(|_| ())
    }

    /// Blocks of the decoder.
    pub fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// Width of all heads together.
    pub fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// What the decoder reads first.
    pub fn start_token(&self) -> u32 {
        self.decoder_start_token_id.unwrap_or(self.pad_token_id)
    }

    /// What the states are multiplied by before the output head.
    pub fn head_scale(&self) -> Option<f64> {
        let scaled =
            self.model_type == "t5" && self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings);
        scaled.then(|| (self.d_model as f64).powf(-0.5))
    }

    /// The activation of the feed-forward layers, and whether they are gated by it.
    pub fn activation(&self) -> Result<(Activation, bool)> {
        let default = if self.model_type == "mt5" { "gated-gelu" } else { "relu" };
        let name = self.feed_forward_proj.as_deref().unwrap_or(default);
        let (function, gated) = match name.strip_prefix("gated-") {
            Some(function) => (function, true),
            None => (name, false),
        };
        let activation = match function {
            "relu" => Activation::Relu,
            // By this name v1.1 means the approximation.
            "gelu" if gated => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            _ => {
                let why = format!(
                    "{name:?} is not read here; relu, gelu, gelu_new and silu are, and gated- before them"
                );
                return Err(Error::setting("feed_forward_proj", why));
            }
        };
        Ok((activation, gated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn small() -> Value {
        json!({"model_type": "t5", "vocab_size": 10, "d_model": 16, "d_kv": 3, "d_ff": 7, "num_layers": 2,
            "num_heads": 5, "n_positions": 512})
    }

    /// transformers 4 knows a head of its own by `tie_word_embeddings`, transformers 5 by the scale.
    #[test]
    fn the_head_is_scaled_as_either_transformers_says() {
        for (field, value, scale) in [
            ("n_positions", json!(1), Some(0.25)),
            ("tie_word_embeddings", json!(false), None),
            ("scale_decoder_outputs", json!(false), None),
            ("model_type", json!("mt5"), None),
        ] {
            let mut config = small();
            config[field] = value;
            assert_eq!(T5Config::from_json(&config).unwrap().head_scale(), scale, "{field}");
        }
    }

    #[test]
    fn what_is_not_understood_is_written_back() {
        let config = T5Config::from_json(&small()).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap()["n_positions"], 512);
        assert_eq!(config.activation().unwrap(), (Activation::Relu, false));
    }

    #[test]
    fn impossible_fields_are_named() {
        for (field, value) in [
            ("d_kv", json!(0)),
            ("d_model", json!(1u64 << 40)),
            ("num_heads", json!("5")),
            ("relative_attention_num_buckets", json!(3)),
            ("relative_attention_max_distance", json!(16)),
            ("decoder_start_token_id", json!(10)),
            ("feed_forward_proj", json!("gated-tanh")),
            ("model_type", json!("umt5")),
        ] {
            let mut config = small();
            config[field] = value;
            let error = T5Config::from_json(&config).unwrap_err().to_string();
            assert!(error.contains(field) || error.contains("config.json"), "{field}: {error}");
        }
    }
}
