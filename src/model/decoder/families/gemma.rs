//! The text part of Gemma 3 (Kamath et al. 2025, <https://arxiv.org/abs/2503.19786>): norms before and after each
//! layer, norms of queries and keys, most blocks with a sliding window and positions of their own.

use serde_json::{Value, json};
use sidenote_kernels::Activation;

use super::fields::{Fields, activation_name};
use super::names::Names;
use super::{llama, qwen, rope};
use crate::error::Result;
use crate::model::decoder::config::{
    DecoderConfig, NormConfig, NormKind, Positions, Rotary, Scaling, Window,
};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names = Names {
    after_attention_norm: "post_attention_layernorm",
    feed_forward_norm: "pre_feedforward_layernorm",
    after_feed_forward_norm: "post_feedforward_layernorm",
    ..qwen::NAMES
};

/// What transformers takes for absent fields.
const GLOBAL_THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;
const PATTERN: usize = 6;

pub(super) fn read(fields: &Fields) -> Result<DecoderConfig> {
    let shape = llama::read_shape(Family::Gemma3, fields)?;
    let head_dim = fields.optional_size("head_dim")?.unwrap_or(256);
    let bias = fields.flag_or("attention_bias", false)?;
    let window = match fields.window()? {
        None => None,
        Some(tokens) => {
            // One block in six sees everything, the last of them.
            let pattern = match fields.optional_size("sliding_window_pattern")? {
                Some(pattern) => pattern,
                None => fields.optional_size("_sliding_window_pattern")?.unwrap_or(PATTERN),
            };
            let local = |i: usize| !(i + 1).is_multiple_of(pattern);
            let blocks = qwen::read_layer_types(fields)?
                .unwrap_or_else(|| (0..shape.num_hidden_layers).map(local).collect());
            Some(Window { tokens, blocks })
        }
    };
    Ok(DecoderConfig {
        head_dim,
        norm: NormConfig { kind: NormKind::RmsOffset, ..shape.norm },
        positions: Positions::Rotary(read_rotary(fields, head_dim)?),
        window,
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: true,
        attention_scale: Some(fields.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5)),
        activation: fields.activation("hidden_activation", Activation::GeluTanh)?,
        post_norms: true,
        embedding_scale: Some((shape.hidden_size as f64).sqrt()),
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
        ..shape
    })
}

fn read_rotary(fields: &Fields, dim: usize) -> Result<Rotary> {
    let (theta, local_theta, scaling) = match fields.object("rope_parameters")? {
        Some(both) => {
            let (global, local) = (both.object("full_attention")?, both.object("sliding_attention")?);
            let theta = |own: Option<Fields>, default| {
                own.map_or(Ok(default), |own| own.number_or("rope_theta", default))
            };
            (theta(global, GLOBAL_THETA)?, theta(local, LOCAL_THETA)?, global)
        }
        None => (
            fields.number_or("rope_theta", GLOBAL_THETA)?,
            fields.number_or("rope_local_base_freq", LOCAL_THETA)?,
            fields.object("rope_scaling")?,
        ),
    };
    rope::check_theta("rope_theta", theta)?;
    rope::check_theta("rope_local_base_freq", local_theta)?;
    let scaling = scaling.map_or(Ok(Scaling::None), |scaling| rope::read_scaling(&scaling))?;
    Ok(Rotary { dim, theta, scaling, local_theta: Some(local_theta) })
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    let mut fields = llama::write_shape(config);
    fields["hidden_activation"] = json!(activation_name(config.activation));
    fields["attention_bias"] = json!(config.qkv_bias);
    // transformers takes whole numbers only; a root and its square are a little off.
    let scalar = config.attention_scale.map_or(config.head_dim as f64, |scale| scale.powi(-2)).round();
    fields["query_pre_attn_scalar"] = json!(scalar as u64);
    if let Some(window) = &config.window {
        fields["sliding_window"] = json!(window.tokens);
        fields["layer_types"] = qwen::write_layer_types(config);
    }
    if let Positions::Rotary(Rotary { local_theta: Some(local), .. }) = &config.positions {
        fields["rope_local_base_freq"] = json!(local);
    }
    fields
}
