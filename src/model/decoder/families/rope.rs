//! The settings of rotary positions, in the form of transformers 4 (`rope_theta`, `rope_scaling`) and that of
//! transformers 5 (`rope_parameters`). They are written in the former, which both read.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::model::decoder::config::{Rotary, Scaling};

/// The rotary positions of a family without local ones. Of a head `head_dim` wide `partial` turns, if the settings
/// do not say another share.
pub fn read(fields: &Fields, head_dim: usize, partial: f64) -> Result<Rotary> {
    let own = fields.object("rope_parameters")?;
    let scaling = own.or(fields.object("rope_scaling")?);
    let either = |name: &str, default: f64| -> Result<f64> {
        match own.map(|own| own.optional_number(name)).transpose()?.flatten() {
            Some(value) => Ok(value),
            None => fields.number_or(name, default),
        }
    };
    let theta = either("rope_theta", 10_000.0)?;
    let partial = either("partial_rotary_factor", partial)?;
    let dim = (head_dim as f64 * partial) as usize;
    check_theta("rope_theta", theta)?;
    Ok(Rotary {
        dim,
        theta,
        scaling: scaling.map_or(Ok(Scaling::None), |s| read_scaling(&s))?,
        local_theta: None,
    })
}

/// How frequencies are stretched, from `rope_scaling` or `rope_parameters`.
pub fn read_scaling(fields: &Fields) -> Result<Scaling> {
    let kind = fields.text("rope_type")?.or(fields.text("type")?);
    let positive = |name: &str| match fields.number(name)? {
        value if value > 0.0 && value.is_finite() => Ok(value),
        value => Err(Error::setting(name, format!("{value} must be more than 0"))),
    };
    match kind {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: positive("factor")? }),
        Some("llama3") => {
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            if high <= low {
                let why = format!("{high} must be more than low_freq_factor, {low}");
                return Err(Error::setting("high_freq_factor", why));
            }
            Ok(Scaling::Llama3 {
                factor: positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: positive("original_max_position_embeddings")?,
            })
        }
        Some(other) => {
            let why = format!("rope_type {other:?} is not supported; default, linear and llama3 are");
            Err(Error::setting("rope_scaling", why))
        }
    }
}

/// Refuses a base that makes no frequencies.
pub fn check_theta(name: &str, theta: f64) -> Result<()> {
    if theta > 0.0 && theta.is_finite() {
        return Ok(());
    }
    Err(Error::setting(name, format!("{theta} must be more than 0")))
}

/// The fields `rope_theta` and `rope_scaling`.
pub fn write(rotary: &Rotary) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("rope_theta".into(), json!(rotary.theta));
    fields.insert("rope_scaling".into(), write_scaling(&rotary.scaling));
    fields
}

fn write_scaling(scaling: &Scaling) -> Value {
    match scaling {
        Scaling::None => Value::Null,
        Scaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": *original_max_position_embeddings as u64,
            })
        }
    }
}
