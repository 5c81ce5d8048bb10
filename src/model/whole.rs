//! Tensors of a checkpoint, put together again of the weights that layers hold.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use super::matrix::Matrix;
use super::place::Place;
use super::precision::Precision;
use crate::error::Result;

/// The tensors of the checkpoint that the weights make up, by name.
pub(crate) fn whole_tensors(
    weights: &BTreeMap<Place, Matrix>,
    precision: Precision,
) -> Result<HashMap<&str, Tensor>> {
    let mut groups: BTreeMap<&str, (&Place, Vec<Tensor>)> = BTreeMap::new();
    for (place, tensor) in weights {
        groups.entry(&place.tensor).or_insert((place, Vec::new())).1.push(tensor.dense()?);
    }
    let whole = groups
        .into_iter()
        .map(|(name, (place, weights))| Ok((name, precision.stored(&place.write(&weights)?)?)));
    whole.collect()
}
