//! Memory-mapped nearest-neighbour index: vectors in, neighbours out.

pub mod artefact;

/// What the index can refuse.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The files on disk are missing or damaged.
    #[error(transparent)]
    Artefact(#[from] artefact::ArtefactError),
}
