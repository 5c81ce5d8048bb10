//! Checkpoints: a model folder with the optimiser's state beside it, named by step.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::optimiser::Optimiser;
use crate::error::{Error, Result};
use crate::sealed;

const OPTIMISER: &str = "optimizer.safetensors";
const LEARNER: &str = "learner.safetensors";

/// Folder of the checkpoint after `step` steps.
pub fn folder(out: &Path, step: usize) -> PathBuf {
    out.join("checkpoints").join(format!("step-{step:07}"))
}

/// Number of steps done at a checkpoint.
pub fn step_of(dir: &Path) -> Option<usize> {
    dir.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// Saves what `model` writes, and the optimiser, after `step` steps, whole or not at all, and removes all but
/// the last `keep` and those in `pinned`.
pub fn save(
    out: &Path,
    step: usize,
    model: impl FnOnce(&Path) -> Result<()>,
    optimiser: &Optimiser,
    keep: usize,
    pinned: &[usize],
) -> Result<()> {
    let dir = folder(out, step);
    if dir.exists() {
        return Ok(());
    }
    let unfinished = sealed::beside(&dir, ".part");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(Error::io(&unfinished))?;
    }
    model(&unfinished)?;
    save_tensors(&unfinished.join(OPTIMISER), &optimiser.state()?)?;
    fs::rename(&unfinished, &dir).map_err(Error::io(&dir))?;
    crate::artefact::sync_dir(&out.join("checkpoints"))?;
    for step in stale(&list(out)?, keep, pinned) {
        let dir = folder(out, step);
        fs::remove_dir_all(&dir).map_err(Error::io(dir))?;
    }
    Ok(())
}

/// Those of `steps`, which ascend, that are neither pinned nor among the last `keep`; pinned ones count as well, lest
/// each of the last that is pinned keep an older one alive.
fn stale(steps: &[usize], keep: usize, pinned: &[usize]) -> Vec<usize> {
    let old = &steps[..steps.len().saturating_sub(keep)];
    old.iter().copied().filter(|step| !pinned.contains(step)).collect()
}

/// Writes what a learner needs beside its weights into the checkpoint `dir`, where it needs anything.
pub fn save_learner(dir: &Path, state: &HashMap<String, Tensor>) -> Result<()> {
    match state.is_empty() {
        true => Ok(()),
        false => save_tensors(&dir.join(LEARNER), state),
    }
}

/// What a learner has written into the checkpoint `dir`: nothing where it has not.
pub fn load_learner(dir: &Path) -> Result<HashMap<String, Tensor>> {
    let path = dir.join(LEARNER);
    match path.exists() {
        true => load_tensors(&path),
        false => Ok(HashMap::new()),
    }
}

fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    sealed::write_tensors(path, tensors)?;
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))
}

fn load_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::file(path, format!("not a readable state: {e}")))
}

/// Steps of the whole checkpoints under `out`, ascending.
pub fn list(out: &Path) -> Result<Vec<usize>> {
    let dir = out.join("checkpoints");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(dir)(e)),
    };
    let mut steps: Vec<usize> = entries.flatten().filter_map(|entry| step_of(&entry.path())).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Gives `optimiser` the state saved in the checkpoint `dir`.
pub fn load_optimiser(dir: &Path, optimiser: &mut Optimiser) -> Result<()> {
    let path = dir.join(OPTIMISER);
    optimiser.load_state(&load_tensors(&path)?).map_err(|e| Error::file(&path, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_and_the_pinned_stay() {
        let steps = [5, 10, 15, 20, 25];
        assert_eq!(stale(&steps, 2, &[]), [5, 10, 15]);
        assert_eq!(stale(&steps, 2, &[10]), [5, 15]);
        // The best one is often among the last.
        assert_eq!(stale(&steps, 2, &[25, 20]), [5, 10, 15]);
        assert_eq!(stale(&steps, 1, &[25, 5]), [10, 15, 20]);
        assert!(stale(&steps, 9, &[]).is_empty());
    }
}
