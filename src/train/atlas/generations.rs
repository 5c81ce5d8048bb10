//! The index of a run, encoded again from time to time: each time a generation in a folder of its own, `generations/step-N`, which
//! is there when its index's manifest is.

use std::fs;
use std::path::{Path, PathBuf};

use super::RefreshSchedule;
use crate::artefact::MANIFEST;
use crate::encoder::{self, TrainableEncoder};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::retriever::encode_again;
use crate::train::checkpoint;

/// See [the module](self).
pub struct Generations {
    /// The run's folder, and that of the run whose checkpoint it began with.
    out: PathBuf,
    started: Option<PathBuf>,
    schedule: Option<RefreshSchedule>,
    /// The step before which the index that is in use was encoded; 0 for the one that was given.
    current: usize,
}

impl Generations {
    /// For the run in `out`, which goes on from the checkpoint `start` after `step` steps. Generations that were made after that
    /// step are removed: the steps that led to them are taken again.
    pub fn open(
        out: &Path,
        start: Option<&Path>,
        step: usize,
        schedule: Option<RefreshSchedule>,
    ) -> Result<Self> {
        let started = start.and_then(|start| start.ancestors().nth(2)).map(Path::to_path_buf);
        let generations = Self { out: out.into(), started, schedule, current: 0 };
        generations.remove(|number| number > step || start.is_none())?;
        Ok(generations)
    }

    /// The index that was in use before `step`, where that is not the one that was given: that of the run that goes on.
    ///
    /// # Errors
    /// A generation that is gone.
    pub fn before(&mut self, step: usize) -> Result<Option<PathBuf>> {
        // What is due at this very step is made when the step comes.
        let wanted = match step {
            0 => 0,
            step => self.last(step - 1),
        };
        self.current = wanted;
        if wanted == 0 {
            return Ok(None);
        }
        let found = [Some(&self.out), self.started.as_ref()].into_iter().flatten();
        let mut found = found.map(|run| index_of(run, wanted)).filter(|index| index.join(MANIFEST).is_file());
        match found.next() {
            Some(index) => Ok(Some(index)),
            None => {
                let why = "the index that this checkpoint was trained with is gone; begin the run again";
                Err(Error::file(index_of(&self.out, wanted), why))
            }
        }
    }

    /// Encodes the index `given` again if that is due before `step`, and gives the new one.
    ///
    /// # Errors
    /// A full disk; an interruption.
    pub fn due(&mut self, step: usize, given: &Path, encoder: &TrainableEncoder) -> Result<Option<PathBuf>> {
        if self.last(step) == self.current || self.last(step) != step {
            return Ok(None);
        }
        let folder = folder_of(&self.out, step);
        let index = index_of(&self.out, step);
        if !index.join(MANIFEST).is_file() {
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
            }
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            let encoder_folder = folder.join("encoder");
            encoder.save(&encoder_folder)?;
            let fresh = encoder::load(&encoder_folder.display().to_string())?;
            encode_again(given, &index, fresh.as_ref(), Progress::Silent)?;
        }
        self.current = step;
        // A run that goes on needs the index of its last checkpoint.
        let oldest =
            checkpoint::list(&self.out)?.last().map_or(0, |saved| self.last(saved.saturating_sub(1)));
        self.remove(|number| number < oldest)?;
        Ok(Some(index))
    }

    /// The last step up to `step` before which the index is encoded again.
    fn last(&self, step: usize) -> usize {
        self.schedule.as_ref().map_or(0, |schedule| schedule.last(step))
    }

    fn remove(&self, which: impl Fn(usize) -> bool) -> Result<()> {
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
