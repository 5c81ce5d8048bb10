//! Tables in CSV (RFC 4180): fields in quotes may hold commas, new lines and doubled quotes.

use std::io::Read;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord};

use super::lines;
use crate::error::{Error, Result};

/// What MMLU calls its choices.
pub const LETTERS: [&str; 8] = ["A", "B", "C", "D", "E", "F", "G", "H"];

/// A table whose rows are as wide as its header.
pub struct Table {
    /// The names of the columns.
    pub header: Vec<String>,
    /// The fields of each row, with the line that it begins on.
    pub rows: Vec<(u64, Vec<String>)>,
}

/// Whether a file is one, by its name.
pub fn is(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"))
}

impl Table {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, lines::reader(path)?)
    }

    /// Reads the table that stands in `text`. MMLU's own files have no header: they are given that of its other ones,
    /// `question, choice0, .., answer`.
    ///
    /// # Errors
    /// Names the line of `path` that is not UTF-8 or has another number of fields than the header; no header.
    pub fn parse(path: &Path, mut text: impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        text.read_to_end(&mut bytes).map_err(Error::io(path))?;
        let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&bytes[..]);
        let mut rows: Vec<(u64, Vec<String>)> = Vec::new();
        let mut record = StringRecord::new();
        loop {
            // The reader is where the last row's text ends; ends of lines are still before it.
            let at = reader.position();
            let rest = bytes[at.byte() as usize..].iter();
            let ends = rest.take_while(|byte| b"\r\n".contains(byte)).filter(|byte| **byte == b'\n').count();
            let line = at.line() + ends as u64;
            match reader.read_record(&mut record) {
                Ok(true) => rows.push((line, record.iter().map(String::from).collect())),
                Ok(false) => break,
                Err(e) => return Err(Error::line(path, line, format!("not readable as CSV: {e}"))),
            }
        }
        let header = match header_of_mmlu(&rows) {
            Some(header) => header,
            None if rows.is_empty() => return Err(Error::line(path, 1, "holds no header")),
            None => rows.remove(0).1,
        };
        if let Some((line, row)) = rows.iter().find(|(_, row)| row.len() != header.len()) {
            let why = format!("{} fields, but the header has {}", row.len(), header.len());
            return Err(Error::line(path, *line, why));
        }
        Ok(Self { header, rows })
    }
}

/// The header that is missing where every row, the first included, is a question, its choices and the letter of one.
fn header_of_mmlu(rows: &[(u64, Vec<String>)]) -> Option<Vec<String>> {
    let choices = rows.first()?.1.len().checked_sub(2).filter(|n| (2..=LETTERS.len()).contains(n))?;
    let is =
        |row: &[String]| row.len() == choices + 2 && LETTERS[..choices].contains(&row[choices + 1].trim());
    let numbered = (0..choices).map(|number| format!("choice{number}"));
    let header = || std::iter::once("question".into()).chain(numbered).chain(["answer".into()]).collect();
    rows.iter().all(|(_, row)| is(row)).then(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Table> {
        Table::parse(Path::new("x.csv"), text)
    }

    #[test]
    fn lines_are_those_that_rows_begin_on() {
        for end in ["\n", "\r\n"] {
            let text = ["a,b", "\"one, \"\"two\"\"", "three\",", "", "x,y", ""].join(end);
            let table = parse(text.as_bytes()).unwrap();
            let first = format!("one, \"two\"{end}three");
            assert_eq!(table.header, ["a", "b"]);
            assert_eq!(table.rows, [(2, vec![first, String::new()]), (5, vec!["x".into(), "y".into()])]);
        }
        let said = |text: &[u8]| parse(text).err().unwrap().to_string();
        assert!(said(b"").contains("x.csv:1") && said(b"a,b\n\n1,2\n3\n").contains("x.csv:4"));
        assert!(said(b"a\n1\n\xff\n").contains("x.csv:3"), "{}", said(b"a\n1\n\xff\n"));
    }

    #[test]
    fn questions_without_a_header_have_one() {
        let table = parse(b"What?,1,2,B\n\"And, what?\",3,4,A\n").unwrap();
        assert_eq!(table.header, ["question", "choice0", "choice1", "answer"]);
        assert_eq!(table.rows.len(), 2);
        // The letter of no choice, another number of choices, one that is none.
        for text in ["What?,1,2,C\n", "What?,1,2,A\nWhat?,1,2,3,A\n", "a,b,c,A\n1,2,3,4\n"] {
            assert!(parse(text.as_bytes()).map_or(true, |table| table.header[0] != "question"), "{text}");
        }
    }
}
