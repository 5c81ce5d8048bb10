//! From rows to an index on disk.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artefact::{self, ArtefactError, Manifest, Writer};
use crate::hnsw::GraphMeta;
use crate::ivf::CoarseSpec;
use crate::mapped::write_numbers;
use crate::meta::{FORMAT_VERSION, KIND, Meta, VECTORS, VERSIONS};
use crate::pages::PageWriter;
use crate::quantized::QuantizedRows;
use crate::rows::Rows;
use crate::scratch::Scratch;
use crate::{Bytes, IndexError, Metric, Spec, VectorFile, faiss, graph, hnsw, ivf, memory, rabitq};

/// The rows of a graph until its records hold them, among the scratch files.
const ROWS: &str = "rows";
/// A graph over so many rows is noted before it is built.
const WORTH_NOTING: usize = 1000;
/// Rows of so many bytes are put on disk and noted together.
const CHECKPOINT: u64 = 256 << 20;

/// What the journal of an unfinished build says.
#[derive(PartialEq, Serialize, Deserialize)]
struct Journal {
    written_by: String,
    dim: usize,
    metric: Metric,
    spec: Spec,
    seed: u64,
    /// So many are surely on disk.
    rows: usize,
}

/// Writes an index: rows go straight to disk as they are added, and the directory holds the new
/// index once [`finish`](Builder::finish) returns, the old one or none until then.
pub struct Builder {
    writer: Writer,
    path: PathBuf,
    file: PageWriter,
    rows: usize,
    /// Rows that the journal knows of.
    noted: usize,
    pub(crate) dim: usize,
    metric: Metric,
    spec: Spec,
    seed: u64,
    scratch: Scratch,
    bound: Option<Bytes>,
    lists_of: Option<PathBuf>,
}

impl Builder {
    /// The most numbers that a vector can have.
    pub const MAX_DIM: usize = 1 << 16;

