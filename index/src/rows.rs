//! The vectors themselves, mapped from disk.

use std::io::Write;
use std::path::Path;

use crate::artefact::ArtefactError;
use crate::mapped::Mapped;
use crate::metric::Metric;
use crate::topk::Hit;

/// The rows of an index `[rows, dim]`, as [`Metric::prepare`] left them.
pub(crate) struct Rows {
    values: Mapped<f32>,
    len: usize,
    dim: usize,
    metric: Metric,
}

impl Rows {
    /// Maps the file at `path`, which must hold `len` rows of `dim` numbers; `dim` is not 0.
    pub fn open(path: &Path, len: usize, dim: usize, metric: Metric) -> Result<Self, ArtefactError> {
        // A length that overflows is no file's length, and neither is the largest number.
        let values = Mapped::open(path, len.saturating_mul(dim))?;
        Ok(Self { values, len, dim, metric })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Row `id`, which must be less than [`len`](Rows::len).
    pub fn row(&self, id: usize) -> &[f32] {
        &self.values.as_slice()[id * self.dim..][..self.dim]
    }

    /// Rows `first..first + count`, end to end.
    pub fn block(&self, first: usize, count: usize) -> &[f32] {
        &self.values.as_slice()[first * self.dim..][..count * self.dim]
    }

    /// The exact score of row `id` with a prepared query.
    pub fn hit(&self, id: usize, query: &[f32]) -> Hit {
        Hit { id: id as u32, score: self.metric.score(self.row(id), query) }
    }
}

/// Writes numbers as little-endian bytes.
pub(crate) fn write_f32(out: &mut impl Write, numbers: &[f32]) -> std::io::Result<()> {
    numbers.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
}
