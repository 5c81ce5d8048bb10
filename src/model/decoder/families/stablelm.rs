//! StableLM 3B and StableLM 2 (Bellagente et al. 2024, <https://arxiv.org/abs/2402.17834>): Llama with layer norms,
//! of which a quarter of each head turns.

use serde_json::{Value, json};

use super::fields::Fields;
use super::names::Names;
use super::{llama, rope};
use crate::error::Result;
use crate::model::decoder::config::{DecoderConfig, NormConfig, NormKind, Positions};
use crate::model::decoder::family::Family;

pub(super) const NAMES: Names = llama::NAMES;

/// The share of a head that turns, where the settings do not say.
const PARTIAL: f64 = 0.25;

pub(super) fn read(fields: &Fields) -> Result<DecoderConfig> {
    fields.refuse(&["qk_layernorm"])?;
    let shape = llama::read_shape(Family::StableLm, fields)?;
    Ok(DecoderConfig {
        norm: NormConfig { kind: NormKind::Layer, eps: fields.number_or("layer_norm_eps", 1e-5)? },
        positions: Positions::Rotary(rope::read(fields, shape.head_dim, PARTIAL)?),
        qkv_bias: fields.flag_or("use_qkv_bias", false)?,
        ..shape
    })
}

pub(super) fn write(config: &DecoderConfig) -> Value {
    let mut fields = llama::write_shape(config);
    fields["layer_norm_eps"] = json!(config.norm.eps);
    fields["use_qkv_bias"] = json!(config.qkv_bias);
    if let Positions::Rotary(rotary) = &config.positions {
        let (dim, whole) = (rotary.dim as f64, config.head_dim as f64);
        // It is rounded down when it is read, which must give the same number again.
        let share = if (whole * (dim / whole)) as usize == rotary.dim { dim } else { dim + 0.5 } / whole;
        fields["partial_rotary_factor"] = json!(share);
    }
    fields
}
