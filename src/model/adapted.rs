//! A model with an adapter: which one it is of, and how it is saved.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::attached::Attached;
use super::matrix::Matrix;
use super::place::Place;
use super::precision::Precision;
use super::source::{BaseModel, Source};
use super::weights::Weights;
use super::whole::whole_tensors;
use crate::adapter::{self, Adapter, Method, Saved};
use crate::error::{Error, Result};

/// An adapter for the model that `source` has opened under the name `name`.
pub struct Wanted<'a> {
    /// The adapter.
    pub adapter: Adapter,
    /// What the user calls the model.
    pub name: &'a Path,
    /// Whether the adapter is trained. Where not, it is put into the weights.
    pub trainable: bool,
    /// What a new adapter starts from.
    pub seed: u64,
}

/// An adapter that is trained, and the model that it stands on.
pub struct Adapted {
    attached: Attached,
    base: BaseModel,
}

impl Wanted<'_> {
    /// Attaches it to the weights of `source`, which become `weights`; gives the model underneath.
    ///
    /// # Errors
    /// When it was made for another model.
    pub fn check(&mut self, source: &Source) -> Result<BaseModel> {
        let base = BaseModel::of(self.name, source)?;
        if let Some(made_for) = self.adapter.base_in_manifest::<BaseModel>()?
            && made_for.blake3 != base.blake3
        {
            return Err(Error::Mismatch {
                what: "the models of the adapter".into(),
                left: format!("{} ({})", base.name.display(), base.blake3),
                right: format!("{} ({})", made_for.name.display(), made_for.blake3),
                hint: "give the model that the adapter was trained on".into(),
            });
        }
        let kind = source.config().get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        let usual = self.adapter.method.clone().with_usual_targets(kind);
        self.adapter.method = usual;
        Ok(base)
    }

    /// Attaches it to `weights`.
    pub fn attach(self, weights: &mut Weights) {
        weights.attach(self.adapter, self.trainable, self.seed);
    }
}

impl Adapted {
    /// What there is to save of `attached`: nothing where it is not trained.
    pub fn of(attached: Option<Attached>, base: Option<BaseModel>) -> Option<Self> {
        let attached = attached.filter(|attached| !attached.merges())?;
        Some(Self { attached, base: base? })
    }

    /// Number of values that it adds to the model.
    pub fn parameters(&self) -> usize {
        self.attached.handed().values().map(Tensor::elem_count).sum()
    }

    /// Writes the adapter to the new folder `dir` in PEFT's format; `weights` are those of the whole model, and `shape`
    /// its blocks, width, heads of keys and values, and their width.
    pub fn save(
        &self,
        dir: &Path,
        weights: &BTreeMap<Place, Matrix>,
        encoder_decoder: bool,
        shape: [usize; 4],
    ) -> Result<()> {
        let mut tensors = self.attached.handed().clone();
        if let Method::BitFit(_) = self.attached.method() {
            let biases = weights.iter().filter(|(place, _)| place.tensor.ends_with(".bias"));
            let biases = biases.map(|(place, matrix)| (place.clone(), matrix.clone())).collect();
            let whole = whole_tensors(&biases, Precision::F32)?;
            tensors.extend(whole.into_iter().map(|(name, tensor)| (name.to_string(), tensor)));
        }
        let saved = Saved {
            method: self.attached.method(),
            base_name: self.base.name.to_string_lossy().into_owned(),
            base: self.base.seen_from(dir),
            encoder_decoder,
            layers: self.attached.layers(),
            transposed: self.attached.transposed(),
            shape,
        };
        adapter::save(dir, &saved, &tensors)
    }
}
