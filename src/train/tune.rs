//! A model that learns tasks from instances: what is asked is read, what is answered is learnt. Whole, or an adapter.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, Device, Tensor, Var};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sidenote_kernels::{self as kernels, CrossEntropyOptions};

use super::config::{TrainConfig, TuneLoss, TuneSection};
use super::mixture::{Mixture, Unit};
use super::steps::Learner;
use super::tune_examples::{self, Example};
use super::tune_splits::{Splits, evenly};
use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::eval::tasks::{self, Item, ModelText};
use crate::model::batch::{IGNORE, side_by_side};
use crate::model::{Decoder, Dropout, Network, Wanted, WritingModel};

/// Held-out instances that are measured while training, of each kind.
const HELD_OUT: usize = 256;
/// Those that are measured at once.
const BATCH: usize = 8;

/// See [the module](self).
pub struct TuneLearner<'a> {
    config: &'a TrainConfig,
    section: TuneSection,
    model: WritingModel,
    instances: Vec<Example>,
    held_out: Vec<Example>,
    /// What is held out of each kind.
    splits: Vec<(&'static str, Vec<Example>)>,
    mixture: Mixture,
}

/// Instances side by side.
pub struct Tuned {
    /// One for each answer that is read.
    rows: Vec<Row>,
    /// Whether there is anything to choose.
    ranked: bool,
    count: usize,
}

struct Row {
    question: Vec<u32>,
    answer: Vec<u32>,
    /// The instance of the batch that it is of.
    of: usize,
    right: bool,
}

impl<'a> TuneLearner<'a> {
    /// Opens what `config` names; the model is that of the checkpoint `start`, where there is one.
    ///
    /// # Errors
    /// Names the setting, file or line that is missing or does not fit the others.
    pub fn open(config: &'a TrainConfig, start: Option<&Path>, device: &Device) -> Result<Self> {
        let missing =
            || Error::setting("tune", "give the files of instances: [tune] data = [\"pool.jsonl\"]");
        let section = config.tune.clone().ok_or_else(missing)?;
        let base = config.base.as_deref().ok_or_else(|| Error::setting("base", "give the model to tune"))?;
        let model = match &config.adapter {
            None => WritingModel::load_to_train(start.unwrap_or(base), device)?,
            Some(method) => {
                let mut adapter = match start {
                    Some(checkpoint) => Adapter::open(checkpoint)?,
                    None => Adapter::new(method.clone()),
                };
                adapter.method = method.clone();
                let wanted = Wanted { adapter, name: base, trainable: true, seed: config.training.seed };
                WritingModel::adapted(wanted, device)?
            }
        };
        if section.packing && matches!(model, WritingModel::EncoderDecoder(_)) {
            return Err(Error::setting(
                "tune.packing",
                "is for decoders; an encoder-decoder reads its texts side by side",
            ));
        }
        if let (WritingModel::Decoder(model), 1..) = (&model, config.training.recompute) {
            model.network.decoder().check_bare("training.recompute")?;
        }
        let text = ModelText(&model);
        let mut splits = Splits::open(&section.splits)?;
        let read = tune_examples::read(&text, &section, config.training.seed, &mut |item| {
            section.check_held_out_clusters(item)?;
            splits.check(item)
        })?;
        if section.ranks() && read.iter().all(|one| one.example.choices() < 2) {
            let why = format!(
                "none of the {} instances has choices, so that there is no wrong answer to learn from; leave \"length-normalised\" and \
                 \"unlikelihood\" out, or give data with choices",
                read.len()
            );
            return Err(Error::setting("tune.losses", why));
        }
        let example = |item: &Item| Example::new(&text, item, &section);
        let held_out = match &config.held_out {
            Some(path) => {
                // Over the whole file, which may be sorted by task.
                let items = tasks::read(std::slice::from_ref(path))?;
                let kept = evenly(items.len(), HELD_OUT).map(|number| example(&items[number]));
                kept.collect::<Result<Vec<_>>>()?
            }
            None => Vec::new(),
        };
        let splits = splits
            .measured(HELD_OUT)?
            .into_iter()
            .map(|(name, items)| Ok((name, items.iter().map(example).collect::<Result<Vec<_>>>()?)))
            .collect::<Result<Vec<_>>>()?;
        let (units, instances): (Vec<_>, Vec<_>) = read
            .into_iter()
            .map(|one| {
                let reasons = one.reasons();
                let (tokens, rows) = (one.example.tokens(), one.example.read(&section, 0).len());
                (Unit { group: one.group, template: one.template, reasons, tokens, rows }, one.example)
            })
            .unzip();
        let mixture = Mixture::new(&units, &section, config.training.batch_tokens, config.training.seed)?;
        Ok(Self { config, section, model, instances, held_out, splits, mixture })
    }

