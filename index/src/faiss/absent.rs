//! What stands for faiss where the crate is built without it: an error that says so.

use std::path::Path;

use crate::artefact::{Manifest, Writer};
use crate::rows::Rows;
use crate::spec::Factory;
use crate::topk::{Allow, Hit};
use crate::{IndexError, Metric, VectorFile};

/// There is none.
pub(crate) enum Native {}

pub(crate) fn build(_: &Rows, _: Factory, _: &mut Writer) -> Result<(), IndexError> {
    Err(IndexError::WithoutFaiss)
}

pub(crate) fn import(
    _: &Path,
    _: &Path,
    _: Metric,
    _: Option<&mut VectorFile>,
) -> Result<Manifest, IndexError> {
    Err(IndexError::WithoutFaiss)
}

impl Native {
    pub fn open(_: &Path, _: &Manifest, _: usize, _: usize, _: Metric) -> Result<Self, IndexError> {
        Err(IndexError::WithoutFaiss)
    }

    pub fn has_breadth(&self) -> bool {
        match *self {}
    }

    pub fn search(
        &self,
        _: &Rows,
        _: &[f32],
        _: usize,
        _: Option<usize>,
        _: Allow,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        match *self {}
    }
}
