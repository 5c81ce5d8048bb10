//! Which files a corpus consists of.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// How a file holds documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One document.
    Text,
    /// One document, titled by its first heading.
    Markdown,
    /// One document a line.
    JsonLines,
    /// One document a row.
    Parquet,
}

impl Format {
    /// Whether the whole file is one document.
    pub fn is_one_document(self) -> bool {
        matches!(self, Self::Text | Self::Markdown)
    }
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One file of a corpus.
#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    /// Where to read it.
    pub path: PathBuf,
    /// Its name from the corpus argument on: `notes/sub/a.md` for the folder `.../notes`,
    /// `a.md` for the file `.../a.md`.
    pub name: String,
    /// What ids are made of: the path below the corpus argument, without extensions.
    pub stem: String,
    pub format: Format,
    pub compression: Compression,
    pub bytes: u64,
}

const KNOWN: &str = ".txt, .text, .md, .markdown, .jsonl, .ndjson (each also .gz or .zst) and .parquet";

/// Lists the files that `corpus` names, folders walked in the order of their sorted names.
/// Inside folders, hidden files, files of other kinds and links to folders are passed over.
pub(super) fn find(corpus: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in corpus {
        let metadata = fs::metadata(path).map_err(Error::io(path))?;
        let base = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if metadata.is_dir() {
            let before = files.len();
            walk(path, &base, "", &mut files)?;
            if files.len() == before {
                return Err(Error::file(
                    path,
                    format!("no corpus files in this folder; readable are {KNOWN}"),
                ));
            }
        } else {
            let file = source_file(path.clone(), base.clone(), &base, metadata.len());
            files.push(file.ok_or_else(|| {
                Error::file(path, format!("the name does not say what the file holds; readable are {KNOWN}"))
            })?);
        }
    }
    let mut seen = HashSet::new();
    for file in &files {
        if !seen.insert(fs::canonicalize(&file.path).map_err(Error::io(&file.path))?) {
            return Err(Error::file(&file.path, "this file is in the corpus twice; name it once"));
        }
    }
    Ok(files)
}

fn walk(dir: &Path, base: &str, below: &str, files: &mut Vec<SourceFile>) -> Result<()> {
    let mut entries = fs::read_dir(dir)
        .and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>())
        .map_err(Error::io(dir))?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() {
            walk(&path, base, &relative, files)?;
            continue;
        }
        // A dangling link and a link to a folder (which could lead round in a circle) are no files.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_file() {
            let name = if base.is_empty() { relative.clone() } else { format!("{base}/{relative}") };
            files.extend(source_file(path, name, &relative, metadata.len()));
        }
    }
    Ok(())
}

/// `None` where the name has no known ending.
fn source_file(path: PathBuf, name: String, relative: &str, bytes: u64) -> Option<SourceFile> {
    let (stem, format, compression) = parse_name(relative)?;
    Some(SourceFile { path, name, stem: stem.into(), format, compression, bytes })
}

/// Reads stem, format and compression off a file's name; `None` where that has no known ending.
pub(super) fn parse_name(name: &str) -> Option<(&str, Format, Compression)> {
    let (inner, compression) = match name.rsplit_once('.') {
        Some((inner, end)) if end.eq_ignore_ascii_case("gz") => (inner, Compression::Gzip),
        Some((inner, end)) if end.eq_ignore_ascii_case("zst") => (inner, Compression::Zstd),
        _ => (name, Compression::None),
    };
    let (stem, end) = inner.rsplit_once('.')?;
    let format = match end.to_ascii_lowercase().as_str() {
        "txt" | "text" => Format::Text,
        "md" | "markdown" => Format::Markdown,
        "jsonl" | "ndjson" => Format::JsonLines,
        "parquet" if compression == Compression::None => Format::Parquet,
        _ => return None,
    };
    Some((stem, format, compression))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_sorted_order_and_other_files_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("notes");
        fs::create_dir_all(root.join("b")).unwrap();
        for name in ["z.txt", "b/one.md.zst", "a.JSONL.gz", "LICENSE", ".hidden.txt", "p.parquet.gz"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let files = find(std::slice::from_ref(&root)).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["notes/a.JSONL.gz", "notes/b/one.md.zst", "notes/z.txt"]);
        let stems: Vec<_> = files.iter().map(|f| f.stem.as_str()).collect();
        assert_eq!(stems, ["a", "b/one", "z"]);
        assert_eq!(files[1].compression, Compression::Zstd);
        assert_eq!(files[1].format, Format::Markdown);
    }

    #[test]
    fn unknown_missing_empty_and_repeated_arguments_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pdf");
        assert!(find(std::slice::from_ref(&file)).unwrap_err().to_string().contains("a.pdf"));
        fs::write(&file, "x").unwrap();
        assert!(find(&[file]).unwrap_err().to_string().contains(".jsonl"));
        assert!(find(&[dir.path().into()]).unwrap_err().to_string().contains("no corpus files"));
        let text = dir.path().join("a.txt");
        fs::write(&text, "x").unwrap();
        assert!(find(&[text, dir.path().into()]).unwrap_err().to_string().contains("twice"));
    }
}
