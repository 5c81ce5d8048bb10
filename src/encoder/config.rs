//! What `config.json` says of an encoder: each family's own terms, in one neutral description.

use serde::Deserialize;
use sidenote_kernels::inference::Activation;

/// The families that are read. All normalise after each layer, as the original transformer does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Family {
    /// BERT (Devlin et al. 2019, <https://arxiv.org/abs/1810.04805>): MiniLM, E5, BGE, Contriever, ...
    Bert,
    /// RoBERTa (<https://arxiv.org/abs/1907.11692>) and XLM-R, such as multilingual E5: BERT whose positions count
    /// from after the padding's id.
    Roberta,
    /// MPNet (Song et al. 2020, <https://arxiv.org/abs/2004.09297>): that, and T5's relative bias, one for all layers.
    MpNet,
    /// nomic-bert (Nussbaum et al. 2024, <https://arxiv.org/abs/2402.01613>): rotary positions, gated SiLU, no biases.
    NomicBert,
}

/// The `model_type`s of `config.json` that are read here.
pub(super) const MODEL_TYPES: [(&str, Family); 6] = [
    ("bert", Family::Bert),
    ("roberta", Family::Roberta),
    ("xlm-roberta", Family::Roberta),
    ("camembert", Family::Roberta),
    ("mpnet", Family::MpNet),
    ("nomic_bert", Family::NomicBert),
];

impl Family {
    /// The family that this `model_type` of `config.json` names, if it is one of BERT's.
    pub fn of(model_type: &str) -> Option<Self> {
        MODEL_TYPES.into_iter().find(|(name, _)| *name == model_type).map(|(_, family)| family)
    }
}

/// The numbers that decide the arithmetic.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    /// Width between the two halves of the feed-forward layer.
    pub inner: usize,
    pub activation: Activation,
    pub epsilon: f32,
    /// Tokens of the longest text that the network can read.
    pub tokens: usize,
    /// Rows of the table of positions that are not a token's: those up to the padding's.
    pub first_position: usize,
    /// Rows of the table of token types; 0 where there is none.
    pub types: usize,
    /// Columns of the table of relative positions; 0 where there is none.
    pub buckets: usize,
    /// Base of the wavelengths of rotary positions.
    pub rotary_base: f32,
    /// Share of the numbers that are dropped after the embeddings and before each residual connection while it is
    /// trained.
    pub dropout: f32,
}

impl Config {
    /// Reads the description out of `config.json` of a model of this family.
    ///
    /// # Errors
    /// Says which field is missing, misspelt or impossible.
    pub fn read(family: Family, json: &serde_json::Value) -> Result<Self, String> {
        let config = match family {
            Family::NomicBert => Nomic::deserialize(json).map_err(|e| e.to_string())?.config()?,
            _ => Bert::deserialize(json).map_err(|e| e.to_string())?.config(family)?,
        };
        let Self { hidden, heads, tokens, .. } = config;
        if hidden == 0 || heads == 0 || hidden % heads != 0 {
            return Err(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}"));
        }
        if tokens < 3 {
            return Err(format!(
                "max_position_embeddings leaves room for {tokens} tokens, which is none for text"
            ));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(format!("hidden_dropout_prob {} is not at least 0 and less than 1", config.dropout));
        }
        if family == Family::NomicBert && hidden / heads % 2 != 0 {
            return Err(format!("rotary positions turn pairs, but a head is {} wide", hidden / heads));
        }
        Ok(config)
    }
}

#[derive(Deserialize)]
enum Function {
    #[serde(rename = "gelu")]
    Gelu,
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    #[serde(rename = "relu")]
    Relu,
    #[serde(rename = "silu", alias = "swiglu")]
    Silu,
}

impl From<Function> for Activation {
    fn from(function: Function) -> Self {
        match function {
            Function::Gelu => Self::Gelu,
            Function::GeluTanh => Self::GeluTanh,
            Function::Relu => Self::Relu,
            Function::Silu => Self::Silu,
        }
    }
}

/// How a position is told to the network. BERT's later variants with relative positions are other
/// arithmetic and are refused when the configuration is read.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Positions {
    Absolute,
}

