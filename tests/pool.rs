//! Pools through the program: many forms in, one out.

mod common;

use std::fs;

use common::{fail, succeed, write_lines};
use serde_json::{Value, json};

const LONG: &str =
    "the quick brown fox jumps over the lazy dog and then it runs through the wood to the river bank";

fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    fs::create_dir(dir.join("sources")).unwrap();
    let file = |name: &str| dir.join("sources").join(name);
    write_lines(
        &file("a_p3.jsonl"),
        &[
            json!({"prompt": "Is water wet?", "completion": " Yes<|endoftext|>"}),
            json!({"prompt": "Is water wet?", "completion": "Yes<|endoftext|>"}),
            json!({"prompt": LONG, "completion": "fox"}),
        ],
    );
    let task = json!({
        "Definition": ["Say the colour."], "Categories": ["Colours"], "Source": ["nature"],
        "Positive Examples": [{"input": "grass", "output": "green", "explanation": ""}],
        "Instances": [{"id": "1", "input": "sky", "output": ["blue", "grey"]}, {"id": "2", "input": "snow", "output": ["white"]}],
    });
    fs::write(file("task001.json"), serde_json::to_string_pretty(&task).unwrap()).unwrap();
    let alpaca = json!([
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "hello"},
    ]);
    fs::write(file("alpaca.json"), alpaca.to_string()).unwrap();
    let unnatural = json!({"instruction": "Count.", "instances": [{"input": "a b", "output": "2"}, {"input": "a", "output": "1"}]});
    write_lines(&file("unnatural.jsonl"), &[unnatural]);
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk = json!({"messages": [said("user", "Hi"), said("assistant", "Hello"), said("user", "Bye"), said("assistant", "So long")]});
    write_lines(&file("talk.jsonl"), &[talk]);
    write_lines(
        &file("own.jsonl"),
        &[
            json!({"input": format!("{}!", LONG.to_uppercase()), "target": "fox"}),
            json!({"input": "x", "target": "y", "task": "letters", "choices": ["y", "z"]}),
        ],
    );
    fs::write(file("notes.txt"), "is passed over").unwrap();
    place
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_form_is_read_and_duplicates_go() {
    let place = workplace();
    let dir = place.path();
    let report = succeed(dir, "pool build sources --examples 1 --out pool.jsonl");
    let pool = lines(&dir.join("pool.jsonl"));
    assert_eq!((&report["read"], &report["written"]), (&json!(13), &json!(11)), "{report}");
    assert_eq!((&report["same"], &report["nearly_same"]), (&json!(1), &json!(1)));
    assert_eq!(pool.len(), 11);
    let of = |task: &str| pool.iter().filter(|row| row["task"] == task).collect::<Vec<_>>();
    assert_eq!(of("a_p3")[0]["target"], "Yes");
    let colours = of("task001");
    assert_eq!((&colours[0]["target"], &colours[0]["category"]), (&json!("blue"), &json!("Colours")));
    let input = colours[0]["input"].as_str().unwrap();
    assert!(input.starts_with("Definition: Say the colour.") && input.contains("Output: green"), "{input}");
    assert!(input.ends_with("Input: sky\nOutput:"), "{input}");
    assert_eq!(of("alpaca")[0]["input"], "Add.\n\n1 and 2");
    assert_eq!(of("alpaca")[1]["input"], "Say hello.");
    assert_eq!(of("unnatural").len(), 2);
    assert_eq!(of("talk")[1]["input"], "Hi\n\nHello\n\nBye");
    assert_eq!(of("letters")[0]["choices"], json!(["y", "z"]));
    // What is made is a pool to choose from, and is read again as it is.
    succeed(dir, "select pool.jsonl --method random -n 5 --out chosen.jsonl");
    let again = succeed(dir, "pool build pool.jsonl --out again.jsonl");
    assert_eq!(again["written"], 11);
    assert_eq!(fs::read(dir.join("again.jsonl")).unwrap(), fs::read(dir.join("pool.jsonl")).unwrap());
}

#[test]
fn what_is_evaluated_on_is_counted_and_left_out_where_asked() {
    let place = workplace();
    let dir = place.path();
    write_lines(
        &dir.join("test.jsonl"),
        &[json!({"input": format!("premise: {LONG}. hypothesis: no"), "target": "no"})],
    );
    let build = "pool build sources --evaluation test.jsonl --out";
    let kept = succeed(dir, &format!("{build} kept.jsonl"));
    assert_eq!((&kept["contaminated"], &kept["written"]), (&json!(1), &json!(11)));
    let dropped = succeed(dir, &format!("{build} dropped.jsonl --drop-contaminated --without talk"));
    assert_eq!((&dropped["written"], &dropped["without"]), (&json!(8), &json!(2)), "{dropped}");
    assert!(!fs::read_to_string(dir.join("dropped.jsonl")).unwrap().contains("brown fox"));
}

#[test]
fn what_cannot_be_read_is_named_and_nothing_is_left() {
    let place = workplace();
    let dir = place.path();
    for (text, words) in [
        ("{\"input\": \"a\", \"target\": \"b\"}\n{\"input\": \"a\"}\n", &["bad.jsonl:2", "target"][..]),
        ("{\"input\": 1, \"target\": \"b\"}\n", &["bad.jsonl:1", "input", "string"]),
        ("{\"prompt\": \"a\", \"completion\": 3}\n", &["bad.jsonl:1", "completion"]),
        ("{\"messages\": 3}\n", &["bad.jsonl:1", "messages"]),
        ("[{\"instruction\": \"a\"}]\n", &["bad.jsonl", "entry 0", "output"]),
        ("{\"input\": \"a\", \"target\": \"b\"}\n{oops\n", &["bad.jsonl:2"]),
        ("", &["bad.jsonl", "empty"]),
    ] {
        fs::write(dir.join("bad.jsonl"), text).unwrap();
        let said = fail(dir, "pool build bad.jsonl --out pool.jsonl");
        assert!(words.iter().all(|word| said.contains(word)), "{text}: {said}");
    }
    assert!(fail(dir, "pool build nowhere --out pool.jsonl").contains("nowhere"));
    let here: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(here.iter().all(|name| !name.to_string_lossy().contains("pool.jsonl")), "{here:?}");
}
