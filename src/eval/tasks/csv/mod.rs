//! Tasks in CSV: MMLU's questions, and RAFT's tables.

mod mmlu;
mod raft;

use std::path::Path;

use super::item::Item;
use crate::error::{Error, Result};

pub use raft::predictions;

/// Reads a file of either kind, told by its header.
///
/// # Errors
/// Names the line that is not what the header says.
pub fn read(path: &Path, text: &str) -> Result<Vec<Item>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rows = rows(text);
    let fault = |line: u64, why: String| Error::Line { path: path.into(), line, why };
    if rows.is_empty() {
        return Err(fault(1, "holds no header".into()));
    }
    let (_, header) = rows.remove(0);
    if let Some((line, row)) = rows.iter().find(|(_, row)| row.len() != header.len()) {
        return Err(fault(*line, format!("{} fields, but the header has {}", row.len(), header.len())));
    }
    if mmlu::is(&header) {
        return mmlu::read(path, header.len() - 2, rows);
    }
    let why = "the columns must be question, choice0, choice1, .., answer (MMLU) or have Label or ID among them (RAFT)";
    raft::read(path, &header, rows).ok_or_else(|| fault(1, why.into()))
}

/// A field as it stands in a row.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_string(),
    }
}

/// Fields of each row with the line that it begins on; a field in quotes may hold commas, new lines and doubled quotes.
fn rows(text: &str) -> Vec<(u64, Vec<String>)> {
    let (mut all, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut quoted, mut line, mut begun) = (false, 1, 1);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        line += u64::from(c == '\n');
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\r' if !quoted && characters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                if row.len() > 1 || !row[0].is_empty() {
                    all.push((begun, std::mem::take(&mut row)));
                }
                row.clear();
                begun = line;
            }
            c => field.push(c),
        }
    }
    if !row.is_empty() || !field.is_empty() {
        row.push(field);
        all.push((begun, row));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_with_commas_quotes_and_lines() {
        let text = "question,choice0,choice1,answer\r\n\"a, \"\"b\"\"\nc\",1,2,1\r\nplain,x,\"y, z\",A\n";
        let items = read(Path::new("anatomy_test.csv"), text).unwrap();
        assert_eq!(items[0].instance.input, "a, \"b\"\nc\nA. 1\nB. 2\nAnswer:");
        assert_eq!((items[0].instance.target.as_str(), items[0].line), ("B", 2));
        assert_eq!((items[1].instance.target.as_str(), items[1].line), ("A", 4));
        assert_eq!(items[1].instance.input, "plain\nA. x\nB. y, z\nAnswer:");
        assert_eq!(items[1].task(), "anatomy");
        let error = read(Path::new("x.csv"), "question,choice0,choice1,answer\nq,a,b,7\n").unwrap_err();
        assert!(error.to_string().contains("x.csv:2"), "{error}");
        assert!(read(Path::new("x.csv"), "a,b\n1,2\n").is_err());
    }
}