/// BERT's terms, which RoBERTa and MPNet share.
#[derive(Deserialize)]
struct Bert {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: f32,
    hidden_act: Option<Function>,
    #[serde(rename = "position_embedding_type")]
    _positions: Option<Positions>,
    pad_token_id: Option<usize>,
    hidden_dropout_prob: Option<f32>,
    relative_attention_num_buckets: Option<usize>,
}

impl Bert {
    fn config(self, family: Family) -> Result<Config, String> {
        // Positions of padding are the padding's id, and those of tokens begin after it.
        let first_position = if family == Family::Bert { 0 } else { self.pad_token_id.unwrap_or(1) + 1 };
        let types = if family == Family::MpNet { 0 } else { self.type_vocab_size.unwrap_or(2) };
        if types == 0 && family != Family::MpNet {
            return Err("type_vocab_size must be at least 1".into());
        }
        let buckets = match family {
            Family::MpNet => self.relative_attention_num_buckets.unwrap_or(32),
            _ => 0,
        };
        // transformers counts buckets so, whatever the configuration says.
        if family == Family::MpNet && buckets != 32 {
            return Err(format!("relative_attention_num_buckets is {buckets}; 32 is read here"));
        }
        Ok(Config {
            family,
            vocab_size: self.vocab_size,
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            inner: self.intermediate_size,
            activation: self.hidden_act.map_or(Activation::Gelu, Into::into),
            epsilon: self.layer_norm_eps,
            tokens: self.max_position_embeddings.saturating_sub(first_position),
            first_position,
            types,
            buckets,
            rotary_base: 0.0,
            dropout: self.hidden_dropout_prob.unwrap_or(0.1),
        })
    }
}

/// nomic-bert's terms: its authors', or transformers'.
#[derive(Deserialize)]
struct Nomic {
    vocab_size: usize,
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "n_inner")]
    intermediate_size: usize,
    #[serde(alias = "n_positions")]
    max_position_embeddings: usize,
    type_vocab_size: usize,
    #[serde(alias = "layer_norm_epsilon")]
    layer_norm_eps: f32,
    #[serde(alias = "activation_function")]
    hidden_act: Function,
    #[serde(alias = "resid_pdrop")]
    hidden_dropout_prob: Option<f32>,
    rope_parameters: Option<Rope>,
    rotary_emb_base: Option<f32>,
    rotary_emb_fraction: Option<f32>,
    rotary_emb_interleaved: Option<bool>,
    rotary_scaling_factor: Option<f32>,
    prenorm: Option<bool>,
    qkv_proj_bias: Option<bool>,
    mlp_fc1_bias: Option<bool>,
    mlp_fc2_bias: Option<bool>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: f32,
    rope_type: String,
}

impl Nomic {
    fn config(self) -> Result<Config, String> {
        let yes = Some(true);
        for (field, refused) in [
            ("prenorm", self.prenorm == yes),
            ("qkv_proj_bias", self.qkv_proj_bias == yes),
            ("mlp_fc1_bias", self.mlp_fc1_bias == yes),
            ("mlp_fc2_bias", self.mlp_fc2_bias == yes),
            ("rotary_emb_interleaved", self.rotary_emb_interleaved == yes),
            ("rotary_emb_fraction", self.rotary_emb_fraction.is_some_and(|fraction| fraction != 1.0)),
            ("rope_type", self.rope_parameters.as_ref().is_some_and(|rope| rope.rope_type != "default")),
            ("hidden_act", !matches!(self.hidden_act, Function::Silu)),
        ] {
            if refused {
                return Err(format!("{field} asks for a variant of nomic-bert that is not read here"));
            }
        }
        // Beyond what it was trained on, the authors' code stretches the wavelengths; their default is 2048.
        let tokens = match self.rotary_scaling_factor {
            Some(_) => self.max_position_embeddings.min(2048),
            None => self.max_position_embeddings,
        };
        Ok(Config {
            family: Family::NomicBert,
            vocab_size: self.vocab_size,
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            inner: self.intermediate_size,
            activation: Activation::Silu,
            epsilon: self.layer_norm_eps,
            tokens,
            first_position: 0,
            types: self.type_vocab_size,
            buckets: 0,
            rotary_base: self
                .rope_parameters
                .map(|rope| rope.rope_theta)
                .or(self.rotary_emb_base)
                .unwrap_or(1000.0),
            dropout: self.hidden_dropout_prob.unwrap_or(0.0),
        })
    }
}
