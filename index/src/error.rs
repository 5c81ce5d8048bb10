//! What the index can refuse.

use std::path::PathBuf;

use crate::VectorFileError;
use crate::artefact::ArtefactError;

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
        "unknown index {text:?}: use Flat, RaBitQ, RaBitQb with b from 2 to 8 bits, QG32, QG64, QG96 or QG128, IVFn,RaBitQ with n from 1 to 65536 lists, or HNSWm with m from 4 to 128"
    )]
    UnknownSpec {
        /// What was given.
        text: String,
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
