//! What every command has in common: help, exit codes, and who may write to stdout and stderr.

mod common;
mod tiny;

use std::fs;
use std::path::Path;

use common::{fail, failure_of, json_of, said, sidenote, succeed, text_of, write_lines};
use serde_json::{Value, json};

const TOPICS: [&[&str]; 3] =
    [&["bees", "honey", "hive", "nectar"], &["planet", "moon", "sun", "orbit"], &["king", "castle", "queen"]];

/// A folder with an encoder, a corpus and an index over it.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    tiny::write_encoder(&path.join("encoder"), &TOPICS);
    let documents = [
        json!({"id": "b", "title": "Bees", "text": "Bees make honey in a hive. Nectar becomes honey."}),
        json!({"id": "m", "title": "Moon", "text": "The moon is in orbit around a planet."}),
        json!({"id": "k", "title": "King", "text": "The king lives in a castle with the queen."}),
    ];
    write_lines(&path.join("corpus.jsonl"), &documents);
    succeed(path, "index build corpus.jsonl --encoder encoder --chunk-tokens 16 --out index");
    dir
}

fn help_of(command: &str) -> String {
    let output = sidenote(Path::new("."), &format!("{command} --help")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command} --help: {}", said(&output));
    assert_eq!(said(&output), "", "{command} --help");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that do something, found by asking for help all the way down.
fn commands() -> Vec<String> {
    let mut found = Vec::new();
    let mut asked = vec![String::new()];
    while let Some(command) = asked.pop() {
        let help = help_of(&command);
        let Some((_, list)) = help.split_once("\nCommands:\n") else {
            found.push(command);
            continue;
        };
        // Some do something by themselves, too.
        let usage = help.lines().find(|line| line.starts_with("Usage:")).unwrap_or_default();
        if !usage.ends_with("<COMMAND>") {
            found.push(command.clone());
        }
        // A name stands two spaces in, the rest of a long description further.
        let names = list
            .lines()
            .take_while(|line| !line.is_empty())
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help");
        asked.extend(names.map(|name| format!("{command} {name}").trim().to_string()));
    }
    found.sort();
    found
}

#[test]
fn every_command_explains_itself_with_an_example_of_its_own() {
    let commands = commands();
    for known in [
        "ask",
        "encoder distill",
        "eval perplexity",
        "eval retrieval",
        "eval tasks",
        "generate",
        "index add",
        "index build",
        "index compact",
        "index delete",
        "index info",
        "index search",
        "index tune",
        "index verify",
        "memory build",
        "memory info",
        "memory tune",
        "memory verify",
        "neighbours",
        "pool build",
        "pool split",
        "quickstart",
        "select",
        "select explain",
        "tokenizer train",
        "train",
    ] {
        assert!(commands.iter().any(|command| command == known), "{known} is not among {commands:?}");
    }
    for command in commands {
        let help = help_of(&command);
        let example = help.split_once("Example").map(|(_, example)| example);
        let example = example.unwrap_or_else(|| panic!("{command} --help shows no example:\n{help}"));
        assert!(example.contains(&format!("sidenote {command}")), "{command} --help:\n{example}");
        assert!(help.contains("--json") && help.contains("--quiet"), "{command}:\n{help}");
    }
}

/// Commands that have a model say where it can be, and that this program has no GPU.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("run.toml"),
        "kind = \"lm\"\nout = \"run\"\nindex = \"index\"\n[training]\nsteps = 1\n",
    )
    .unwrap();
    fs::write(dir.path().join("data.jsonl"), "").unwrap();
    let commands = [
        "train run.toml",
        "generate model text",
        "ask question --index index --model model",
        "eval perplexity model --corpus data.jsonl",
        "eval qa model --data data.jsonl",
        "eval tasks model --data data.jsonl",
        "memory build model --corpus data.jsonl --out memory",
        "memory tune memory model --corpus data.jsonl",
    ];
    for command in commands {
        let said = fail(dir.path(), &format!("{command} --device cuda"));
        assert!(said.contains("--device: ") && said.contains("--features cuda"), "{command}: {said}");
        let said = failure_of(sidenote(dir.path(), &format!("{command} --device tpu")), 2);
        assert!(said.contains("tpu") && said.contains("expected cpu, cuda"), "{command}: {said}");
    }
    assert!(!dir.path().join("run").exists() && !dir.path().join("memory").exists());
}

