//! A faiss file from elsewhere becomes an index.

use std::fs;
use std::path::Path;

use ::faiss::index::IndexImpl;
use ::faiss::{Idx, Index as _};

use super::{BATCH, FILE, Shape, error, metric_of, native, read};
use crate::artefact::{ArtefactError, Manifest};
use crate::spec::Factory;
use crate::{Builder, IndexError, Metric, Spec, VectorFile};

/// See [`Builder::import_faiss`].
pub(crate) fn import(
    dir: &Path,
    file: &Path,
    metric: Metric,
    vectors: Option<&mut VectorFile>,
) -> Result<Manifest, IndexError> {
    let what = file.display().to_string();
    let refuse = |why: String| IndexError::Faiss { what: what.clone(), why };
    // What is read here is what is copied below: errors of the copy come first.
    let index = read(file)?;
    let shape = Shape::of(&index);
    if shape.metric != Some(metric_of(metric)) {
        return Err(refuse(format!("holds {shape}, which is not what the metric {metric} needs")));
    }
    if shape.rows > u32::MAX as usize {
        return Err(IndexError::TooManyRows);
    }
    let mut builder = Builder::create(dir, shape.dim, metric, &Spec::Faiss(Factory::IMPORTED), 0)?;
    match vectors {
        Some(vectors) if (vectors.len(), vectors.dim()) != (shape.rows, shape.dim) => {
            let why = format!("holds {shape}, but there are {} x {} vectors", vectors.len(), vectors.dim());
            return Err(refuse(why));
        }
        Some(vectors) => builder.add_file(vectors)?,
        None => {
            let batch = (BATCH / shape.dim).max(1);
            for first in (0..shape.rows).step_by(batch) {
                let count = batch.min(shape.rows - first);
                builder.add(&rows_of(&index, first, count).map_err(error(format!(
                    "{what}: cannot give its rows back; give them in a file of vectors"
                )))?)?;
            }
        }
    }
    drop(index);
    builder.finish_with(|_, writer, _| {
        fs::copy(file, writer.path(FILE)).map_err(ArtefactError::io(file))?;
        Ok(None)
    })
}

/// Rows `first..first + count` as faiss gives them back. What it leaves out, because no row has this
/// number, is NaN, which a builder refuses.
fn rows_of(index: &IndexImpl, first: usize, count: usize) -> Result<Vec<f32>, ::faiss::error::Error> {
    let dim = index.d() as usize;
    let mut rows = vec![f32::NAN; count * dim];
    match native::is_ivf(index) {
        // One by one it would need a table that files seldom have.
        true => index.reconstruct_n(Idx::new(first as u64), count, &mut rows)?,
        // All at once, those that cannot would throw where nobody catches: on another thread.
        false => {
            for (id, row) in (first..).zip(rows.chunks_exact_mut(dim)) {
                index.reconstruct(Idx::new(id as u64), row)?;
            }
        }
    }
    Ok(rows)
}
