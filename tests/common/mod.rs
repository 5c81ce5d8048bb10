//! The program, run by a test in a folder of the test's own.

#![allow(dead_code)] // Each test uses what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// The program with `arguments`, cut at spaces, in the folder `dir`.
pub fn sidenote(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidenote"));
    command.current_dir(dir).args(arguments.split_whitespace()).env("HF_HUB_OFFLINE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the program said on stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that must succeed and, being quiet, say nothing else than its result.
pub fn text_of(mut command: Command) -> String {
    let output = command.arg("--quiet").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    assert_eq!(said(&output), "", "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must succeed; its result, which must be one JSON object alone on stdout.
pub fn json_of(mut command: Command) -> Value {
    command.arg("--json");
    let result: Value = serde_json::from_str(&text_of(command)).expect("one JSON object");
    assert!(result.is_object(), "{result}");
    result
}

/// Runs a command that must fail with exit code `code`, an explanation and no panic; what it said.
pub fn failure_of(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    assert!(said.contains("error: ") && !said.contains("panicked"), "{command:?}: {said}");
    assert!(output.stdout.is_empty(), "{command:?}: an error is no result");
    assert!(said.matches("(os error").count() <= 1, "{command:?}: said twice: {said}");
    said
}

/// Runs a command that must succeed, with `--json`.
pub fn succeed(dir: &Path, arguments: &str) -> Value {
    json_of(sidenote(dir, arguments))
}

/// Runs a command that must fail with exit code 1; what it said.
pub fn fail(dir: &Path, arguments: &str) -> String {
    failure_of(sidenote(dir, arguments), 1)
}

/// An address of this machine at which nobody listens.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Runs a command that must succeed as `size` processes that train together, with `--json`; what the first of them reported.
pub fn together(dir: &Path, arguments: &str, size: usize) -> Value {
    let address = free_address();
    let process = |rank: usize| {
        let place = format!("--together {address} --rank {rank} --of {size}");
        sidenote(dir, &format!("{arguments} {place} --json --quiet"))
    };
    let others: Vec<_> = (1..size).rev().map(|rank| process(rank).spawn().unwrap()).collect();
    let first = process(0).output().unwrap();
    for output in others.into_iter().map(|other| other.wait_with_output().unwrap()).chain([first.clone()]) {
        assert!(output.status.success(), "{arguments}: {}", said(&output));
    }
    serde_json::from_slice(&first.stdout).unwrap()
}

/// Starts `command` and kills it `delay` after `sign` is seen. Whether it was still at work then.
pub fn kill_at(mut command: Command, sign: impl Fn() -> bool, delay: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !sign() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(delay);
    let at_work = child.try_wait().unwrap().is_none();
    // On Unix this is SIGKILL: nothing of the program runs after it.
    child.kill().unwrap();
    child.wait().unwrap();
    at_work
}

/// Every file below `dir`, by its path there.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
    all
}

/// Whether something below `dir` has a path that contains `part`.
pub fn has(dir: &Path, part: &str) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        path.to_string_lossy().contains(part) || path.is_dir() && has(&path, part)
    })
}

/// Writes `lines` as JSON lines.
pub fn write_lines(path: &Path, lines: &[Value]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// Documents of a topic each, like those of the same topic but for the order of the words.
pub fn documents(topics: &[&[&str]], numbers: std::ops::Range<usize>) -> Vec<Value> {
    let text = |d: usize| {
        let words = topics[d % topics.len()];
        let word = |w: usize| words[(d / 4 + w * w * (1 + d % 3)) % words.len()];
        (0..12 + d * 5 % 23).map(word).collect::<Vec<_>>().join(" ")
    };
    numbers.map(|d| json!({"id": format!("d{d}"), "title": "", "text": text(d)})).collect()
}
