//! The index on disk, through the real program: kills, damage, bad corpora, and the way back.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{files, has};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const DOCUMENTS: usize = 1900;

fn sidenote(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidenote"));
    command
        .env("HF_HUB_OFFLINE", "1")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    sidenote(arguments).output().unwrap()
}

/// Runs a command that must succeed; what it printed with `--json`.
fn succeed(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json", "--quiet"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("stdout is one JSON object")
}

/// Runs a command that must fail cleanly: exit code 1 and an error, no panic. What it said.
fn fail(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.contains("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    said
}

fn write_corpus(path: &Path, first: usize, documents: usize) {
    let words =
        ["river", "mountain", "honey", "engine", "music", "history", "planet", "forest", "king", "bridge"];
    let lines: Vec<String> = (first..first + documents)
        .map(|d| {
            let text: Vec<_> =
                (0..200 + d * 7 % 400).map(|w| words[(d * 3 + w * w * (1 + d % 5)) % 10]).collect();
            json!({"id": format!("d{d}"), "title": format!("Title {d}"), "text": text.join(" ")}).to_string()
        })
        .collect();
    fs::write(path, lines.join("\n")).unwrap();
}

/// Starts a build and kills it `delay` after something that contains `sign` appears in `out`.
/// Whether the build was still at work then.
fn kill_at(arguments: &[&str], out: &Path, sign: &str, delay: Duration) -> bool {
    common::kill_at(sidenote(arguments), || has(out, sign), delay)
}

#[test]
fn a_build_killed_again_and_again_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let (corpus, whole, out) =
        (dir.path().join("corpus.jsonl"), dir.path().join("whole"), dir.path().join("out"));
    write_corpus(&corpus, 0, DOCUMENTS);
    let built = succeed(&["index", "build", &text(&corpus), "--out", &text(&whole), "--index", "HNSW8"]);
    assert_eq!(built["documents"], DOCUMENTS);
    succeed(&["index", "verify", &text(&whole)]);

    let mut random = ChaCha8Rng::seed_from_u64(2);
    let (corpus, out_text) = (text(&corpus), text(&out));
    let resume = ["index", "build", &corpus, "--out", &out_text, "--index", "HNSW8", "--resume"];
    let mut kills = 0;
    // In the middle of parts, between them, while joining, and around the last swap.
    for sign in [
        "part-000001",
        "part-000002",
        "part-000004/manifest",
        "part-000006",
        "build/store",
        "build/vectors",
        "out/store-",
    ] {
        let delay = Duration::from_micros(random.random_range(0..12_000));
        kills += usize::from(kill_at(&resume, &out, sign, delay));
        if !out.join("manifest.json").exists() {
            let said = fail(&["index", "search", &out_text, "honey"]);
            assert!(said.contains("--resume"), "{said}");
            let said = fail(&["index", "build", &corpus, "--out", &out_text, "--index", "HNSW8"]);
            assert!(said.contains("--resume") && said.contains("build"), "{said}");
        }
    }
    assert!(kills >= 4, "only {kills} kills met a build at work");
    let resumed = succeed(&resume);
    assert_eq!(resumed["identity"], built["identity"]);
    assert!(files(&out) == files(&whole), "other bytes than those of an uninterrupted build");

    // The same over an index that is there: it stays whole until the new one is.
    let other = dir.path().join("other.jsonl");
    write_corpus(&other, 5000, DOCUMENTS);
    let other = text(&other);
    assert!(fail(&["index", "build", &other, "--out", &out_text]).contains("--force"));
    let (force, fresh) = ("--force", dir.path().join("fresh"));
    kill_at(&["index", "build", &other, "--out", &out_text, force], &out, "part-000003", Duration::ZERO);
    assert_eq!(succeed(&["index", "info", &out_text])["identity"], built["identity"]);
    succeed(&["index", "verify", &out_text]);
    let resume = ["index", "build", &other, "--out", &out_text, "--resume"];
    for sign in ["out/store-", "vectors-"] {
        kill_at(&resume, &out, sign, Duration::from_micros(random.random_range(0..5_000)));
        succeed(&["index", "verify", &out_text]);
    }
    succeed(&resume);
    succeed(&["index", "build", &other, "--out", &text(&fresh)]);
    assert!(files(&out) == files(&fresh), "something of the old index is left, or something is missing");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_build_that_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (dir.path().join("corpus.jsonl"), dir.path().join("out"));
    write_corpus(&corpus, 0, 2 * DOCUMENTS);
    let (corpus, out_text) = (corpus.to_str().unwrap(), out.to_str().unwrap());
    let child = sidenote(&["index", "build", corpus, "--out", out_text, "--quiet"]).spawn().unwrap();
    while !has(&out, "part-000001") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted") && said.contains("--resume"), "{said}");
    assert_eq!(
        succeed(&["index", "build", corpus, "--out", out_text, "--resume"])["documents"],
        2 * DOCUMENTS
    );
    succeed(&["index", "verify", out_text]);
}

