//! An encoder-decoder that learns from the text of an index: to write one part of it after reading another.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use sidenote_kernels::{self as kernels, CrossEntropyOptions};

use super::config::TrainConfig;
use super::examples::Examples;
use super::language::{HELD_OUT_DOCUMENTS, HeldOut};
use super::order::Order;
use super::steps::Learner;
use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::model::batch::IGNORE;
use crate::model::{Dropout, EncoderDecoder};
use crate::retriever::open_store;

/// Windows of held-out text that are measured at once.
const BATCH: usize = 8;

/// See [the module](self).
pub struct PairLearner<'a> {
    config: &'a TrainConfig,
    library: Store,
    held_out: Option<HeldOut>,
    model: EncoderDecoder,
    order: Order,
    examples: Examples,
}

/// What is read and what is written, a row each.
pub struct Pairs {
    inputs: Vec<Vec<u32>>,
    /// `[rows, tokens]`, [`IGNORE`] after the end of a row.
    targets: Tensor,
    count: usize,
}

impl<'a> PairLearner<'a> {
    /// Opens what `config` names; the model is that of the checkpoint `start`, where there is one.
    ///
    /// # Errors
    /// Names the setting or file that is missing or does not fit the others.
    pub fn open(config: &'a TrainConfig, start: Option<&Path>, device: &Device) -> Result<Self> {
        let library = open_store(&config.index)?;
        let training = &config.training;
        let model = match (start.or(config.base.as_deref()), &config.t5) {
            (Some(there), _) => EncoderDecoder::load(there, true, device)?,
            (None, Some(section)) => {
                let tokenizer = library.tokenizer().clone();
                let shape = section.config(tokenizer.vocab_size())?;
                EncoderDecoder::new(&shape, tokenizer, training.seed, device)?
            }
            (None, None) => return Err(Error::setting("t5", "give [t5] or a base")),
        };
        if model.tokenizer.identity() != library.tokenizer().identity() {
            return Err(Error::Mismatch {
                what: "tokenizers".into(),
                left: format!("{} of the model", model.tokenizer.identity()),
                right: format!("{} of the index", library.tokenizer().identity()),
                hint: "build the index with --tokenizer MODEL".into(),
            });
        }
        let order = Order::new(&library, training.chunks, training.batch_tokens, training.seed);
        if order.is_empty() {
            return Err(Error::file(&config.index, "holds no text to train on"));
        }
        let held_out = HeldOut::open(config, &library)?;
        let examples = Examples::new(&library, &config.objectives, training.chunks, training.seed, device)?;
        Ok(Self { config, library, held_out, model, order, examples })
    }

    /// Pairs, each side of which ends as texts do.
    fn side_by_side(&self, pairs: Vec<(Vec<u32>, Vec<u32>)>) -> Result<Pairs> {
        let end = self.model.end_tokens().first().copied();
        let ended = |tokens: Vec<u32>| tokens.into_iter().chain(end).collect::<Vec<u32>>();
        let (inputs, mut targets): (Vec<_>, Vec<_>) =
            pairs.into_iter().map(|(input, target)| (ended(input), ended(target))).unzip();
        let width = targets.iter().map(Vec::len).max().unwrap_or(0);
        let count = targets.iter().map(Vec::len).sum();
        targets.iter_mut().for_each(|target| target.resize(width, IGNORE));
        let shape = (targets.len(), width);
        let targets = Tensor::from_vec(targets.concat(), shape, self.model.network.device())?;
        Ok(Pairs { inputs, targets, count })
    }

    /// The sum of the negative log likelihoods of all targets.
    fn nats(&self, pairs: &Pairs, dropout: Option<Dropout>) -> Result<Tensor> {
        let network = &self.model.network;
        let inputs: Vec<&[u32]> = pairs.inputs.iter().map(Vec::as_slice).collect();
        let encoded = network.encoder().read(&inputs, dropout.map(|dropout| dropout.part(0)))?;
        let hidden = network.predict(&encoded, &pairs.targets, dropout.map(|dropout| dropout.part(1)))?;
        let (hidden, targets) = (hidden.flatten(0, 1)?, pairs.targets.flatten_all()?);
        let options = CrossEntropyOptions::ignoring(IGNORE);
        Ok(kernels::linear_cross_entropy(&hidden, &network.head()?, &targets, &options)?)
    }
}

impl Learner for PairLearner<'_> {
    type Batch = Pairs;

    fn variables(&self) -> &[(String, Var)] {
        self.model.variables()
    }

    fn parameters(&self) -> usize {
        self.model.parameters()
    }

    fn read(&mut self, number: usize) -> Result<Pairs> {
        let rows = self.order.batch(number);
        self.side_by_side(self.examples.pairs(&self.library, &rows, self.order.epoch()))
    }

    fn targets(&self, batch: &Pairs) -> usize {
        batch.count
    }

    fn loss(&self, batch: Pairs, number: usize) -> Result<Tensor> {
        let rate = self.model.network.config().dropout_rate();
        let seed = Dropout::new(rate, self.config.training.seed).part(number as u64);
        self.nats(&batch, (rate > 0.0).then_some(seed))
    }

    fn held_out(&self) -> Result<Option<f64>> {
        let Some(HeldOut { text, .. }) = &self.held_out else { return Ok(None) };
        let chunks = self.config.training.chunks;
        let windows: Vec<_> = (0..text.documents().min(HELD_OUT_DOCUMENTS))
            .flat_map(|document| {
                let all = text.chunks_of(document);
                all.clone().step_by(chunks).map(move |first| first..all.end.min(first + chunks))
            })
            .collect();
        let (mut nats, mut count) = (0.0, 0);
        for rows in windows.chunks(BATCH) {
            let pairs = self.examples.pairs(text, rows, 0);
            if !pairs.is_empty() {
                let pairs = self.side_by_side(pairs)?;
                nats += f64::from(self.nats(&pairs, None)?.to_scalar::<f32>()?);
                count += pairs.count;
            }
        }
        Ok((count > 0).then(|| nats / count as f64))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.model.save_as(dir, self.config.training.precision)
    }
}
