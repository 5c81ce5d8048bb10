//! The program, run by a test in a folder of the test's own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program with `arguments`, cut at spaces, in the folder `dir`.
pub fn sidenote(dir: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidenote"));
    command.current_dir(dir).args(arguments.split_whitespace());
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

/// Writes `lines` as JSON lines.
pub fn write_lines(path: &Path, lines: &[Value]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}
