//! The settings of models that people have, as their `config.json` says them in transformers 4's form. What
//! transformers 5 writes is read in tests/models.rs.

use serde_json::{Value, json};
use sidenote_kernels::Activation;

use crate::model::decoder::config::{DecoderConfig, NormKind, Positions, Rotary, Scaling};
use crate::model::decoder::family::Family;

fn read(config: &Value) -> DecoderConfig {
    let read = DecoderConfig::from_json(config).unwrap();
    // What is written is read as the same.
    assert_eq!(DecoderConfig::from_json(&read.to_json().into()).unwrap(), read);
    read
}

fn rotary(config: &DecoderConfig) -> &Rotary {
    match &config.positions {
        Positions::Rotary(rotary) => rotary,
        other => panic!("{other:?}"),
    }
}

#[test]
fn llama_3_2() {
    let config = read(&json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        },
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "vocab_size": 128256
    }));
    assert_eq!((config.head_dim, config.num_key_value_heads, config.tie_word_embeddings), (64, 8, true));
    assert!(!config.qkv_bias && !config.out_bias && config.gated && config.norm.eps == 1e-5);
    let scaling = Scaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    assert_eq!((rotary(&config).theta, rotary(&config).scaling), (500_000.0, scaling));
}

#[test]
fn llama_2_and_old_scaling() {
    let mut json = json!({
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "rms_norm_eps": 1e-05, "rope_scaling": null, "vocab_size": 32000
    });
    let config = read(&json);
    assert_eq!((config.head_dim, config.num_key_value_heads), (128, 32));
    assert_eq!((rotary(&config).theta, rotary(&config).scaling), (10_000.0, Scaling::None));
    json["rope_scaling"] = json!({ "type": "linear", "factor": 4.0 });
    assert_eq!(rotary(&read(&json)).scaling, Scaling::Linear { factor: 4.0 });
    json["rope_scaling"] = json!({ "type": "dynamic", "factor": 4.0 });
    let said = DecoderConfig::from_json(&json).unwrap_err().to_string();
    assert!(said.contains("rope_scaling") && said.contains("dynamic"), "{said}");
}

#[test]
fn mistral_7b() {
    let mut json = json!({
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000
    });
    assert_eq!(read(&json).window_of(31), Some(4096));
    json["sliding_window"] = Value::Null;
    assert_eq!(read(&json).window, None);
}

#[test]
fn qwen2_5_and_qwen3() {
    let config = read(&json!({
        "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
    }));
    assert!(config.qkv_bias && !config.out_bias && config.window.is_none() && !config.qk_norm);
    let config = read(&json!({
        "attention_bias": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
    }));
    assert!(config.qk_norm && !config.qkv_bias && config.head_dim == 128);
}

#[test]
fn gemma_3() {
    let mut json = json!({
        "attention_bias": false, "attn_logit_softcapping": null, "final_logit_softcapping": null,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size": 262144
    });
    let config = read(&json);
    assert_eq!(config.norm.kind, NormKind::RmsOffset);
    assert!(config.post_norms && config.qk_norm && config.tie_word_embeddings);
    assert_eq!(config.attention_scale, Some(1.0 / 16.0));
    assert_eq!(config.activation, Activation::GeluTanh);
    let global: Vec<usize> = (0..26).filter(|i| config.window_of(*i).is_none()).collect();
    assert_eq!(global, [5, 11, 17, 23]);
    assert_eq!((rotary(&config).theta, rotary(&config).local_theta), (1e6, Some(1e4)));
    json["final_logit_softcapping"] = json!(30.0);
    assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains("final_logit_softcapping"));
    json["model_type"] = json!("gemma3");
    assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains("gemma3_text"));
}

#[test]
fn stablelm_2() {
    let config = read(&json!({
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 4096, "model_type": "stablelm", "num_attention_heads": 32,
        "num_hidden_layers": 24, "num_key_value_heads": 32, "partial_rotary_factor": 0.25,
        "rope_theta": 10000, "tie_word_embeddings": false, "use_qkv_bias": true, "vocab_size": 100352
    }));
    assert_eq!((rotary(&config).dim, config.head_dim, config.norm.kind), (16, 64, NormKind::Layer));
}

#[test]
fn gpt2_opt_and_bloom() {
    let config = read(&json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
        "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index",
        "task_specific_params": { "text-generation": { "do_sample": true, "max_length": 50 } },
        "vocab_size": 50257
    }));
    assert_eq!((config.family, config.intermediate_size, config.gated), (Family::Gpt2, 3072, false));
    assert!(config.tie_word_embeddings && config.qkv_bias && config.feed_forward_bias);
    let config = read(&json!({
        "_remove_final_layer_norm": false, "activation_function": "relu", "do_layer_norm_before": true,
        "dropout": 0.1, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0,
        "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 12,
        "num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272, "word_embed_proj_dim": 768
    }));
    assert_eq!((config.positions, config.activation), (Positions::Learned { offset: 2 }, Activation::Relu));
    let config = read(&json!({
        "apply_residual_connection_post_layernorm": false, "attention_softmax_in_fp32": true,
        "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": true,
        "model_type": "bloom", "n_embed": 1024, "n_inner": null, "n_layer": 24,
        "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048,
        "skip_bias_add": true, "vocab_size": 250880
    }));
    assert_eq!((config.positions, config.hidden_size), (Positions::Alibi, 1024));
    assert!(config.embedding_norm);
}

#[test]
fn what_is_missing_or_no_number_is_named() {
    let json = json!({ "model_type": "llama", "hidden_size": 8, "vocab_size": 4 });
    assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains("num_attention_heads"));
    let json = json!({ "model_type": "llama", "hidden_size": -8, "vocab_size": 4 });
    assert!(DecoderConfig::from_json(&json).unwrap_err().to_string().contains("hidden_size"));
    assert!(DecoderConfig::from_json(&json!([])).is_err());
}