    /// Starts an index of vectors of `dim` numbers in `dir`, which is created where it does not
    /// exist. `seed` fixes the random rotations of RaBitQ and the graph, and what
    /// else is left to chance. What an unfinished build has left there is removed.
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
        Self::start(dir, dim, metric, spec, seed, false)
    }

    /// Goes on with the build in `dir` that was cut off, by a crash or by an error, where it is of
    /// the same dimension, metric, spec and seed: add the same rows again, but for the first
    /// [`rows`](Builder::rows), which are on disk. What [`finish`](Builder::finish) had done is not
    /// done again, but for the piece of work in which it was cut off, and it ends with the same
    /// bytes. Starts an index where there is no such build, or none that got far (256 MiB of rows,
    /// or `finish`).
    ///
    /// # Errors
    /// Those of [`create`](Builder::create); a build that differs.
    pub fn resume(
        dir: &Path,
        dim: usize,
        metric: Metric,
        spec: &Spec,
        seed: u64,
    ) -> Result<Self, IndexError> {
        Self::start(dir, dim, metric, spec, seed, true)
    }

    fn start(
        dir: &Path,
        dim: usize,
        metric: Metric,
        spec: &Spec,
        seed: u64,
        resume: bool,
    ) -> Result<Self, IndexError> {
        if !(1..=Self::MAX_DIM).contains(&dim) {
            return Err(IndexError::Dimension { dim });
        }
        let spec = spec.check()?;
        if cfg!(not(feature = "faiss")) && matches!(spec, Spec::Faiss(_)) {
            return Err(IndexError::WithoutFaiss);
        }
        let scratch = Scratch::of(dir);
        let mut writer = Writer::create(dir, KIND, FORMAT_VERSION)?;
        let path = match spec {
            // The records of a graph hold the rows too: this file goes when they are there.
            Spec::Graph { .. } => scratch.synced_path(ROWS),
            Spec::Sq(quantizer) => writer.path(quantizer.file()),
            _ => writer.path(VECTORS),
        };
        let asked = Journal { written_by: written_by(), dim, metric, spec, seed, rows: 0 };
        let mut found = None;
        if resume && let Some(journal) = scratch.journal::<Journal>()? {
            let rows = journal.rows;
            if let Some(why) = difference(&journal, &asked) {
                return Err(IndexError::Unfinished { dir: dir.into(), why });
            }
            found = reopen(&path, rows as u64 * row_bytes(spec, dim))?.map(|file| (file, rows));
        }
        let (file, rows) = match found {
            Some(found) => found,
            None => {
                scratch.clear();
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
                (file.map_err(ArtefactError::io(&path))?, 0)
            }
        };
        let file = PageWriter::new(file);
        Ok(Self {
            writer,
            path,
            file,
            rows,
            noted: rows,
            dim,
            metric,
            spec,
            seed,
            scratch,
            bound: None,
            lists_of: None,
        })
    }

    /// Bounds the memory of its own that the build may take, `RssAnon` in Linux's terms: [`add`]
    /// refuses rows with which it would take more. Files that it writes or maps do not count, nor
    /// does what the caller holds. Without a bound it takes as much as it needs, which is no
    /// different: a fixed amount and at the most 50 bytes a row, but for `HNSW`.
    ///
    /// [`add`]: Builder::add
    ///
    /// # Errors
    /// A bound too small for the rows that are there already, or for any.
    pub fn memory(mut self, bound: Bytes) -> Result<Self, IndexError> {
        self.bound = Some(bound);
        self.check_memory(self.rows)?;
        Ok(self)
    }

    /// Divides the rows among the lists of the index in `dir`, an `IVF` of the same dimension, metric, spec and seed,
    /// instead of training lists of their own. That is quicker, and [`Segments`](crate::Segments) that hold both find
    /// a query's lists once for all of them: it is for parts of one collection, such as shards by file or what has come
    /// since. The rows should be of the kind that the lists were trained on.
    ///
    /// # Errors
    /// No such index there; one that differs, by what differs.
    pub fn lists_of(mut self, dir: &Path) -> Result<Self, IndexError> {
        let manifest = artefact::open(dir, KIND, VERSIONS)?;
        let meta: Meta = manifest.meta_as(dir)?;
        let there = Journal {
            written_by: written_by(),
            dim: meta.dim,
            metric: meta.metric,
            spec: meta.spec,
            seed: meta.seed,
            rows: 0,
        };
        let why = match (difference(&there, &self.asked(0)), self.spec) {
            (Some(why), _) => Some(why),
            (None, Spec::Ivf { .. }) => None,
            (None, spec) => Some(format!("is {spec}, which has none")),
        };
        if let Some(why) = why {
            return Err(IndexError::Lists { dir: dir.into(), why });
        }
        self.lists_of = Some(dir.into());
        Ok(self)
    }

    /// Rows that have been added, those of a resumed build included.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn check_memory(&self, rows: usize) -> Result<(), IndexError> {
        let Some(bound) = self.bound else { return Ok(()) };
        let need = |spec| memory::need(spec, rows, self.dim, rayon::current_num_threads());
        let needs = need(self.spec);
        if needs <= bound {
            return Ok(());
        }
        let others = [Spec::inverted_for(rows), Spec::RaBitQ { bits: 1 }];
        let instead = others.map(|spec| (spec, need(spec))).into_iter().find(|(_, less)| *less <= bound);
        let instead = instead.map(|(spec, needs)| (spec.to_string(), needs));
        Err(IndexError::Memory { spec: self.spec.to_string(), rows, dim: self.dim, needs, bound, instead })
    }

    /// Puts the rows on disk and notes how many there are.
    fn checkpoint(&mut self) -> Result<(), IndexError> {
        self.file.flush().map_err(ArtefactError::io(&self.path))?;
        self.file.sync().map_err(ArtefactError::io(&self.path))?;
        self.scratch.note(&self.asked(self.rows))?;
        self.noted = self.rows;
        Ok(())
    }

    /// What is built, with so many rows.
    fn asked(&self, rows: usize) -> Journal {
        let Self { dim, metric, spec, seed, .. } = *self;
        Journal { written_by: written_by(), dim, metric, spec, seed, rows }
    }

    /// Adds rows `[rows, dim]`, row-major. The first row ever added has id 0, the next 1.
    ///
    /// # Errors
    /// A length that is no multiple of the dimension, a row with NaN or infinity (its id is
    /// named), more than `u32::MAX` rows, more than the bound on [`memory`](Builder::memory) lets
    /// be built over: then none of these rows is added. A full disk.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), IndexError> {
        let dim = self.dim;
        if !rows.len().is_multiple_of(dim) {
            return Err(IndexError::Length { what: "rows", found: rows.len(), dim, many: true });
        }
        let count = rows.len() / dim;
        if count > u32::MAX as usize - self.rows {
            return Err(IndexError::TooManyRows);
        }
        self.check_memory(self.rows + count)?;
        if count > 0 && self.rows == self.noted && self.rows > 0 {
            // What a resumed build had made of fewer rows.
            self.scratch.forget_work(ROWS);
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
            match self.spec {
                Spec::Sq(quantizer) => quantizer.write(&scratch, self.metric, &mut self.file),
                _ => write_numbers(&mut self.file, &scratch),
            }
            .map_err(ArtefactError::io(&self.path))?;
        }
        self.rows += count;
        if (self.rows - self.noted) as u64 * row_bytes(self.spec, dim) >= CHECKPOINT {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Builds what the [`Spec`] asks for over the rows and makes the index real.
    ///
    /// # Errors
    /// A full disk, or a directory that somebody else has touched.
    pub fn finish(self) -> Result<Manifest, IndexError> {
        let (spec, seed, lists_of) = (self.spec, self.seed, self.lists_of.clone());
        self.finish_with(|rows, writer, scratch| {
            build_over(rows, spec, seed, lists_of.as_deref(), writer, scratch)
        })
    }

    /// An index of a faiss file (what `faiss.write_index` writes), which must number its rows from 0 on:
    /// the kind `faiss:imported`. The rows are those of `vectors` where it is given, and what faiss gives
    /// back otherwise: rounded, where its index rounds. The metric must be the file's: `ip` and `cosine`
    /// (whose rows must have had length 1) for METRIC_INNER_PRODUCT, `l2` for METRIC_L2. faiss trusts what
    /// it reads: bring no file that you do not trust.
    ///
    /// # Errors
    /// Without the cargo feature `faiss`; what faiss cannot read; another metric, or another shape than
    /// that of `vectors`; an index that cannot give back its rows; and as for a build.
    pub fn import_faiss(
        dir: &Path,
        file: &Path,
        metric: Metric,
        vectors: Option<&mut VectorFile>,
    ) -> Result<Manifest, IndexError> {
        faiss::import(dir, file, metric, vectors)
    }

    /// [`finish`](Builder::finish), with what `add` adds to the rows where the kind keeps them whole.
    pub(crate) fn finish_with(
        mut self,
        add: impl FnOnce(&Rows, &mut Writer, &Scratch) -> Result<Option<GraphMeta>, IndexError>,
    ) -> Result<Manifest, IndexError> {
        // Small ones are built again faster than they are noted.
        let worth = matches!(self.spec, Spec::Graph { .. }) && self.rows >= WORTH_NOTING;
        if self.rows > self.noted && (worth || self.noted > 0) {
            self.checkpoint()?;
        }
        let file = self.file.into_file().map_err(ArtefactError::io(&self.path))?;
        // Opening checks the length too: rows that a full disk cut short in `add` are found here.
        let graph = match self.spec {
            Spec::Sq(quantizer) => {
                QuantizedRows::of(&file, &self.path, quantizer, self.rows, self.dim, self.metric)?;
                None
            }
            _ => {
                let rows = Rows::of(&file, &self.path, self.rows, self.dim, self.metric)?;
                add(&rows, &mut self.writer, &self.scratch)?
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
        let meta = serde_json::to_value(meta).expect("the meta is plain JSON");
        let manifest = self.writer.commit(meta)?;
        self.scratch.clear();
        Ok(manifest)
    }
}

/// Bytes that a row takes on disk.
fn row_bytes(spec: Spec, dim: usize) -> u64 {
    match spec {
        Spec::Sq(quantizer) => quantizer.row_bytes(dim) as u64,
        _ => 4 * dim as u64,
    }
}

fn written_by() -> String {
    concat!("sidenote ", env!("CARGO_PKG_VERSION")).into()
}

/// In what an unfinished build is another than the one asked for.
fn difference(there: &Journal, asked: &Journal) -> Option<String> {
    let fields = [
        ("program", there.written_by.clone(), asked.written_by.clone()),
        ("dimension", there.dim.to_string(), asked.dim.to_string()),
        ("metric", there.metric.to_string(), asked.metric.to_string()),
        ("spec", there.spec.to_string(), asked.spec.to_string()),
        ("seed", there.seed.to_string(), asked.seed.to_string()),
    ];
    let (name, there, asked) = fields.into_iter().find(|(_, there, asked)| there != asked)?;
    Some(format!("has the {name} {there}, but {asked} is asked for"))
}

/// The file at `path` cut to its first `bytes`, and its end as the place to write on; none where
/// it does not have as many.
fn reopen(path: &Path, bytes: u64) -> Result<Option<File>, ArtefactError> {
    let mut file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ArtefactError::io(path)(e)),
    };
    if file.metadata().map_err(ArtefactError::io(path))?.len() < bytes {
        return Ok(None);
    }
    file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(ArtefactError::io(path))?;
    Ok(Some(file))
}

