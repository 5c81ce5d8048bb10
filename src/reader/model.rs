//! A model that reads, of any family, with the templates and the query encoder that it was trained with.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::{Fusion, Generative, Reader, Templates};
use crate::artefact::write_atomically;
use crate::encoder;
use crate::error::{Error, Result};
use crate::model::WritingModel;
use crate::retriever::Retriever;

/// What a folder that `sidenote train` with kind "atlas" leaves holds: the model, the encoder, and what they go by.
const READER: &str = "reader";
const RETRIEVER: &str = "retriever";
const ATLAS: &str = "atlas.json";

/// What is said beside the model and the encoder of such a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trained {
    /// What the model was trained to read.
    pub templates: Templates,
    /// Identity of the encoder whose vectors the queries were trained for; none where that is the encoder in the folder.
    pub passages: Option<String>,
}

/// A model to answer with.
pub struct ReaderModel {
    model: WritingModel,
    name: String,
    /// What it reads.
    pub templates: Templates,
    /// The encoder that was trained with it, and the identity of that of the passages where it is another.
    retriever: Option<(PathBuf, Option<String>)>,
}

impl ReaderModel {
    /// Reads the model called `name`: a run's folder with `reader/`, or as [`WritingModel::load`] understands it.
    ///
    /// # Errors
    /// Names what is missing or damaged.
    pub fn load(name: &Path, device: &Device) -> Result<Self> {
        let (reader, retriever) = folders(name);
        let shown = name.display().to_string();
        if !reader.is_dir() {
            let model = WritingModel::load(name, device)?;
            return Ok(Self { model, name: shown, templates: Templates::default(), retriever: None });
        }
        let Trained { templates, passages } = Trained::read(name)?;
        let retriever = retriever.is_dir().then_some((retriever, passages));
        Ok(Self { model: WritingModel::load(&reader, device)?, name: shown, templates, retriever })
    }

    /// `retriever` with queries encoded as the model was trained with, where it was trained with any.
    ///
    /// # Errors
    /// An index whose vectors are of another encoder.
    pub fn asks(&self, retriever: Retriever) -> Result<Retriever> {
        let Some((folder, passages)) = &self.retriever else { return Ok(retriever) };
        let queries = encoder::load(&folder.display().to_string())?;
        let wanted = passages.as_deref().unwrap_or(queries.identity());
        if retriever.encoder().identity() != wanted {
            return Err(Error::Mismatch {
                what: format!("the retriever of {} and the index {}", self.name, retriever.dir().display()),
                left: format!("trained for vectors of the encoder {wanted}"),
                right: format!(
                    "vectors of {:?} ({})",
                    retriever.encoder().name(),
                    retriever.encoder().identity()
                ),
                hint: match passages {
                    Some(_) => "give the index that it was trained with, or one by the same encoder".into(),
                    None => {
                        format!("encode it again: sidenote index encode INDEX --encoder {}", folder.display())
                    }
                },
            });
        }
        retriever.with_query_encoder(queries)
    }

    /// The model as a reader.
    pub fn reader(&self) -> Box<dyn Reader + '_> {
        match &self.model {
            WritingModel::Decoder(model) => {
                Box::new(Generative::new(model, &self.name, self.templates.clone()))
            }
            WritingModel::EncoderDecoder(model) => {
                Box::new(Fusion::new(model, &self.name, self.templates.clone()))
            }
        }
    }
}

/// Paths in such a folder: of the model, and of the encoder.
pub fn folders(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join(READER), dir.join(RETRIEVER))
}

impl Trained {
    /// Writes it into such a folder.
    ///
    /// # Errors
    /// A full disk.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(ATLAS);
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }

    /// Reads it out of such a folder.
    ///
    /// # Errors
    /// A file that is missing or says what it cannot.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(ATLAS);
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let trained: Self = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        trained.templates.check()?;
        Ok(trained)
    }
}
