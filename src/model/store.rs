//! A model on disk: a folder with `config.json`, `tokenizer.json` and `model.safetensors` in
//! Hugging Face's layout, so that a plain decoder also loads in transformers. A RETRO model adds a
//! `retro` section to the configuration and `retro.*` tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use serde_json::{Value, json};

use super::adapted::{Adapted, Wanted};
use super::decoder::{Decoder, DecoderConfig};
use super::matrix::Matrix;
use super::place::Place;
use super::precision::Precision;
use super::retro::{Retrieved, Retro, RetroConfig};
use super::source::{BASE_MODEL, BaseModel, ChatTemplate, Source};
use super::weights::Weights;
use super::whole::whole_tensors;
use crate::corpus::Store;
use crate::corpus::Tokenizer;
use crate::error::{Error, Result};
use crate::ranking::Ranking;
use crate::sealed;

const KIND: &str = "model";
const FORMAT_VERSION: u32 = 1;
/// What the configuration calls [`LanguageModel::trime`].
const TRIME: &str = "trime_contexts";
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// A network of either kind.
#[expect(clippy::large_enum_variant, reason = "a program holds one or two of them, never a list")]
pub enum Network {
    /// A decoder that does not read.
    Plain(Decoder),
    /// A decoder with chunked cross-attention.
    Retro(Retro),
}

impl Network {
    /// The decoder, or the one underneath.
    pub fn decoder(&self) -> &Decoder {
        match self {
            Self::Plain(decoder) => decoder,
            Self::Retro(retro) => retro.base(),
        }
    }

    /// Neighbours a chunk that it reads; 0 for a plain decoder.
    pub fn neighbours(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Retro(retro) => retro.config().neighbours,
        }
    }

    /// What the neighbours that it reads are found by.
    pub fn ranking(&self) -> Ranking {
        match self {
            Self::Plain(_) => Ranking::default(),
            Self::Retro(retro) => retro.config().ranking,
        }
    }

    /// Hidden states of whole sequences before the output head, `[batch, tokens, d]`. A plain decoder ignores what
    /// was retrieved.
    pub fn forward(&self, tokens: &Tensor, retrieved: Option<&Retrieved>) -> Result<Tensor> {
        match self {
            Self::Plain(decoder) => decoder.forward_whole(tokens),
            Self::Retro(retro) => retro.forward(tokens, retrieved),
        }
    }

    /// [`forward`](Self::forward), and the contexts that token-level memories are keyed by: what the last block's
    /// feed-forward layer read, `[batch, tokens, d]`.
    pub fn forward_with_contexts(
        &self,
        tokens: &Tensor,
        retrieved: Option<&Retrieved>,
    ) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Plain(decoder) => decoder.forward_whole_with_contexts(tokens),
            Self::Retro(retro) => retro.forward_with_contexts(tokens, retrieved),
        }
    }
}

/// Which weights of a loaded model are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainable {
    /// None: the model is only run.
    Nothing,
    /// What RETRO adds; the decoder is frozen (the paper's RETRO-fit, section 4.2).
    RetroOnly,
    /// Everything.
    Everything,
}

/// A network with its tokenizer and its weights by name.
pub struct LanguageModel {
    /// The network.
    pub network: Network,
    /// The tokenizer it was trained with.
    pub tokenizer: Tokenizer,
    /// Of one trained with memories (TRIME): how many of a document's last contexts are in its softmax, as in training.
    pub trime: Option<usize>,
    speech: Speech,
    /// The model underneath, of one that is saved without it.
    base: Option<BaseModel>,
    /// An adapter that is trained: all that is saved.
    adapted: Option<Adapted>,
    tensors: BTreeMap<Place, Matrix>,
    variables: Vec<(String, Var)>,
}

/// What a model's texts look like.
#[derive(Debug, Default)]
struct Speech {
    starts: Vec<u32>,
    ends: Vec<u32>,
    chat: Option<ChatTemplate>,
}

