//! BLOOM (Le Scao et al. 2022, <https://arxiv.org/abs/2211.05100>).

use serde_json::{Value, json};
use sidenote_kernels::Activation;

use super::fields::Fields;
use super::names::{Fused, Names};
use crate::error::Result;
use crate::model::decoder::config::{DecoderConfig, NormConfig, NormKind, Positions};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names = Names {
    embedding: "transformer.word_embeddings",
    embedding_norm: "transformer.word_embeddings_layernorm",
    positions: "",
    block: "transformer.h",
    attention_norm: "input_layernorm",
    q: "self_attention.query_key_value",
    k: "self_attention.query_key_value",
    v: "self_attention.query_key_value",
    o: "self_attention.dense",
    q_norm: "",
    k_norm: "",
    after_attention_norm: "",
    feed_forward_norm: "post_attention_layernorm",
    gate: "",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    after_feed_forward_norm: "",
    norm: "transformer.ln_f",
    head: "lm_head",
    transposed: false,
    fused: Some(Fused::HeadByHead),
    ignored: &[],
};

/// The length that it was trained with, where the settings do not say. Its positions have no end.
const LENGTH: usize = 2048;

pub(super) fn read(fields: &Fields) -> Result<DecoderConfig> {
    fields.refuse(&["apply_residual_connection_post_layernorm"])?;
    let hidden_size = match fields.optional_size("n_embed")? {
        Some(size) => size,
        None => fields.size("hidden_size")?,
    };
    let either = |name: &str, other: &str| match fields.optional_size(name)? {
        Some(size) => Ok(size),
        None => fields.size(other),
    };
    let heads = either("num_attention_heads", "n_head")?;
    Ok(DecoderConfig {
        family: Family::Bloom,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers: either("num_hidden_layers", "n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: fields.optional_size("seq_length")?.unwrap_or(LENGTH),
        norm: NormConfig { kind: NormKind::Layer, eps: fields.number_or("layer_norm_epsilon", 1e-5)? },
        positions: Positions::Alibi,
        qkv_bias: true,
        out_bias: true,
        activation: Activation::GeluTanh,
        gated: false,
        feed_forward_bias: true,
        embedding_norm: true,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
        ..DecoderConfig::llama()
    }
    .with_usual_heads())
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    json!({
        "hidden_size": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "layer_norm_epsilon": config.norm.eps,
        "seq_length": config.max_position_embeddings,
    })
}