    /// Instances side by side, as batch `number`.
    fn batch(&self, examples: &[&Example], number: usize) -> Tuned {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.training.seed ^ (number as u64) << 32);
        let mut rows = Vec::new();
        for (of, example) in examples.iter().enumerate() {
            for choice in example.read(&self.section, rng.next_u64()) {
                let (question, answer) = example.row(choice);
                let right = choice == example.right;
                rows.push(Row { question: question.to_vec(), answer: answer.to_vec(), of, right });
            }
        }
        let count = rows.iter().filter(|row| row.right).map(|row| row.answer.len()).sum();
        Tuned { ranked: rows.len() > examples.len(), rows, count }
    }

    /// What a decoder reads of `rows`, `[batch, tokens]`, the length of each text, and which of all places predicts the first token of
    /// each answer.
    fn laid_out(&self, decoder: &Decoder, rows: &[Row]) -> Result<(Tensor, Vec<usize>, Vec<usize>)> {
        let texts: Vec<Vec<u32>> = rows
            .iter()
            .map(|row| [&row.question[..], &row.answer[..row.answer.len() - 1]].concat())
            .collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let (tokens, begins) = if self.section.packing {
            let mut at = 0;
            let begin = |length: &usize| {
                at += length;
                at - length
            };
            let begins = lengths.iter().map(begin).collect::<Vec<_>>();
            (Tensor::new(texts.concat(), decoder.device())?.unsqueeze(0)?, begins)
        } else {
            // Filled up at the end, where nothing that counts can see it.
            let (tokens, _) = side_by_side(&texts, decoder.device())?;
            let width = tokens.dim(1)?;
            (tokens, (0..rows.len()).map(|i| i * width).collect())
        };
        let first = begins.iter().zip(rows).map(|(begin, row)| begin + row.question.len() - 1).collect();
        Ok((tokens, lengths, first))
    }

    /// The hidden states that predict each answer's tokens, row by row `[tokens, d]`, those tokens, and the output head.
    fn predict(&self, rows: &[Row], dropout: Option<Dropout>) -> Result<(Tensor, Tensor, Tensor)> {
        // The states, and which of them predicts the first token of each answer.
        let (hidden, first, head) = match &self.model {
            WritingModel::Decoder(model) => {
                let decoder = model.network.decoder();
                let (tokens, lengths, first) = self.laid_out(decoder, rows)?;
                let hidden = match self.section.packing {
                    true => decoder.forward_at(&tokens, &decoder.places_in_a_row(&lengths)?)?,
                    false => decoder.forward_whole(&tokens)?,
                };
                (hidden, first, decoder.head()?)
            }
            WritingModel::EncoderDecoder(model) => {
                let network = &model.network;
                let questions: Vec<&[u32]> = rows.iter().map(|row| row.question.as_slice()).collect();
                let encoded = network.encoder().read(&questions, dropout.map(|dropout| dropout.part(0)))?;
                let width = rows.iter().map(|row| row.answer.len()).max().unwrap_or(0);
                let filled = |row: &Row| {
                    let padding = std::iter::repeat_n(IGNORE, width - row.answer.len());
                    row.answer.iter().copied().chain(padding).collect::<Vec<_>>()
                };
                let targets: Vec<u32> = rows.iter().flat_map(filled).collect();
                let targets = Tensor::from_vec(targets, (rows.len(), width), network.device())?;
                let hidden = network.predict(&encoded, &targets, dropout.map(|dropout| dropout.part(1)))?;
                (hidden, (0..rows.len()).map(|i| i * width).collect(), network.head()?)
            }
        };
        let (hidden, answers) = of_answers(&hidden, rows, &first)?;
        Ok((hidden, answers, head))
    }

    /// The sum of a batch's losses, of the states that predict its answers' tokens.
    fn loss_of(&self, batch: &Tuned, (hidden, answers, head): (Tensor, Tensor, Tensor)) -> Result<Tensor> {
        if !batch.ranked {
            let options = CrossEntropyOptions::default();
            let nats = kernels::linear_cross_entropy(&hidden, &head, &answers, &options)?;
            return match self.section.losses.contains(&TuneLoss::Lm) {
                true => Ok(nats),
                // The other losses have nothing to learn from. A zero by a tensor, not by a number, for which candle has no gradients.
                false => Ok((&nats * nats.zeros_like()?)?),
            };
        }
        let logprobs = log_probabilities(&hidden, &head, &answers)?;
        let losses = losses(&batch.rows, &logprobs, &self.section.losses)?;
        // Each is a mean over the batch; the loop takes a sum over its targets.
        Ok((losses * batch.count as f64)?)
    }

    /// The sum of the negative log likelihoods of the right answer's tokens of an instance, without dropout, and how many there
    /// are.
    ///
    /// # Errors
    /// An instance that does not fit the model.
    pub fn nats_of(&self, item: &Item) -> Result<(Tensor, usize)> {
        let example = Example::new(&ModelText(&self.model), item, &self.section)?;
        self.nats_of_right(&[&example])
    }

    /// The mean negative log likelihood of a token of the right answers of `examples`, where there are any.
    fn loss_on(&self, examples: &[Example]) -> Result<Option<f64>> {
        let (mut nats, mut count) = (0.0, 0);
        for examples in examples.chunks(BATCH) {
            let (more, tokens) = self.nats_of_right(&examples.iter().collect::<Vec<_>>())?;
            nats += f64::from(more.to_scalar::<f32>()?);
            count += tokens;
        }
        Ok((count > 0).then(|| nats / count as f64))
    }

    /// [`nats`](Self::nats) of the right answers of some examples, without dropout, and how many tokens these have.
    fn nats_of_right(&self, examples: &[&Example]) -> Result<(Tensor, usize)> {
        let mut batch = self.batch(examples, 0);
        batch.rows.retain(|row| row.right);
        Ok((self.nats(&batch.rows, None)?, batch.count))
    }

    /// The sum of the negative log likelihoods of the right answers' tokens.
    fn nats(&self, rows: &[Row], dropout: Option<Dropout>) -> Result<Tensor> {
        let (hidden, answers, head) = self.predict(rows, dropout)?;
        Ok(kernels::linear_cross_entropy(&hidden, &head, &answers, &CrossEntropyOptions::default())?)
    }
}

