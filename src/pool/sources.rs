//! What the user names, as files to read.

use std::fs;
use std::path::{Path, PathBuf};

use super::formats::{Format, SourceFile, detect};
use crate::error::{Error, Result};

/// The files that `sources` name. A source is a file or a folder (walked in the order of its sorted names, hidden files and
/// those that hold no instances passed over), with its format before it where its content does not say it:
/// `FORMAT:PATH`, and for templates `FORMAT:TEMPLATES=ROWS`.
///
/// # Errors
/// What is not there, holds nothing to read, or does not say what it is.
pub fn find(sources: &[String]) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for source in sources {
        let before = files.len();
        let (format, path) = match source.split_once(':') {
            Some((name, path)) if Format::named(name).is_some() => (Format::named(name), path),
            _ => (None, source.as_str()),
        };
        match (format, path.split_once('=')) {
            (Some(format), Some((templates, rows))) if format.wants_rows() => {
                let (path, rows) = (PathBuf::from(templates), Some(PathBuf::from(rows)));
                files.push(SourceFile { format, path, rows });
            }
            (Some(format), None) if format.wants_rows() => {
                let why =
                    format!("these are templates; name the rows too, as {}:TEMPLATES=ROWS", format.name());
                return Err(Error::file(path, why));
            }
            _ => walk(Path::new(path), format, true, &mut files)?,
        }
        if files.len() == before {
            return Err(Error::file(path, format!("nothing to read here; formats are {}", Format::names())));
        }
    }
    Ok(files)
}

fn walk(path: &Path, format: Option<Format>, named: bool, files: &mut Vec<SourceFile>) -> Result<()> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_dir() {
        let entries = fs::read_dir(path).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let mut entries = entries.map_err(Error::io(path))?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let kind = entry.file_type().map_err(Error::io(entry.path()))?;
            // A link to a folder could lead round in a circle.
            let circle = kind.is_symlink() && entry.path().is_dir();
            if !hidden && !circle && entry.path().exists() {
                walk(&entry.path(), format, false, files)?;
            }
        }
        return Ok(());
    }
    let holds = |format: Format| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
        format.endings().iter().any(|ending| name.ends_with(ending))
    };
    let format = match (format, named) {
        (Some(format), named) => (named || holds(format)).then_some(format),
        (None, true) => Some(detect(path)?.ok_or_else(|| {
            let why =
                format!("the name does not say what it holds; say it as FORMAT:PATH, of {}", Format::names());
            Error::file(path, why)
        })?),
        (None, false) => detect(path)?,
    };
    match format {
        // Templates alone make no instances; in a folder they lie beside what they are for.
        Some(Format::Promptsource) if !named => {}
        Some(Format::Promptsource) => {
            return Err(Error::file(
                path,
                "these are templates; name the rows too, as promptsource:TEMPLATES=ROWS",
            ));
        }
        Some(format) => files.push(SourceFile { format, path: path.to_path_buf(), rows: None }),
        None => {}
    }
    Ok(())
}
