//! Metadata to `config.json` in transformers' terms.

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::file::File;
use super::names::{Architecture, EMBEDDING, HEAD, ROPE_FACTORS};
use crate::error::Result;

/// The `config.json` of the model in `file`.
pub(super) fn config(file: &File, architecture: Architecture) -> Result<Value> {
    let name = architecture.name();
    let key = |field: &str| format!("{name}.{field}");
    if file.integer(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(file.fault(&key("expert_count"), "mixtures of experts are not read here"));
    }
    let embedding = file.shape(EMBEDDING).filter(|shape| shape.len() == 2);
    let vocab_size = embedding.ok_or_else(|| file.fault(EMBEDDING, "this table is missing"))?[0];
    let hidden = file.needed_integer(&key("embedding_length"))?;
    let layers = file.needed_integer(&key("block_count"))?;
    let heads = file.needed_integer(&key("attention.head_count"))?;
    if heads == 0 || layers > 1 << 16 {
        return Err(file.fault(&key("attention.head_count"), "no network has such a shape"));
    }
    let context = file.needed_integer(&key("context_length"))?;
    let feed_forward = file.needed_integer(&key("feed_forward_length"))?;
    let mut config = json!({
        "model_type": architecture.model_type(),
        "architectures": [architecture.class()],
        "torch_dtype": "float32",
        "vocab_size": vocab_size,
        "tie_word_embeddings": file.shape(HEAD).is_none(),
        "bos_token_id": file.integer("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": file.integer("tokenizer.ggml.eos_token_id")?,
    });
    let rest = match architecture {
        Architecture::Gpt2 => json!({
            "n_embd": hidden,
            "n_layer": layers,
            "n_head": heads,
            "n_positions": context,
            "n_inner": feed_forward,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": short(file.needed_float(&key("attention.layer_norm_epsilon"))?),
        }),
        _ => {
            let head_dim = match file.integer(&key("attention.key_length"))? {
                Some(width) => width,
                None => hidden / heads,
            };
            if let Some(width) = file.integer(&key("attention.value_length"))?
                && width != head_dim
            {
                return Err(file.fault(
                    &key("attention.value_length"),
                    "differs from key_length, which is not read here",
                ));
            }
            if let Some(width) = file.integer(&key("rope.dimension_count"))?
                && width != head_dim
            {
                let why = format!(
                    "{width}, but heads are {head_dim} wide; partial rotary positions are not read here"
                );
                return Err(file.fault(&key("rope.dimension_count"), why));
            }
            let kv_heads = file.integer(&key("attention.head_count_kv"))?.unwrap_or(heads);
            let mut rest = json!({
                "hidden_size": hidden,
                "intermediate_size": feed_forward,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "head_dim": head_dim,
                "max_position_embeddings": context,
                "rms_norm_eps": short(file.needed_float(&key("attention.layer_norm_rms_epsilon"))?),
                "rope_theta": short(file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0)),
                "rope_scaling": rope_scaling(file, &key, head_dim)?,
            });
            extend(&mut rest, family(file, architecture, &key, layers, head_dim, hidden / heads)?);
            rest
        }
    };
    extend(&mut config, rest);
    Ok(config)
}

/// What only one family has.
fn family(
    file: &File,
    architecture: Architecture,
    key: &impl Fn(&str) -> String,
    layers: u64,
    head_dim: u64,
    width_a_head: u64,
) -> Result<Value> {
    let attention_bias = file.shape("blk.0.attn_q.bias").is_some();
    Ok(match architecture {
        Architecture::Gemma3 => {
            // llama.cpp, too, knows the 27B model by its 62 layers.
            let scalar = if layers == 62 { width_a_head } else { head_dim };
            let kinds: Vec<&str> = (1..=layers)
                .map(|layer| if layer % 6 == 0 { "full_attention" } else { "sliding_attention" })
                .collect();
            json!({
                "hidden_activation": "gelu_pytorch_tanh",
                "query_pre_attn_scalar": scalar,
                "sliding_window": file.needed_integer(&key("attention.sliding_window"))?,
                "sliding_window_pattern": 6,
                "layer_types": kinds,
                "rope_local_base_freq": short(file.float(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0)),
                "attention_bias": false,
                "attn_logit_softcapping": file.float(&key("attn_logit_softcapping"))?,
                "final_logit_softcapping": file.float(&key("final_logit_softcapping"))?,
            })
        }
        Architecture::Qwen2 => json!({"hidden_act": "silu", "use_sliding_window": false}),
        _ => json!({
            "hidden_act": "silu",
            "attention_bias": attention_bias,
            "mlp_bias": file.shape("blk.0.ffn_up.bias").is_some(),
        }),
    })
}

/// How the rotary positions are stretched; null if they are not.
fn rope_scaling(file: &File, key: &impl Fn(&str) -> String, head_dim: u64) -> Result<Value> {
    if file.shape(ROPE_FACTORS).is_some() {
        return llama3_scaling(file, key, head_dim);
    }
    let field = key("rope.scaling.type");
    match file.text(&field)? {
        None | Some("none") => Ok(Value::Null),
        Some("linear") => {
            let factor = file.needed_float(&key("rope.scaling.factor"))?;
            Ok(json!({"rope_type": "linear", "factor": short(factor)}))
        }
        Some("yarn") => {
            let factor = file.needed_float(&key("rope.scaling.factor"))?;
            let original = file.needed_integer(&key("rope.scaling.original_context_length"))?;
            Ok(json!({
                "rope_type": "yarn",
                "factor": short(factor),
                "original_max_position_embeddings": original,
            }))
        }
        Some(other) => Err(file.fault(&field, format!("{other:?} is not read; none, linear and yarn are"))),
    }
}

/// Llama 3's stretching: the file has a factor for each frequency, `config.json` the numbers that
/// they come from. All published models share three of the four; the result is checked.
fn llama3_scaling(file: &File, key: &impl Fn(&str) -> String, head_dim: u64) -> Result<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    let factors =
        file.tensor(ROPE_FACTORS)?.dequantise()?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    let factor = factors.iter().copied().fold(1.0f32, f32::max) as f64;
    if factor == 1.0 {
        return Ok(Value::Null);
    }
    let theta = file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let expected = |i: usize| {
        let length = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        if length < ORIGINAL / HIGH {
            1.0
        } else if length > ORIGINAL / LOW {
            factor
        } else {
            let smooth = (ORIGINAL / length - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let fits = |(i, &found): (usize, &f32)| (f64::from(found) - expected(i)).abs() <= 1e-3 * factor;
    if factors.len() as u64 != head_dim / 2 || !factors.iter().enumerate().all(fits) {
        let why = "these factors of the rotary frequencies are not Llama 3's, and no others are read here";
        return Err(file.fault(ROPE_FACTORS, why));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": ORIGINAL as u64,
    }))
}

/// A number that was written as f32, in its short form: 0.00001, not 0.000009999999747378752.
fn short(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

fn extend(config: &mut Value, more: Value) {
    let empty = &mut Map::new();
    if let Value::Object(more) = more {
        config.as_object_mut().unwrap_or(empty).extend(more);
    }
}