impl Learner for TuneLearner<'_> {
    type Batch = Tuned;

    fn variables(&self) -> &[(String, Var)] {
        match &self.model {
            WritingModel::Decoder(model) => model.variables(),
            WritingModel::EncoderDecoder(model) => model.variables(),
        }
    }

    fn parameters(&self) -> usize {
        match &self.model {
            WritingModel::Decoder(model) => model.parameters(),
            WritingModel::EncoderDecoder(model) => model.parameters(),
        }
    }

    fn read(&mut self, number: usize) -> Result<Tuned> {
        let batch = self.mixture.batch(number).to_vec();
        let examples: Vec<&Example> = batch.iter().map(|i| &self.instances[*i]).collect();
        Ok(self.batch(&examples, number))
    }

    fn targets(&self, batch: &Tuned) -> usize {
        batch.count
    }

    fn loss(&self, batch: Tuned, number: usize) -> Result<Tensor> {
        let rate = match &self.model {
            WritingModel::Decoder(_) => 0.0,
            WritingModel::EncoderDecoder(model) => model.network.config().dropout_rate(),
        };
        let seed = Dropout::new(rate, self.config.training.seed).part(number as u64);
        let dropout = (rate > 0.0).then_some(seed);
        self.loss_of(&batch, self.predict(&batch.rows, dropout)?)
    }

    fn held_out(&self) -> Result<Option<f64>> {
        self.loss_on(&self.held_out)
    }

    fn held_out_parts(&self) -> Result<BTreeMap<String, f64>> {
        let mut losses = BTreeMap::new();
        for (name, examples) in &self.splits {
            losses.extend(self.loss_on(examples)?.map(|loss| (name.to_string(), loss)));
        }
        Ok(losses)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let precision = self.config.training.precision;
        match &self.model {
            WritingModel::Decoder(model) => model.save_as(dir, precision),
            WritingModel::EncoderDecoder(model) => model.save_as(dir, precision),
        }
    }
}