impl Speech {
    /// As `source` says. A model that was trained here has read documents that begin where another ends.
    fn of(source: &Source, tokenizer: &Tokenizer) -> Result<Self> {
        let mut starts = tokenizer.starts()?;
        // One that was tuned from a model without such a beginning says so.
        let none = source.config().get("bos_token_id").is_some_and(Value::is_null);
        if starts.is_empty() && source.is_ours() && !none {
            starts.extend(tokenizer.end_of_text());
        }
        let mut ends = source.end_tokens();
        ends.extend(tokenizer.end_of_text().filter(|end| !ends.contains(end)));
        Ok(Self { starts, ends, chat: source.chat_template()? })
    }
}

impl LanguageModel {
    /// A new model whose weights start from `seed`.
    pub fn new(
        decoder: &DecoderConfig,
        retro: Option<&RetroConfig>,
        tokenizer: Tokenizer,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut weights = Weights::from_seed(seed, device);
        let base = Decoder::new(decoder, &mut weights)?;
        let network = match retro {
            Some(config) => Network::Retro(Retro::new(base, config, &mut weights)?),
            None => Network::Plain(base),
        };
        let (tensors, variables) = weights.finish();
        let end: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        let speech = Speech { starts: end.clone(), ends: end, chat: None };
        Ok(Self { network, tokenizer, trime: None, speech, base: None, adapted: None, tensors, variables })
    }

    /// Reads the model called `name`, as [`Source::open`] understands it.
    pub fn load(name: impl AsRef<Path>, trainable: Trainable, device: &Device) -> Result<Self> {
        Self::from_source(open(name.as_ref())?, trainable, device)
    }

    /// Reads the model out of an opened checkpoint.
    pub fn from_source(source: Source, trainable: Trainable, device: &Device) -> Result<Self> {
        let (decoder, retro) = read_config(&source)?;
        Self::read(source, &decoder, retro.as_ref(), trainable, Added::Nothing, device)
    }

    /// Reads the plain decoder out of an opened checkpoint, with an adapter: trained, in which case the adapter alone is
    /// what [`save`](Self::save) writes, or put into the weights.
    ///
    /// # Errors
    /// An adapter of another model, or with tensors that it has no place for; a RETRO model.
    pub fn adapted(source: Source, wanted: Wanted<'_>, device: &Device) -> Result<Self> {
        let (decoder, retro) = read_config(&source)?;
        if retro.is_some() {
            let why = "a RETRO model; adapters are for plain decoders and encoder-decoders";
            return Err(Error::file(source.path(), why));
        }
        Self::read(source, &decoder, None, Trainable::Nothing, Added::Adapter(wanted), device)
    }

    /// Reads the plain decoder called `name`, freezes it, and adds RETRO's layers, which start from
    /// `seed` (RETRO-fit). The model is saved as what was added, beside the decoder's name.
    pub fn retrofit(name: impl AsRef<Path>, retro: &RetroConfig, seed: u64, device: &Device) -> Result<Self> {
        let source = open(name.as_ref())?;
        let (decoder, existing) = read_config(&source)?;
        if existing.is_some() {
            let why = "already a RETRO model; give the plain model that it was made from";
            return Err(Error::file(source.path(), why));
        }
        retro.check(&decoder)?;
        let base = BaseModel::of(name.as_ref(), &source)?;
        let model =
            Self::read(source, &decoder, Some(retro), Trainable::RetroOnly, Added::Retro(seed), device)?;
        Ok(Self { base: Some(base), ..model })
    }

