//! From rows to an index on disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::artefact::{ArtefactError, Manifest, Writer};
use crate::mapped::write_numbers;
use crate::meta::{FORMAT_VERSION, KIND, Meta, VECTORS};
use crate::pages::PageWriter;
use crate::rows::Rows;
use crate::{IndexError, Metric, Spec, graph, hnsw, ivf, rabitq};

/// Writes an index: rows go straight to disk as they are added, and the directory holds the new
/// index once [`finish`](Builder::finish) returns, the old one or none until then.
pub struct Builder {
    writer: Writer,
    path: PathBuf,
    file: PageWriter,
    rows: usize,
    pub(crate) dim: usize,
    metric: Metric,
    spec: Spec,
    seed: u64,
}

impl Builder {
    /// The most numbers that a vector can have.
    pub const MAX_DIM: usize = 1 << 16;

    /// Starts an index of vectors of `dim` numbers in `dir`, which is created where it does not
    /// exist. `seed` fixes the random rotations of RaBitQ and the graph, and what
    /// else is left to chance.
    ///
    /// # Errors
    /// A dimension of 0 or above [`MAX_DIM`](Builder::MAX_DIM), a [`Spec`] with numbers out of
    /// range, a directory that cannot be written.
    pub fn create(
        dir: &Path,
        dim: usize,
        metric: Metric,
        spec: &Spec,
        seed: u64,
    ) -> Result<Self, IndexError> {
        if !(1..=Self::MAX_DIM).contains(&dim) {
            return Err(IndexError::Dimension { dim });
        }
        let spec = spec.check()?;
        let mut writer = Writer::create(dir, KIND, FORMAT_VERSION)?;
        let (path, file) = match spec {
            // The records of a graph hold the rows too: until then they are kept without a name, so
            // that nothing is left of them after a crash.
            Spec::Graph { .. } => (dir.into(), tempfile::tempfile_in(dir).map_err(ArtefactError::io(dir))?),
            _ => {
                let path = writer.path(VECTORS);
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
                (path.clone(), file.map_err(ArtefactError::io(path))?)
            }
        };
        let file = PageWriter::new(file);
        Ok(Self { writer, path, file, rows: 0, dim, metric, spec, seed })
    }

    /// Adds rows `[rows, dim]`, row-major. The first row ever added has id 0, the next 1.
    ///
    /// # Errors
    /// A length that is no multiple of the dimension, a row with NaN or infinity (its id is
    /// named), more than `u32::MAX` rows: then none of these rows is added. A full disk.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), IndexError> {
        let dim = self.dim;
        if !rows.len().is_multiple_of(dim) {
            return Err(IndexError::Length { what: "rows", found: rows.len(), dim, many: true });
        }
        let count = rows.len() / dim;
        if count > u32::MAX as usize - self.rows {
            return Err(IndexError::TooManyRows);
        }
        let mut scratch = vec![0.0; dim];
        for (i, row) in rows.chunks_exact(dim).enumerate() {
            scratch.copy_from_slice(row);
            if !self.metric.prepare(&mut scratch) {
                return Err(IndexError::NotFinite { what: "row", number: self.rows + i });
            }
        }
        for row in rows.chunks_exact(dim) {
            scratch.copy_from_slice(row);
            self.metric.prepare(&mut scratch);
            write_numbers(&mut self.file, &scratch).map_err(ArtefactError::io(&self.path))?;
        }
        self.rows += count;
        Ok(())
    }

    /// Builds what the [`Spec`] asks for over the rows and makes the index real.
    ///
    /// # Errors
    /// A full disk, or a directory that somebody else has touched.
    pub fn finish(mut self) -> Result<Manifest, IndexError> {
        let file = self.file.into_file().map_err(ArtefactError::io(&self.path))?;
        // Checks the length too: rows that a full disk cut short in `add` are found here.
        let rows = Rows::of(&file, &self.path, self.rows, self.dim, self.metric)?;
        let graph = match self.spec {
            Spec::Flat => None,
            Spec::Hnsw { m } => Some(hnsw::build(&rows, m, &mut self.writer)?),
            Spec::RaBitQ { bits } => {
                rabitq::build(&rows, bits, self.seed, &mut self.writer)?;
                None
            }
            Spec::Graph { degree } => {
                graph::build(&rows, degree, self.seed, &mut self.writer)?;
                None
            }
            Spec::Ivf { lists } => {
                ivf::build(&rows, lists, self.seed, &mut self.writer)?;
                None
            }
        };
        let meta = Meta {
            rows: self.rows,
            dim: self.dim,
            metric: self.metric,
            spec: self.spec,
            seed: self.seed,
            graph,
        };
        drop(rows);
        let meta = serde_json::to_value(meta).expect("the meta is plain JSON");
        Ok(self.writer.commit(meta)?)
    }
}
