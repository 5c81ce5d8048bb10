//! A reader that learns to answer from what is retrieved, and a retriever that learns what helps the reader.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sidenote_index::{Hit, Metric};
use sidenote_kernels as kernels;

use super::generations::{Generations, Refreshes};
use super::judge::retriever_loss;
use super::loss::Temperatures;
use super::read::Read;
use super::reader::TrainedReader;
use crate::corpus::Store;
use crate::encoder::TrainableEncoder;
use crate::error::{Error, Result};
use crate::model::Dropout;
use crate::reader::{Source, Trained, folders, widened};
use crate::retriever::{Filter, Retriever, SearchOptions, open_store};
use crate::sealed;
use crate::task::multiple_choice::ordered;
use crate::task::{Example, Mode, masked, prefix, section};
use crate::train::checkpoint;
use crate::train::config::{AtlasSection, AtlasTask, TrainConfig};
use crate::train::epochs::Epochs;
use crate::train::group::Group;
use crate::train::steps::Learner;

/// Held-out questions that are measured, at most.
const HELD_OUT: usize = 256;
/// Names of weights begin with the half that they belong to.
const READER: &str = "reader";
const RETRIEVER: &str = "retriever";

/// A reader that learns to answer from what is retrieved, and a retriever that learns what helps it.
pub struct AtlasLearner<'a> {
    config: &'a TrainConfig,
    section: AtlasSection,
    reader: TrainedReader,
    /// The encoder that learns, if any.
    encoder: Option<TrainableEncoder>,
    variables: Vec<(String, Var)>,
    generations: Generations,
    /// The index as it is now; none where nothing is retrieved.
    retriever: Option<Retriever>,
    examples: Examples,
    held_out: Vec<Example>,
    epochs: Epochs,
}

/// What is learnt from.
enum Examples {
    Lines(Vec<Example>),
    /// The given index's text, and the numbers of its chunks of which a task can be made.
    Text(Store, Vec<usize>),
}

/// A question with what was retrieved for it.
pub struct Question {
    /// Tokens of the query, for the retriever.
    query: Vec<u32>,
    /// Tokens of the passages, for the retriever; none where only the query's encoder learns.
    passages: Vec<Vec<u32>>,
    /// Vectors of the passages, where only the query's encoder learns.
    vectors: Vec<f32>,
    /// What the reader reads.
    read: Read,
    /// How many passages there are.
    found: usize,
    /// What it is to write.
    target: Vec<u32>,
}

impl<'a> AtlasLearner<'a> {
    /// Opens what `config` names; reader and retriever are those of the checkpoint `start`, where there is one. Of processes that
    /// train together one `encodes` the index.
    ///
    /// # Errors
    /// Names the setting, file or line that is missing or cannot be.
    pub fn open(
        config: &'a TrainConfig,
        start: Option<&Path>,
        device: &Device,
        encodes: bool,
    ) -> Result<Self> {
        let section = config.atlas.clone().unwrap_or_default();
        let base = start.or(config.base.as_deref());
        let base = base.ok_or_else(|| Error::setting("base", "give the model that reads"))?;
        let saved = start.map(folders);
        let reader = TrainedReader::load(saved.as_ref().map_or(base, |(reader, _)| reader), device)?;
        let retrieves = section.mode == Mode::Retrieve;
        let retriever = retrieves.then(|| Retriever::open(&config.index, None)).transpose()?;
        let encoder = match (section.loss, &retriever) {
            (None, _) | (_, None) => None,
            (Some(_), Some(retriever)) => {
                let name = match &saved {
                    Some((_, encoder)) => encoder.display().to_string(),
                    None => retriever.meta().settings.encoder.name.clone(),
                };
                Some(TrainableEncoder::load(&name, device)?)
            }
        };
        let named =
            |half: &'static str| move |(name, var): &(String, Var)| (format!("{half}.{name}"), var.clone());
        let mut variables: Vec<_> = reader.variables().iter().map(named(READER)).collect();
        variables.extend(encoder.iter().flat_map(|encoder| encoder.variables().iter().map(named(RETRIEVER))));
        let examples = match (&config.examples, section.task.of_lines()) {
            (Some(file), Some(task)) => Examples::Lines(expanded(task.read(file)?, &section)),
            _ => Examples::of_text(open_store(&config.index)?, section.task),
        };
        let read = |file: &PathBuf| section.task.of_lines().unwrap_or_default().read(file);
        let mut held_out = config.held_out.as_ref().map(read).transpose()?.unwrap_or_default();
        held_out.truncate(HELD_OUT);
        let held_out =
            expanded(held_out, &AtlasSection { permutations: Default::default(), ..section.clone() });
        let step = start.and_then(checkpoint::step_of).unwrap_or(0);
        let refreshes = Refreshes {
            schedule: section.refresh.clone(),
            lag: section.refresh_lag,
            steps: config.training.steps,
        };
        let generations = Generations::open(&config.out, &config.index, start, step, refreshes, encodes)?;
        let epochs = Epochs::new(config.training.seed, examples.len(), section.batch);
        let mut learner = Self {
            config,
            section,
            reader,
            encoder,
            variables,
            generations,
            retriever,
            examples,
            held_out,
            epochs,
        };
        if learner.examples.len() < learner.section.batch {
            let why =
                format!("{}, but there are only {} examples", learner.section.batch, learner.examples.len());
            return Err(Error::setting("atlas.batch", why));
        }
        if learner.untargeted() {
            return Err(Error::setting("examples", "a line has no answer to learn"));
        }
        if learner.section.mode == Mode::GivenPassages {
            let lines = match &learner.examples {
                Examples::Lines(lines) => lines.as_slice(),
                Examples::Text(..) => &[],
            };
            lines.iter().chain(&learner.held_out).try_for_each(|example| example.given().map(|_| ()))?;
        }
        if let Some(index) = learner.generations.before(step)? {
            learner.retriever = Some(Retriever::open(&index, None)?);
        }
        Ok(learner)
    }

