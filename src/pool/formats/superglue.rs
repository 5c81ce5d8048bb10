//! SuperGLUE's rows (Wang et al. 2019) as its own files and FewGLUE's have them, in the form that promptsource's templates are written
//! for, which is the Hugging Face data set's: labels as numbers, spans and answers as fields, a row a question.

use serde_json::{Map, Value};

type Row = Map<String, Value>;

/// What `row` of promptsource's data set `task` (`super_glue_rte`) is in that form; itself where it is in it, or of another data set.
pub fn rows(task: &str, mut row: Row) -> Vec<Row> {
    let Some(task) = task.strip_prefix("super_glue_") else { return vec![row] };
    match task {
        "multirc" => return multirc(row),
        "record" => return record(row),
        "wsc" | "wsc.fixed" => {
            if let Some(Value::Object(spans)) = row.get("target").cloned() {
                row.remove("target");
                row.extend(spans);
            }
        }
        _ => {}
    }
    let names: &[&str] = match task {
        "rte" | "axb" | "axg" => &["entailment", "not_entailment"],
        "cb" => &["entailment", "contradiction", "neutral"],
        _ => &[],
    };
    let number = match row.get("label") {
        Some(Value::Bool(label)) => Some(usize::from(*label)),
        Some(Value::String(label)) => names.iter().position(|name| name == label),
        _ => None,
    };
    if let Some(number) = number {
        row.insert("label".into(), number.into());
    }
    vec![row]
}

/// A row an answer, of a passage with its questions and their answers.
fn multirc(row: Row) -> Vec<Row> {
    let Some(passage) = row.get("passage").filter(|passage| passage.is_object()) else { return vec![row] };
    let mut found = Vec::new();
    for question in list(&passage["questions"]) {
        for answer in list(&question["answers"]) {
            found.push(fields([
                ("paragraph", passage["text"].clone()),
                ("question", question["question"].clone()),
                ("answer", answer["text"].clone()),
                ("label", answer["label"].clone()),
            ]));
        }
    }
    found
}

/// A row a query, of a passage with the places of its entities.
fn record(row: Row) -> Vec<Row> {
    let Some(passage) = row.get("passage").filter(|passage| passage.is_object()) else { return vec![row] };
    let text: Vec<char> = passage["text"].as_str().unwrap_or_default().chars().collect();
    // Places count characters; the last is the entity's.
    let entity = |place: &Value| {
        let at = |name: &str| usize::try_from(place[name].as_u64()?).ok();
        Some(Value::String(text.get(at("start")?..=at("end")?)?.iter().collect()))
    };
    let entities = distinct(list(&passage["entities"]).iter().filter_map(entity));
    let one = |query: &Value| {
        let answers = distinct(list(&query["answers"]).iter().map(|answer| answer["text"].clone()));
        fields([
            ("passage", passage["text"].clone()),
            ("query", query["query"].clone()),
            ("entities", entities.clone()),
            ("answers", answers),
        ])
    };
    list(&row["qas"]).iter().map(one).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn fields<const N: usize>(fields: [(&str, Value); N]) -> Row {
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.into(), value))
        .collect()
}

/// Each of `values` once, where it comes first.
fn distinct(values: impl Iterator<Item = Value>) -> Value {
    let mut found: Vec<Value> = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(task: &str, row: Value) -> Value {
        rows(task, row.as_object().unwrap().clone()).into()
    }

    #[test]
    fn labels_are_numbers() {
        for (task, label, number) in [
            ("super_glue_rte", json!("not_entailment"), json!(1)),
            ("super_glue_cb", json!("neutral"), json!(2)),
            ("super_glue_boolq", json!(true), json!(1)),
            ("super_glue_wic", json!(false), json!(0)),
            ("super_glue_copa", json!(1), json!(1)),
            // What nobody knows stays, and is named where a template fails on it.
            ("super_glue_rte", json!("perhaps"), json!("perhaps")),
            ("rte", json!("entailment"), json!("entailment")),
        ] {
            assert_eq!(
                read(task, json!({"premise": "p", "label": label})),
                json!([{"premise": "p", "label": number}])
            );
        }
    }

    #[test]
    fn spans_answers_and_entities_are_fields() {
        let spans = json!({"span1_text": "Ann", "span1_index": 0});
        let row = json!({"text": "Ann sat.", "target": spans, "label": true});
        let flat = json!({"text": "Ann sat.", "span1_text": "Ann", "span1_index": 0, "label": 1});
        assert_eq!(read("super_glue_wsc.fixed", row), json!([flat]));
        assert_eq!(read("super_glue_wsc.fixed", flat.clone()), json!([flat]));

        let answers = json!([{"text": "a", "label": 1}, {"text": "b", "label": 0}]);
        let questions =
            json!([{"question": "q", "answers": answers}, {"question": "r", "answers": [{"text": "c"}]}]);
        let flat = json!([
            {"paragraph": "p", "question": "q", "answer": "a", "label": 1},
            {"paragraph": "p", "question": "q", "answer": "b", "label": 0},
            {"paragraph": "p", "question": "r", "answer": "c"},
        ]);
        assert_eq!(
            read("super_glue_multirc", json!({"passage": {"text": "p", "questions": questions}})),
            flat
        );
        assert_eq!(read("super_glue_multirc", flat[0].clone()), json!([flat[0]]));

        let place = |start: u64, end: u64| json!({"start": start, "end": end});
        let passage = json!({"text": "é Bo, Al, Bo", "entities": [place(2, 3), place(6, 7), place(10, 11), place(11, 12)]});
        let qas = json!([{"query": "@placeholder?", "answers": [{"text": "Bo"}, {"text": "Bo"}]}]);
        let flat = json!([{"passage": "é Bo, Al, Bo", "query": "@placeholder?", "entities": ["Bo", "Al"], "answers": ["Bo"]}]);
        assert_eq!(read("super_glue_record", json!({"passage": passage, "qas": qas})), flat);
        assert_eq!(read("super_glue_record", flat[0].clone()), flat);
    }
}