/// What the kind adds to its rows; of a graph of the kind HNSW also what its manifest says.
fn build_over(
    rows: &Rows,
    spec: Spec,
    seed: u64,
    lists_of: Option<&Path>,
    writer: &mut Writer,
    scratch: &Scratch,
) -> Result<Option<GraphMeta>, IndexError> {
    match spec {
        Spec::Flat | Spec::Sq(_) => {}
        Spec::Hnsw { m } => return Ok(Some(hnsw::build(rows, m, writer)?)),
        Spec::RaBitQ { bits } => rabitq::build(rows, bits, seed, writer)?,
        Spec::Graph { degree } => graph::build(rows, degree, seed, writer, scratch)?,
        Spec::Ivf { lists, graph, bits } => {
            let lists = CoarseSpec { lists, degree: graph };
            ivf::build(rows, (lists, bits), seed, lists_of, writer, scratch)?;
        }
        Spec::Faiss(factory) => faiss::build(rows, factory, writer)?,
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;
    use crate::artefact::{MANIFEST, verify};
    use crate::collection::faults::{Log, recorded};
    use crate::disk::Step;

    const DIM: usize = 16;
    const N: usize = 1100;

    fn rows() -> Vec<f32> {
        (0..N * DIM).map(|i| ((i * i % 10_007) as f32 * 0.37).sin() + (i % DIM) as f32 / 8.0).collect()
    }

    fn build(dir: &Path, spec: Spec, resume: bool) -> Result<String, IndexError> {
        let start = if resume { Builder::resume } else { Builder::create };
        let mut builder = start(dir, DIM, Metric::L2, &spec, 7)?;
        builder.add(&rows()[builder.rows() * DIM..])?;
        Ok(builder.finish()?.identity())
    }

    fn made(log: &Log) -> Vec<&PathBuf> {
        let whole = |(step, path): &(Step, PathBuf)| {
            *step == Step::RenameTo && !path.ends_with(MANIFEST) && !path.ends_with("journal.scratch")
        };
        log.iter().filter(|entry| whole(entry)).map(|(_, path)| path).collect()
    }

    /// Stopped before every third of its changes to the disk, and resumed: fails when a phase does not use
    /// what is there, when it is removed before what it is for is whole, or when something of the
    /// result depends on where it was stopped.
    #[test]
    fn a_graph_stopped_at_any_step_is_resumed_to_the_same_bytes_and_nothing_is_made_twice() {
        let spec = Spec::Graph { degree: 32 };
        let whole = tempdir().unwrap();
        let (identity, log) = recorded(None, || build(whole.path(), spec, false).unwrap());
        let all = made(&log).len();
        assert!(all > 15, "{:?}", made(&log));
        let names = |dir: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for n in (1..log.len()).step_by(3) {
            let dir = tempdir().unwrap();
            let (stopped, first) = recorded(Some(n), || build(dir.path(), spec, false));
            let (resumed, second) = recorded(None, || build(dir.path(), spec, true));
            assert_eq!(resumed.unwrap(), identity, "step {n}");
            assert!(verify(dir.path()).unwrap().is_empty());
            assert_eq!(names(dir.path()), names(whole.path()), "step {n}");
            let again = made(&second).into_iter().filter(|path| made(&first).contains(path)).count();
            // In the moment of the commit itself, files have other names already.
            let committing = made(&first).iter().any(|path| path.extension().is_none_or(|e| e != "scratch"));
            assert!(again == 0 || committing, "step {n}: {again} of {all} made again");
            assert!(stopped.is_err() || committing, "step {n}");
        }
    }

    #[test]
    fn a_build_that_differs_is_refused_by_what_differs() {
        let dir = tempdir().unwrap();
        let spec = Spec::Graph { degree: 32 };
        recorded(Some(30), || build(dir.path(), spec, false)).0.unwrap_err();
        for (dim, metric, other, seed, name) in [
            (DIM + 1, Metric::L2, spec, 7, "dimension 16"),
            (DIM, Metric::Cosine, spec, 7, "metric l2"),
            (DIM, Metric::L2, Spec::Graph { degree: 64 }, 7, "spec QG32"),
            (DIM, Metric::L2, spec, 8, "seed 7"),
        ] {
            let error = Builder::resume(dir.path(), dim, metric, &other, seed).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("unfinished"), "{error}");
        }
        let resumed = Builder::resume(dir.path(), DIM, Metric::L2, &spec, 7).unwrap();
        assert_eq!(resumed.rows(), N);
        drop(resumed);
        let created = Builder::create(dir.path(), DIM, Metric::L2, &spec, 7).unwrap();
        assert_eq!(created.rows(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "rows, and the root of before");
    }

    /// More rows than the phases were made of.
    #[test]
    fn rows_added_to_a_resumed_build_count() {
        let (dir, whole) = (tempdir().unwrap(), tempdir().unwrap());
        let spec = Spec::Graph { degree: 32 };
        recorded(Some(30), || build(dir.path(), spec, false)).0.unwrap_err();
        let more: Vec<f32> = (0..100 * DIM).map(|i| (i as f32 * 0.11).cos()).collect();
        let mut resumed = Builder::resume(dir.path(), DIM, Metric::L2, &spec, 7).unwrap();
        resumed.add(&more).unwrap();
        let mut other = Builder::create(whole.path(), DIM, Metric::L2, &spec, 7).unwrap();
        other.add(&rows()).unwrap();
        other.add(&more).unwrap();
        assert_eq!(resumed.finish().unwrap().identity(), other.finish().unwrap().identity());
    }
}