    /// Whether some line has nothing to learn.
    fn untargeted(&self) -> bool {
        match &self.examples {
            Examples::Lines(examples) => examples.iter().any(|example| example.target().is_none()),
            Examples::Text(..) => false,
        }
    }

    /// Example `number`, made with random numbers of its own.
    fn example(&self, number: usize, rng: &mut ChaCha8Rng) -> Option<Example> {
        match &self.examples {
            Examples::Lines(examples) => Some(examples[number].clone()),
            Examples::Text(text, chunks) => made_of(text, chunks[number], self.section.task, rng),
        }
    }

    /// `examples` with their passages, from the retriever as it is now or as they came.
    fn ask(&self, examples: &[Example]) -> Result<Vec<Question>> {
        let ask_one = |example| match (&self.retriever, self.section.mode) {
            (Some(retriever), _) => self.ask_retriever(retriever, example),
            (None, Mode::GivenPassages) => {
                let given = example.given()?.iter().take(self.section.passages);
                let sources = given.map(|p| Source { title: &p.title, text: &p.text, score: 0.0 });
                self.question(example, &sources.collect::<Vec<_>>())
            }
            (None, _) => self.question(example, &[]),
        };
        examples.iter().map(ask_one).collect()
    }

    /// What the reader gets of `example` and its passages; what a retriever learns from is left empty.
    fn question(&self, example: &Example, sources: &[Source<'_>]) -> Result<Question> {
        let masked = self.section.task == AtlasTask::Masked;
        let safe = |text: &str| match masked {
            true => text.to_string(),
            false => self.reader.tokenizer().unmarked(text).into_owned(),
        };
        let templates = &self.section.templates;
        let answer = safe(example.target().unwrap_or_default());
        let target = self.reader.target(templates, &answer, self.section.target_tokens)?;
        let read = self.reader.read(templates, &safe(&example.question), sources, &target)?;
        // What the reader has no room for, it says nothing about.
        let found = sources.len().min(read.texts.len());
        Ok(Question { query: Vec::new(), passages: Vec::new(), vectors: Vec::new(), read, found, target })
    }

    fn ask_retriever(&self, retriever: &Retriever, example: &Example) -> Result<Question> {
        let looked_for = match self.section.task {
            AtlasTask::Masked => masked::without_sentinels(&example.question),
            _ => example.question.clone(),
        };
        let mut hits = self.retrieve(retriever, example, &looked_for)?;
        let passages: Vec<_> = hits.iter().map(|hit| retriever.passage(*hit)).collect();
        let sources: Vec<Source<'_>> = passages
            .iter()
            .map(|p| Source { title: &p.title, text: widened(retriever, p), score: p.score })
            .collect();
        let mut question = self.question(example, &sources)?;
        hits.truncate(question.found);
        if let Some(encoder) = &self.encoder {
            question.query = encoder.tokenize_queries(&[&looked_for])?.remove(0);
            match self.section.query_side {
                true => {
                    let row = |hit: &Hit| retriever.index().vector(hit.id).unwrap_or_default().into_owned();
                    question.vectors = hits.iter().flat_map(row).collect();
                }
                false => {
                    let chunks: Vec<&str> =
                        hits.iter().map(|hit| retriever.store().chunk(hit.id as usize).text).collect();
                    question.passages = encoder.tokenize(&chunks)?;
                }
            }
        }
        Ok(question)
    }

    /// The passages to be read for `example`, best first; never those of the document that it is made of.
    fn retrieve(&self, retriever: &Retriever, example: &Example, looked_for: &str) -> Result<Vec<Hit>> {
        let section = &self.section;
        let from_text = section.task.of_lines().is_none();
        let Some(encoder) = &self.encoder else {
            let filter = match from_text {
                true => Filter::new(vec![format!("id!={}", example.id).parse()?]),
                false => Filter::default(),
            };
            let options = SearchOptions { filter, ranking: section.ranking };
            let found = retriever.search_with(looked_for, section.passages, &options)?;
            return Ok(found.iter().map(|p| Hit { id: p.chunk as u32, score: p.score }).collect());
        };
        let query = encoder.tokenize_queries(&[looked_for])?.remove(0);
        if query.is_empty() {
            return Ok(Vec::new());
        }
        let query = encoder.forward(&[&query], None)?.detach();
        let store = retriever.store();
        let may =
            |_: usize, id: u32| !from_text || store.document(store.document_of(id as usize)).id != example.id;
        let k = section.passages.max(section.rerank);
        let row = query.flatten_all()?.to_vec1::<f32>()?;
        let mut hits = retriever.search_vectors(&row, k, Some(&may))?.remove(0);
        if section.rerank > 0 {
            // The index may be stale; what is compared here is not.
            let chunks: Vec<&str> = hits.iter().map(|hit| store.chunk(hit.id as usize).text).collect();
            let ids = encoder.tokenize(&chunks)?;
            let known: Vec<&[u32]> = ids.iter().filter(|ids| !ids.is_empty()).map(Vec::as_slice).collect();
            if !known.is_empty() {
                let fresh = encoder.forward(&known, None)?.detach();
                let mut fresh = fresh.matmul(&query.t()?)?.flatten_all()?.to_vec1::<f32>()?.into_iter();
                for (hit, _) in hits.iter_mut().zip(&ids).filter(|(_, ids)| !ids.is_empty()) {
                    hit.score = fresh.next().unwrap_or(hit.score);
                }
                hits.sort_by(|a, b| b.cmp(a));
            }
        }
        hits.truncate(section.passages);
        Ok(hits)
    }

    /// The mean negative log-likelihood of a token of the answers.
    fn reader_nats(&self, batch: &[Question], dropout: Option<Dropout>) -> Result<Tensor> {
        let batch: Vec<(&Read, &[u32])> = batch.iter().map(|q| (&q.read, q.target.as_slice())).collect();
        self.reader.nats(&batch, dropout)
    }

    /// The sum of the retriever's losses; none where it learns nothing from these questions.
    fn retriever_nats(&self, batch: &[Question], dropout: Option<Dropout>) -> Result<Option<Tensor>> {
        let (Some(encoder), Some(kind)) = (&self.encoder, self.section.loss) else { return Ok(None) };
        let metric = encoder.metric();
        let t = Temperatures {
            target: self.section.target_temperature,
            scores: self.section.score_temperature.unwrap_or(if metric == Metric::Cosine {
                0.05
            } else {
                0.01
            }),
        };
        let mut sum: Option<Tensor> = None;
        for (number, question) in batch.iter().enumerate() {
            let known = question.passages.iter().all(|ids| !ids.is_empty());
            if question.found < 2 || question.query.is_empty() || !known {
                continue; // nothing to prefer
            }
            let dropout = dropout.map(|dropout| dropout.part(number as u64));
            let query = encoder.forward(&[&question.query], dropout.map(|dropout| dropout.part(0)))?;
            let passages = match self.section.query_side {
                true => {
                    Tensor::from_slice(&question.vectors, (question.found, encoder.dim()), encoder.device())?
                }
                false => {
                    let ids: Vec<&[u32]> = question.passages.iter().map(Vec::as_slice).collect();
                    encoder.forward(&ids, dropout.map(|dropout| dropout.part(1)))?
                }
            };
            let mut scores = kernels::linear(&query, &passages)?.squeeze(0)?;
            if metric != Metric::Cosine {
                // As Atlas does with Contriever, whose vectors are as long as they like.
                scores = (scores / (encoder.dim() as f64).sqrt())?;
            }
            let loss = retriever_loss(kind, &self.reader, &question.read, &question.target, &scores, t)?;
            sum = Some(match sum {
                None => loss,
                Some(sum) => (sum + loss)?,
            });
        }
        Ok(sum)
    }
}

impl Learner for AtlasLearner<'_> {
    type Batch = Vec<Question>;

    fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    fn parameters(&self) -> usize {
        self.variables.iter().map(|(_, variable)| variable.elem_count()).sum()
    }

    fn rate_share(&self, name: &str) -> f64 {
        if name.starts_with(RETRIEVER) { self.section.retriever_rate } else { 1.0 }
    }

    /// The index becomes what its schedule says.
    fn prepare(&mut self, step: usize, group: &mut dyn Group) -> Result<()> {
        let Some(encoder) = self.encoder.as_ref().filter(|_| !self.section.query_side) else { return Ok(()) };
        if let Some(index) = self.generations.due(step, encoder, group)? {
            self.retriever = Some(Retriever::open(&index, None)?);
        }
        Ok(())
    }

    fn read(&mut self, number: usize) -> Result<Vec<Question>> {
        let (numbers, mut rng) = self.epochs.batch(number);
        let examples: Vec<Example> =
            numbers.iter().filter_map(|number| self.example(*number, &mut rng)).collect();
        self.ask(&examples)
    }

    fn targets(&self, batch: &Vec<Question>) -> usize {
        batch.len()
    }

    /// The reader's mean loss a token and the retriever's mean loss a question, each once for every question.
    fn loss(&self, batch: Vec<Question>, number: usize) -> Result<Tensor> {
        let dropout = |rate: f32, part: u64| {
            (rate > 0.0).then(|| Dropout::new(rate, self.config.training.seed).part(number as u64).part(part))
        };
        let rate = self.reader.dropout_rate();
        let nats = (self.reader_nats(&batch, dropout(rate, 0))? * batch.len() as f64)?;
        let rate = self.encoder.as_ref().map_or(0.0, TrainableEncoder::dropout_rate);
        match self.retriever_nats(&batch, dropout(rate, 1))? {
            None => Ok(nats),
            Some(own) => Ok((nats + own)?),
        }
    }

