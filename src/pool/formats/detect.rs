//! Which format a file is in, by its name and its first record.

use std::path::Path;

use serde_json::Value;

use super::super::lines::Lines;
use super::{Format, json};
use crate::error::{Error, Result};

/// The format of the file at `path`; `None` where its ending is none that holds instances.
///
/// # Errors
/// A file of a readable ending whose beginning is no known format.
pub fn detect(path: &Path) -> Result<Option<Format>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending {
        "tsv" => return Ok(Some(Format::FlanCot)),
        "yaml" | "yml" => return Ok(Some(Format::Promptsource)),
        "json" | "jsonl" | "ndjson" => {}
        _ => return Ok(None),
    }
    let unknown = |why: &str| {
        Error::file(
            path,
            format!("{why}; say what it is as FORMAT:PATH, FORMAT being one of {}", Format::names()),
        )
    };
    let record = first_record(path, ending == "json")?.ok_or_else(|| unknown("empty"))?;
    let fields = record.as_object().ok_or_else(|| unknown("its first record is no object"))?;
    let has = |name: &str| fields.contains_key(name);
    if has("Definition") && has("Instances") {
        Ok(Some(Format::Sni))
    } else if has("messages") {
        Ok(Some(Format::Messages))
    } else if has("instruction") {
        Ok(Some(Format::Alpaca))
    } else if fields.get("examples").is_some_and(Value::is_object) {
        Ok(Some(Format::Induction))
    } else if (has("prompt") && has("completion"))
        || has("inputs_pretokenized")
        || (has("input") && has("targets"))
    {
        Ok(Some(Format::P3))
    } else if has("input") && has("target") {
        Ok(Some(Format::Instances))
    } else {
        let names: Vec<_> = fields.keys().take(8).map(String::as_str).collect();
        let rows = format!("promptsource:TEMPLATES.yaml={}", path.display());
        let why = format!("the fields {} are no known format", names.join(", "));
        Err(unknown(&format!("{why} (rows of a data set become instances by templates: {rows})")))
    }
}

/// The first record: of an array, of lines, or the document itself.
fn first_record(path: &Path, document: bool) -> Result<Option<Value>> {
    if json::is_array(path)? {
        let stop = "stop";
        let mut first = None;
        let stopped = json::records(path, "", &mut |_, record: Value| {
            first = Some(record);
            Err(Error::file(path, stop))
        });
        return match (first, stopped) {
            (None, Err(failure)) => Err(failure),
            (first, _) => Ok(first),
        };
    }
    // A `.json` file of lines: its first line is a record by itself.
    let mut lines = Lines::open(path)?;
    let line = lines.next()?.map(|(line, text)| (line, serde_json::from_str(text)));
    match line {
        Some((_, Ok(record))) => Ok(Some(record)),
        Some(_) if document => json::document(path, "not one JSON document, nor one a line").map(Some),
        Some((line, Err(why))) => Err(Error::line(path, line, format!("not JSON: {why}"))),
        None => Ok(None),
    }
}
