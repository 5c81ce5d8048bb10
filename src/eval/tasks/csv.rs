//! MMLU's CSV: a question, its choices and the number of the right one (or its letter).

use std::path::Path;

use super::item::Item;
use crate::error::{Error, Result};
use crate::pool::Instance;

const LETTERS: [&str; 8] = ["A", "B", "C", "D", "E", "F", "G", "H"];

/// The rows of a file, as lm-evaluation-harness puts them: the question, a lettered line for each choice, `Answer:`.
pub fn read(path: &Path, text: &str) -> Result<Vec<Item>> {
    let fault = |line: u64, why: &str| Error::Line { path: path.into(), line, why: why.into() };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let task = ["_test", "_dev", "_val"].iter().find_map(|end| stem.strip_suffix(end)).unwrap_or(&stem);
    let mut rows = rows(text).into_iter();
    let (_, header) = rows.next().ok_or_else(|| fault(1, "holds no header"))?;
    let choices = header.len().saturating_sub(2);
    let known = header.first().is_some_and(|name| name == "question")
        && header.last().is_some_and(|name| name == "answer");
    if !known || !(2..=LETTERS.len()).contains(&choices) {
        return Err(fault(1, "the columns must be question, choice0, choice1, .., answer"));
    }
    let item = |(line, row): (u64, Vec<String>)| {
        if row.len() != header.len() {
            return Err(fault(line, &format!("{} fields, but the header has {}", row.len(), header.len())));
        }
        let (question, answer) = (row[0].trim(), row[row.len() - 1].trim());
        let right = answer.parse().ok().or_else(|| LETTERS.iter().position(|letter| *letter == answer));
        let Some(right) = right.filter(|right| *right < choices) else {
            return Err(fault(line, &format!("the answer {answer:?} is none of the {choices} choices")));
        };
        let lettered: String = LETTERS
            .iter()
            .zip(&row[1..=choices])
            .map(|(letter, text)| format!("{letter}. {text}\n"))
            .collect();
        let instance = Instance {
            input: format!("{question}\n{lettered}Answer:"),
            target: LETTERS[right].into(),
            task: Some(task.to_string()),
            choices: LETTERS[..choices].iter().map(ToString::to_string).collect(),
            ..Instance::default()
        };
        let references = vec![instance.target.clone()];
        Ok(Item { instance, references, example: String::new(), path: path.into(), line })
    };
    rows.map(item).collect()
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
