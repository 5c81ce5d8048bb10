//! From rows of several places to one segment.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::artefact::ArtefactError;
use crate::{Builder, IndexError, Metric, Spec, disk};

/// Numbers given to the builder at a time.
const BATCH: usize = 1 << 18;

/// Ids and rows, by ascending id.
pub(super) type Source<'a> = Box<dyn Iterator<Item = (u64, Cow<'a, [f32]>)> + 'a>;

/// All that the sources have, by ascending id; what has one id comes in the order of the sources.
struct Joined<'a> {
    sources: Vec<Source<'a>>,
    /// The next of each source.
    heads: Vec<Option<Cow<'a, [f32]>>>,
    order: BinaryHeap<Reverse<(u64, usize)>>,
}

impl<'a> Joined<'a> {
    fn new(sources: Vec<Source<'a>>) -> Self {
        let count = sources.len();
        let mut joined = Self { sources, heads: vec![None; count], order: BinaryHeap::new() };
        (0..count).for_each(|source| joined.pull(source));
        joined
    }

    fn pull(&mut self, source: usize) {
        if let Some((id, row)) = self.sources[source].next() {
            self.heads[source] = Some(row);
            self.order.push(Reverse((id, source)));
        }
    }
}

impl<'a> Iterator for Joined<'a> {
    type Item = (u64, Cow<'a, [f32]>);

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((id, source)) = self.order.pop()?;
        let row = self.heads[source].take()?;
        self.pull(source);
        Some((id, row))
    }
}

/// What a segment's index is to be.
pub(super) struct Shape<'a> {
    pub dim: usize,
    pub metric: Metric,
    pub spec: Spec,
    pub seed: u64,
    /// The folder of a segment whose lists it takes over.
    pub lists_of: Option<&'a Path>,
}

/// Builds an index of all rows in `folder`, by ascending id, and writes the ids to `ids_path`.
/// Rows go from file to file; memory is what the kind of index needs.
pub(super) fn build_segment(
    folder: &Path,
    ids_path: &Path,
    shape: &Shape,
    sources: Vec<Source>,
) -> Result<(), IndexError> {
    let mut builder = Builder::create(folder, shape.dim, shape.metric, &shape.spec, shape.seed)?;
    if let Some(dir) = shape.lists_of {
        builder = builder.lists_of(dir)?;
    }
    let mut ids_file = BufWriter::new(disk::create(ids_path)?);
    let mut batch = Vec::with_capacity(BATCH + shape.dim);
    for (id, row) in Joined::new(sources) {
        ids_file.write_all(&id.to_le_bytes()).map_err(ArtefactError::io(ids_path))?;
        batch.extend_from_slice(&row);
        if batch.len() >= BATCH {
            builder.add(&batch)?;
            batch.clear();
        }
    }
    builder.add(&batch)?;
    ids_file.flush().map_err(ArtefactError::io(ids_path))?;
    builder.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_joined_by_ascending_id() {
        let rows: Vec<[f32; 1]> = (0..10u8).map(|i| [f32::from(i)]).collect();
        let source = |ids: &'static [u64]| -> Source {
            Box::new(ids.iter().map(|&id| (id, Cow::Borrowed(&rows[id as usize][..]))))
        };
        let joined = Joined::new(vec![source(&[1, 4, 9]), source(&[]), source(&[0, 2, 3, 8]), source(&[5])]);
        let found: Vec<(u64, f32)> = joined.map(|(id, row)| (id, row[0])).collect();
        let wanted = [0, 1, 2, 3, 4, 5, 8, 9].map(|id| (id, id as f32));
        assert_eq!(found, wanted);
    }
}
