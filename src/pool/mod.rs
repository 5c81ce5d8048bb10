//! Pools of training instances of many tasks.
//!
//! ```text
//! files --formats--> Instance --exclude, duplicates, contamination--> a folder of instances      `pool build`
//! ```

mod answers;
mod artefact;
mod build;
mod contamination;
pub(crate) mod csv;
mod duplicates;
mod exclude;
mod formats;
mod instance;
pub(crate) mod lines;
pub(crate) mod ngrams;
mod sources;
mod split;

pub use artefact::parts;
pub use build::{BuildOptions, BuildReport, FileReport, build};
pub use contamination::Contamination;
pub use exclude::Patterns;
pub use formats::{Format, Options as FormatOptions, SourceFile, read};
pub use instance::{Instance, few_shot_task, name_choice};
pub use sources::find;
pub use split::{PartReport, SplitOptions, SplitReport, split, text_key};

/// The task of instances that do not name one.
pub const UNKNOWN_TASK: &str = "unknown";

/// The template of instances whose targets come to an answer by steps.
pub const CHAIN_OF_THOUGHT: &str = "chain of thought";