#[test]
fn damage_to_any_file_is_told_and_is_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, index, neighbours) =
        (dir.path().join("c.jsonl"), dir.path().join("index"), dir.path().join("n"));
    write_corpus(&corpus, 0, 50);
    let index_text = index.to_str().unwrap();
    succeed(&["index", "build", corpus.to_str().unwrap(), "--out", index_text]);
    succeed(&["neighbours", index_text, "-k", "2", "--out", neighbours.to_str().unwrap()]);
    let sound = files(&index);
    assert_eq!(sound.len(), 1 + 8 + 2 + 1);
    // The lock is empty and means nothing.
    for (name, bytes) in sound.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        let path = index.join(name);
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 0x20;
        let damages = [Some(flipped), Some(bytes[..bytes.len() / 2].to_vec()), Some(Vec::new()), None];
        for (kind, damage) in damages.into_iter().enumerate() {
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let said = run(&["index", "verify", index_text]);
            let told =
                String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(1), "{} {kind}: {told}", name.display());
            let file = name.file_name().unwrap().to_str().unwrap();
            assert!(
                told.contains(file) || file == "manifest.json",
                "{} is not named: {told}",
                name.display()
            );
            assert!(!told.contains("panicked"), "{told}");
            let output = run(&["index", "search", index_text, "honey bridge", "-k", "40"]);
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0 | 1)) && !told.contains("panicked"), "{told}");
            // What changes a length is seen when opening, without reading everything.
            assert!(kind == 0 || output.status.code() == Some(1), "{} {kind}", name.display());
        }
        fs::write(&path, bytes).unwrap();
    }
    // Two files swapped: right names, wrong contents.
    let tables: Vec<_> = sound.keys().filter(|n| n.extension().is_some_and(|e| e == "u32")).collect();
    let (one, two) = (index.join(tables[0]), index.join(tables[1]));
    fs::write(&one, &sound[tables[1]]).unwrap();
    fs::write(&two, &sound[tables[0]]).unwrap();
    fail(&["index", "verify", index_text]);
    fs::write(&one, &sound[tables[0]]).unwrap();
    fs::write(&two, &sound[tables[1]]).unwrap();
    succeed(&["index", "verify", index_text]);
    // An artefact of another kind, and no artefact at all.
    assert!(fail(&["index", "search", neighbours.to_str().unwrap(), "x"]).contains("neighbours"));
    assert!(
        fail(&["index", "info", dir.path().join("nowhere").to_str().unwrap()]).contains("does not exist")
    );
}

#[test]
fn an_index_of_another_encoder_is_refused_and_both_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, index, encoder) =
        (dir.path().join("c.txt"), dir.path().join("index"), dir.path().join("my-encoder"));
    fs::write(&corpus, "The king crossed the bridge over the river.").unwrap();
    // The encoder inside the program, but said to be made from something else.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/encoder");
    fs::create_dir(&encoder).unwrap();
    for name in ["tokenizer.json", "model.safetensors"] {
        fs::copy(assets.join(name), encoder.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(assets.join("config.json")).unwrap()).unwrap();
    config["made_from"] = json!("elsewhere");
    fs::write(encoder.join("config.json"), config.to_string()).unwrap();
    let (index, encoder) = (index.to_str().unwrap(), encoder.to_str().unwrap());
    succeed(&["index", "build", corpus.to_str().unwrap(), "--encoder", encoder, "--out", index]);
    assert_eq!(succeed(&["index", "search", index, "king"])["passages"][0]["title"], "c");
    let said = fail(&["index", "search", index, "king", "--encoder", "default"]);
    assert!(said.contains("\"default\"") && said.contains("my-encoder"), "{said}");
    fs::rename(encoder, dir.path().join("moved")).unwrap();
    assert!(fail(&["index", "search", index, "king"]).contains("my-encoder"));
    succeed(&["index", "search", index, "king", "--encoder", dir.path().join("moved").to_str().unwrap()]);
}

