//! The pool's vectors: made once, in parts, and found again by the next run.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sidenote_index::{Builder, Hit, Index, Segments, Spec};

use super::selector::Neighbours;
use super::tasks::BATCH;
use super::view::{View, Viewer};
use super::{Pool, Row};
use crate::artefact::write_atomically;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Rows of a part: what a run that is cut off loses at most.
const PART: usize = 4096;
/// Says whose vectors these are.
const OF: &str = "of.json";

/// Whose vectors they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Of {
    pool: String,
    encoder: String,
    #[serde(default)]
    view: View,
    rows: usize,
    part: usize,
}

/// Where the vectors lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a folder that the user named, to be used again. Those of another pool or encoder are an error.
    Kept(PathBuf),
    /// Beside the output, until the selection is written; a run that was cut off goes on with them.
    Scratch(PathBuf),
}

/// Vectors of all the pool's rows.
pub struct Vectors {
    index: Segments,
    view: View,
    _scratch: Option<Scratch>,
}

impl Vectors {
    /// Encodes the pool's rows as `viewer` sees them, but for what lies in `place` already. All rows are compared with every
    /// query.
    ///
    /// # Errors
    /// A folder with the vectors of another pool, encoder or view; an interruption, after which the same command goes on.
    pub fn of_pool(pool: &Pool, viewer: &Viewer<'_>, place: &Place, progress: Progress) -> Result<Self> {
        let of = Of {
            pool: pool.identity().into(),
            encoder: viewer.encoder().into(),
            view: viewer.view(),
            rows: pool.len(),
            part: PART,
        };
        let (dir, scratch) = match place {
            Place::Kept(dir) => (dir, None),
            Place::Scratch(dir) => (dir, Some(Scratch(dir.clone()))),
        };
        let outcome = prepare(dir, &of, scratch.is_some()).and_then(|()| encode(pool, viewer, dir, progress));
        match outcome {
            Ok(index) => Ok(Self { index, view: viewer.view(), _scratch: scratch }),
            Err(failure) => {
                if let (Error::Interrupted(_), Some(scratch)) = (&failure, scratch) {
                    std::mem::forget(scratch);
                }
                Err(failure)
            }
        }
    }

    /// The `k` rows nearest to each of `queries` `[queries, dim]`.
    pub fn search(&self, queries: &[f32], k: usize, progress: Progress) -> Result<Vec<Neighbours>> {
        let dim = self.index.dim();
        let task = progress.task("search the pool", (queries.len() / dim) as u64, "examples");
        let mut neighbours = Vec::new();
        for queries in queries.chunks(BATCH * dim) {
            if interrupt::requested() {
                return Err(Error::Interrupted("nothing was written; run the command again".to_string()));
            }
            let found = self.index.search_batch(queries, k, None)?;
            task.advance(found.len() as u64);
            neighbours.extend(found.into_iter().map(|hits| of_hits(hits, self.view)));
        }
        Ok(neighbours)
    }

    /// The `k` nearest of the rows that are `allowed` to each of `queries`.
    pub fn search_within(&self, queries: &[f32], k: usize, allowed: &[bool]) -> Result<Vec<Neighbours>> {
        let found = self.index.search_batch(queries, k, Some(&|_, id| allowed[id as usize]))?;
        Ok(found.into_iter().map(|hits| of_hits(hits, self.view)).collect())
    }

    /// The vector of `row`.
    pub fn row(&self, row: usize) -> Vec<f32> {
        self.index.vector(row as u32).unwrap_or_default().into_owned()
    }
}

fn of_hits(hits: Vec<Hit>, view: View) -> Neighbours {
    Neighbours {
        ids: hits.iter().map(|hit| hit.id).collect(),
        distances: hits.iter().map(|hit| view.distance(hit.score)).collect(),
    }
}

/// Makes `dir` ready for vectors that are `of`.
fn prepare(dir: &Path, of: &Of, ours: bool) -> Result<()> {
    let path = dir.join(OF);
    if dir.exists() {
        match fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Of>(&bytes).ok()) {
            Some(there) if there == *of => return Ok(()),
            _ if ours => fs::remove_dir_all(dir).map_err(Error::io(dir))?,
            Some(there) => {
                let name = |view: View| match view {
                    View::Input => "inputs",
                    View::OwnAndTask => "own texts and tasks",
                };
                let (what, left, right) = if there.encoder != of.encoder {
                    ("encoders", of.encoder.as_str(), there.encoder.as_str())
                } else if there.view != of.view {
                    ("vectors", name(of.view), name(there.view))
                } else {
                    ("pools", of.pool.as_str(), there.pool.as_str())
                };
                return Err(Error::Mismatch {
                    what: what.into(),
                    left: left.into(),
                    right: format!("{right} in {}", dir.display()),
                    hint: "give --vectors another folder".into(),
                });
            }
            None if fs::read_dir(dir).map_err(Error::io(dir))?.next().is_some() => {
                return Err(Error::file(
                    dir,
                    "holds something else than vectors; give --vectors another folder",
                ));
            }
            None => {}
        }
    }
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let text = serde_json::to_vec_pretty(of).map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(write_atomically(&path, &text)?)
}

/// The parts in `dir`, those made that are not there.
fn encode(pool: &Pool, viewer: &Viewer<'_>, dir: &Path, progress: Progress) -> Result<Segments> {
    let part = |number: usize| dir.join(format!("part-{number:05}"));
    let parts = pool.len().div_ceil(PART);
    let metric = viewer.view().metric();
    let there: Vec<bool> = (0..parts).map(|number| Index::open(&part(number)).is_ok()).collect();
    if there.iter().any(|there| !there) {
        let task = progress.task("encode the pool", pool.len() as u64, "rows");
        let mut batch: Vec<Row> = Vec::with_capacity(BATCH);
        let mut builder: Option<Builder> = None;
        pool.for_each(|row, _, fields| {
            let number = row / PART;
            let last = (row + 1).is_multiple_of(PART) || row + 1 == pool.len();
            if there[number] {
                task.advance(1);
                return Ok(());
            }
            batch.push(fields);
            if batch.len() < BATCH && !last {
                return Ok(());
            }
            if interrupt::requested() {
                return Err(Error::Interrupted("run the same command again to go on".to_string()));
            }
            let mut to = match builder.take() {
                Some(builder) => builder,
                None => Builder::create(&part(number), viewer.dim(), metric, &Spec::Flat, 0)?,
            };
            to.add(&viewer.of_rows(&batch)?)?;
            task.advance(batch.len() as u64);
            batch.clear();
            match last {
                true => drop(to.finish()?),
                false => builder = Some(to),
            }
            Ok(())
        })?;
    }
    let mut index = Segments::empty(viewer.dim(), metric);
    for number in 0..parts {
        index.push(Index::open(&part(number))?, None)?;
    }
    Ok(index)
}

/// A directory that goes away with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
