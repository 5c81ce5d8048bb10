//! A language model that learns from the text of an index: plain, with memories in the batch, or reading neighbours.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use sidenote_kernels::{self as kernels, CrossEntropyOptions};

use super::config::{Kind, TrainConfig, TrimeKind};
use super::copy;
use super::examples::Examples;
use super::order::Order;
use super::steps::Learner;
use super::trime::{self, Seen};
use crate::corpus::Store;
use crate::error::{Error, Result};
use crate::eval::perplexity::{self, Neighbourhood};
use crate::memory::Memories;
use crate::model::batch::{Batch, IGNORE, gather};
use crate::model::{
    DecoderConfig, Initialisation, LanguageModel, Network, Retrieved, Retro, RetroConfig, Trainable,
};
use crate::progress::Progress;
use crate::retriever::neighbours::{Neighbours, tokens_of};
use crate::retriever::{Ranking, open_store};

/// Held-out documents that are measured while training.
pub(super) const HELD_OUT_DOCUMENTS: usize = 48;
/// Share of the rate that layers which start by copying are trained with beside a decoder from scratch: at all of it they
/// unlearn to copy before the decoder has learnt what to look up (benches/quality/retrofit.md).
const COPYING_RATE: f64 = 0.1;
/// Batches that the copy initialisation is fitted on.
const FIT_BATCHES: usize = 24;

/// See [the module](self).
pub struct LanguageLearner<'a> {
    config: &'a TrainConfig,
    library: Store,
    /// What is learnt, where it is not the library itself.
    other: Option<Store>,
    neighbours: Option<Neighbours>,
    held_out: Option<HeldOut>,
    model: LanguageModel,
    order: Order,
    examples: Examples,
    device: Device,
}

impl<'a> LanguageLearner<'a> {
    /// Opens what `config` names; the model is that of the checkpoint `start`, where there is one.
    ///
    /// # Errors
    /// Names the setting or file that is missing or does not fit the others.
    pub fn open(config: &'a TrainConfig, start: Option<&Path>, device: &Device) -> Result<Self> {
        let library = open_store(&config.index)?;
        let neighbours = match &config.neighbours {
            Some(dir) => Some(Neighbours::open_for(dir, &config.index)?),
            None => None,
        };
        let other = neighbours.as_ref().map(Neighbours::queries).transpose()?.flatten();
        let text = other.as_ref().unwrap_or(&library);
        if let Some(neighbours) = &neighbours
            && neighbours.len() != text.chunks()
        {
            let why = format!("{} chunks, but the text has {}", neighbours.len(), text.chunks());
            return Err(Error::setting("neighbours", why));
        }
        let ranking = neighbours.as_ref().map(Neighbours::ranking).unwrap_or_default();
        let training = &config.training;
        let mut model = open_model(config, &library, ranking, start, device)?;
        // A model that learns with memories is asked with the contexts that a sequence has.
        model.trime = config.trime.as_ref().map(|_| training.chunks * library.chunk_size());
        let order = Order::new(text, training.chunks, training.batch_tokens, training.seed);
        let order = match config.trime.as_ref().map(|trime| trime.memory) {
            None | Some(TrimeKind::Local) => order,
            Some(TrimeKind::Long) => order.by_document(text),
            Some(TrimeKind::External) => order.by_words(text)?,
        };
        if order.is_empty() {
            let at = other.as_ref().and(config.neighbours.as_ref()).unwrap_or(&config.index);
            return Err(Error::file(at, "holds no text to train on"));
        }
        let held_out = HeldOut::open(config, &library)?;
        let k = model.network.neighbours();
        for found in neighbours.iter().chain(held_out.as_ref().map(|held_out| &held_out.neighbours)) {
            if k > 0 {
                found.check_enough("retro.neighbours", k)?;
                found.check_ranking(model.network.ranking())?;
            }
        }
        let examples = Examples::new(text, &config.objectives, training.chunks, training.seed, device)?;
        let longest = examples.longest();
        let positions = model.network.decoder().config().max_position_embeddings;
        if longest > positions {
            let why = format!("{longest} tokens a sequence, but the model reads at most {positions}");
            return Err(Error::setting("training.chunks", why));
        }
        Ok(Self {
            config,
            library,
            other,
            neighbours,
            held_out,
            model,
            order,
            examples,
            device: device.clone(),
        })
    }

    /// What is learnt.
    fn text(&self) -> &Store {
        self.other.as_ref().unwrap_or(&self.library)
    }

    /// Whether its network has layers that start by copying.
    fn copies(&self) -> bool {
        let start = |retro: &Retro| retro.config().initialisation;
        matches!(&self.model.network, Network::Retro(retro) if start(retro) == Initialisation::Copy)
    }
}

