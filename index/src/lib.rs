#![doc = include_str!("../README.md")]

pub mod artefact;
mod bitmap;
mod builder;
mod collection;
mod disk;
mod error;
mod flat;
mod hnsw;
mod index;
mod lock;
mod mapped;
mod meta;
mod metric;
mod product;
mod rabitq;
mod rotation;
mod rows;
mod segments;
mod spec;
mod topk;

pub use bitmap::Bitmap;
pub use builder::Builder;
pub use collection::{Collection, CollectionWriter, Neighbour};
pub use error::IndexError;
pub use index::Index;
pub use lock::Lock;
pub use metric::Metric;
pub use segments::Segments;
pub use spec::Spec;
pub use topk::Hit;
