//! RAFT's CSV (Alex et al. 2021, <https://arxiv.org/abs/2109.14076>): texts in columns, an `ID`, and a `Label`, which the files
//! that predictions are wanted for do not have.

use std::path::Path;

use super::super::item::Item;
use super::quoted;
use crate::pool::Instance;

/// What the data set of Hugging Face has in place of a label that is not told.
const UNLABELLED: &str = "Unlabeled";

/// The rows of a file: a line `Column: text` for each text that there is, then `Label:`. None where the header has neither `Label`
/// nor `ID`.
pub fn read(path: &Path, header: &[String], rows: Vec<(u64, Vec<String>)>) -> Option<Vec<Item>> {
    let column = |name: &str| header.iter().position(|column| column.trim().eq_ignore_ascii_case(name));
    let (label, id) = (column("label"), column("id"));
    label.or(id)?;
    let task = task(path);
    let item = |(line, row): (u64, Vec<String>)| {
        let texts = header.iter().zip(&row).enumerate().filter(|(at, (_, text))| {
            // A column without a name numbers the rows.
            Some(*at) != label && Some(*at) != id && !header[*at].is_empty() && !text.trim().is_empty()
        });
        let input: String =
            texts.map(|(_, (name, text))| format!("{}: {}\n", name.trim(), text.trim())).collect();
        let label = label.map(|at| row[at].trim()).filter(|label| !label.is_empty() && *label != UNLABELLED);
        let instance = Instance {
            input: input + "Label:",
            target: label.unwrap_or_default().into(),
            task: Some(task.clone()),
            ..Instance::default()
        };
        let references = label.map(String::from).into_iter().collect();
        let example = id.map(|at| row[at].trim().to_string()).unwrap_or_default();
        Item { instance, references, example, path: path.into(), line, without_content: None }
    };
    Some(rows.into_iter().map(item).collect())
}

/// The task of `TASK/train.csv`, `TASK/test_unlabeled.csv` or `TASK_test.csv`.
fn task(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let part = ["test_unlabeled", "test", "train"].iter().find_map(|part| stem.strip_suffix(part));
    let folder = || path.parent()?.file_name().map(|name| name.to_string_lossy().into_owned());
    match part.map(|before| before.trim_end_matches('_')) {
        None => stem,
        Some("") => folder().unwrap_or(stem),
        Some(task) => task.to_string(),
    }
}

/// The file that RAFT wants: an `ID` and a `Label` a line.
pub fn predictions<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let line = |(id, label): (&str, &str)| format!("{},{}\n", quoted(id), quoted(label));
    std::iter::once("ID,Label\n".to_string()).chain(labels.map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    #[test]
    fn texts_labels_and_what_has_none() {
        let text = "\u{feff},Sentence,ID,Label\n0,\"A, b\",7,not it\n1,c,8,Unlabeled\n";
        let items = read("ade/train.csv", text).unwrap();
        assert_eq!(items[0].instance.input, "Sentence: A, b\nLabel:");
        assert_eq!((items[0].instance.target.as_str(), items[0].example.as_str()), ("not it", "7"));
        assert!(items[1].references.is_empty() && items[1].instance.target.is_empty());
        assert_eq!(items[1].task(), "ade");
        let items = read("x/ade_test_unlabeled.csv", "ID,Title,Text\n9,,t\n").unwrap();
        assert_eq!((items[0].instance.input.as_str(), items[0].task().as_str()), ("Text: t\nLabel:", "ade"));
        assert_eq!(
            predictions([("7", "a, \"b\""), ("8", "c")].into_iter()),
            "ID,Label\n7,\"a, \"\"b\"\"\"\n8,c\n"
        );
        let said = read("x.csv", "a,b\n1,2\n").unwrap_err().to_string();
        assert!(said.contains("Label"), "{said}");
    }
}