impl Learner for LanguageLearner<'_> {
    type Batch = (Batch, Option<Retrieved>);

    fn variables(&self) -> &[(String, Var)] {
        self.model.variables()
    }

    fn parameters(&self) -> usize {
        self.model.parameters()
    }

    fn rate_share(&self, name: &str) -> f64 {
        let from_scratch = self.config.kind == Kind::Retro;
        if from_scratch && self.copies() && name.starts_with("retro.") { COPYING_RATE } else { 1.0 }
    }

    fn begin(&mut self, progress: Progress) -> Result<()> {
        if !self.copies() {
            return Ok(());
        }
        let batches = (0..FIT_BATCHES).map(|i| self.read(i)).collect::<Result<Vec<_>>>()?;
        if let Network::Retro(retro) = &self.model.network {
            progress.note("fitting the copy initialisation to the training text");
            let fit = copy::fit(retro, self.model.variables(), &batches)?;
            progress.note(format!("copy initialisation: {fit}"));
        }
        Ok(())
    }

    fn read(&mut self, number: usize) -> Result<Self::Batch> {
        let rows = self.order.batch(number);
        let batch = self.examples.batch(self.text(), &rows, self.order.epoch())?;
        let retrieved = match &self.neighbours {
            Some(neighbours) => {
                let of = |chunk| tokens_of(&self.library, neighbours.of(chunk));
                Some(gather(&batch, self.text(), of, self.model.network.neighbours(), &self.device)?)
            }
            None => None,
        };
        Ok((batch, retrieved))
    }

    fn targets(&self, (batch, _): &Self::Batch) -> usize {
        batch.scored
    }

    fn loss(&self, (batch, retrieved): Self::Batch, number: usize) -> Result<Tensor> {
        let network = &self.model.network;
        let head = network.decoder().head()?;
        match &self.config.trime {
            None => {
                let hidden = network.forward(&batch.tokens, retrieved.as_ref())?.flatten(0, 1)?;
                let options = CrossEntropyOptions::ignoring(IGNORE);
                Ok(kernels::linear_cross_entropy(&hidden, &head, &batch.targets, &options)?)
            }
            Some(section) => {
                let (hidden, contexts) = network.forward_with_contexts(&batch.tokens, None)?;
                let seen = Seen::new(section, &batch, self.text(), self.config.training.seed, number)?;
                trime::loss(&hidden, &head, &contexts, &batch, &seen)
            }
        }
    }

    fn held_out(&self) -> Result<Option<f64>> {
        let Some(held_out) = &self.held_out else { return Ok(None) };
        let memories = Memories { trime: self.model.trime, ..Memories::default() };
        held_out.loss(&self.model, &self.library, self.model.network.neighbours(), &memories).map(Some)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.model.save_as(dir, self.config.training.precision)
    }
}

fn open_model(
    config: &TrainConfig,
    library: &Store,
    ranking: Ranking,
    start: Option<&Path>,
    device: &Device,
) -> Result<LanguageModel> {
    let training = &config.training;
    let retro = |decoder: &DecoderConfig, frozen: bool| {
        let section = config.retro.clone().unwrap_or_default();
        RetroConfig { ranking, ..section.config(decoder, library.chunk_size(), frozen) }
    };
    let trainable = match config.base {
        Some(_) => Trainable::RetroOnly,
        None => Trainable::Everything,
    };
    let model = match (start, &config.base, &config.model) {
        (Some(checkpoint), _, _) => {
            let model = LanguageModel::load(checkpoint, trainable, device)?;
            match (config.kind, &model.network) {
                (Kind::Lm, Network::Plain(_)) | (Kind::Retro | Kind::Retrofit, Network::Retro(_)) => model,
                (Kind::Lm, _) => return Err(Error::file(checkpoint, "a RETRO model, but kind = \"lm\"")),
                (_, _) => {
                    return Err(Error::file(checkpoint, "a plain decoder, but the kind is one of RETRO's"));
                }
            }
        }
        (None, Some(base), _) => {
            let frozen = LanguageModel::load(base, Trainable::Nothing, device)?;
            let retro = retro(frozen.network.decoder().config(), true);
            LanguageModel::retrofit(base, &retro, training.seed, device)?
        }
        (None, None, Some(section)) => {
            let tokenizer = library.tokenizer().clone();
            let decoder = section.decoder(tokenizer.vocab_size());
            decoder.check()?;
            let retro = (config.kind == Kind::Retro).then(|| retro(&decoder, false));
            LanguageModel::new(&decoder, retro.as_ref(), tokenizer, training.seed, device)?
        }
        (None, None, None) => return Err(Error::setting("model", "give [model] or a base")),
    };
    model.check_fits(library)?;
    Ok(model)
}

/// Held-out text that is measured while training.
pub(super) struct HeldOut {
    pub text: Store,
    neighbours: Neighbours,
}

impl HeldOut {
    pub fn open(config: &TrainConfig, library: &Store) -> Result<Option<Self>> {
        let Some(dir) = &config.held_out else { return Ok(None) };
        let neighbours = Neighbours::open_for(dir, &config.index)?;
        let text = neighbours.queries()?.ok_or_else(|| {
            Error::file(dir, "holds no text of its own; make it with `sidenote neighbours --queries`")
        })?;
        if text.tokenizer().identity() != library.tokenizer().identity() {
            return Err(Error::setting("held_out", "was made with another tokenizer than the index"));
        }
        Ok(Some(Self { text, neighbours }))
    }

    fn loss(&self, model: &LanguageModel, library: &Store, k: usize, memories: &Memories) -> Result<f64> {
        let documents = 0..self.text.documents().min(HELD_OUT_DOCUMENTS);
        let around = (k > 0).then(|| Neighbourhood {
            of: Box::new(|chunk| tokens_of(library, self.neighbours.of(chunk))),
            k,
        });
        let scores = perplexity::score_with(
            model,
            &self.text,
            documents,
            around.as_ref(),
            memories,
            Progress::Silent,
        )?;
        Ok(scores.loss())
    }
}