/// Of the states `[rows, tokens, d]` those that predict the answers' tokens, row by row `[tokens, d]`, and these tokens; `first` says
/// which of all predicts the first of each.
fn of_answers(hidden: &Tensor, rows: &[Row], first: &[usize]) -> Result<(Tensor, Tensor)> {
    let of_row = |(row, first): (&Row, &usize)| (*first..first + row.answer.len()).map(|place| place as u32);
    let places: Vec<u32> = rows.iter().zip(first).flat_map(of_row).collect();
    let answers: Vec<u32> = rows.iter().flat_map(|row| row.answer.iter().copied()).collect();
    let (places, answers) = (Tensor::new(places, hidden.device())?, Tensor::new(answers, hidden.device())?);
    Ok((hidden.flatten(0, 1)?.index_select(&places, 0)?, answers))
}

/// Log-probabilities `[tokens]` of `tokens` after the states `hidden` `[tokens, d]`.
fn log_probabilities(hidden: &Tensor, head: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let logits = kernels::linear(hidden, head)?;
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let sums = logits.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?;
    let totals = (sums.log()? + largest)?;
    Ok((logits.gather(&tokens.unsqueeze(1)?, 1)? - totals)?.squeeze(1)?)
}

/// T-Few's losses (Liu et al. 2022, <https://arxiv.org/abs/2205.05638>, section 3.2), each a mean over the batch, of the
/// log-probabilities `[tokens]` of the answers' tokens, row by row:
///
/// - `lm`, over the tokens of right answers: -log p (equation 1);
/// - `length-normalised`, over instances: -log of the right answer's share of the softmax over the means of its answers'
///   log-probabilities (equations 3 and 4);
/// - `unlikelihood`, over the tokens of wrong answers: -log(1 - p) (equation 2), with 0.01 added inside the logarithm as in
///   the authors' code.
fn losses(rows: &[Row], logprobs: &Tensor, which: &[TuneLoss]) -> Result<Tensor> {
    let device = logprobs.device();
    let lengths: Vec<usize> = rows.iter().map(|row| row.answer.len()).collect();
    let tokens_of = |right: bool| -> Vec<f32> {
        rows.iter()
            .flat_map(|row| std::iter::repeat_n(f32::from(u8::from(row.right == right)), row.answer.len()))
            .collect()
    };
    let mean = |values: &Tensor, mask: Vec<f32>| -> Result<Tensor> {
        let count = mask.iter().sum::<f32>().max(1.0);
        Ok(((values * Tensor::new(mask, device)?)?.sum_all()? / f64::from(count))?)
    };
    let mut total = Tensor::zeros((), logprobs.dtype(), device)?;
    for loss in which {
        let one = match loss {
            TuneLoss::Lm => mean(&logprobs.neg()?, tokens_of(true))?,
            TuneLoss::Unlikelihood => {
                let against = ((1.0 - logprobs.exp()?)? + 1e-2)?.log()?.neg()?;
                mean(&against, tokens_of(false))?
            }
            TuneLoss::LengthNormalised => {
                let mut at = 0;
                let mut means = Vec::new();
                for length in &lengths {
                    means.push((logprobs.narrow(0, at, *length)?.sum_all()? / *length as f64)?);
                    at += length;
                }
                let mut sum = Tensor::zeros((), logprobs.dtype(), device)?;
                let (mut first, mut chosen) = (0, 0usize);
                for answers in rows.chunk_by(|a, b| a.of == b.of) {
                    let own = &means[first..first + answers.len()];
                    let right = answers.iter().position(|row| row.right).unwrap_or(0);
                    if answers.len() > 1 {
                        let scores = Tensor::stack(own, 0)?;
                        let total = scores.log_sum_exp(0)?;
                        sum = ((sum + total)? - &own[right])?;
                        chosen += 1;
                    }
                    first += answers.len();
                }
                (sum / chosen.max(1) as f64)?
            }
        };
        total = (total + one)?;
    }
    Ok(total)
}

