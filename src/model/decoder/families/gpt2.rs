//! GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners").

use serde_json::{Value, json};
use sidenote_kernels::Activation;

use super::fields::{Fields, activation_name};
use super::names::{Fused, Names};
use crate::error::Result;
use crate::model::decoder::config::{DecoderConfig, NormConfig, NormKind, Positions};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names = Names {
    embedding: "transformer.wte",
    embedding_norm: "",
    positions: "transformer.wpe",
    block: "transformer.h",
    attention_norm: "ln_1",
    q: "attn.c_attn",
    k: "attn.c_attn",
    v: "attn.c_attn",
    o: "attn.c_proj",
    q_norm: "",
    k_norm: "",
    after_attention_norm: "",
    feed_forward_norm: "ln_2",
    gate: "",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    after_feed_forward_norm: "",
    norm: "transformer.ln_f",
    head: "lm_head",
    transposed: true,
    fused: Some(Fused::InTurn),
    // The causal mask, which old checkpoints hold.
    ignored: &[".attn.bias", ".attn.masked_bias"],
};

pub(super) fn read(fields: &Fields) -> Result<DecoderConfig> {
    fields.refuse(&["scale_attn_by_inverse_layer_idx"])?;
    let (hidden_size, heads) = (fields.size("n_embd")?, fields.size("n_head")?);
    let scaled = fields.flag_or("scale_attn_weights", true)?;
    Ok(DecoderConfig {
        family: Family::Gpt2,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.optional_size("n_inner")?.unwrap_or(4 * hidden_size),
        num_hidden_layers: fields.size("n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: fields.size("n_positions")?,
        norm: NormConfig { kind: NormKind::Layer, eps: fields.number_or("layer_norm_epsilon", 1e-5)? },
        positions: Positions::Learned { offset: 0 },
        qkv_bias: true,
        out_bias: true,
        attention_scale: if scaled { None } else { Some(1.0) },
        activation: fields.activation("activation_function", Activation::GeluTanh)?,
        gated: false,
        feed_forward_bias: true,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
        ..DecoderConfig::llama()
    }
    .with_usual_heads())
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    json!({
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "layer_norm_epsilon": config.norm.eps,
        "activation_function": activation_name(config.activation),
        "scale_attn_weights": config.attention_scale.is_none(),
    })
}
