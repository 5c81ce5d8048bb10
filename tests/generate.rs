//! `sidenote generate` on a small random checkpoint (`scripts/golden_generate.py`), whose words are w2 to w60.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{failure_of, json_of, said, sidenote, text_of};
use serde_json::Value;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/generate")
}

/// `sidenote generate MODEL PROMPT.. OPTIONS`; options are cut at spaces.
fn generate(prompts: &[&str], options: &str) -> Command {
    let mut command = sidenote(Path::new("."), "generate");
    command.arg(model()).args(prompts).args(options.split_whitespace());
    command
}

fn texts(report: &Value) -> Vec<String> {
    let text = |result: &Value| result["text"].as_str().unwrap().to_string();
    report["results"].as_array().unwrap().iter().map(text).collect()
}

const PROMPTS: [&str; 3] = ["w5 w9 w33 w12 w47", "w8", "w60 w2 w2 w19"];

#[test]
fn greedy_text_is_that_of_transformers() {
    let expected = fs::read_to_string(model().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let words: Vec<String> = expected["greedy"][0]["texts"][0]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| format!("w{token}"))
        .collect();
    let text = text_of(generate(&[PROMPTS[0]], "--max-tokens 16"));
    assert_eq!(text.trim(), words.join(" "));
    let report = json_of(generate(&[PROMPTS[0]], "--max-tokens 16 --logprobs 2"));
    assert_eq!((report["tokens"].as_u64(), report["finish_reason"].as_str()), (Some(16), Some("length")));
    assert_eq!(report["prompt"], PROMPTS[0]);
    let logprobs = report["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 16);
    let first = expected["logprobs"][0][0].as_f64().unwrap();
    assert!((logprobs[0]["logprob"].as_f64().unwrap() - first).abs() < 1e-4);
    assert_eq!(logprobs[0]["token"], logprobs[0]["top"][0]["token"]);
    assert_eq!(logprobs[0]["top"].as_array().unwrap().len(), 2);
    let shown = text_of(generate(&[PROMPTS[0]], "--max-tokens 3 --logprobs 1"));
    assert_eq!(shown.lines().count(), 4, "the text, then a line a token: {shown}");
}

#[test]
fn many_prompts_give_what_each_gives_alone() {
    let dir = tempfile::tempdir().unwrap();
    let lines = dir.path().join("prompts.txt");
    fs::write(&lines, format!("{}\n\n{}\n", PROMPTS[0], PROMPTS[1..].join("\n"))).unwrap();
    let objects = dir.path().join("prompts.jsonl");
    fs::write(&objects, PROMPTS.map(|prompt| format!("{{\"prompt\": \"{prompt}\"}}\n")).concat()).unwrap();
    for options in ["", "--temperature 1.3 --top-p 0.9 --seed 4", "--beams 3", "--repetition-penalty 1.3"] {
        let options = format!("{options} --max-tokens 12");
        let alone: Vec<String> = PROMPTS
            .iter()
            .map(|prompt| json_of(generate(&[prompt], &options))["text"].as_str().unwrap().to_string())
            .collect();
        assert_eq!(texts(&json_of(generate(&PROMPTS, &options))), alone, "{options}");
        for file in [&lines, &objects] {
            let mut command = generate(&[], &options);
            command.arg("--prompts").arg(file);
            assert_eq!(texts(&json_of(command)), alone, "{options}");
        }
    }
    // A file's texts are a list, also of one.
    fs::write(&lines, PROMPTS[0]).unwrap();
    let mut command = generate(&[], "--max-tokens 2");
    command.arg("--prompts").arg(&lines);
    assert_eq!(texts(&json_of(command)).len(), 1);
    // From stdin, for people.
    let mut child = generate(&[], "--prompts - --max-tokens 2").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"w5\nw6\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(shown.starts_with("[1] w5\n") && shown.contains("\n[2] w6\n"), "{shown} {}", said(&output));
    let several = json_of(generate(&["w5"], "--temperature 1.5 -n 3 --max-tokens 8"));
    let several = texts(&several);
    assert!(several.len() == 3 && several[1..].iter().any(|text| *text != several[0]), "{several:?}");
}

#[test]
fn stop_strings_and_choices() {
    let free = json_of(generate(&[PROMPTS[0]], "--max-tokens 8"));
    let words: Vec<&str> = free["text"].as_str().unwrap().split_whitespace().collect();
    let mut command = generate(&[PROMPTS[0]], "--max-tokens 8");
    command.args(["--stop", &format!("{} {}", words[3], words[4])]);
    let stopped = json_of(command);
    assert_eq!(stopped["text"].as_str().unwrap().trim(), words[..3].join(" "));
    assert_eq!(stopped["finish_reason"], "stop");

    let choices = ["w7 w8", "w9", "w7"];
    let with = |options: &str| {
        let mut command = generate(&[PROMPTS[1]], options);
        choices.iter().for_each(|choice| _ = command.args(["--choice", choice]));
        command
    };
    let chosen = json_of(with(""));
    let scores: Vec<f64> =
        chosen["choices"].as_array().unwrap().iter().map(|one| one["logprob"].as_f64().unwrap()).collect();
    let best = (0..3).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
    assert_eq!(chosen["text"], choices[best]);
    assert_eq!(text_of(with("")), format!("{}\n", choices[best]));
    // As many beams as can be find the same.
    assert_eq!(json_of(with("--beams 6 --length-penalty 0"))["text"], choices[best]);
    let drawn = texts(&json_of(with("--temperature 3 -n 5")));
    assert!(drawn.iter().all(|text| choices.contains(&text.as_str())), "{drawn:?}");
}

#[test]
fn what_cannot_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for (options, word) in [
        ("--top-p 0", "top-p: "),
        ("--min-p 2", "min-p: "),
        ("--repetition-penalty 0", "repetition-penalty: "),
        ("--beams 0", "beams: "),
        ("--beams 2 --temperature 1", "beams: "),
        ("-n 2", "n: "),
        ("-n 0 --temperature 1", "n: "),
        ("--batch 0", "batch: "),
        ("--choice w2 --choice w2", "choice: "),
        ("--choice w2 --stop w3", "stop: "),
        ("--index nowhere", "nowhere"),
    ] {
        let said = failure_of(generate(&["w5"], options), 1);
        assert!(said.contains(word), "{options}: {said}");
    }
    let said = failure_of(generate(&["w5", ""], ""), 1);
    assert!(said.contains("prompt"), "{said}");
    let file = |name: &str, content: &str| {
        fs::write(dir.path().join(name), content).unwrap();
        let mut command = generate(&[], "");
        command.arg("--prompts").arg(dir.path().join(name));
        failure_of(command, 1)
    };
    assert!(file("none.txt", "\n \n").contains("none.txt"));
    assert!(file("bad.jsonl", "{\"prompt\": \"w2\"}\n{\"text\": \"w2\"}\n").contains("bad.jsonl:2"));
    assert!(file("worse.jsonl", "w2\n").contains("worse.jsonl:1"));
    failure_of(generate(&["w5"], "--prompts nowhere"), 2);
    let said = failure_of(generate(&[], "--prompts nowhere.txt"), 1);
    assert!(said.contains("nowhere.txt"), "{said}");
}
