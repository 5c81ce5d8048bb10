//! What a run learns from, told by what it holds and not by where it lies: a run that goes on has the same, and so have all processes
//! that train together.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::{TrainConfig, TuneSection};
use super::group::Group;
use crate::artefact::{MANIFEST, hash_file, write_atomically};
use crate::error::{Error, Result};
use crate::retriever::open_store;

/// Where a run keeps it.
const FILE: &str = "inputs.json";

/// See [the module](self).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// How many processes train together: what each reads depends on it.
    processes: usize,
    /// A hash of what each setting's file or folder holds.
    hashes: BTreeMap<String, String>,
}

impl Inputs {
    /// Those that `config` names; what is not there is for the learner to complain about.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn of(config: &TrainConfig, processes: usize) -> Result<Self> {
        let mut hashes = BTreeMap::new();
        if !config.index.as_os_str().is_empty() {
            hashes.insert("index".to_string(), open_store(&config.index)?.identity().to_string());
        }
        let named = [
            ("neighbours", &config.neighbours),
            ("held_out", &config.held_out),
            ("pairs", &config.pairs),
            ("examples", &config.examples),
        ];
        for (name, path) in named {
            if let Some(hash) = path.as_deref().map(hash_of).transpose()?.flatten() {
                hashes.insert(name.to_string(), hash);
            }
        }
        for (number, path) in config.tune.iter().flat_map(|tune| &tune.data).enumerate() {
            if let Some(hash) = hash_of(path)? {
                hashes.insert(format!("tune.data, number {}", number + 1), hash);
            }
        }
        Ok(Self { processes, hashes })
    }

    /// Keeps them with the run in `out`.
    ///
    /// # Errors
    /// A full disk.
    pub fn save(&self, out: &Path) -> Result<()> {
        let path = out.join(FILE);
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }

    /// Refuses to go on with the run in `out` from others than those that it was started with.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check_started(&self, out: &Path) -> Result<()> {
        let path = out.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Runs of before have none.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(path)(e)),
        };
        let started: Self = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        if started.processes != self.processes {
            let why = format!(
                "{} processes, but the run was started by {}; go on with as many",
                self.processes, started.processes
            );
            return Err(Error::setting("--of", why));
        }
        let (mut names, now) = (self.hashes.keys().chain(started.hashes.keys()), &self.hashes);
        let Some(name) = names.find(|name| now.get(*name) != started.hashes.get(*name)) else {
            return Ok(());
        };
        let what = match (now.get(name), started.hashes.get(name)) {
            (Some(_), None) => "was not there when the run was started",
            (None, _) => "was there when the run was started, and is not now",
            _ => "holds something else than when the run was started",
        };
        let why = format!("{what}; go on as it was, or begin another run with continue_from");
        Err(Error::setting(name, why))
    }

    /// Refuses processes that would not train one model: those of `group` that have other settings than `config`, other inputs, or
    /// begin after another number of steps than `step`.
    ///
    /// # Errors
    /// Where any is apart; a process that is gone.
    pub fn agree(&self, group: &mut dyn Group, config: &TrainConfig, step: usize) -> Result<()> {
        if group.size() == 1 {
            return Ok(());
        }
        // On each machine things may lie elsewhere.
        let tune = config.tune.clone().map(|tune| TuneSection { data: Vec::new(), ..tune });
        let settings = TrainConfig { tune, ..config.without_places() };
        let digest = blake3::hash(format!("{settings:?} {self:?} {step}").as_bytes());
        let own: Vec<f32> = digest.as_bytes().iter().map(|byte| f32::from(*byte)).collect();
        let mut sums = own.clone();
        group.sum(&mut sums)?;
        let all = group.size() as f32;
        // Where some differ, at least one is not the mean of all; whoever finds that tells the others.
        let apart = sums.iter().zip(&own).any(|(sum, own)| *sum != own * all);
        let mut apart = [f32::from(u8::from(apart))];
        group.sum(&mut apart)?;
        match apart[0] > 0.0 {
            true => Err(Error::setting(
                "--together",
                "the processes have different settings, inputs or checkpoints; give all of them the same",
            )),
            false => Ok(()),
        }
    }
}

/// A hash of a file, or of the manifest of a folder of Sidenote's, which says what each of its files holds; none where there is neither.
fn hash_of(path: &Path) -> Result<Option<String>> {
    let path = if path.is_dir() { path.join(MANIFEST) } else { path.to_path_buf() };
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(hash_file(&path)?.1))
}
