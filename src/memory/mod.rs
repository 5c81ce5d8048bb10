//! Memories of tokens: what came next where a context was like the one at hand, looked up beside what the network
//! predicts.
//!
//! * [`TokenMemory`] is a datastore of all contexts of a corpus (kNN-LM, Khandelwal et al. 2020,
//!   <https://arxiv.org/abs/1911.00172>);
//! * [`Cache`] remembers the last contexts of the text that is read (continuous cache, Grave et al. 2017,
//!   <https://arxiv.org/abs/1612.04426>);
//! * a model trained with memories has them in its softmax ([`Memories::trime`]).

mod build;
mod cache;
mod datastore;
mod mix;
mod trime;
mod tune;
mod writing;

pub use build::{BuildOptions, build};
pub use cache::Cache;
pub use datastore::{CONTEXTS, Interpolation, MemoryMeta, Neighbour, TokenMemory};
pub use mix::{CacheSettings, Memories, MemoryReader};
pub use tune::{Tuned, tune};
pub use writing::RememberingWriter;
