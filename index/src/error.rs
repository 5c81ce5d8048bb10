//! What the index can refuse.

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
        /// `"row"` or `"query"`.
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
        "unknown index {text:?}: use Flat, RaBitQ, RaBitQb with b from 2 to 8 bits, QG32, QG64, QG96 or QG128, or HNSWm with m from 4 to 128"
    )]
    UnknownSpec {
        /// What was given.
        text: String,
    },
}
