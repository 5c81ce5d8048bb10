//! OPT (Zhang et al. 2022, <https://arxiv.org/abs/2205.01068>), but for the 350M one, which norms after each layer.

use serde_json::{Value, json};
use sidenote_kernels::Activation;

use super::fields::{Fields, activation_name};
use super::names::Names;
use crate::error::{Error, Result};
use crate::model::decoder::config::{DecoderConfig, NormConfig, NormKind, Positions};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names = Names {
    embedding: "model.decoder.embed_tokens",
    embedding_norm: "",
    positions: "model.decoder.embed_positions",
    block: "model.decoder.layers",
    attention_norm: "self_attn_layer_norm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.out_proj",
    q_norm: "",
    k_norm: "",
    after_attention_norm: "",
    feed_forward_norm: "final_layer_norm",
    gate: "",
    up: "fc1",
    down: "fc2",
    after_feed_forward_norm: "",
    norm: "model.decoder.final_layer_norm",
    head: "lm_head",
    transposed: false,
    fused: None,
    ignored: &[],
};

/// PyTorch's, which OPT has no setting for.
const EPS: f64 = 1e-5;

pub(super) fn read(fields: &Fields) -> Result<DecoderConfig> {
    fields.expect_flag("do_layer_norm_before", true)?;
    fields.expect_flag("_remove_final_layer_norm", false)?;
    fields.expect_flag("layer_norm_elementwise_affine", true)?;
    let (hidden_size, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
    let projected = fields.optional_size("word_embed_proj_dim")?.unwrap_or(hidden_size);
    if projected != hidden_size {
        let why =
            format!("{projected}, but hidden_size is {hidden_size}: projected embeddings are not supported");
        return Err(Error::setting("word_embed_proj_dim", why));
    }
    let bias = fields.flag_or("enable_bias", true)?;
    Ok(DecoderConfig {
        family: Family::Opt,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("ffn_dim")?,
        num_hidden_layers: fields.size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        max_position_embeddings: fields.size("max_position_embeddings")?,
        norm: NormConfig { kind: NormKind::Layer, eps: EPS },
        positions: Positions::Learned { offset: 2 },
        qkv_bias: bias,
        out_bias: bias,
        activation: fields.activation("activation_function", Activation::Relu)?,
        gated: false,
        feed_forward_bias: bias,
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
        ..DecoderConfig::llama()
    }
    .with_usual_heads())
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    json!({
        "hidden_size": config.hidden_size,
        "word_embed_proj_dim": config.hidden_size,
        "ffn_dim": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "activation_function": activation_name(config.activation),
        "do_layer_norm_before": true,
        "enable_bias": config.qkv_bias,
    })
}
