//! The index of a run, encoded again from time to time: each time a generation in a folder of its own, `generations/step-N`, with
//! the encoder as it was before step N. Its index is there when that has a manifest.
//!
//! With a lag the index is encoded in a thread beside the steps that follow, and comes into use so many steps later, whether the
//! thread is done early or has to be waited for: what is trained does not depend on how fast it was.
//!
//! Of processes that train together the first encodes, and all use what it has made.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use crate::artefact::MANIFEST;
use crate::encoder::{self, TrainableEncoder};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::retriever::encode_again;
use crate::train::checkpoint;
use crate::train::config::RefreshSchedule;
use crate::train::group::Group;

/// When the index is encoded again, and when it is in use.
#[derive(Clone)]
pub struct Refreshes {
    /// The steps before which it is encoded; never where there is none.
    pub schedule: Option<RefreshSchedule>,
    /// Steps from there to its use.
    pub lag: usize,
    /// Steps of the run: what would come into use after them is not encoded.
    pub steps: usize,
}

/// See [the module](self).
pub struct Generations {
    /// The run's folder, and that of the run whose checkpoint it began with.
    out: PathBuf,
    started: Option<PathBuf>,
    /// The index that the run was given.
    given: PathBuf,
    refreshes: Refreshes,
    /// Whether this process encodes.
    encodes: bool,
    /// The step before which the index that is in use was encoded; 0 for the one that was given.
    current: usize,
    /// What encodes, and which one.
    work: Option<(usize, JoinHandle<Result<()>>)>,
}

impl Generations {
    /// For the run in `out` on the index `given`, which goes on from the checkpoint `start` after `step` steps, in the process that
    /// `encodes` or another. Generations that were made after that step are removed: the steps that led to them are taken again.
    pub fn open(
        out: &Path,
        given: &Path,
        start: Option<&Path>,
        step: usize,
        refreshes: Refreshes,
        encodes: bool,
    ) -> Result<Self> {
        let started = start.and_then(|start| start.ancestors().nth(2)).map(Path::to_path_buf);
        let (out, given) = (out.into(), given.into());
        let generations = Self { out, started, given, refreshes, encodes, current: 0, work: None };
        generations.remove(|number| number > step || start.is_none())?;
        Ok(generations)
    }

    /// The index that was in use before `step`, where that is not the one that was given: that of the run that goes on. Those that
    /// were being encoded are encoded on.
    ///
    /// # Errors
    /// A generation that is gone.
    pub fn before(&mut self, step: usize) -> Result<Option<PathBuf>> {
        // What is due at this very step is begun when the step comes.
        let Some(last) = step.checked_sub(1) else { return Ok(None) };
        self.current = self.used(last);
        let waiting = if self.encodes { self.current + 1..step } else { 0..0 };
        for number in
            waiting.filter(|step| self.last(*step) == *step && self.is_wanted(*step)).collect::<Vec<_>>()
        {
            let encoder = self.find(number, encoder_of, Path::is_dir)?;
            self.encode(number, encoder)?;
        }
        match self.current {
            0 => Ok(None),
            current => self.find(current, index_of, is_whole).map(Some),
        }
    }

    /// Begins to encode the index again with `encoder`, if that is due before `step`; and gives the one that comes into use then, if
    /// one does. To be asked once before each step, by every process of `group`.
    ///
    /// # Errors
    /// A full disk; an interruption; a process that is gone.
    pub fn due(
        &mut self,
        step: usize,
        encoder: &TrainableEncoder,
        group: &mut dyn Group,
    ) -> Result<Option<PathBuf>> {
        if step > 0 && self.last(step) == step && self.encodes {
            self.begin(step, encoder)?;
        }
        let wanted = self.used(step);
        if wanted == self.current {
            return Ok(None);
        }
        if self.work.as_ref().is_some_and(|(number, _)| *number <= wanted) {
            self.wait()?;
        }
        // All come here before the same step, and the others only then look for what the first has made.
        group.sum(&mut [0.0])?;
        let index = self.find(wanted, index_of, is_whole)?;
        self.current = wanted;
        // A run that goes on needs the index of its last checkpoint.
        let last = checkpoint::list(&self.out)?.last().map_or(0, |saved| saved.saturating_sub(1));
        let oldest = self.used(last);
        self.remove(|number| number < oldest)?;
        Ok(Some(index))
    }