    fn read(
        source: Source,
        decoder: &DecoderConfig,
        retro: Option<&RetroConfig>,
        trainable: Trainable,
        added: Added<'_>,
        device: &Device,
    ) -> Result<Self> {
        let path = source.path().to_path_buf();
        let base = source.base_model()?;
        let tokenizer = source.tokenizer()?;
        if tokenizer.vocab_size() > decoder.vocab_size {
            let why = format!(
                "the tokenizer has {} tokens, but the configuration says vocab_size {}",
                tokenizer.vocab_size(),
                decoder.vocab_size
            );
            return Err(Error::file(path, why));
        }
        let speech = Speech::of(&source, &tokenizer)?;
        let trime = source.config().get(TRIME).cloned().map(serde_json::from_value).transpose();
        let trime = trime.map_err(|e| Error::file(&path, format!("config.json: {TRIME}: {e}")))?;
        let named = |e: Error| match e {
            Error::Setting { name, why } => Error::file(&path, format!("{name}: {why}")),
            other => other,
        };
        let (mut fresh_retro, mut underneath, mut keep) = (None, None, trainable == Trainable::Nothing);
        let mut attach = None;
        match added {
            Added::Nothing => {}
            Added::Retro(seed) => fresh_retro = Some(seed),
            Added::Adapter(mut wanted) => {
                underneath = Some(wanted.check(&source)?);
                // Gradients pass through the model, and what is put into weights needs numbers.
                keep = false;
                attach = Some(wanted);
            }
        }
        let mut weights = Weights::from_source(source, device);
        if let Some(wanted) = attach {
            wanted.attach(&mut weights);
        }
        weights.set_trainable(trainable == Trainable::Everything);
        // RETRO-fit's gradients pass through the frozen decoder.
        weights.keep_blocks(keep);
        let plain = Decoder::new(decoder, &mut weights).map_err(named)?;
        let network = match retro {
            Some(config) => {
                weights.set_trainable(trainable != Trainable::Nothing);
                if let Some(seed) = fresh_retro {
                    weights.check_all_taken()?;
                    weights.start_fresh(seed);
                }
                Network::Retro(Retro::new(plain, config, &mut weights).map_err(named)?)
            }
            None => Network::Plain(plain),
        };
        weights.check_all_taken()?;
        let attached = weights.detach();
        let (tensors, variables) = weights.finish();
        let adapted = Adapted::of(attached, underneath);
        Ok(Self { network, tokenizer, trime, speech, base, adapted, tensors, variables })
    }

    /// Tokens that every text of the model's begins with; none for some models.
    pub fn start_tokens(&self) -> &[u32] {
        &self.speech.starts
    }

    /// Tokens that end a text.
    pub fn end_tokens(&self) -> &[u32] {
        &self.speech.ends
    }

