//! Qwen 2 and 2.5 (Yang et al. 2024, <https://arxiv.org/abs/2407.10671>): Llama with biases of q, k and v. Qwen 3
//! (Yang et al. 2025, <https://arxiv.org/abs/2505.09388>) has norms of queries and keys instead.

use serde_json::{Value, json};

use super::fields::Fields;
use super::llama;
use super::names::Names;
use crate::error::{Error, Result};
use crate::model::decoder::config::{DecoderConfig, Window};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names =
    Names { q_norm: "self_attn.q_norm", k_norm: "self_attn.k_norm", ..llama::NAMES };

/// What `layer_types` calls blocks with and without a window.
const LOCAL: &str = "sliding_attention";
const GLOBAL: &str = "full_attention";

pub(super) fn read(family: Family, fields: &Fields) -> Result<DecoderConfig> {
    let shape = llama::read_shape(family, fields)?;
    let config = match family {
        Family::Qwen3 => {
            let bias = fields.flag_or("attention_bias", false)?;
            DecoderConfig { qk_norm: true, qkv_bias: bias, out_bias: bias, ..shape }
        }
        _ => DecoderConfig { qkv_bias: true, ..shape },
    };
    if !fields.flag_or("use_sliding_window", false)? {
        return Ok(config);
    }
    let Some(tokens) = fields.window()? else { return Ok(config) };
    let from = fields.optional_size("max_window_layers")?.unwrap_or(28);
    let blocks = read_layer_types(fields)?;
    let blocks = blocks.unwrap_or_else(|| (0..config.num_hidden_layers).map(|i| i >= from).collect());
    Ok(DecoderConfig { window: Some(Window { tokens, blocks }), ..config })
}

/// For each block whether it has a window, if `layer_types` says so.
pub(super) fn read_layer_types(fields: &Fields) -> Result<Option<Vec<bool>>> {
    let Some(types) = fields.texts("layer_types")? else { return Ok(None) };
    let local = types.into_iter().map(|kind| match kind {
        LOCAL => Ok(true),
        GLOBAL => Ok(false),
        other => {
            Err(Error::setting("layer_types", format!("{other:?} is not known; {LOCAL} and {GLOBAL} are")))
        }
    });
    local.collect::<Result<_>>().map(Some)
}

/// `layer_types`, one entry a block.
pub(super) fn write_layer_types(config: &DecoderConfig) -> Value {
    let kind = |i| if config.window_of(i).is_some() { LOCAL } else { GLOBAL };
    (0..config.num_hidden_layers).map(kind).collect()
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    let mut fields = llama::write_shape(config);
    if config.family == Family::Qwen3 {
        fields["attention_bias"] = json!(config.qkv_bias);
    }
    fields["use_sliding_window"] = json!(config.window.is_some());
    if let Some(window) = &config.window {
        fields["sliding_window"] = json!(window.tokens);
        fields["layer_types"] = write_layer_types(config);
    }
    fields
}
