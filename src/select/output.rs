//! Writing a selection in DEFT's format.

use serde_json::{Map, Value};

use super::{Pool, Selection};
use crate::error::{Error, Result};
use crate::whole_file::WholeFile;

/// Writes the chosen rows in the pool's order, as they stand in the pool and with the fields
/// `index_id` (row number) and `attribution_frequency` at their end.
pub fn write_rows(mut file: WholeFile, pool: &Pool, selection: &Selection) -> Result<()> {
    let mut chosen = selection.rows.iter().peekable();
    pool.for_each(|number, line, row| {
        let Some(next) = chosen.next_if(|chosen| chosen.row == number) else { return Ok(()) };
        let stripped = if row.is_annotated() { without_annotation(line) } else { line.to_string() };
        // The closing brace makes way for two more fields; all before it stays as it is.
        let fields = stripped.strip_suffix('}').unwrap_or(&stripped).trim_end();
        let frequency = next.attribution_frequency;
        file.line(format_args!("{fields},\"index_id\":{number},\"attribution_frequency\":{frequency}}}"))
    })?;
    file.finish()
}

/// Writes a line `{"ids", "distances"}` for each example, target by target.
pub fn write_neighbours(mut file: WholeFile, selection: &Selection) -> Result<()> {
    for neighbours in selection.neighbours.iter().flatten() {
        let line = serde_json::to_string(neighbours)
            .map_err(|why| Error::file(file.path(), format!("cannot be written: {why}")))?;
        file.line(format_args!("{line}"))?;
    }
    file.finish()
}

/// A row that an earlier selection has marked, without its marks: they counted in another pool.
fn without_annotation(line: &str) -> String {
    let Ok(mut row) = serde_json::from_str::<Map<String, Value>>(line) else { return line.to_string() };
    row.shift_remove("index_id");
    row.shift_remove("attribution_frequency");
    Value::Object(row).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::Chosen;
    use super::*;

    #[test]
    fn rows_keep_every_byte_and_gain_two_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let rows = [
            r#"{"input":"a","target":"b"}"#,
            r#"{ "n": 1.10e2, "input": "é", "target": "\u00e9", "big": 123456789012345678901234567890, "o": {"p": {}} }"#,
            r#"{"index_id":900,"input":"a}}","target":"b","attribution_frequency":7,"o":{"a":{}}}"#,
            r#"{"input":"skipped","target":"b"}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        let pool = Pool::open(&path).unwrap();
        let rows = (0..3).map(|row| Chosen { row, attribution_frequency: 10 + row as u32 }).collect();
        let out = dir.path().join("out.jsonl");
        let selection = Selection { rows, neighbours: vec![], shares: vec![3], passed_over: 0 };
        write_rows(WholeFile::create(&out).unwrap(), &pool, &selection).unwrap();
        let written = std::fs::read_to_string(&out).unwrap();
        let wanted = [
            r#"{"input":"a","target":"b","index_id":0,"attribution_frequency":10}"#,
            r#"{ "n": 1.10e2, "input": "é", "target": "\u00e9", "big": 123456789012345678901234567890, "o": {"p": {}},"index_id":1,"attribution_frequency":11}"#,
            r#"{"input":"a}}","target":"b","o":{"a":{}},"index_id":2,"attribution_frequency":12}"#,
        ];
        assert_eq!(written.lines().collect::<Vec<_>>(), wanted);
        // What was written is a pool again.
        assert_eq!(Pool::open(&out).unwrap().len(), 3);
    }
}