#[test]
fn wrong_usage_is_exit_code_2_and_leaves_stdout_alone() {
    for command in commands() {
        let said = failure_of(sidenote(Path::new("."), &format!("{command} --no-such-option")), 2);
        assert!(said.contains("--no-such-option") && said.contains("Usage:"), "{command}: {said}");
        // All but quickstart need to be told something.
        if command != "quickstart" {
            let said = failure_of(sidenote(Path::new("."), &command), 2);
            assert!(said.contains("required") && said.contains("--help"), "{command}: {said}");
        }
    }
    failure_of(sidenote(Path::new("."), "no-such-command"), 2);
    assert!(help_of("").contains("quickstart"));
    let version = text_of(sidenote(Path::new("."), "--version"));
    assert_eq!(version.trim(), format!("sidenote {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn progress_is_on_stderr_and_quiet_ends_it() {
    let dir = workplace();
    let dir = dir.path();
    let build = |out: &str| {
        sidenote(dir, &format!("index build corpus.jsonl --encoder encoder --chunk-tokens 16 --out {out}"))
    };
    let output = build("loud").output().unwrap();
    assert!(output.status.success());
    assert!(!output.stderr.is_empty(), "progress is shown unless told not to");
    // `text_of` is quiet and refuses anything on stderr.
    let quiet = text_of(build("quiet"));
    let lines = |text: &str| text.lines().count();
    assert_eq!(lines(&quiet), lines(std::str::from_utf8(&output.stdout).unwrap()));
    let found = text_of(sidenote(dir, "index search quiet honey -k 1"));
    assert!(found.contains("Bees") && found.contains("[b]"), "{found}");
    // The place of a global option does not matter.
    let first = sidenote(dir, "--quiet index search quiet honey -k 1").output().unwrap();
    assert_eq!((said(&first).as_str(), first.stdout), ("", found.into_bytes()));
}

#[test]
fn json_is_one_object_alone_on_stdout() {
    let dir = workplace();
    let dir = dir.path();
    let built =
        succeed(dir, "index build corpus.jsonl --encoder encoder --chunk-tokens 16 --out again --index Flat");
    assert_eq!((&built["documents"], &built["index"]), (&json!(3), &json!("Flat")));
    assert_eq!(succeed(dir, "index info again")["identity"], built["identity"]);
    assert_eq!(succeed(dir, "index search index honey")["passages"][0]["id"], "b");
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
    assert_eq!(succeed(dir, "neighbours index -k 1 --out near")["k"], 1);
    let question = |mut command: std::process::Command| {
        command.arg("Where does the king live?");
        json_of(command)
    };
    assert_eq!(question(sidenote(dir, "ask --index index -k 2"))["sources"].as_array().unwrap().len(), 2);

    let pool: Vec<Value> = (0..12)
        .map(|i| {
            let words = TOPICS[i % 3];
            json!({"task": format!("t{}", i % 3), "input": words[i % words.len()], "target": "yes"})
        })
        .collect();
    write_lines(&dir.join("pool.jsonl"), &pool);
    write_lines(&dir.join("target.jsonl"), &[json!({"input": "honey from bees"})]);
    let chosen = succeed(
        dir,
        "select pool.jsonl --target target.jsonl --method deft -n 4 --encoder encoder --out chosen.jsonl",
    );
    assert_eq!(chosen["tasks"], json!({"t0": 4}));

    write_lines(&dir.join("queries.jsonl"), &[json!({"_id": "q", "text": "honey"})]);
    fs::create_dir(dir.join("qrels")).unwrap();
    fs::write(dir.join("qrels/test.tsv"), "query-id\tcorpus-id\tscore\nq\tb\t1\n").unwrap();
    let corpus = [json!({"_id": "b", "text": "bees make honey"}), json!({"_id": "k", "text": "the king"})];
    write_lines(&dir.join("corpus.jsonl"), &corpus);
    assert_eq!(succeed(dir, "eval retrieval encoder .")["ndcg_at_10"], 1.0);
    let trained = succeed(dir, "tokenizer train corpus.jsonl --vocab-size 260 --out t.json");
    assert_eq!(trained["documents"], 2);

    // A verdict that is bad news is a result as well as a failure.
    let store = fs::read_dir(dir.join("index")).unwrap().map(|entry| entry.unwrap().path());
    let store = store.into_iter().find(|path| path.to_string_lossy().contains("store-")).unwrap();
    fs::remove_file(store.join("manifest.json")).unwrap();
    let output = sidenote(dir, "index verify index --json --quiet").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["sound"], false);
    assert!(verdict["problems"][0].as_str().unwrap().contains("manifest.json"), "{verdict}");
    // Every other failure leaves stdout empty, --json or not: `fail` looks.
    assert!(fail(dir, "index search index honey --json").contains("manifest.json"));
}

/// `sidenote ... | head` closes the pipe before everything is written.
#[test]
fn a_reader_that_leaves_early_is_no_panic() {
    let dir = workplace();
    for arguments in ["index info index", "index search index honey --json", "index verify index"] {
        let mut child = sidenote(dir.path(), arguments).spawn().unwrap();
        drop(child.stdout.take());
        let said = said(&child.wait_with_output().unwrap());
        assert!(!said.contains("panicked"), "{arguments}: {said}");
    }
}
