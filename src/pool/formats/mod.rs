//! The forms that instances come in. Each is a file that turns what its own file holds into [`Instance`]s.

mod alpaca;
mod messages;
mod natural;
mod p3;
mod rows;

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Instance;
use super::lines::{Lines, reason};
use crate::error::{Error, Result};

/// What an instance is given to.
pub type Visit<'a> = &'a mut dyn FnMut(Instance) -> Result<()>;

/// Gives the instances of the files and folders `paths`, in the order of their names, to `visit`, by what each file looks
/// like: lines with `input` and `target`; P3's `prompt` and `completion`; Alpaca's `instruction`, `input` and `output` (also
/// Unnatural Instructions' and self-instruct's `instances`); `messages`; or a task of Super-NaturalInstructions, of which
/// `examples` positive ones are shown before each instance.
///
/// # Errors
/// Names the file and line that is none of these, or lacks a field.
pub fn read(paths: &[PathBuf], examples: usize, visit: Visit) -> Result<()> {
    for path in paths {
        read_below(path, examples, visit)?;
    }
    Ok(())
}

fn read_below(path: &Path, examples: usize, visit: Visit) -> Result<()> {
    if !path.is_dir() {
        return read_file(path, examples, visit);
    }
    let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
    let mut below =
        entries.map(|entry| Ok(entry.map_err(Error::io(path))?.path())).collect::<Result<Vec<PathBuf>>>()?;
    below.sort();
    for path in below {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
        if path.is_dir() || name.ends_with(".json") || name.ends_with(".jsonl") {
            read_below(&path, examples, visit)?;
        }
    }
    Ok(())
}

fn read_file(path: &Path, examples: usize, visit: Visit) -> Result<()> {
    let mut lines = Lines::open(path)?;
    let Some((_, first)) = lines.next()? else {
        return Err(Error::file(path, "is empty; there is no instance in it"));
    };
    // A whole file that is one value is laid out over many lines, or is a list.
    if serde_json::from_str::<Value>(first).map_or(true, |value| value.is_array()) {
        return whole(path, examples, visit);
    }
    let mut lines = Lines::open(path)?;
    while let Some((number, text)) = lines.next()? {
        let fault = |why: String| Error::line(path, number, why);
        let value: Value = serde_json::from_str(text).map_err(|e| fault(reason(&e)))?;
        one(path, &value, examples, visit).map_err(|e| named(e, &fault))?;
    }
    Ok(())
}

/// A file that is one JSON value.
fn whole(path: &Path, examples: usize, visit: Visit) -> Result<()> {
    let mut text = String::new();
    let mut lines = Lines::open(path)?;
    while let Some((_, line)) = lines.next()? {
        text.push_str(line);
        text.push('\n');
    }
    let value: Value = serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
    let Value::Array(all) = value else {
        return one(path, &value, examples, visit).map_err(|e| named(e, &|why| Error::file(path, why)));
    };
    for (number, value) in all.iter().enumerate() {
        let fault = |why: String| Error::file(path, format!("entry {number}: {why}"));
        one(path, value, examples, visit).map_err(|e| named(e, &fault))?;
    }
    Ok(())
}

/// An error about a field as one about a place in the file.
fn named(error: Error, fault: &dyn Fn(String) -> Error) -> Error {
    match error {
        Error::Setting { name, why } => fault(format!("{name:?} {why}")),
        other => other,
    }
}

/// The instances of one value, by its fields.
fn one(path: &Path, value: &Value, examples: usize, visit: Visit) -> Result<()> {
    let stem = stem(path);
    let has = |name: &str| value.get(name).is_some();
    if has("Instances") {
        natural::read(&stem, value, examples, visit)
    } else if has("messages") {
        messages::read(&stem, value, visit)
    } else if has("prompt") && has("completion") {
        p3::read(&stem, value, visit)
    } else if has("instruction") {
        alpaca::read(&stem, value, visit)
    } else if has("input") && has("target") {
        rows::read(&stem, value, visit)
    } else {
        let why = "is no instance that is read here: give \"input\" and \"target\", \"prompt\" and \"completion\", \
                   \"instruction\" and \"output\", \"messages\", or a task of Super-NaturalInstructions";
        Err(Error::setting("line", why))
    }
}

/// A file's name without its endings: the task, where nothing else says it.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    [".gz", ".zst", ".jsonl", ".json"].iter().fold(name, |name, end| match name.strip_suffix(end) {
        Some(short) => short.to_string(),
        None => name,
    })
}

/// The string `name` of `value`.
fn text(value: &Value, name: &str) -> Result<String> {
    match value.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Error::setting(name, "must be a string")),
        None => Err(Error::setting(name, "is missing")),
    }
}

/// The string `name` of `value`, or the first of a list of them; `None` where there is none.
fn first(value: &Value, name: &str) -> Option<String> {
    let value = value.get(name)?;
    value.as_str().or_else(|| value.get(0)?.as_str()).map(String::from)
}