    /// How conversations look as text, for a model that was trained on some.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.speech.chat.as_ref()
    }

    /// Writes the model to the new folder `dir`, which appears whole or not at all.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, Precision::F32)
    }

    /// [`save`](Self::save) with weights of this precision.
    ///
    /// # Errors
    /// A folder that is there already, a full disk.
    pub fn save_as(&self, dir: &Path, precision: Precision) -> Result<()> {
        if let Some(adapted) = &self.adapted {
            let config = self.network.decoder().config();
            let shape =
                [config.num_hidden_layers, config.hidden_size, config.num_key_value_heads, config.head_dim];
            return adapted.save(dir, &self.tensors, false, shape);
        }
        let Some(base) = &self.base else {
            let mut config = self.config_json()?;
            config["torch_dtype"] = precision.name().into();
            return write(dir, &config, &self.tokenizer, &self.tensors, precision);
        };
        let failed = |e: serde_json::Error| Error::setting(BASE_MODEL, e.to_string());
        let mut config = json!({ BASE_MODEL: serde_json::to_value(base.seen_from(dir)).map_err(failed)? });
        if let Network::Retro(retro) = &self.network {
            config["retro"] = serde_json::to_value(retro.config()).map_err(failed)?;
        }
        let added = self.tensors.iter().filter(|(place, _)| place.tensor.starts_with(Retro::PREFIX));
        let added = added.map(|(place, matrix)| (place.clone(), matrix.clone())).collect();
        write(dir, &config, &self.tokenizer, &added, precision)
    }

    fn config_json(&self) -> Result<Value> {
        let mut config = self.network.decoder().config().to_json();
        let end = match self.end_tokens() {
            [one] => json!(one),
            [] => Value::Null,
            several => json!(several),
        };
        config.insert("bos_token_id".into(), json!(self.start_tokens().first()));
        config.insert("eos_token_id".into(), end);
        if let Some(contexts) = self.trime {
            config.insert(TRIME.into(), contexts.into());
        }
        if let Network::Retro(retro) = &self.network {
            let retro = serde_json::to_value(retro.config());
            config.insert("retro".into(), retro.map_err(|e| Error::setting("retro", e.to_string()))?);
        }
        Ok(config.into())
    }

    /// Refuses a chunk store that was cut with another tokenizer, or into other chunks than a
    /// RETRO model reads.
    pub fn check_fits(&self, store: &Store) -> Result<()> {
        if self.tokenizer.identity() != store.tokenizer().identity() {
            return Err(Error::Mismatch {
                what: "tokenizers".into(),
                left: format!("{} of the model", self.tokenizer.identity()),
                right: format!("{} of the index", store.tokenizer().identity()),
                hint: "build the index with --tokenizer MODEL".into(),
            });
        }
        if let Network::Retro(retro) = &self.network
            && retro.config().chunk_size != store.chunk_size()
        {
            return Err(Error::Mismatch {
                what: "chunk sizes".into(),
                left: format!("{} tokens of the model", retro.config().chunk_size),
                right: format!("{} of the index", store.chunk_size()),
                hint: format!("build the index with --chunk-tokens {}", retro.config().chunk_size),
            });
        }
        Ok(())
    }

    /// Tokens of a chunk: those that a RETRO model reads, else 64 or as many as two of which fit a window.
    pub fn chunk_size(&self) -> usize {
        match &self.network {
            Network::Retro(retro) => retro.config().chunk_size,
            Network::Plain(decoder) => 64.min(decoder.config().max_position_embeddings / 2).max(1),
        }
    }

    /// Hash over all weights, in the order of their names, and the tokenizer: two models with the same identity
    /// predict the same.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn identity(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.tokenizer.identity().as_bytes());
        for (place, matrix) in &self.tensors {
            hasher.update(format!("{place:?}").as_bytes());
            let values = matrix.dense()?.flatten_all()?.to_vec1::<f32>()?;
            hasher.update(crate::corpus::bytes_of(&values));
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
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

/// What is added to a decoder while it is read.
enum Added<'a> {
    Nothing,
    /// RETRO's layers, which start from a seed.
    Retro(u64),
    Adapter(Wanted<'a>),
}

/// Writes a model to the new folder `dir`, which appears whole or not at all.
pub(super) fn write(
    dir: &Path,
    config: &Value,
    tokenizer: &Tokenizer,
    weights: &BTreeMap<Place, Matrix>,
    precision: Precision,
) -> Result<()> {
    sealed::write_folder(dir, "a model", |dir| {
        let path = dir.join("config.json");
        fs::write(&path, format!("{config:#}\n")).map_err(Error::io(path))?;
        tokenizer.save(&dir.join("tokenizer.json"))?;
        sealed::write_tensors(&dir.join("model.safetensors"), &whole_tensors(weights, precision)?)?;
        sealed::seal(dir, KIND, FORMAT_VERSION, &json!({}), &FILES)
    })
}

/// Opens the checkpoint `name`; every byte of one with a manifest is checked first.
pub(super) fn open(name: &Path) -> Result<Source> {
    sealed::check(name, KIND, FORMAT_VERSION)?;
    Source::open(name)
}

/// What the checkpoint's configuration describes.
fn read_config(source: &Source) -> Result<(DecoderConfig, Option<RetroConfig>)> {
    let wrong = |why: String| Error::file(source.path(), format!("config.json: {why}"));
    let decoder = DecoderConfig::from_json(source.config()).map_err(|e| wrong(e.to_string()))?;
    let retro = source.config().get("retro").cloned().map(serde_json::from_value).transpose();
    Ok((decoder, retro.map_err(|e| wrong(format!("retro: {e}")))?))
}