    fn held_out(&self) -> Result<Option<f64>> {
        let (mut nats, mut count) = (0.0, 0);
        for examples in self.held_out.chunks(self.section.batch) {
            let batch = self.ask(examples)?;
            nats += f64::from(self.reader_nats(&batch, None)?.to_scalar::<f32>()?) * batch.len() as f64;
            count += batch.len();
        }
        Ok((count > 0).then(|| nats / count as f64))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        sealed::write_folder(dir, "a model", |dir| {
            let (reader, retriever) = folders(dir);
            let precision = self.config.training.precision;
            self.reader.save_as(&reader, precision)?;
            if let Some(encoder) = &self.encoder {
                encoder.save_as(&retriever, precision)?;
            }
            let of_passages = |retriever: &Retriever| retriever.encoder().identity().to_string();
            let passages = self.retriever.as_ref().filter(|_| self.section.query_side).map(of_passages);
            Trained { templates: self.section.templates.clone(), passages }.write(dir)
        })
    }
}

impl Examples {
    /// The chunks that a task can be made of.
    fn of_text(text: Store, task: AtlasTask) -> Self {
        let makes = |chunk: &usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            text.is_live(*chunk) && made_of(&text, *chunk, task, &mut rng).is_some()
        };
        let chunks = (0..text.chunks()).filter(makes).collect();
        Self::Text(text, chunks)
    }

    fn len(&self) -> usize {
        match self {
            Self::Lines(examples) => examples.len(),
            Self::Text(_, chunks) => chunks.len(),
        }
    }
}

/// The task that a chunk makes, if it makes one.
fn made_of(store: &Store, chunk: usize, task: AtlasTask, rng: &mut ChaCha8Rng) -> Option<Example> {
    let text = store.chunk(chunk).text;
    let document = store.document(store.document_of(chunk));
    match task {
        AtlasTask::Section => section::example(document.id, document.title, document.section, text),
        AtlasTask::Masked => masked::example(document.id, text, rng),
        AtlasTask::Prefix => prefix::example(document.id, text),
        _ => None,
    }
}

