//! Which part of a filled template is a row's own text.

use serde_json::{Map, Value};

/// The row's texts that stand in `input`, in the order in which they stand there, a line each; none where that is nothing. A single
/// word that is one of the `answers` is left out: it is a template's, or tells what is right.
pub fn own_text(row: &Map<String, Value>, input: &str, answers: &[&str]) -> Option<String> {
    let mut texts = Vec::new();
    row.values().for_each(|value| collect(value, &mut texts));
    texts.retain(|text| text.contains(char::is_whitespace) || !answers.contains(text));
    let mut found: Vec<(usize, &str)> = texts.into_iter().filter_map(|text| place(input, text)).collect();
    // Of those that begin together, the longest.
    found.sort_by_key(|(at, text)| (*at, std::cmp::Reverse(text.len())));
    let (mut end, mut own) = (0, Vec::new());
    for (at, text) in found {
        if at >= end {
            end = at + text.len();
            own.push(text);
        }
    }
    (!own.is_empty()).then(|| own.join("\n"))
}

/// Where `text` stands in `input`, if need be without the sign that it ends in, which templates take off.
fn place<'a>(input: &str, text: &'a str) -> Option<(usize, &'a str)> {
    let bare = text.trim_end_matches(|c: char| c.is_ascii_punctuation());
    [text, bare].into_iter().filter(|text| !text.is_empty()).find_map(|text| Some((input.find(text)?, text)))
}

fn collect<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text.trim()),
        Value::Array(list) => list.iter().for_each(|value| collect(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_rows_texts_in_the_prompts_order() {
        let of =
            |row: Value, input: &str, answers: &[&str]| own_text(row.as_object().unwrap(), input, answers);
        let row =
            json!({"hypothesis": "Ann sleeps.", "id": "7 of 9", "label": 1, "premise": "Ann is in bed."});
        let asked = "Given Ann is in bed. Does it follow that \"Ann sleeps\"? Yes or no?";
        assert_eq!(of(row, asked, &["Yes", "No"]).unwrap(), "Ann is in bed.\nAnn sleeps");
        // A word of the answers is the template's; whole answers are the row's own.
        let row =
            json!({"text": "It is so.", "answer": "no", "choices": {"text": ["It rained.", "It is so."]}});
        assert_eq!(of(row.clone(), "Yes or no: It is so.", &["no", "yes"]).unwrap(), "It is so.");
        let asked = "A) It rained. B) It is so.";
        assert_eq!(of(row, asked, &["It rained.", "It is so."]).unwrap(), "It rained.\nIt is so.");
        assert_eq!(of(json!({"text": "a b"}), "nothing of it", &[]), None);
        // A text within another one is not there twice.
        assert_eq!(of(json!({"a": "b c", "d": "a b c d"}), "a b c d", &[]).unwrap(), "a b c d");
    }
}
