//! Architectures, and llama.cpp's names of their tensors beside transformers'.

/// Token embeddings.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// The output head, where it is not the embeddings.
pub(super) const HEAD: &str = "output.weight";
/// Factors of the rotary frequencies: part of the configuration elsewhere.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// What a network is, by `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
    Gpt2,
}

/// What llama.cpp's converter did to a tensor, to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// A head's two halves became pairs: row 2 j + s of a head was row s w / 2 + j.
    Paired(Heads),
    /// `[in, out]` became `[out, in]`.
    Transposed,
    /// Gemma's norms multiply by 1 + weight; the 1 was added.
    PlusOne,
}

/// Whose heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    Query,
    Key,
}

impl Architecture {
    const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3, Self::Gpt2];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// llama.cpp's name, which begins the metadata keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Gpt2 => "gpt2",
        }
    }

    /// transformers' `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3_text",
            other => other.name(),
        }
    }

    /// transformers' class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
        }
    }

    /// transformers' name of the tensor that llama.cpp calls `name`, and what to undo. `None` for
    /// what is no tensor of the network.
    pub fn tensor(self, name: &str) -> Option<(String, Change)> {
        match self {
            Self::Gpt2 => gpt2(name),
            other => other.llama_like(name),
        }
    }

    fn llama_like(self, name: &str) -> Option<(String, Change)> {
        let gemma = self == Self::Gemma3;
        let whole = match name {
            EMBEDDING => Some(("model.embed_tokens.weight", Change::None)),
            HEAD => Some(("lm_head.weight", Change::None)),
            "output_norm.weight" if gemma => Some(("model.norm.weight", Change::PlusOne)),
            "output_norm.weight" => Some(("model.norm.weight", Change::None)),
            _ => None,
        };
        if let Some((name, change)) = whole {
            return Some((name.to_string(), change));
        }
        let (layer, part, kind) = in_block(name)?;
        let paired = |heads| if self == Self::Llama { Change::Paired(heads) } else { Change::None };
        let norm = if gemma { Change::PlusOne } else { Change::None };
        let (part, change) = match part {
            "attn_norm" => ("input_layernorm", norm),
            "attn_q" => ("self_attn.q_proj", paired(Heads::Query)),
            "attn_k" => ("self_attn.k_proj", paired(Heads::Key)),
            "attn_v" => ("self_attn.v_proj", Change::None),
            "attn_output" => ("self_attn.o_proj", Change::None),
            "attn_q_norm" => ("self_attn.q_norm", norm),
            "attn_k_norm" => ("self_attn.k_norm", norm),
            "ffn_gate" => ("mlp.gate_proj", Change::None),
            "ffn_up" => ("mlp.up_proj", Change::None),
            "ffn_down" => ("mlp.down_proj", Change::None),
            "ffn_norm" if gemma => ("pre_feedforward_layernorm", norm),
            "ffn_norm" => ("post_attention_layernorm", norm),
            "post_attention_norm" if gemma => ("post_attention_layernorm", norm),
            "post_ffw_norm" if gemma => ("post_feedforward_layernorm", norm),
            _ => return None,
        };
        Some((format!("model.layers.{layer}.{part}.{kind}"), change))
    }
}

fn gpt2(name: &str) -> Option<(String, Change)> {
    let whole = match name {
        EMBEDDING => Some("transformer.wte.weight"),
        HEAD => Some("lm_head.weight"),
        "position_embd.weight" => Some("transformer.wpe.weight"),
        "output_norm.weight" => Some("transformer.ln_f.weight"),
        "output_norm.bias" => Some("transformer.ln_f.bias"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some((name.to_string(), Change::None));
    }
    let (layer, part, kind) = in_block(name)?;
    let (part, transposed) = match part {
        "attn_norm" => ("ln_1", false),
        "attn_qkv" => ("attn.c_attn", true),
        "attn_output" => ("attn.c_proj", true),
        "ffn_norm" => ("ln_2", false),
        "ffn_up" => ("mlp.c_fc", true),
        "ffn_down" => ("mlp.c_proj", true),
        _ => return None,
    };
    let change = if transposed && kind == "weight" { Change::Transposed } else { Change::None };
    Some((format!("transformer.h.{layer}.{part}.{kind}"), change))
}

/// `blk.7.attn_q.weight` to 7, `attn_q`, `weight`.
fn in_block(name: &str) -> Option<(u32, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    matches!(kind, "weight" | "bias").then_some((layer.parse().ok()?, part, kind))
}