    fn begin(&mut self, step: usize, encoder: &TrainableEncoder) -> Result<()> {
        if is_whole(&index_of(&self.out, step)) {
            return Ok(());
        }
        let folder = folder_of(&self.out, step);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let saved = encoder_of(&self.out, step);
        encoder.save(&saved)?;
        match self.is_wanted(step) {
            true => self.encode(step, saved),
            false => Ok(()),
        }
    }

    /// Encodes the given index as generation `number` by the encoder in the folder `encoder`, when the one before is done.
    fn encode(&mut self, number: usize, encoder: PathBuf) -> Result<()> {
        self.wait()?;
        let (given, index) = (self.given.clone(), index_of(&self.out, number));
        if is_whole(&index) {
            return Ok(());
        }
        if index.exists() {
            fs::remove_dir_all(&index).map_err(Error::io(&index))?;
        }
        let encode = move || {
            // By its full path the index finds it from anywhere.
            let encoder = fs::canonicalize(&encoder).map_err(Error::io(&encoder))?;
            let encoder = encoder::load(&encoder.display().to_string())?;
            encode_again(&given, &index, encoder.as_ref(), Progress::Silent).map(|_| ())
        };
        let thread =
            thread::Builder::new().name("refresh".into()).spawn(encode).map_err(Error::io(&self.out))?;
        self.work = Some((number, thread));
        Ok(())
    }

    /// Waits for what is being encoded.
    fn wait(&mut self) -> Result<()> {
        let Some((number, thread)) = self.work.take() else { return Ok(()) };
        let lost = || Error::file(index_of(&self.out, number), "encoding the index again has broken off");
        thread.join().map_err(|_| lost())?
    }

    /// Where generation `number` has the folder `of`: in this run, or in that whose checkpoint it began with.
    fn find(
        &self,
        number: usize,
        of: fn(&Path, usize) -> PathBuf,
        is_whole: fn(&Path) -> bool,
    ) -> Result<PathBuf> {
        let runs = [Some(&self.out), self.started.as_ref()].into_iter().flatten();
        let mut found = runs.map(|run| of(run, number)).filter(|folder| is_whole(folder));
        found.next().ok_or_else(|| {
            let why = "what this checkpoint was trained with is gone; begin the run again";
            Error::file(of(&self.out, number), why)
        })
    }

    /// The step before which the index that is in use before `step` was encoded.
    fn used(&self, step: usize) -> usize {
        step.checked_sub(self.refreshes.lag).map_or(0, |step| self.last(step))
    }

    /// Whether what is encoded before `step` comes into use in this run.
    fn is_wanted(&self, step: usize) -> bool {
        step.saturating_add(self.refreshes.lag) < self.refreshes.steps
    }

    /// The last step up to `step` before which the index is encoded again.
    fn last(&self, step: usize) -> usize {
        self.refreshes.schedule.as_ref().map_or(0, |schedule| schedule.last(step))
    }

    fn remove(&self, which: impl Fn(usize) -> bool) -> Result<()> {
        if !self.encodes {
            return Ok(());
        }
        let folder = self.out.join(FOLDER);
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if checkpoint::step_of(&path).is_some_and(&which) {
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }
}

const FOLDER: &str = "generations";

fn folder_of(run: &Path, step: usize) -> PathBuf {
    run.join(FOLDER).join(format!("step-{step:07}"))
}

fn index_of(run: &Path, step: usize) -> PathBuf {
    folder_of(run, step).join("index")
}

fn encoder_of(run: &Path, step: usize) -> PathBuf {
    folder_of(run, step).join("encoder")
}

fn is_whole(index: &Path) -> bool {
    index.join(MANIFEST).is_file()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::corpus::Tokenizer;
    use crate::retriever::build;
    use crate::retriever::testing::{files, options};
    use crate::train::group::Alone;

    const STEPS: usize = 20;

    struct Place {
        dir: tempfile::TempDir,
        encoder: TrainableEncoder,
    }

    impl Place {
        /// An index of some documents, and its encoder.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let corpus = [dir.path().join("corpus.jsonl")];
            let line = |i: usize| {
                let text = format!("the moon moves around April in {i} days and the king in {}", i * 3);
                serde_json::json!({"id": format!("d{i}"), "title": "a castle", "text": text}).to_string()
            };
            fs::write(&corpus[0], (0..40).map(line).collect::<Vec<_>>().join("\n")).unwrap();
            let name = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder/bert_mean");
            let name = name.display().to_string();
            let (bert, given) = (encoder::load(&name).unwrap(), dir.path().join("given"));
            let tokenizer = Tokenizer::default_lm().unwrap();
            build(&options(&corpus, &given, bert.as_ref(), &tokenizer, 64), Progress::Silent).unwrap();
            Self { encoder: TrainableEncoder::load(&name, &Device::Cpu).unwrap(), dir }
        }

        fn open(&self, checkpoint: Option<usize>, lag: usize) -> Generations {
            let (out, given) = (self.dir.path().join("run"), self.dir.path().join("given"));
            let start = checkpoint.map(|step| checkpoint::folder(&out, step));
            let refreshes = Refreshes { schedule: Some("4".parse().unwrap()), lag, steps: STEPS };
            Generations::open(&out, &given, start.as_deref(), checkpoint.unwrap_or(0), refreshes, true)
                .unwrap()
        }

        /// As a step would.
        fn learn(&self, step: usize) {
            for (name, variable) in self.encoder.variables() {
                let noise = crate::model::normal::normal(step as u64, name, variable.elem_count(), 0.1);
                let noise = Tensor::from_vec(noise, variable.dims(), &Device::Cpu).unwrap();
                variable.set(&(variable.as_detached_tensor() + noise).unwrap()).unwrap();
            }
        }

        /// All files of generation `number`'s index.
        fn index(&self, number: usize) -> BTreeMap<PathBuf, Vec<u8>> {
            files(&index_of(&self.dir.path().join("run"), number))
        }
    }

