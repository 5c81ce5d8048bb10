//! A trained encoder as a folder in Hugging Face's and sentence-transformers' layout: the files of the one it began as,
//! with its own weights.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use serde_json::Value;

use super::super::copied;
use super::super::folder::{CONFIG, WEIGHTS};
use super::{Part, TrainableEncoder};
use crate::error::{Error, Result};
use crate::model::Precision;
use crate::model::whole::whole_tensors;
use crate::sealed;

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
        copied::write(dir, &self.files, |dir| {
            self.weights.iter().try_for_each(|part| part.save(dir, precision))
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
        sealed::write_tensors(&dir.join(WEIGHTS), &tensors)?;
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