impl WritingModel {
    /// Reads the model called `name`, all of whose weights are to be trained.
    fn load_to_train(name: &Path, device: &Device) -> Result<Self> {
        let model = Self::load_trainable(name, device)?;
        match &model {
            Self::Decoder(model) if matches!(model.network, Network::Retro(_)) => {
                Err(Error::file(name, "a RETRO model; tune a plain decoder or an encoder-decoder"))
            }
            _ => Ok(model),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::config::TrainingSection;
    use super::super::instance_gradients::warm_up;
    use super::*;
    use crate::train::steps::gradients_of;

    fn rows() -> Vec<Row> {
        let row = |answer: &[u32], of, right| Row { question: vec![1], answer: answer.to_vec(), of, right };
        vec![
            row(&[1, 2], 0, false),
            row(&[3], 0, true),
            row(&[4, 5, 6], 1, true),
            row(&[7], 1, false),
            row(&[8], 2, true),
        ]
    }

    /// By hand, from the paper's equations.
    #[test]
    fn losses_are_the_papers() {
        let p = [0.5f64, 0.25, 0.125, 0.5, 0.25, 0.5, 0.75, 0.9];
        let logs: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        let logprobs = Tensor::new(logs, &Device::Cpu).unwrap();
        let found = |which: &[TuneLoss]| {
            f64::from(losses(&rows(), &logprobs, which).unwrap().to_scalar::<f32>().unwrap())
        };
        let lm = -[0.125f64, 0.5, 0.25, 0.5, 0.9].map(f64::ln).iter().sum::<f64>() / 5.0;
        let unlikely = -[0.5f64, 0.25, 0.75].map(|p| (1.0 - p + 1e-2).ln()).iter().sum::<f64>() / 3.0;
        let beta = |all: &[f64]| (all.iter().map(|p| p.ln()).sum::<f64>() / all.len() as f64).exp();
        let (a, b) = (beta(&[0.5, 0.25]), beta(&[0.125]));
        let (c, d) = (beta(&[0.5, 0.25, 0.5]), beta(&[0.75]));
        let normalised = -((b / (a + b)).ln() + (c / (c + d)).ln()) / 2.0;
        for (which, right) in [
            (vec![TuneLoss::Lm], lm),
            (vec![TuneLoss::Unlikelihood], unlikely),
            (vec![TuneLoss::LengthNormalised], normalised),
            (
                vec![TuneLoss::Lm, TuneLoss::LengthNormalised, TuneLoss::Unlikelihood],
                lm + unlikely + normalised,
            ),
        ] {
            assert!((found(&which) - right).abs() < 1e-5, "{which:?}: {} {right}", found(&which));
        }
    }

    #[test]
    fn log_probabilities_have_gradients_and_add_up() {
        let hidden = Var::randn(0f32, 1.0, (3, 4), &Device::Cpu).unwrap();
        let head = Tensor::randn(0f32, 1.0, (5, 4), &Device::Cpu).unwrap();
        let tokens = Tensor::new(&[0u32, 4, 2], &Device::Cpu).unwrap();
        let own = log_probabilities(hidden.as_tensor(), &head, &tokens).unwrap();
        let sum = own.sum_all().unwrap().neg().unwrap();
        let fused = kernels::linear_cross_entropy(
            hidden.as_tensor(),
            &head,
            &tokens,
            &CrossEntropyOptions::default(),
        );
        let fused = fused.unwrap();
        let value = |x: &Tensor| x.to_scalar::<f32>().unwrap();
        assert!((value(&sum) - value(&fused)).abs() < 1e-4);
        let gradient = |loss: &Tensor| {
            let all = kernels::backward(loss).unwrap();
            all.get(hidden.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (a, b) in gradient(&sum).iter().zip(gradient(&fused)) {
            assert!((a - b).abs() < 1e-4 && a.abs() > 0.0, "{a} {b}");
        }
    }

    /// A run that learns all weights of llama2.c's model as `section` says.
    fn whole(section: TuneSection) -> TrainConfig {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama2c/stories260K.bin");
        let config = warm_up(base, PathBuf::new(), PathBuf::new(), 3, 1e-3, 1);
        TrainConfig { tune: Some(section), adapter: None, ..config }
    }

    /// Fails when what has no wrong answers is learnt from by a loss that nobody asked for.
    #[test]
    fn losses_of_wrong_answers_learn_nothing_where_there_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data.jsonl");
        let plain = "{\"input\": \"once upon\", \"target\": \"a time\"}\n";
        let ranked =
            "{\"input\": \"once upon\", \"target\": \"a time\", \"choices\": [\"never\", \"a time\"]}\n";
        let config = |losses: &[TuneLoss]| {
            let losses = losses.to_vec();
            whole(TuneSection { data: vec![data.clone()], losses, ..TuneSection::default() })
        };
        std::fs::write(&data, plain.repeat(2)).unwrap();
        for loss in [TuneLoss::LengthNormalised, TuneLoss::Unlikelihood] {
            for losses in [&[loss][..], &[TuneLoss::Lm, loss]] {
                let config = config(losses);
                let refused = TuneLearner::open(&config, None, &Device::Cpu).err();
                let said = refused.map(|e| e.to_string()).unwrap_or_default();
                assert!(said.starts_with("tune.losses: none of the 2 instances has choices"), "{said}");
            }
        }
        // One has choices; the batch is of the other.
        std::fs::write(&data, [plain, ranked].concat()).unwrap();
        let learnt = |losses: &[TuneLoss]| {
            let config = config(losses);
            let learner = TuneLearner::open(&config, None, &Device::Cpu).unwrap();
            let batch = learner.batch(&[&learner.instances[0]], 0);
            let (loss, gradients) = gradients_of(&learner.loss(batch, 0).unwrap(), 1).unwrap();
            let largest = |(_, variable): &(String, Var)| {
                let slope = gradients.get(variable).unwrap().abs().unwrap().flatten_all().unwrap();
                slope.max(0).unwrap().to_scalar::<f32>().unwrap()
            };
            (loss, learner.variables().iter().map(largest).fold(0f32, f32::max))
        };
        let (lm, slope) = learnt(&[TuneLoss::Lm]);
        assert!(lm > 0.0 && slope > 0.0, "{lm} {slope}");
        let others = [TuneLoss::LengthNormalised, TuneLoss::Unlikelihood];
        assert_eq!(learnt(&others), (0.0, 0.0));
        let (with, _) = learnt(&[&[TuneLoss::Lm][..], &others].concat());
        assert!((with - lm).abs() < 1e-5 * lm, "{with} {lm}");
    }

    /// The same losses and gradients whether texts stand side by side or one after another, and whether activations are kept.
    #[test]
    fn packing_and_computing_again_change_nothing_that_is_learnt() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data.jsonl");
        let line = |i: usize| {
            let input = "once upon a time ".repeat(1 + i % 4);
            format!(
                "{{\"input\": \"{input}{i}\", \"target\": \"yes\", \"choices\": [\"yes\", \"never again\"]}}\n"
            )
        };
        std::fs::write(&data, (0..6).map(line).collect::<String>()).unwrap();
        let learn = |packing: bool, recompute: usize, losses: Vec<TuneLoss>| {
            let section = TuneSection { data: vec![data.clone()], packing, losses, ..TuneSection::default() };
            let config = whole(section);
            let training = TrainingSection { recompute, ..config.training };
            let config = TrainConfig { training, ..config };
            let learner = TuneLearner::open(&config, None, &Device::Cpu).unwrap();
            let examples: Vec<&Example> = learner.instances.iter().collect();
            let both_ways = || gradients_of(&learner.loss(learner.batch(&examples, 0), 0)?, 1);
            let (loss, gradients) = config.training.activations().run(both_ways).unwrap();
            let of = |(_, variable): &(String, Var)| {
                gradients.get(variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            (loss, learner.variables().iter().map(of).collect::<Vec<_>>())
        };
        for losses in
            [vec![TuneLoss::Lm], vec![TuneLoss::Lm, TuneLoss::LengthNormalised, TuneLoss::Unlikelihood]]
        {
            let (beside, a) = learn(false, 0, losses.clone());
            for (packing, recompute) in [(true, 0), (false, 2), (true, 1)] {
                let (packed, b) = learn(packing, recompute, losses.clone());
                assert!((beside - packed).abs() < 1e-4 * beside.abs(), "{beside} {packed}");
                for (a, b) in a.iter().zip(&b) {
                    let size = a.iter().fold(0f32, |most, x| most.max(x.abs()));
                    let gap = a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                    assert!(size > 0.0 && gap < 1e-4 * size, "{packing} {recompute}: {gap} of {size}");
                }
            }
        }
    }
}