    fn number(index: Option<PathBuf>) -> Option<usize> {
        index.map(|index| checkpoint::step_of(index.parent().unwrap()).unwrap())
    }

    /// Fails when the swap comes as soon as the index is there, when the thread reads weights that go on learning, or when what
    /// nobody will use is encoded.
    #[test]
    fn an_index_comes_into_use_at_its_step_and_is_that_of_the_weights_then() {
        let place = Place::new();
        let (mut waited, mut used) = (Vec::new(), Vec::new());
        let mut at_once = place.open(None, 0);
        for step in 0..STEPS {
            used.push(number(at_once.due(step, &place.encoder, &mut Alone).unwrap()));
            if step == 4 {
                waited = vec![place.index(4)];
                break;
            }
            place.learn(step);
        }
        assert_eq!(used, [None, None, None, None, Some(4)]);
        drop(at_once);

        let again = Place { dir: place.dir, encoder: Place::new().encoder };
        let mut beside = again.open(None, 3);
        let mut used = Vec::new();
        for step in 0..STEPS {
            used.extend(
                number(beside.due(step, &again.encoder, &mut Alone).unwrap()).map(|number| (step, number)),
            );
            if step == 7 {
                waited.push(again.index(4));
            }
            again.learn(step);
        }
        assert_eq!(used, [(7, 4), (11, 8), (15, 12), (19, 16)]);
        assert!(waited[0] == waited[1], "not the index of the weights before step 4");
        // With a lag of 5 the last one would come at 21.
        let mut late = again.open(None, 5);
        (0..STEPS).for_each(|step| _ = late.due(step, &again.encoder, &mut Alone).unwrap());
        assert!(late.work.is_none() && late.current == 12);
        assert!(encoder_of(&again.dir.path().join("run"), 16).is_dir() && !index_of(&late.out, 16).exists());
    }

    /// A run was killed while it encoded: what it had saved of the encoder is enough to go on, however far its index was.
    #[test]
    fn a_run_goes_on_with_what_was_being_encoded() {
        let place = Place::new();
        let mut whole = place.open(None, 6);
        for step in 0..12 {
            whole.due(step, &place.encoder, &mut Alone).unwrap();
            place.learn(step);
        }
        whole.wait().unwrap();
        let made = place.index(8);
        drop(whole);
        let out = place.dir.path().join("run");
        // Of 8 half is there.
        fs::remove_file(index_of(&out, 8).join(MANIFEST)).unwrap();
        let mut resumed = place.open(Some(11), 6);
        assert_eq!(number(resumed.before(11).unwrap()), Some(4));
        let steps = 11..STEPS;
        let used: Vec<_> =
            steps.map(|step| number(resumed.due(step, &place.encoder, &mut Alone).unwrap())).collect();
        assert_eq!(used.iter().position(|number| *number == Some(8)), Some(14 - 11), "{used:?}");
        assert!(made == place.index(8), "another index than that of the run that was killed");

        fs::remove_dir_all(folder_of(&out, 12)).unwrap();
        let said = place.open(Some(14), 6).before(14).unwrap_err().to_string();
        assert!(said.contains("step-0000012") && said.contains("begin the run again"), "{said}");
    }
}
