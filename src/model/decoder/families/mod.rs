//! The families of decoders that people have: how their `config.json` says what a decoder looks like, and what
//! they call its weights. Names are those of Hugging Face's transformers.

use serde_json::{Map, Value};

use self::names::Names;
use super::config::DecoderConfig;
use super::family::Family;
use crate::error::{Error, Result};

mod bloom;
mod fields;
mod gemma;
mod gpt2;
mod llama;
pub(super) mod names;
mod opt;
mod qwen;
mod rope;
mod stablelm;

impl Family {
    /// The class of transformers that loads it.
    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::StableLm => "StableLmForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Opt => "OPTForCausalLM",
            Self::Bloom => "BloomForCausalLM",
        }
    }

    /// What its weights are called.
    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Llama | Self::Mistral => &llama::NAMES,
            Self::Qwen2 | Self::Qwen3 => &qwen::NAMES,
            Self::Gemma3 => &gemma::NAMES,
            Self::StableLm => &stablelm::NAMES,
            Self::Gpt2 => &gpt2::NAMES,
            Self::Opt => &opt::NAMES,
            Self::Bloom => &bloom::NAMES,
        }
    }
}

/// Settings that change the result and that no family here has, unless they are absent, null, false or empty.
const UNKNOWN: [&str; 17] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "quantization_config",
    "add_cross_attention",
    "attention_multiplier",
    "clip_qkv",
    "embedding_multiplier",
    "kv_lora_rank",
    "logit_scale",
    "logits_scaling",
    "num_experts",
    "num_local_experts",
    "parallel_attn",
    "position_embedding_type",
    "residual_multiplier",
    "use_bidirectional_attention",
    "use_parallel_residual",
];

impl DecoderConfig {
    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// Names a field that is missing or that asks for what is not known here.
    pub fn from_json(config: &Value) -> Result<Self> {
        let none = Map::new();
        let fields = fields::Fields(config.as_object().unwrap_or(&none));
        let kind = fields.text("model_type")?.unwrap_or("llama");
        let Some(family) = Family::ALL.into_iter().find(|family| family.model_type() == kind) else {
            let known = Family::ALL.map(Family::model_type).join(", ");
            let hint = match kind {
                "gemma3" => "; its text part alone is a gemma3_text",
                _ => "",
            };
            return Err(Error::setting(
                "model_type",
                format!("{kind:?} is not known{hint}; known are {known}"),
            ));
        };
        fields.refuse(&UNKNOWN)?;
        let config = match family {
            Family::Llama | Family::Mistral => llama::read(family, &fields),
            Family::Qwen2 | Family::Qwen3 => qwen::read(family, &fields),
            Family::Gemma3 => gemma::read(&fields),
            Family::StableLm => stablelm::read(&fields),
            Family::Gpt2 => gpt2::read(&fields),
            Family::Opt => opt::read(&fields),
            Family::Bloom => bloom::read(&fields),
        }?;
        config.check()?;
        Ok(config)
    }

    /// The content of a `config.json` that transformers, too, reads as this decoder.
    pub fn to_json(&self) -> Map<String, Value> {
        let own = match self.family {
            Family::Llama | Family::Mistral => llama::write(self),
            Family::Qwen2 | Family::Qwen3 => qwen::write(self),
            Family::Gemma3 => gemma::write(self),
            Family::StableLm => stablelm::write(self),
            Family::Gpt2 => gpt2::write(self),
            Family::Opt => opt::write(self),
            Family::Bloom => bloom::write(self),
        };
        let mut all = Map::new();
        all.insert("architectures".into(), vec![self.family.architecture()].into());
        all.insert("model_type".into(), self.family.model_type().into());
        all.insert("torch_dtype".into(), "float32".into());
        all.insert("vocab_size".into(), self.vocab_size.into());
        all.insert("tie_word_embeddings".into(), self.tie_word_embeddings.into());
        if let Value::Object(own) = own {
            all.extend(own);
        }
        all
    }
}

#[cfg(test)]
mod tests;
