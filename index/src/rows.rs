//! The vectors themselves, mapped from disk.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::artefact::ArtefactError;
use crate::mapped::Mapped;
use crate::metric::Metric;
use crate::topk::Hit;

/// Reading a row that is in memory takes far less; from any disk, more.
const FROM_DISK: Duration = Duration::from_micros(20);
/// Looking at the clock takes time too: after the first so many rows only one in so many is watched.
const EVERY: usize = 4;
/// Rows asked for at once where they come from disk.
const AHEAD: usize = 128;

/// The rows of an index `[rows, dim]`, as [`Metric::prepare`] left them.
pub(crate) struct Rows {
    values: Mapped<f32>,
    /// The same file, mapped for reading rows here and there.
    scattered: Option<Mapped<f32>>,
    len: usize,
    dim: usize,
    /// Numbers from the beginning of a row to that of the next.
    stride: usize,
    metric: Metric,
}

impl Rows {
    /// Maps the file at `path`, which must hold `len` rows of `dim` numbers; `dim` is not 0.
    pub fn open(path: &Path, len: usize, dim: usize, metric: Metric) -> Result<Self, ArtefactError> {
        Self::open_strided(path, len, dim, dim, metric)
    }

    /// Maps an open file of `len` rows, which errors call `path`.
    pub fn of(
        file: &File,
        path: &Path,
        len: usize,
        dim: usize,
        metric: Metric,
    ) -> Result<Self, ArtefactError> {
        let values = Mapped::of(file, path, len.saturating_mul(dim))?;
        Ok(Self { values, scattered: None, len, dim, stride: dim, metric })
    }

    /// As [`open`](Rows::open), for an index that reads rows here and there, by way of [`reader`](Rows::reader), and all of
    /// them now and then: the former through a mapping of its own, for which the system reads no
    /// more than the row from a disk, where it would read all around it.
    pub fn open_scattered(
        path: &Path,
        len: usize,
        dim: usize,
        metric: Metric,
    ) -> Result<Self, ArtefactError> {
        let mut rows = Self::open(path, len, dim, metric)?;
        let scattered = Mapped::open(path, len.saturating_mul(dim))?;
        scattered.read_here_and_there();
        rows.scattered = Some(scattered);
        Ok(rows)
    }

    /// Maps a file of `len` records of `stride` numbers, each beginning with a row.
    pub fn open_strided(
        path: &Path,
        len: usize,
        dim: usize,
        stride: usize,
        metric: Metric,
    ) -> Result<Self, ArtefactError> {
        // A length that overflows is no file's length, and neither is the largest number.
        let values = Mapped::open(path, len.saturating_mul(stride))?;
        Ok(Self { values, scattered: None, len, dim, stride, metric })
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
    #[inline]
    pub fn row(&self, id: usize) -> &[f32] {
        &self.values.as_slice()[id * self.stride..][..self.dim]
    }

    /// Row `id` with what follows it in its record.
    #[inline]
    pub fn record(&self, id: usize) -> &[f32] {
        &self.values.as_slice()[id * self.stride..][..self.stride]
    }

    /// Rows `first..first + count`, end to end.
    pub fn block(&self, first: usize, count: usize) -> Cow<'_, [f32]> {
        match self.stride == self.dim {
            true => Cow::Borrowed(&self.values.as_slice()[first * self.dim..][..count * self.dim]),
            false => Cow::Owned((first..first + count).flat_map(|id| self.row(id)).copied().collect()),
        }
    }

    /// The exact score of row `id` with a prepared query.
    pub fn hit(&self, id: usize, query: &[f32]) -> Hit {
        Hit { id: id as u32, score: self.metric.score(self.row(id), query) }
    }

    /// Asks the system to read these records from disk, without waiting for them.
    pub fn will_need(&self, ids: impl Iterator<Item = usize>) {
        for id in ids.filter(|&id| id < self.len) {
            self.values.will_need(id * self.stride..(id + 1) * self.stride);
        }
    }

    /// For scoring rows here and there.
    pub fn reader(&self) -> Reader<'_> {
        let values = self.scattered.as_ref().unwrap_or(&self.values).as_slice();
        Reader { rows: self, values, read: 0, asked_until: 0 }
    }
}

/// Scores rows here and there. Rows that are not in memory would be waited for one by one, when
/// the disk could fetch many at a time: so where one took that long, the next are asked for
/// together.
pub(crate) struct Reader<'a> {
    rows: &'a Rows,
    values: &'a [f32],
    read: usize,
    /// As many as had been asked for by then are not watched.
    asked_until: usize,
}

impl Reader<'_> {
    /// The exact score of row `id` with a prepared query; `ahead` names the rows that are likely
    /// to come next.
    pub fn hit<I: Iterator<Item = usize>>(
        &mut self,
        id: usize,
        query: &[f32],
        ahead: impl FnOnce() -> I,
    ) -> Hit {
        self.read += 1;
        let row = &self.values[id * self.rows.stride..][..self.rows.dim];
        let hit = || Hit { id: id as u32, score: self.rows.metric.score(row, query) };
        if self.read <= self.asked_until || self.read > EVERY && !self.read.is_multiple_of(EVERY) {
            return hit();
        }
        let start = Instant::now();
        let hit = hit();
        if start.elapsed() > FROM_DISK {
            let mut asked = 0;
            self.rows.will_need(ahead().take(AHEAD).inspect(|_| asked += 1));
            self.asked_until = self.read + asked;
        }
        hit
    }
}
