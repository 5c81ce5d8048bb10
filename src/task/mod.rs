//! Examples of tasks: read from files, put into a model's tokens, and what an answer to them is worth.

mod csv;
mod item;
pub mod metrics;
mod tokens;

pub use item::{Item, read};
pub use tokens::{ModelText, after};
