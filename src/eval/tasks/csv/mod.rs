//! Tasks in CSV: MMLU's questions, and RAFT's tables.

mod mmlu;
mod raft;

use std::path::Path;

use super::item::{Item, NO_CONTENT};
use crate::error::{Error, Result};
use crate::pool::csv::Table;

pub use raft::predictions;

/// The questions of a table of either kind, told by its header; `path` is where it was read.
///
/// # Errors
/// Names the line that is not what the header says.
pub fn read(path: &Path, table: Table) -> Result<Vec<Item>> {
    let Table { header, rows } = table;
    let mut without_content = rows.clone();
    // MMLU's last column, the answer, is no part of the question, and has to be one still.
    let texts = header.len() - usize::from(mmlu::is(&header));
    for (_, row) in &mut without_content {
        // What is blank may be left out of the question.
        row[..texts]
            .iter_mut()
            .filter(|field| !field.trim().is_empty())
            .for_each(|field| *field = NO_CONTENT.into());
    }
    let mut all = items(path, &header, rows)?;
    for (item, empty) in all.iter_mut().zip(items(path, &header, without_content)?) {
        item.without_content = Some(empty.instance.input);
    }
    Ok(all)
}

fn items(path: &Path, header: &[String], rows: Vec<(u64, Vec<String>)>) -> Result<Vec<Item>> {
    if mmlu::is(header) {
        return mmlu::read(path, header.len() - 2, rows);
    }
    let why = "the columns must be question, choice0, choice1, .., answer (MMLU) or have Label or ID among them (RAFT)";
    raft::read(path, header, rows).ok_or_else(|| Error::line(path, 1, why))
}

/// A field as it stands in a row.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Instance;

    pub(super) fn read(path: &str, text: &str) -> Result<Vec<Item>> {
        let path = Path::new(path);
        super::read(path, Table::parse(path, text.as_bytes())?)
    }

    #[test]
    fn questions_with_commas_quotes_and_lines() {
        let text = "question,choice0,choice1,answer\r\n\"a, \"\"b\"\"\nc\",1,2,1\r\nplain,x,\"y, z\",A\n";
        let items = read("anatomy_test.csv", text).unwrap();
        assert_eq!(items[0].instance.input, "a, \"b\"\nc\nA. 1\nB. 2\nAnswer:");
        assert_eq!((items[0].instance.target.as_str(), items[0].line), ("B", 2));
        assert_eq!((items[1].instance.target.as_str(), items[1].line), ("A", 4));
        assert_eq!(items[1].instance.input, "plain\nA. x\nB. y, z\nAnswer:");
        assert_eq!(items[1].task(), "anatomy");
        let error = read("x.csv", "question,choice0,choice1,answer\nq,a,b,7\n").unwrap_err();
        assert!(error.to_string().contains("x.csv:2"), "{error}");
        assert!(read("x.csv", "a,b\n1,2\n").is_err());
        // MMLU's own files have no header.
        let without = read("x.csv", "\"a, \"\"b\"\"\nc\",1,2,B\n").unwrap();
        assert_eq!(
            (&without[0].instance, without[0].line),
            (&Instance { task: Some("x".into()), ..items[0].instance.clone() }, 1)
        );
    }

    /// Fails when calibration would ask without the letters, the columns' names, or with a text of the row.
    #[test]
    fn a_question_without_content_keeps_its_format() {
        let of = |text: &str| {
            let items = read("x.csv", text).unwrap();
            items.into_iter().map(|item| item.without_content().unwrap()).collect::<Vec<_>>()
        };
        let mmlu = of("question,choice0,choice1,answer\n\"B,\nor what?\",A,B. c,1\nplain,x,,A\n");
        assert_eq!(mmlu, ["N/A\nA. N/A\nB. N/A\nAnswer:", "N/A\nA. N/A\nB. \nAnswer:"]);
        let raft = of(",Title,ID,Text,Label\n0,,7,\"a: b\nc: d\",not it\n1,T,8,e,\n");
        assert_eq!(raft, ["Text: N/A\nLabel:", "Title: N/A\nText: N/A\nLabel:"]);
        let last = of("ID,Text\n9,t\n");
        assert_eq!(last, ["Text: N/A\nLabel:"]);
    }
}
