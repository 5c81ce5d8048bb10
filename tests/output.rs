//! Where a command writes: to a pipe that nobody reads, a full disk, a device or a folder.

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

#[test]
fn only_files_and_folders_are_written_over() {
    let dir = workplace();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let row = "{\"input\": \"a\", \"target\": \"b\"}\n";
    fs::write(dir.path().join("pool.jsonl"), row).unwrap();
    #[cfg_attr(not(unix), expect(unused_mut))]
    let mut places = vec!["folder"];
    #[cfg(unix)]
    {
        // Not the device itself, which a failing test would remove.
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        places.push("link");
    }
    for place in places {
        for command in [
            &["tokenizer", "train", "notes.md", "--vocab-size", "257", "--out", place][..],
            &["select", "pool.jsonl", "--method", "random", "-n", "1", "--out", place],
        ] {
            let output = sidenote(dir.path(), command).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{command:?}");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains(place) && error.contains("name a file"), "{error}");
        }
    }
    assert!(dir.path().join("folder").is_dir());
    assert!(!cfg!(unix) || dir.path().join("link").is_symlink());
    let onto_file = ["index", "build", "notes.md", "--out", "pool.jsonl"];
    let output = sidenote(dir.path(), &onto_file).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("name a folder"));
    assert_eq!(fs::read_to_string(dir.path().join("pool.jsonl")).unwrap(), row);
}

#[test]
fn an_error_says_its_cause_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = sidenote(dir.path(), &["index", "build", "none.txt", "--out", "index"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error.matches("none.txt").count(), 1, "{error}");
    assert_eq!(error.matches("No such file").count(), usize::from(cfg!(unix)), "{error}");
}
