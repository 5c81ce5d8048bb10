//! `sidenote ask`, through the command.

mod tiny;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sidenote::corpus::{OnError, Tokenizer};
use sidenote::encoder;
use sidenote::progress::Progress;
use sidenote::retriever::{BuildOptions, Existing, build};

const TOPICS: [&[&str]; 3] = [
    &["planet", "smallest", "mercury", "sun", "moons", "jupiter"],
    &["cheese", "milk", "rennet", "cows"],
    &["turing", "mathematician", "computers", "born"],
];

/// A directory with an encoder, an index made with it, and another encoder.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("encoder");
    tiny::write_encoder(&name, &TOPICS);
    tiny::write_encoder(&dir.path().join("other"), &TOPICS[..2]);
    let documents = [
        json!({"id": "m1", "title": "Mercury", "text": "Mercury is the smallest planet, and the planet nearest to the Sun. It has no moons. The moons of Jupiter are many."}),
        json!({"id": "c1", "title": "Cheese", "text": "Cheese is a food. It is made from milk, e.g. the milk of cows.\nRennet makes the milk thick."}),
        json!({"id": "t1", "title": "", "text": "Alan Turing was an English mathematician. Turing was born in 1912. He built computers."}),
    ];
    let lines: Vec<_> = documents.iter().map(Value::to_string).collect();
    let corpus = dir.path().join("corpus.jsonl");
    fs::write(&corpus, lines.join("\n")).unwrap();
    let encoder = encoder::load(name.to_str().unwrap()).unwrap();
    let options = BuildOptions {
        corpus: &[corpus],
        out: &dir.path().join("index"),
        encoder: encoder.as_ref(),
        tokenizer: &Tokenizer::open(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/assets/tokenizer/tokenizer.json"
        )))
        .unwrap(),
        // So short that most sentences are cut.
        chunk_tokens: 8,
        index: None,
        seed: 0,
        memory: None,
        on_error: OnError::Fail,
        existing: Existing::Fail,
    };
    build(&options, Progress::Silent).unwrap();
    dir
}

fn ask(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sidenote"))
        .current_dir(dir)
        .env("HF_HUB_OFFLINE", "1")
        .args(["ask", "--quiet"])
        .args(arguments)
        .output()
        .unwrap()
}

fn succeed(dir: &Path, arguments: &[&str]) -> String {
    let output = ask(dir, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = ask(dir, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_answer_cites_the_passage_that_says_it() {
    let dir = workplace();
    let question = "Which planet is the smallest?";
    let report = succeed(dir.path(), &[question, "--index", "index", "-k", "3", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["question"], question);
    assert!(report["reader"].as_str().unwrap().starts_with("extractive (encoder "));
    let sources = report["sources"].as_array().unwrap();
    // Two of the three passages are parts of the same sentence, which is read once.
    assert_eq!(sources.len(), 2);
    let cited: Vec<usize> = (0..2).filter(|&place| sources[place]["cited"] == true).collect();
    let [cited] = cited[..] else { panic!("{report:#}") };
    // The chunk holds 8 tokens of the sentence; the answer is all of it.
    let sentence = "Mercury is the smallest planet, and the planet nearest to the Sun.";
    assert_eq!(report["answer"], format!("{sentence} [{}]", cited + 1));
    assert!(sources[cited]["text"].as_str().unwrap().contains(sentence));
    assert_eq!((&sources[cited]["title"], &sources[cited]["id"]), (&json!("Mercury"), &json!("m1")));
    let scores: Vec<_> = sources.iter().map(|source| source["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
}

#[test]
fn people_get_the_answer_and_numbered_sources() {
    let dir = workplace();
    let text = succeed(dir.path(), &["When was Turing born?", "--index", "index", "-k", "2"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("Turing was born in 1912. ["), "{text}");
    assert!(lines[2].starts_with("Reader: extractive (encoder "), "{text}");
    assert_eq!(lines[3], "Sources:");
    assert!(lines[4].starts_with("[1] t1 — ") && lines[5].starts_with("[2] "), "{text}");
    assert_eq!(lines.len(), 6);
    // A line break inside a passage does not break its line.
    let text =
        succeed(dir.path(), &["What does rennet make of milk?", "--index", "index", "--encoder", "encoder"]);
    assert!(text.lines().any(|line| line.starts_with("[1] Cheese — ")), "{text}");
}

#[test]
fn what_the_corpus_does_not_say_is_not_answered() {
    let dir = workplace();
    for question in ["Who won the election of 1848 in Ruritania?", "", "?"] {
        let report = succeed(dir.path(), &[question, "--index", "index", "--json"]);
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["answer"], "The passages found do not answer this question.");
        assert!(report["sources"].as_array().unwrap().iter().all(|source| source["cited"] == false));
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = workplace();
    let dir = dir.path();
    let why = fail(dir, &["Why?", "--index", "index", "--model", "some/model"], 1);
    assert!(why.contains("some/model: there is no such folder or file"), "{why}");
    assert!(fail(dir, &["Why?", "--index", "nowhere"], 1).contains("nowhere"));
    assert!(fail(dir, &["Why?", "--index", "index", "--encoder", "other"], 1).contains("encoder"));
    fail(dir, &["Why?"], 2);
    fail(dir, &["--index", "index"], 2);
    fail(dir, &["Why?", "--index", "index", "-k", "0"], 2);
}
