//! The families of decoders by name; what they are is in `families/`.

/// Whose checkpoint a decoder is, by its `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, SmolLM2 and whatever else is stored as `llama`.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 1.5 to 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// The text part of Gemma 3.
    Gemma3,
    /// StableLM 2 and 3B.
    StableLm,
    /// GPT-2.
    Gpt2,
    /// OPT.
    Opt,
    /// BLOOM.
    Bloom,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma3,
        Self::StableLm,
        Self::Gpt2,
        Self::Opt,
        Self::Bloom,
    ];

    /// Its `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3_text",
            Self::StableLm => "stablelm",
            Self::Gpt2 => "gpt2",
            Self::Opt => "opt",
            Self::Bloom => "bloom",
        }
    }
}
