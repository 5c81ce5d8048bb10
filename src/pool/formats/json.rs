//! Whole JSON documents, and lists of objects that are one array or a line each.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserializer;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::super::lines::{Lines, reader, reason};
use crate::error::{Error, Result};

/// Reads the JSON document at `path`, in which Python may have written `NaN`.
pub fn document<T: DeserializeOwned>(path: &Path, wanted: &str) -> Result<T> {
    let mut text = String::new();
    reader(path)?.read_to_string(&mut text).map_err(Error::io(path))?;
    let wrong = |why: serde_json::Error| Error::line(path, why.line() as u64, format!("{why}; {wanted}"));
    match serde_json::from_str(&text) {
        Err(_) if text.contains("NaN") => serde_json::from_str(&without_nan(&text)).map_err(wrong),
        read => read.map_err(wrong),
    }
}

/// `text` with `null` for each `NaN` outside its strings.
fn without_nan(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if !quoted && let Some(after) = rest.strip_prefix("NaN") {
            plain += "null";
            rest = after;
            continue;
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        plain.push(c);
        rest = &rest[c.len_utf8()..];
    }
    plain
}

/// Hands each record of a file that is one JSON array, or one record a line, to `visit`, with its number from 1 (of the
/// record, or of the line).
pub fn records<T: DeserializeOwned>(
    path: &Path,
    wanted: &str,
    visit: &mut dyn FnMut(u64, T) -> Result<()>,
) -> Result<()> {
    if !is_array(path)? {
        let mut lines = Lines::open(path)?;
        while let Some((line, text)) = lines.next()? {
            let record = serde_json::from_str(text)
                .map_err(|why| Error::line(path, line, format!("{}; {wanted}", reason(&why))))?;
            visit(line, record)?;
        }
        return Ok(());
    }
    let mut failure = None;
    let mut number = 0;
    let mut each = |value: Value| -> Result<()> {
        number += 1;
        let record = serde_json::from_value(value)
            .map_err(|why| Error::file(path, format!("record {number}: {why}; {wanted}")))?;
        visit(number, record)
    };
    let done = serde_json::Deserializer::from_reader(reader(path)?)
        .deserialize_seq(Each { visit: &mut each, failure: &mut failure });
    match (failure, done) {
        (Some(failure), _) => Err(failure),
        (None, Err(why)) => Err(Error::line(path, why.line() as u64, format!("{why}; {wanted}"))),
        (None, Ok(())) => Ok(()),
    }
}

/// Whether the first character that is no space begins an array.
pub fn is_array(path: &Path) -> Result<bool> {
    let mut reader = reader(path)?;
    loop {
        let buffer = reader.fill_buf().map_err(Error::io(path))?;
        match buffer.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(byte) => return Ok(*byte == b'['),
            None if buffer.is_empty() => return Ok(false),
            None => {
                let read = buffer.len();
                reader.consume(read);
            }
        }
    }
}

/// Hands on the elements of an array one by one, so that it need not be held.
struct Each<'a> {
    visit: &'a mut dyn FnMut(Value) -> Result<()>,
    failure: &'a mut Option<Error>,
}

impl<'de> Visitor<'de> for Each<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(value) = list.next_element()? {
            if let Err(failure) = (self.visit)(value) {
                *self.failure = Some(failure);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_null_but_not_within_a_text() {
        assert_eq!(
            without_nan(r#"{"a": [NaN], "NaN \" NaN": "\\", "b": NaN}"#),
            r#"{"a": [null], "NaN \" NaN": "\\", "b": null}"#
        );
    }
}