/// Examples of multiple choice in all the orders that are wanted; others as they are.
fn expanded(examples: Vec<Example>, section: &AtlasSection) -> Vec<Example> {
    let each = |example: Example| match example.options.len() {
        0 => vec![example],
        n => section.permutations.of(n).iter().map(|order| ordered(&example, order)).collect(),
    };
    examples.into_iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::corpus::Tokenizer;
    use crate::encoder;
    use crate::progress::Progress;
    use crate::retriever::build;
    use crate::retriever::testing::options;

    const THINGS: [&str; 6] = ["the moon", "a king", "April", "the Earth", "a castle", "the line"];

    fn data(name: &str) -> String {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
    }

    /// A run's configuration beside an index of six documents.
    fn configured(dir: &Path, atlas: &str) -> TrainConfig {
        let corpus = [dir.join("corpus.jsonl")];
        let line = |(number, thing): (usize, &&str)| {
            let text = format!("{thing} moves around {} in a month", THINGS[(number + 1) % 6]);
            serde_json::json!({"id": format!("d{number}"), "title": thing, "text": text}).to_string()
        };
        fs::write(&corpus[0], THINGS.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")).unwrap();
        let out = dir.join("index");
        let encoder = encoder::load(&data("encoder/bert_mean")).unwrap();
        let tokenizer = Tokenizer::default_lm().unwrap();
        build(&options(&corpus, &out, encoder.as_ref(), &tokenizer, 64), Progress::Silent).unwrap();
        let text = format!(
            "kind = \"atlas\"\nout = {:?}\nindex = {:?}\nbase = {:?}\n[atlas]\n{atlas}\n[training]\nsteps = 3",
            dir.join("run"),
            out,
            data("models/t5_v1_0")
        );
        let path = dir.join("run.toml");
        fs::write(&path, text).unwrap();
        TrainConfig::read(&path, &[]).unwrap()
    }

    /// Fails when a passage may be answered from itself.
    #[test]
    fn a_passage_is_not_found_for_the_task_that_it_makes() {
        for atlas in ["task = \"prefix\"\nloss = \"pdist\"\nbatch = 6", "task = \"prefix\"\nbatch = 6"] {
            let dir = tempfile::tempdir().unwrap();
            let config = configured(dir.path(), &format!("{atlas}\npassages = 6"));
            let learner = AtlasLearner::open(&config, None, &Device::Cpu, true).unwrap();
            for number in 0..6 {
                let example = learner.example(number, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
                let retriever = learner.retriever.as_ref().unwrap();
                let hits = learner.retrieve(retriever, &example, &example.question).unwrap();
                let found: Vec<_> = hits.iter().map(|hit| retriever.passage(*hit).id).collect();
                assert!(found.len() == 5 && !found.contains(&example.id), "{} {found:?}", example.id);
            }
        }
    }

    /// The index is stale, since the encoder has moved; what is read are the passages that are nearest by now.
    #[test]
    fn reranking_is_by_the_encoder_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let config = configured(dir.path(), "task = \"prefix\"\nloss = \"pdist\"\nrerank = 6\npassages = 3");
        let learner = AtlasLearner::open(&config, None, &Device::Cpu, true).unwrap();
        let (encoder, retriever) = (learner.encoder.as_ref().unwrap(), learner.retriever.as_ref().unwrap());
        let example = learner.example(0, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
        let found = || {
            learner
                .retrieve(retriever, &example, &example.question)
                .unwrap()
                .iter()
                .map(|hit| hit.id)
                .collect::<Vec<_>>()
        };
        let before = found();
        for (name, variable) in encoder.variables() {
            let noise = crate::model::normal::normal(3, name, variable.elem_count(), 0.5);
            let noise = Tensor::from_vec(noise, variable.dims(), &Device::Cpu).unwrap();
            variable.set(&(variable.as_detached_tensor() + noise).unwrap()).unwrap();
        }
        let vector = |ids: Vec<Vec<u32>>| {
            encoder
                .forward(&[&ids[0]], None)
                .unwrap()
                .detach()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        let query = vector(encoder.tokenize_queries(&[&example.question]).unwrap());
        let store = retriever.store();
        let score = |chunk: usize| -> f32 {
            let passage = vector(encoder.tokenize(&[store.chunk(chunk).text]).unwrap());
            query.iter().zip(&passage).map(|(a, b)| a * b).sum()
        };
        let mut expected: Vec<(f32, u32)> = (1..6).map(|chunk| (score(chunk), chunk as u32)).collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let expected: Vec<u32> = expected.iter().take(3).map(|(_, chunk)| *chunk).collect();
        assert_eq!(found(), expected);
        assert_ne!(before, expected, "the noise has moved nothing");
    }
}
