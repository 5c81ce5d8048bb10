//! Sidenote: a retrieval-augmented language model engine.
//!
//! Four jobs: *index* a corpus, *train* models that read it, *ask* with sources, *select*
//! training data. ARCHITECTURE.md in the repository is the map.

pub mod adapter;
pub mod commands;
pub mod corpus;
pub mod encoder;
pub mod error;
pub mod eval;
pub mod hub;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod pool;
pub mod progress;
pub mod quickstart;
pub mod ranking;
pub mod reader;
pub mod retriever;
mod sealed;
pub mod select;
pub mod task;
pub mod train;
mod whole_file;

pub use error::{Error, Result};
pub use sidenote_index::artefact;

/// The README's Rust examples, so that they keep compiling.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
