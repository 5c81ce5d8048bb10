#![doc = include_str!("../README.md")]

pub mod artefact;
mod blocks;
mod builder;
mod error;
mod flat;
mod graph;
mod hnsw;
mod index;
mod mapped;
mod meta;
mod metric;
mod pages;
mod parallel;
mod planes;
mod product;
mod rabitq;
mod rotation;
mod rows;
mod simd;
mod spec;
mod topk;
mod vectors_file;

pub use builder::Builder;
pub use error::IndexError;
pub use index::Index;
pub use metric::Metric;
pub use simd::instructions;
pub use spec::Spec;
pub use topk::Hit;
pub use vectors_file::{VectorFile, VectorFileError};