#[test]
fn unusable_corpora_are_told_by_file_and_line_or_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (corpus, out) = (path("corpus.jsonl"), path("index"));
    fs::write(
        &corpus,
        b"{\"text\": \"good\"}\n{\"text\": \"b\xffd\"}\n{\"title\": \"no text\"}\n{\"text\": \"fine\"}\n",
    )
    .unwrap();
    let said = fail(&["index", "build", &corpus, "--out", &out]);
    assert!(said.contains("corpus.jsonl:2: not UTF-8"), "{said}");
    let report = succeed(&["index", "build", &corpus, "--out", &out, "--on-error", "skip"]);
    assert_eq!((&report["documents"], &report["skipped"]), (&json!(2), &json!(2)));
    assert!(report["skipped_first"][1].as_str().unwrap().contains("corpus.jsonl:3: no field \"text\""));
    succeed(&["index", "verify", &out]);

    fs::write(path("empty.txt"), "").unwrap();
    assert!(fail(&["index", "build", &path("empty.txt"), "--out", &path("o")]).contains("empty.txt"));
    let said = fail(&["index", "build", &path("empty.txt"), "--out", &path("o"), "--on-error", "skip"]);
    assert!(said.contains("no usable document"), "{said}");
    assert!(fail(&["index", "build", &path("none.txt"), "--out", &path("o")]).contains("none.txt"));
    assert!(
        fail(&["index", "build", &corpus, "--out", &path("o"), "--tokenizer", &corpus]).contains("tokenizer")
    );
    assert!(
        fail(&["index", "build", &corpus, "--out", &path("o"), "--encoder", "no-such"]).contains("no-such")
    );
    assert!(!Path::new(&path("o")).join("manifest.json").exists());
    for wrong in [
        &["index", "build", &corpus][..],
        &["index", "build", "--out", &out],
        &["index", "build", &corpus, "--out", &out, "--index", "IVF"],
        &["index", "build", &corpus, "--out", &out, "--resume", "--force"],
        &["index", "search", &out, "x", "-k", "0"],
        &["neighbours", &out],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn neighbours_of_queries_and_a_tokenizer_of_one_s_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    write_corpus(Path::new(&path("corpus.jsonl")), 0, 120);
    write_corpus(Path::new(&path("queries.jsonl")), 100, 40);
    let trained = succeed(&[
        "tokenizer",
        "train",
        &path("corpus.jsonl"),
        "--vocab-size",
        "300",
        "--out",
        &path("t.json"),
    ]);
    assert_eq!(trained["documents"], 120);
    assert!(
        fail(&["tokenizer", "train", &path("corpus.jsonl"), "--vocab-size", "9", "--out", &path("u.json")])
            .contains("257")
    );
    let build = ["--tokenizer", &path("t.json"), "--chunk-tokens", "32", "--out", &path("index")];
    let built = succeed(&[&["index", "build", &path("corpus.jsonl")], &build[..]].concat());
    assert_eq!((&built["tokenizer"], &built["chunk_tokens"]), (&trained["identity"], &json!(32)));
    let own = succeed(&["neighbours", &path("index"), "-k", "3", "--out", &path("own")]);
    assert_eq!(own["chunks"], built["chunks"]);
    let arguments = [
        "neighbours",
        &path("index"),
        "--queries",
        &path("queries.jsonl"),
        "-k",
        "2",
        "--out",
        &path("held"),
    ];
    let held = succeed(&arguments);
    assert_eq!(held["index"], built["identity"]);
    assert!(fail(&arguments).contains("--force"));
    let again = succeed(&[&arguments[..], &["--force"]].concat());
    assert_eq!(again["identity"], held["identity"]);
}
