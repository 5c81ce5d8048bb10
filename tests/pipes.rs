//! What becomes of a command when nobody reads its output.

use std::fs;
use std::io::pipe;
use std::path::Path;
use std::process::{Command, Stdio};

fn sidenote(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidenote"));
    command.current_dir(dir).args(arguments).stdout(Stdio::null());
    command
}

/// A folder with an index in `index`.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.md"), "# Bees\n\nBees make honey out of nectar.\n").unwrap();
    let build = ["index", "build", "notes.md", "--out", "index", "--quiet"];
    assert!(sidenote(dir.path(), &build).status().unwrap().success());
    dir
}

/// The writing end of a pipe that nobody reads, as after `| head -1`.
fn closed() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = workplace();
    for command in [
        &["index", "info", "index"][..],
        &["index", "search", "index", "honey", "--json"],
        &["ask", "What do bees make?", "--index", "index"],
    ] {
        let output = sidenote(dir.path(), command).stdout(closed()).output().unwrap();
        assert!(output.status.success(), "{command:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
    }
}

#[test]
fn work_goes_on_when_nobody_reads_its_progress() {
    let dir = workplace();
    let build = ["index", "build", "notes.md", "--out", "another"];
    assert!(sidenote(dir.path(), &build).stderr(closed()).status().unwrap().success());
    assert!(sidenote(dir.path(), &["index", "verify", "another"]).status().unwrap().success());
    let failing = sidenote(dir.path(), &["index", "info", "none"]).stderr(closed()).status().unwrap();
    assert_eq!(failing.code(), Some(1), "an error is an error though nobody reads it");
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let dir = workplace();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = sidenote(dir.path(), &["index", "info", "index"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stdout"));
}
