//! What the index can refuse.

use std::path::PathBuf;

use crate::artefact::ArtefactError;
use crate::{Bytes, VectorFileError};

/// What the index can refuse.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The files on disk are missing, damaged, or of another kind.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// A file of vectors cannot be read.
    #[error(transparent)]
    VectorFile(#[from] VectorFileError),
    /// Vectors have between 1 and [`MAX_DIM`](crate::Builder::MAX_DIM) elements.
    #[error("dimension {dim}: it must be between 1 and {}", crate::Builder::MAX_DIM)]
    Dimension {
        /// The dimension asked for.
        dim: usize,
    },
    /// A slice that should hold whole vectors does not.
    #[error("{what}: {found} numbers, which is not {}{dim}", if *many { "a multiple of the dimension " } else { "the dimension " })]
    Length {
        /// `"rows"`, `"rows of the file"`, `"query"` or `"queries"`.
        what: &'static str,
        /// Numbers given.
        found: usize,
        /// The index's dimension.
        dim: usize,
        /// Whether several vectors were welcome.
        many: bool,
    },
    /// A vector holds NaN or an infinity, or its squared length does not fit an `f32`.
    #[error("{what} {number}: holds NaN, an infinity, or numbers whose squares overflow an f32")]
    NotFinite {
        /// `"row"`, `"query"`, or `"the row of id"` for a collection's.
        what: &'static str,
        /// Which one: the row's id, or the query's place in the batch.
        number: usize,
    },
    /// Ids are `u32`.
    #[error("more than {} rows: split them over several indexes", u32::MAX)]
    TooManyRows,
    /// Not the name of a metric.
    #[error("unknown metric {text:?}: use ip, cosine or l2")]
    UnknownMetric {
        /// What was given.
        text: String,
    },
    /// Not the name of an index.
    #[error(
        "unknown index {text:?}: use Flat, SQbf16, SQ8, RaBitQ, RaBitQb with b from 2 to 8 bits, QG32, QG64, QG96 or QG128, IVFn,RaBitQ or IVFn,RaBitQb with n from 1 to 65536 lists, HNSWm with m from 4 to 128, or faiss: and a string for faiss's index_factory"
    )]
    UnknownSpec {
        /// What was given.
        text: String,
    },
    /// Not a number of bytes.
    #[error("unknown size {text:?}: use a number with B, KiB, MiB, GiB, TiB, kB, MB or GB, such as 4GiB")]
    UnknownSize {
        /// What was given.
        text: String,
    },
    /// A build that would not keep within its bound.
    #[error(
        "{spec} over {}rows of {dim} numbers takes {} {needs} of memory to build, and the bound is {bound}: \
         allow {needs}{}{}{}",
        if *rows > 0 { format!("{rows} ") } else { String::new() },
        if *rows > 0 { "up to" } else { "at least" },
        if *rows > 0 { "" } else { " or more" },
        // What other kinds take does not go by threads.
        if spec.starts_with("QG") || spec.starts_with("IVF") { ", use fewer threads" } else { "" },
        instead.as_ref().map_or(String::new(), |(spec, needs)| format!(", or build {spec}, for which {needs} are enough"))
    )]
    Memory {
        /// What was to be built.
        spec: String,
        /// Rows so far; 0 where the bound is too small for any.
        rows: usize,
        /// Numbers in a row.
        dim: usize,
        /// What that takes.
        needs: Bytes,
        /// What it may take.
        bound: Bytes,
        /// What could be built instead, and what that takes; none where nothing takes less.
        instead: Option<(String, Bytes)>,
    },
    /// What an unfinished build has left is not what is to be built.
    #[error("{}: the unfinished build here {why}; resume it with the same, or begin again without resuming", dir.display())]
    Unfinished {
        /// The folder.
        dir: PathBuf,
        /// How the two differ.
        why: String,
    },
    /// An index whose lists were to be another's too.
    #[error("{}: its lists cannot be taken over: it {why}", dir.display())]
    Lists {
        /// The folder of the index.
        dir: PathBuf,
        /// How it differs from what is built.
        why: String,
    },
    /// An index of a kind `faiss:…`, in a program without faiss.
    #[error("an index by faiss needs a program with faiss in it: build with the cargo feature `faiss`")]
    WithoutFaiss,
    /// faiss has refused.
    #[error("faiss: {what}: {why}")]
    Faiss {
        /// The file, or the kind of index.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Bytes that are not the bits of so many rows.
    #[error("a set of rows: {why}")]
    Bitmap {
        /// What is wrong with them.
        why: String,
    },
    /// Indexes that cannot be searched as one.
    #[error("indexes to be searched as one: {why}")]
    Parts {
        /// What is in the way.
        why: String,
    },
    /// Somebody else is writing there.
    #[error(
        "{}: another writer is at work here; wait for it or stop it (nothing is left to remove: \
         its claim ends with its process)", dir.display()
    )]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// There is a collection where one was to be made.
    #[error("{}: there is a collection here; write to it, or make another elsewhere", dir.display())]
    CollectionExists {
        /// The folder.
        dir: PathBuf,
    },
    /// Another number of ids than of rows.
    #[error("{ids} ids, but {rows} rows: every row needs one id")]
    IdsAndRows {
        /// Ids given.
        ids: usize,
        /// Rows given.
        rows: usize,
    },
    /// An id that is given twice in one call.
    #[error("id {id} is given twice")]
    IdTwice {
        /// The id.
        id: u64,
    },
    /// An id to add that is there.
    #[error("id {id} is in the collection already; use upsert to replace its row")]
    IdExists {
        /// The id.
        id: u64,
    },
    /// [`tune`](crate::Index::tune) needs something to go by.
    #[error(
        "cannot tune to recall {recall} on {queries} queries: use a recall from 0 to 1 and at least one query"
    )]
    Tuning {
        /// The recall asked for.
        recall: f64,
        /// The number of queries.
        queries: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_on_memory_is_spoken_of_with_the_rows_and_threads_that_matter() {
        let said = |spec: &str, rows, instead| {
            let (needs, bound) = (Bytes(20 << 20), Bytes(1 << 10));
            IndexError::Memory { spec: spec.into(), rows, dim: 8, needs, bound, instead }.to_string()
        };
        assert_eq!(
            said("Flat", 0, None),
            "Flat over rows of 8 numbers takes at least 20MiB of memory to build, and the bound is 1KiB: allow 20MiB or more"
        );
        assert_eq!(
            said("QG32", 5, Some(("RaBitQ".into(), Bytes(1000)))),
            "QG32 over 5 rows of 8 numbers takes up to 20MiB of memory to build, and the bound is 1KiB: allow 20MiB, \
             use fewer threads, or build RaBitQ, for which 1000B are enough"
        );
    }
}
