//! What Hugging Face's models call the tensors of each family.

use super::config::Family;

pub(super) const WORDS: &str = "embeddings.word_embeddings.weight";
pub(super) const POSITIONS: &str = "embeddings.position_embeddings.weight";
pub(super) const TYPES: &str = "embeddings.token_type_embeddings.weight";
pub(super) const RELATIVE: &str = "encoder.relative_attention_bias.weight";

/// The names of a layer's tensors in each family.
pub(super) struct Names {
    pub embedding_norm: &'static str,
    pub layer: &'static str,
    /// Query, key and value, apart or in one.
    pub qkv: &'static [&'static str],
    pub attention_out: &'static str,
    pub attention_norm: &'static str,
    pub gate: Option<&'static str>,
    pub up: &'static str,
    pub down: &'static str,
    pub norm: &'static str,
    pub biased: bool,
}

impl Names {
    /// Whether a layer multiplies its input by the tensor of this name.
    pub fn is_multiplied(&self, name: &str) -> bool {
        let layers =
            self.qkv.iter().copied().chain(self.gate).chain([self.attention_out, self.up, self.down]);
        let in_layer = || name.strip_prefix(self.layer).and_then(|name| name.strip_suffix(".weight"));
        // ".3.output.dense", of which "attention.output.dense" ends the same.
        let after_number = || in_layer()?.strip_prefix('.')?.split_once('.').map(|(_, name)| name);
        after_number().is_some_and(|name| layers.into_iter().any(|layer| layer == name))
    }
}

const BERT: Names = Names {
    embedding_norm: "embeddings.LayerNorm",
    layer: "encoder.layer",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    gate: None,
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
    biased: true,
};

const MPNET: Names = Names {
    qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT
};

const NOMIC: Names = Names {
    embedding_norm: "emb_ln",
    layer: "encoder.layers",
    qkv: &["attn.Wqkv"],
    attention_out: "attn.out_proj",
    attention_norm: "norm1",
    gate: Some("mlp.fc12"),
    up: "mlp.fc11",
    down: "mlp.fc2",
    norm: "norm2",
    biased: false,
};

/// What a whole model's tensors are prefixed with where it has a head.
const PREFIXES: [&str; 5] = ["", "bert.", "roberta.", "mpnet.", "nomic_bert."];

/// The names of a family.
pub(super) fn of(family: Family) -> &'static Names {
    match family {
        Family::Bert | Family::Roberta => &BERT,
        Family::MpNet => &MPNET,
        Family::NomicBert => &NOMIC,
    }
}

/// The prefix of a checkpoint's tensors.
pub(super) fn prefix(has: impl Fn(&str) -> bool) -> &'static str {
    PREFIXES.into_iter().find(|prefix| has(&format!("{prefix}{WORDS}"))).unwrap_or("")
}
