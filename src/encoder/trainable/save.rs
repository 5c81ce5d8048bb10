//! A trained encoder as a folder in Hugging Face's and sentence-transformers' layout: the files of the one it began as,
//! with its own weights.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;

use super::super::folder::{CONFIG, WEIGHTS};
use super::{Part, TrainableEncoder};
use crate::artefact::{self, sync_dir};
use crate::error::{Error, Result};
use crate::model::Precision;
use crate::model::store::whole_tensors;
use crate::sealed;

/// Ends of names of files that hold weights.
const WEIGHT_FILES: [&str; 9] = ["safetensors", "bin", "pt", "pth", "onnx", "gguf", "h5", "msgpack", "ot"];

impl TrainableEncoder {
    /// Writes the encoder to the new folder `dir`, which appears whole or not at all. All files of the one it was read
    /// from come along, but for weights in other formats.
    ///
    /// # Errors
    /// Names the file that cannot be read or written; a folder that is there already.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_as(dir, Precision::F32)
    }

    /// [`save`](Self::save) with trained weights of this precision.
    ///
    /// # Errors
    /// As for [`save`](Self::save).
    pub fn save_as(&self, dir: &Path, precision: Precision) -> Result<()> {
        sealed::write_folder(dir, "an encoder", |dir| {
            for (name, bytes) in &self.files {
                let path = dir.join(name);
                let folder = path.parent().unwrap_or(dir);
                fs::create_dir_all(folder).map_err(Error::io(folder))?;
                fs::write(&path, bytes).map_err(Error::io(path))?;
            }
            for part in &self.weights {
                part.save(dir, precision)?;
            }
            sync_all(dir)
        })
    }
}

impl Part {
    /// Writes the weights below the encoder's folder `dir`, and says in the configuration how precise they are.
    fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        let dir = if self.folder.is_empty() { dir.to_path_buf() } else { dir.join(&self.folder) };
        let mut tensors: HashMap<&str, Tensor> = whole_tensors(&self.tensors, precision)?;
        for (name, tensor) in &self.others {
            tensors.entry(name).or_insert(tensor.contiguous()?);
        }
        candle_core::safetensors::save(&tensors, dir.join(WEIGHTS))?;
        let path = dir.join(CONFIG);
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut config: Value = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        for name in ["torch_dtype", "dtype"] {
            if let Some(dtype) = config.get_mut(name) {
                *dtype = precision.name().into();
            }
        }
        fs::write(&path, format!("{config:#}\n")).map_err(Error::io(path))
    }
}

/// The files of an encoder's folder that are not weights, and those of its modules, by their names from there.
pub(super) fn read_settings(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    read_below(folder, Path::new(""), &mut files)?;
    Ok(files)
}

fn read_below(folder: &Path, below: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
    let dir = folder.join(below);
    for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
        let entry = entry.map_err(Error::io(&dir))?;
        let (name, path) = (below.join(entry.file_name()), entry.path());
        let text = entry.file_name().to_string_lossy().into_owned();
        let is_weights = WEIGHT_FILES.iter().any(|end| text.ends_with(&format!(".{end}")))
            || text.ends_with(".index.json")
            || text == artefact::MANIFEST;
        // A module's folder, such as 1_Pooling; others hold the weights in other formats.
        let is_module = || text.split_once('_').is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        // Through links, as in the hub's cache.
        let kind = fs::metadata(&path).map_err(Error::io(&path))?;
        if kind.is_dir() && below.as_os_str().is_empty() && is_module() {
            read_below(folder, &name, files)?;
        } else if kind.is_file() && !is_weights {
            files.push((name, fs::read(&path).map_err(Error::io(path))?));
        }
    }
    Ok(())
}

/// Syncs every file and folder below `dir`.
fn sync_all(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        match path.is_dir() {
            true => sync_all(&path)?,
            false => {
                let synced: io::Result<()> = fs::File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(Error::io(path))?;
            }
        }
    }
    Ok(sync_dir(dir)?)
}
