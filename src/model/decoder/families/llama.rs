//! Llama (Touvron et al. 2023, <https://arxiv.org/abs/2302.13971>) and what is stored like it: SmolLM2, Mistral
//! (Jiang et al. 2023, <https://arxiv.org/abs/2310.06825>).

use serde_json::{Value, json};
use sidenote_kernels::Activation;

use super::fields::{Fields, activation_name};
use super::names::Names;
use super::rope;
use crate::error::Result;
use crate::model::decoder::config::{DecoderConfig, NormConfig, NormKind, Positions, Window, usual_head_dim};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names = Names {
    embedding: "model.embed_tokens",
    embedding_norm: "",
    positions: "",
    block: "model.layers",
    attention_norm: "input_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    q_norm: "",
    k_norm: "",
    after_attention_norm: "",
    feed_forward_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    after_feed_forward_norm: "",
    norm: "model.norm",
    head: "lm_head",
    transposed: false,
    fused: None,
    ignored: &[".rotary_emb.inv_freq"],
};

pub(super) fn read(family: Family, fields: &Fields) -> Result<DecoderConfig> {
    let config = read_shape(family, fields)?;
    match family {
        // In all blocks, where there is a number.
        Family::Mistral => {
            let window = fields
                .window()?
                .map(|tokens| Window { tokens, blocks: vec![true; config.num_hidden_layers] });
            Ok(DecoderConfig { window, ..config })
        }
        _ => {
            let bias = fields.flag_or("attention_bias", false)?;
            let feed_forward_bias = fields.flag_or("mlp_bias", false)?;
            Ok(DecoderConfig { qkv_bias: bias, out_bias: bias, feed_forward_bias, ..config })
        }
    }
}

/// What Llama's relatives share, without biases and windows.
pub(super) fn read_shape(family: Family, fields: &Fields) -> Result<DecoderConfig> {
    let vocab_size = fields.size("vocab_size")?;
    let hidden_size = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let head_dim = fields.optional_size("head_dim")?;
    let head_dim = head_dim.unwrap_or(usual_head_dim(hidden_size, heads));
    Ok(DecoderConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_hidden_layers: fields.size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: fields.size("max_position_embeddings")?,
        norm: NormConfig { kind: NormKind::Rms, eps: fields.number_or("rms_norm_eps", 1e-6)? },
        positions: Positions::Rotary(rope::read(fields, head_dim, 1.0)?),
        activation: fields.activation("hidden_act", Activation::Silu)?,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", false)?,
        ..DecoderConfig::llama()
    })
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    let mut fields = write_shape(config);
    match config.family {
        Family::Mistral => {
            fields["sliding_window"] = json!(config.window.as_ref().map(|window| window.tokens));
        }
        _ => {
            fields["attention_bias"] = json!(config.qkv_bias);
            fields["mlp_bias"] = json!(config.feed_forward_bias);
        }
    }
    fields
}

/// The fields that [`read_shape`] reads.
pub(super) fn write_shape(config: &DecoderConfig) -> Value {
    let mut fields = json!({
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm.eps,
        "hidden_act": activation_name(config.activation),
    });
    if let (Some(fields), Positions::Rotary(rotary)) = (fields.as_object_mut(), &config.positions) {
        fields.extend(rope::write(rotary));
    }
    fields
}
