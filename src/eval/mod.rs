//! eval.
pub mod retrieval;
