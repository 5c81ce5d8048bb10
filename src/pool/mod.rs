//! Pools of training instances of many tasks.

mod instance;

pub use instance::Instance;
