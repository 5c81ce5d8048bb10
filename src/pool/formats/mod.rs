//! The formats that pools are made of: one file each, all giving [`Instance`]s.

mod alpaca;
mod detect;
mod flan;
mod flan_cot;
mod induction;
mod instances;
mod json;
mod messages;
mod own;
mod p3;
mod promptsource;
mod rows;
mod sni;
mod superglue;
mod t0;

use std::path::{Path, PathBuf};

use super::Instance;
use crate::error::{Error, Result};

pub use detect::detect;
pub use rows::read as records_of;

/// How a file holds instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Sidenote's own lines, and DEFT's: `{"input", "target"}`.
    Instances,
    /// P3 and T0, one file a template: `{"prompt", "completion"}`; and ReCross's lines `{"input", "targets", "id"}`.
    P3,
    /// A Super-NaturalInstructions task.
    Sni,
    /// A promptsource `templates.yaml` over raw rows.
    Promptsource,
    /// FLAN's pairs of templates over raw rows.
    Flan,
    /// FLAN's chain-of-thought TSV.
    FlanCot,
    /// Alpaca, self-instruct and Unnatural Instructions.
    Alpaca,
    /// Conversations: `{"messages": [{"role", "content"}]}`.
    Messages,
    /// A task of Instruction Induction: `{"examples": {"1": {"input", "output"}}}`.
    Induction,
}

/// Formats and what the user calls them.
const NAMES: [(Format, &str); 9] = [
    (Format::Instances, "instances"),
    (Format::P3, "p3"),
    (Format::Sni, "sni"),
    (Format::Promptsource, "promptsource"),
    (Format::Flan, "flan"),
    (Format::FlanCot, "flan-cot"),
    (Format::Alpaca, "alpaca"),
    (Format::Messages, "messages"),
    (Format::Induction, "induction"),
];

impl Format {
    /// The format that the user calls `name`.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(format, _)| *format)
    }

    /// What the user calls it.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(format, _)| *format == self).map_or("", |(_, name)| name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        NAMES.map(|(_, name)| name).join(", ")
    }

    /// What the names of its files end in.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            Self::FlanCot => &[".tsv"],
            _ => &[".json", ".jsonl", ".ndjson"],
        }
    }

    /// Whether it is templates that need rows to be applied to.
    pub fn wants_rows(self) -> bool {
        matches!(self, Self::Promptsource | Self::Flan)
    }
}

/// One file to read.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// How to read it.
    pub format: Format,
    /// The file: instances, or templates.
    pub path: PathBuf,
    /// The rows that templates are applied to.
    pub rows: Option<PathBuf>,
}

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Examples that a Super-NaturalInstructions prompt shows, at most as many as the task has.
    pub shots: usize,
    /// Where chance starts, for templates that draw.
    pub seed: u64,
}

/// What is done with each instance.
pub type Visit<'a> = &'a mut dyn FnMut(Instance) -> Result<()>;

/// Reads the instances of `file`, in its order, a line, a row or (where the format is one document) a file at a time.
///
/// # Errors
/// What `visit` returns; a line, row or field that is not what the format says, named.
pub fn read(file: &SourceFile, options: Options, visit: Visit) -> Result<()> {
    let path = file.path.as_path();
    let rows = || {
        let why = format!("these are templates; name the rows too, as {}:TEMPLATES=ROWS", file.format.name());
        file.rows.as_deref().ok_or_else(|| Error::file(path, why))
    };
    match file.format {
        Format::Instances => instances::read(path, visit),
        Format::P3 => p3::read(path, visit),
        Format::Sni => sni::read(path, options.shots, visit),
        Format::Promptsource => promptsource::read(path, rows()?, options.seed, visit),
        Format::Flan => flan::read(path, rows()?, visit),
        Format::FlanCot => flan_cot::read(path, visit),
        Format::Alpaca => alpaca::read(path, visit),
        Format::Messages => messages::read(path, visit),
        Format::Induction => induction::read(path, visit),
    }
}

/// A file's name without its endings (`.jsonl.gz`): what a task is called whose file says no more.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut stem = name.as_ref();
    for ending in [".gz", ".zst", ".jsonl", ".ndjson", ".json", ".tsv", ".csv", ".parquet", ".yaml", ".yml"] {
        stem = stem.strip_suffix(ending).unwrap_or(stem);
    }
    stem.to_string()
}
