//! Sentence encoders with gradients, and saved in the layout that they were read from.
//!
//! [`SentenceEncoder`](super::SentenceEncoder) is the same arithmetic for inference, on weights laid out for speed.

mod network;
mod save;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use sidenote_index::Metric;

use super::config::Family;
use super::copied;
use super::folder::{CONFIG, Files};
use super::names;
use super::settings::{Pooling, Settings};
use super::t5::DenseShape;
use crate::error::{Error, Result};
use crate::model::batch::side_by_side;
use crate::model::layers::{Dropout, Linear};
use crate::model::matrix::Matrix;
use crate::model::place::Place;
use crate::model::source::Source;
use crate::model::t5;
use crate::model::weights::{Start, Weights};
use network::Network;

/// A sentence encoder of one of BERT's families, or over a T5 encoder, whose weights are trained.
///
/// While it is trained, numbers are dropped where transformers drops them, but for attention's weights.
pub struct TrainableEncoder {
    settings: Settings,
    network: Body,
    /// Modules of sentence-transformers after the pooling.
    dense: Vec<Dense>,
    dim: usize,
    dropout: f32,
    /// What is saved beside the weights. It is kept here, since a run goes on longer than the checkpoint it began with.
    files: Vec<(PathBuf, Vec<u8>)>,
    weights: Vec<Part>,
    variables: Variables,
}

enum Body {
    Bert(Network),
    T5(Box<t5::Encoder>),
}

struct Dense {
    linear: Linear,
    tanh: bool,
}

/// Weights that are trained, by name.
type Variables = Vec<(String, Var)>;

/// The weights of one folder: the network's own, or a module's.
struct Part {
    /// Below the encoder's folder; empty for that itself.
    folder: String,
    tensors: BTreeMap<Place, Matrix>,
    /// Tensors that the vectors do not depend on, such as a head's: they are kept as they are.
    others: Vec<(String, Tensor)>,
}

impl TrainableEncoder {
    /// Reads the encoder called `name`, as [`load`](super::load) understands it.
    ///
    /// # Errors
    /// As for `load`, and for a static table, which has no network to train.
    pub fn load(name: &str, device: &Device) -> Result<Self> {
        let mut files = Files::open(name)?;
        let kind = files.model_type()?;
        let Some(folder) = files.folder().map(Path::to_path_buf) else {
            return Err(
                files.fault(CONFIG, "the encoder inside the program is a table; a network is trained")
            );
        };
        let source = Source::open(&folder)?;
        let (settings, network, dropout, mut dim, part, mut variables, dense) = match Family::of(&kind) {
            Some(family) => {
                let (config, settings) = Settings::of_bert(&mut files, family)?;
                let prefix = names::prefix(|name| source.has(name));
                let build = |w: &mut Weights| Network::new(&config, w, prefix);
                let (network, part, variables) = Part::take("", source, device, build)?;
                (settings, Body::Bert(network), config.dropout, config.hidden, part, variables, Vec::new())
            }
            None if t5::MODEL_TYPES.contains(&kind.as_str()) => {
                let (settings, dense) = Settings::of_t5(&mut files)?;
                let mut source = source;
                let config = t5::settle(&mut source)?;
                settings.check_vocabulary(&files, config.vocab_size)?;
                let build = |w: &mut Weights| t5::Encoder::take(&config, w);
                let (network, part, variables) = Part::take("", source, device, build)?;
                let network = Body::T5(Box::new(network));
                (settings, network, config.dropout_rate(), config.d_model, part, variables, dense)
            }
            None => {
                let why = format!("model_type {kind:?} has no network that is trained here");
                return Err(files.fault(CONFIG, why));
            }
        };
        let mut weights = vec![part];
        let mut modules = Vec::new();
        for module in dense {
            let DenseShape { input, output, bias, tanh } = DenseShape::read(&mut files, &module, dim)?;
            let build =
                |w: &mut Weights| Linear::with_bias(w, "linear", input, output, Start::Constant(0.0), bias);
            let (linear, part, own) =
                Part::take(&module, Source::open(folder.join(&module))?, device, build)?;
            dim = output;
            modules.push(Dense { linear, tanh });
            weights.push(part);
            variables.extend(own);
        }
        let files = copied::settings(&folder)?;
        Ok(Self { settings, network, dense: modules, dim, dropout, files, weights, variables })
    }

    /// Width of the vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How near two of its vectors are.
    pub fn metric(&self) -> Metric {
        self.settings.metric
    }

    /// Share of the numbers that its configuration wants dropped in training.
    pub fn dropout_rate(&self) -> f32 {
        self.dropout
    }

    /// Ids of texts that are to be found, after the prompt that the model was trained with; empty where a text has no
    /// token.
    pub fn tokenize(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        self.settings.tokenize(&self.settings.prompts.document, texts)
    }

    /// Ids of texts that look for others.
    pub fn tokenize_queries(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        self.settings.tokenize(&self.settings.prompts.query, texts)
    }

    /// The vectors `[texts, dim]` of texts given as ids, none of them empty: of length 1 under
    /// [`Metric::Cosine`].
    ///
    /// # Errors
    /// A text without a token, or more tokens than the network reads.
    pub fn forward(&self, texts: &[&[u32]], dropout: Option<Dropout>) -> Result<Tensor> {
        if let Some(number) = texts.iter().position(|text| text.is_empty()) {
            return Err(Error::setting("texts", format!("number {number} has no token")));
        }
        let device = self.device();
        let (tokens, mask) = side_by_side(texts, device)?;
        let states = match &self.network {
            Body::Bert(network) => network.forward(&tokens, mask.as_ref(), dropout)?,
            Body::T5(network) => network.forward(&tokens, mask.as_ref(), dropout)?.states,
        };
        let mut x = match self.settings.pooling {
            Pooling::Cls => states.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => {
                let (batch, longest, _) = states.dims3()?;
                let share = |text: &&[u32]| {
                    let (n, own) = (text.len(), 1.0 / text.len() as f32);
                    (0..longest).map(move |i| if i < n { own } else { 0.0 })
                };
                let shares: Vec<f32> = texts.iter().flat_map(share).collect();
                let shares = Tensor::from_vec(shares, (batch, 1, longest), device)?;
                shares.matmul(&states)?.squeeze(1)?
            }
        };
        for dense in &self.dense {
            x = dense.linear.forward(&x)?;
            if dense.tanh {
                x = x.tanh()?;
            }
        }
        if self.settings.metric == Metric::Cosine {
            // As PyTorch's `normalize` does, for a vector that is zero.
            let length = x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
            x = x.broadcast_div(&length)?;
        }
        Ok(x)
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        match &self.network {
            Body::Bert(network) => network.device(),
            Body::T5(network) => network.device(),
        }
    }

    /// The weights that are trained, by name.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }
}

impl Part {
    /// What `build` takes out of a checkpoint, and the rest of it.
    fn take<T>(
        folder: &str,
        source: Source,
        device: &Device,
        build: impl FnOnce(&mut Weights) -> Result<T>,
    ) -> Result<(T, Self, Variables)> {
        let mut weights = Weights::from_source(source, device);
        let built = build(&mut weights)?;
        let others = weights.others()?;
        let (tensors, variables) = weights.finish();
        let named = |(name, variable)| {
            let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            (name, variable)
        };
        let variables = variables.into_iter().map(named).collect();
        Ok((built, Self { folder: folder.into(), tensors, others }, variables))
    }
}
