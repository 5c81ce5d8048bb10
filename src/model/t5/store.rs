//! An encoder-decoder with its tokenizer, read and written in transformers' layout.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Var};
use serde_json::{Value, json};

use super::{T5, T5Config, checkpoint};
use crate::corpus::Tokenizer;
use crate::error::{Error, Result};
use crate::model::Precision;
use crate::model::adapted::{Adapted, Wanted};
use crate::model::matrix::Matrix;
use crate::model::place::Place;
use crate::model::source::{BaseModel, Source};
use crate::model::store;
use crate::model::weights::Weights;

/// A T5 with its tokenizer and its weights by name: what [`LanguageModel`](crate::model::LanguageModel) is to
/// decoders.
pub struct EncoderDecoder {
    /// The network.
    pub network: T5,
    /// The tokenizer it was trained with.
    pub tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
    /// An adapter that is trained: all that is saved.
    adapted: Option<Adapted>,
    tensors: BTreeMap<Place, Matrix>,
    variables: Vec<(String, Var)>,
}

impl EncoderDecoder {
    /// A new model whose weights start from `seed`.
    pub fn new(config: &T5Config, tokenizer: Tokenizer, seed: u64, device: &Device) -> Result<Self> {
        let end_tokens = tokenizer.end_of_text().into_iter().collect();
        Self::build(config, tokenizer, end_tokens, Weights::from_seed(seed, device), None)
    }

    /// Reads the model called `name`, as [`Source::open`] understands it. Weights are read as f32, whatever they
    /// are stored as: T5 was trained in bf16, and its activations overflow in f16.
    pub fn load(name: impl AsRef<Path>, trainable: bool, device: &Device) -> Result<Self> {
        Self::from_source(store::open(name.as_ref())?, trainable, device)
    }

    /// Reads the model out of an opened checkpoint.
    pub fn from_source(source: Source, trainable: bool, device: &Device) -> Result<Self> {
        Self::read(source, trainable, None, device)
    }

    /// [`from_source`](Self::from_source) with an adapter: trained, in which case the adapter alone is what
    /// [`save`](Self::save) writes, or put into the weights.
    ///
    /// # Errors
    /// An adapter of another model, or with tensors that it has no place for.
    pub fn adapted(source: Source, wanted: Wanted<'_>, device: &Device) -> Result<Self> {
        Self::read(source, false, Some(wanted), device)
    }

    fn read(
        mut source: Source,
        trainable: bool,
        mut wanted: Option<Wanted<'_>>,
        device: &Device,
    ) -> Result<Self> {
        let base = wanted.as_mut().map(|wanted| wanted.check(&source)).transpose()?;
        let path = source.path().to_path_buf();
        let named = |e: Error| match e {
            Error::Setting { name, why } => Error::file(&path, format!("{name}: {why}")),
            other => other,
        };
        let config = checkpoint::settle(&mut source).map_err(named)?;
        let (tokenizer, mut end_tokens) = (source.tokenizer()?, source.end_tokens());
        if end_tokens.is_empty() {
            end_tokens.extend(tokenizer.end_of_text());
        }
        let mut weights = Weights::from_source(source, device);
        weights.set_trainable(trainable);
        weights.keep_blocks(!trainable && wanted.is_none());
        if let Some(wanted) = wanted {
            wanted.attach(&mut weights);
        }
        Self::build(&config, tokenizer, end_tokens, weights, base).map_err(named)
    }

    fn build(
        config: &T5Config,
        tokenizer: Tokenizer,
        end_tokens: Vec<u32>,
        mut weights: Weights,
        base: Option<BaseModel>,
    ) -> Result<Self> {
        if tokenizer.vocab_size() > config.vocab_size {
            let why =
                format!("{}, but the tokenizer has {} tokens", config.vocab_size, tokenizer.vocab_size());
            return Err(Error::setting("vocab_size", why));
        }
        let network = T5::new(config, &mut weights)?;
        weights.check_all_taken()?;
        let attached = weights.detach();
        let (tensors, variables) = weights.finish();
        let adapted = Adapted::of(attached, base);
        Ok(Self { network, tokenizer, end_tokens, adapted, tensors, variables })
    }

    /// Writes the model to the new folder `dir`, which appears whole or not at all, as transformers reads it.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, Precision::F32)
    }

    /// [`save`](Self::save) with weights of this precision.
    ///
    /// # Errors
    /// A folder that is there already, a full disk.
    pub fn save_as(&self, dir: &Path, precision: Precision) -> Result<()> {
        if let Some(adapted) = &self.adapted {
            let config = self.network.config();
            let shape = [config.decoder_layers(), config.d_model, config.num_heads, config.d_kv];
            return adapted.save(dir, &self.tensors, true, shape);
        }
        let mut config = self.config_json()?;
        config["torch_dtype"] = precision.name().into();
        store::write(dir, &config, &self.tokenizer, &self.tensors, precision)
    }

    fn config_json(&self) -> Result<Value> {
        let config = self.network.config();
        let failed = |e: serde_json::Error| Error::setting("config.json", e.to_string());
        let Value::Object(mut fields) = serde_json::to_value(config).map_err(failed)? else {
            return Err(Error::setting("config.json", "is no object"));
        };
        let class = if config.model_type == "mt5" { "MT5" } else { "T5" };
        let ours = [
            ("architectures", json!([format!("{class}ForConditionalGeneration")])),
            ("is_encoder_decoder", json!(true)),
            ("num_decoder_layers", json!(config.decoder_layers())),
            ("decoder_start_token_id", json!(config.start_token())),
        ];
        fields.extend(ours.map(|(name, value)| (name.to_string(), value)));
        if let Some(&end) = self.end_tokens.first() {
            fields.entry("eos_token_id").or_insert(json!(end));
        }
        fields.remove("dtype");
        Ok(Value::Object(fields))
    }

    /// The tokens of a prompt as the encoder reads it, which ends like a text. Sentinels such as `<extra_id_0>` are
    /// meant where they are spelled out.
    ///
    /// # Errors
    /// When the text is empty.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Err(Error::setting("prompt", "is empty; give at least one word to read"));
        }
        let mut ids = self.tokenizer.encode_marked(text)?;
        ids.extend(self.tokenizer.end_of_text());
        Ok(ids)
    }

    /// Tokens that end what the decoder writes.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The weights that are trained, by name.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// Number of values in all weights.
    pub fn parameters(&self) -> usize {
        let own: usize = self.tensors.values().map(Matrix::elem_count).sum();
        own + self.adapted.as_ref().map_or(0, Adapted::parameters)
    }
}
