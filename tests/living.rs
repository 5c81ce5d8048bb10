//! A corpus that changes, through the command: adding, deleting, compacting, filtering, and kills in
//! the middle of it.

mod common;
mod tiny;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{fail, failure_of, files, has, json_of, kill_at, sidenote, succeed, text_of, write_lines};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const TOPICS: [&[&str]; 3] =
    [&["bees", "honey", "hive", "nectar"], &["planet", "moon", "sun", "orbit"], &["king", "castle", "queen"]];

/// A run that reads `index` and `neighbours`.
const RETRO: &str = r#"
    kind = "retro"
    index = "index"
    neighbours = "neighbours"
    out = "run"
    [model]
    hidden_size = 16
    layers = 2
    heads = 2
    max_positions = 64
    [retro]
    layers = [1, 2]
    heads = 2
    head_dim = 16
    encoder_hidden_size = 32
    encoder_heads = 4
    encoder_layers = 1
    neighbours = 1
    initialisation = "random"
    [training]
    chunks = 4
    steps = 1
    batch_tokens = 64
"#;

/// A folder with an encoder and an index over three documents of two files.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    tiny::write_encoder(&path.join("encoder"), &TOPICS);
    let animals =
        json!({"id": "b", "title": "Bees", "text": "Bees make honey in a hive. Nectar becomes honey."});
    let sky = json!({"id": "m", "title": "Moon", "text": "The moon is in orbit around a planet."});
    let king = json!({"id": "k", "title": "King", "section": "Home", "text": "The king lives in a castle."});
    write_lines(&path.join("animals.jsonl"), &[animals]);
    write_lines(&path.join("others.jsonl"), &[sky, king]);
    succeed(path, "index build animals.jsonl others.jsonl --encoder encoder --chunk-tokens 16 --out index");
    dir
}

/// The ids of what a search finds, best first, each once.
fn found(dir: &Path, query: &str, options: &str) -> Vec<String> {
    let mut command = sidenote(dir, "index search index");
    command.arg(query).args(options.split_whitespace());
    let mut ids: Vec<String> = Vec::new();
    for passage in json_of(command)["passages"].as_array().unwrap() {
        let id = passage["id"].as_str().unwrap().to_string();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

#[test]
fn documents_come_go_and_change() {
    let dir = workplace();
    let dir = dir.path();
    let built = succeed(dir, "index info index");
    assert_eq!(
        (&built["documents"], &built["parts"], &built["dead_documents"]),
        (&json!(3), &json!(1), &json!(0))
    );
    let queen = json!({"id": "q", "title": "Queen", "text": "The queen, only the queen."});
    let moon = json!({"id": "m", "title": "Moon", "text": "The moon is far from the sun."});
    write_lines(&dir.join("new.jsonl"), &[queen, moon]);
    let added = succeed(dir, "index add index new.jsonl others.jsonl --on-error skip");
    assert_eq!(
        (&added["added"], &added["replaced"], &added["unchanged"], &added["skipped"]),
        (&json!(1), &json!(1), &json!(1), &json!(1)),
        "the second document of the id \"m\" is told and skipped: {added}"
    );
    assert_eq!(
        (&added["documents"], &added["parts"], &added["dead_documents"]),
        (&json!(4), &json!(2), &json!(1))
    );
    assert_ne!(added["identity"], built["identity"]);
    let info = succeed(dir, "index info index");
    assert_eq!((&info["identity"], &info["chunks"]), (&added["identity"], &added["chunks"]));
    assert_eq!(info["sources"], json!(["animals.jsonl", "others.jsonl", "new.jsonl"]));
    assert_eq!(found(dir, "queen", "-k 1"), ["q"]);
    let moon = json_of(sidenote(dir, "index search index sun -k 1"));
    assert_eq!(moon["passages"][0]["id"], "m");
    assert!(moon["passages"][0]["text"].as_str().unwrap().contains("far from the sun"));
    assert!(found(dir, "orbit planet", "-k 50").iter().all(|id| id != "o"));
    let texts = json_of(sidenote(dir, "index search index orbit -k 50")).to_string();
    assert!(!texts.contains("in orbit"), "the old text is still found: {texts}");

    let said = fail(dir, "index delete index b nobody q no-one");
    assert!(said.contains("\"nobody\", \"no-one\"; nothing was deleted"), "{said}");
    assert_eq!(succeed(dir, "index info index")["identity"], added["identity"]);
    fs::write(dir.join("gone.txt"), "b\n\nq\n").unwrap();
    let deleted = succeed(dir, "index delete index --ids gone.txt");
    assert_eq!((&deleted["deleted"], &deleted["documents"]), (&json!(2), &json!(2)));
    assert!(found(dir, "honey hive castle", "-k 50").iter().all(|id| id != "b" && id != "q"));
    assert_eq!(succeed(dir, "index verify index")["sound"], true);

    let before = found(dir, "castle moon", "-k 50");
    let compacted = succeed(dir, "index compact index --index RaBitQ");
    assert_eq!((&compacted["parts_before"], &compacted["parts"]), (&json!(2), &json!(1)));
    assert_eq!(compacted["index"], "RaBitQ");
    let info = succeed(dir, "index info index");
    assert_eq!((&info["dead_chunks"], &info["disk_bytes"]), (&json!(0), &compacted["bytes"]));
    assert_eq!(found(dir, "castle moon", "-k 50"), before);
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
    assert_eq!(succeed(dir, "neighbours index -k 1 --out near")["k"], 1);
    let text = text_of(sidenote(dir, "index info index"));
    assert!(text.contains("dead documents    0") && text.contains("parts             1"), "{text}");
}

/// What comes to a larger part of lists takes these over, and compacting trains them anew: a file's name tells its content.
#[test]
fn added_documents_take_over_the_lists_that_are_there() {
    let dir = workplace();
    let dir = dir.path();
    let centroids = || -> Vec<String> {
        let folders = fs::read_dir(dir.join("index")).unwrap().map(|entry| entry.unwrap().path());
        let parts = folders.filter(|path| path.is_dir());
        let names =
            parts.flat_map(|path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()));
        names.map(|name| name.into_string().unwrap()).filter(|name| name.starts_with("centroids.")).collect()
    };
    let lines = |name: &str, ids: std::ops::Range<usize>| {
        let words = TOPICS.concat();
        let text = |i: usize| format!("{} {} {}", words[i % 11], words[i / 2 % 11], words[i / 3 % 11]);
        write_lines(
            &dir.join(name),
            &ids.map(|i| json!({"id": i.to_string(), "text": text(i)})).collect::<Vec<_>>(),
        );
    };
    lines("first.jsonl", 0..60);
    lines("second.jsonl", 60..80);
    lines("third.jsonl", 80..200);
    succeed(dir, "index build first.jsonl --encoder encoder --index IVF4,RaBitQ --out index --force");
    let first = centroids();
    assert_eq!(first.len(), 1);
    succeed(dir, "index add index second.jsonl");
    assert_eq!(centroids(), [first[0].clone(), first[0].clone()]);
    succeed(dir, "index add index third.jsonl");
    let third = centroids();
    assert!(third.len() == 3 && third.iter().filter(|name| **name == first[0]).count() == 2, "{third:?}");
    assert_eq!(succeed(dir, "index verify index")["problems"], json!([]));
    let all: BTreeSet<String> = found(dir, "bees", "-k 200").into_iter().collect();
    assert_eq!(all.len(), 200);
    succeed(dir, "index compact index");
    assert!(centroids().len() == 1 && !third.contains(&centroids()[0]));
}

#[test]
fn searches_are_tuned_to_a_recall() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_corpus(&dir.join("corpus.jsonl"), 0..600, 0);
    succeed(dir, "index build corpus.jsonl --index HNSW4 --out index");
    succeed(dir, "index delete index d1 d2");
    let tuned = succeed(dir, "index tune index --recall 0.97 --sample 50");
    assert!(tuned["recall"].as_f64().unwrap() >= 0.97 && tuned["queries"] == 50, "{tuned}");
    assert!(tuned["parts"][0]["breadth"].as_u64().unwrap() >= 10, "{tuned}");
    let again = succeed(dir, "index tune index --recall 0.97 --sample 50");
    assert_eq!((&again["recall_before"], &again["recall"]), (&tuned["recall"], &tuned["recall"]));
    fs::write(dir.join("questions.txt"), "Where is the honey?\n\nthe king of the forest\n").unwrap();
    let tuned = succeed(dir, "index tune index --recall 1 -k 3 --queries questions.txt");
    assert_eq!((&tuned["queries"], &tuned["recall"]), (&json!(2), &json!(1.0)));
    let text = text_of(sidenote(dir, "index info index"));
    assert!(text.contains("breadth"), "{text}");
    assert!(fail(dir, "index tune index --recall 2").contains("--recall"));
    assert!(fail(dir, "index tune index --recall 0.9 --queries none.txt").contains("none.txt"));
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
}

#[test]
fn neighbours_of_an_older_generation_are_refused() {
    let dir = workplace();
    let dir = dir.path();
    succeed(dir, "neighbours index -k 1 --out neighbours");
    fs::write(dir.join("run.toml"), RETRO).unwrap();
    let deleted = succeed(dir, "index delete index b");
    let said = fail(dir, "train run.toml");
    assert!(said.contains(deleted["identity"].as_str().unwrap()), "{said}");
    assert!(said.contains("compute the neighbours again"), "{said}");
}

#[test]
fn filters_and_words_find_what_was_meant() {
    let dir = workplace();
    let dir = dir.path();
    let all = ["b", "m", "k"];
    let set = |options: &str| found(dir, "bees moon king", options).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(set("-k 50"), all.map(String::from).into());
    for (filter, ids) in [
        ("--filter title=Moon", &["m"][..]),
        ("--filter title!=Moon", &["b", "k"]),
        ("--filter source~OTHERS", &["k", "m"]),
        ("--filter source~others --filter id!=k", &["m"]),
        ("--filter section=Home", &["k"]),
        ("--filter source!~others", &["b"]),
        ("--filter title=moon", &[]),
    ] {
        for hybrid in ["", " --hybrid"] {
            let wanted: BTreeSet<String> = ids.iter().map(|id| id.to_string()).collect();
            assert_eq!(set(&format!("-k 50 {filter}{hybrid}")), wanted, "{filter}{hybrid}");
        }
    }
    // The encoder knows none of these words.
    assert!(found(dir, "becomes", "").is_empty());
    assert_eq!(found(dir, "becomes", "--hybrid -k 1"), ["b"]);
    let passage = &json_of(sidenote(dir, "index search index becomes --hybrid -k 1"))["passages"][0];
    for field in ["score", "title", "text", "id", "document", "chunk", "source"] {
        assert!(!passage[field].is_null(), "{field}: {passage}");
    }
    assert!(text_of(sidenote(dir, "index search index x --filter title=moon")).contains("no document fits"));
    for wrong in ["titel=Moon", "Moon", "title~", "title!Moon"] {
        let said = failure_of(sidenote(dir, &format!("index search index x --filter {wrong}")), 2);
        assert!(said.contains(wrong), "{said}");
    }
    assert!(
        failure_of(sidenote(dir, "index search index x --filter titel=Moon"), 2).contains("title, section")
    );
    // The index of the words is looked after like the rest.
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
    let words = files(dir).into_keys().find(|f| f.extension().is_some_and(|e| e == "idx")).unwrap();
    let bytes = fs::read(dir.join(&words)).unwrap();
    fs::write(dir.join(&words), &bytes[1..]).unwrap();
    let output = sidenote(dir, "index verify index").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("search by words makes it again"));
    assert_eq!(found(dir, "becomes", "--hybrid -k 1"), ["b"]);
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
    let ask = |options: &str| {
        let mut command = sidenote(dir, &format!("ask --index index -k 1 {options}"));
        command.arg("What becomes honey?");
        json_of(command)["sources"][0]["id"].clone()
    };
    assert_eq!((ask("--hybrid"), ask("--filter id=m")), (json!("b"), json!("m")));
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let dir = workplace();
    let dir = dir.path();
    let before = files(&dir.join("index"));
    for command in
        ["add nowhere animals.jsonl", "delete nowhere b", "compact nowhere", "tune nowhere --recall 0.9"]
    {
        let said = fail(dir, &format!("index {command}"));
        assert!(said.contains("nowhere") && said.contains("does not exist"), "{said}");
    }
    assert!(!dir.join("nowhere").exists());
    assert!(fail(dir, "index add index none.jsonl").contains("none.jsonl"));
    fs::write(dir.join("empty.jsonl"), "\n").unwrap();
    assert!(fail(dir, "index add index empty.jsonl").contains("no usable document"));
    assert!(fail(dir, "index delete index --ids empty.jsonl").contains("no ids"));
    assert!(fail(dir, "index delete index --ids none.txt").contains("none.txt"));
    tiny::write_encoder(&dir.join("other"), &TOPICS[..2]);
    let said = fail(dir, "index add index animals.jsonl --encoder other");
    assert!(said.contains("encoder") && said.contains("other"), "{said}");
    for wrong in [
        "add index",
        "delete index",
        "compact",
        "tune index",
        "compact index --index IVF",
        "search index x --filter",
    ] {
        failure_of(sidenote(dir, &format!("index {wrong}")), 2);
    }
    let lock = sidenote_index::Lock::acquire(&dir.join("index")).unwrap();
    for command in ["add index animals.jsonl", "delete index b", "compact index", "tune index --recall 0.9"] {
        let said = fail(dir, &format!("index {command}"));
        assert!(said.contains("another writer"), "{said}");
    }
    assert_eq!(found(dir, "honey", "-k 1"), ["b"], "a reader asks nobody");
    drop(lock);
    assert!(files(&dir.join("index")) == before);
}

/// Fails when an index names its encoder as it was called in the folder that it was encoded from.
#[test]
fn an_index_that_was_encoded_again_is_searched_from_anywhere() {
    let dir = workplace();
    let dir = dir.path();
    succeed(dir, "index encode index --encoder encoder --out again");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut search = sidenote(elsewhere.path(), "index search");
    search.arg(dir.join("again")).args(["honey", "-k", "1"]);
    assert_eq!(json_of(search)["passages"][0]["id"], "b");
}

/// Written by the program as it was before indexes had parts.
#[test]
fn an_index_of_version_1_is_opened_and_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/index-v1");
    for (name, bytes) in files(&data) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let dir = dir.path();
    let info = succeed(dir, "index info index");
    assert_eq!((&info["documents"], &info["chunks"], &info["tokens"]), (&json!(3), &json!(7), &json!(94)));
    assert_eq!(info["identity"], "9f2b98066fa4ffa40fb1932ef5d5ba7c", "neighbours made for it stay good");
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
    assert_eq!(found(dir, "honey hive", "-k 1 --encoder encoder"), ["b"]);
    fs::write(dir.join("run.toml"), RETRO).unwrap();
    assert_eq!(succeed(dir, "train run.toml")["steps"], 1);
    let new = json!({"id": "b", "title": "Bees", "text": "Bees and nectar."});
    write_lines(&dir.join("new.jsonl"), &[new]);
    let added = succeed(dir, "index add index new.jsonl --encoder encoder");
    assert_eq!((&added["replaced"], &added["documents"], &added["parts"]), (&json!(1), &json!(3), &json!(2)));
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
    assert!(fs::read_to_string(dir.join("index/manifest.json")).unwrap().contains("\"format_version\": 2"));
}

fn write_corpus(path: &Path, documents: std::ops::Range<usize>, version: usize) {
    let words =
        ["river", "mountain", "honey", "engine", "music", "history", "planet", "forest", "king", "bridge"];
    let lines: Vec<Value> = documents
        .map(|d| {
            let text: Vec<_> =
                (0..20 + d * 7 % 120).map(|w| words[(d * 3 + w * w * (1 + d % 5) + version) % 10]).collect();
            json!({"id": format!("d{d}"), "title": format!("Title {d}"), "text": text.join(" ")})
        })
        .collect();
    write_lines(path, &lines);
}

/// How many entries of `dir` have a name that begins with `prefix`.
fn count(dir: &Path, prefix: &str) -> usize {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_generation_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_corpus(&dir.join("base.jsonl"), 0..700, 0);
    succeed(dir, "index build base.jsonl --out index");
    let index = dir.join("index");
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut at_work = 0;
    let mut both = BTreeSet::new();
    let commands = ["index add index more.jsonl", "index delete index --ids gone.txt", "index compact index"];
    for round in 0..21usize {
        let before = succeed(dir, "index info index");
        let command = commands[round % 3];
        let expected = match round % 3 {
            // Each time other texts, of which some are new, some in place of older ones.
            0 => {
                write_corpus(&dir.join("more.jsonl"), 400..1000, round + 1);
                1000
            }
            1 => {
                let ids: Vec<String> = (700..1000).map(|d| format!("d{d}")).collect();
                fs::write(dir.join("gone.txt"), ids.join("\n")).unwrap();
                700
            }
            _ => before["documents"].as_u64().unwrap(),
        };
        let signs: &[&str] = match round % 3 {
            0 => &["add/part-000001", "add/store", "add/vectors", "manifest.json.tmp", "add-finished"],
            1 => &["", "dead-0", "manifest.json.tmp"],
            // Between the new part's arrival and the swap, where a wrong order would do most harm.
            _ => &["compact/vectors", "arrival", "arrival", "manifest.json.tmp"],
        };
        let sign = signs[round / 3 % signs.len()];
        let most = if sign.is_empty() { 40_000 } else { 4_000 };
        let delay = Duration::from_micros(random.random_range(0..most));
        let vectors = || count(&index, "vectors-");
        let there = vectors();
        let seen = || if sign == "arrival" { vectors() > there } else { has(&index, sign) };
        at_work += usize::from(kill_at(sidenote(dir, command), seen, delay));
        let verdict = json_of(sidenote(dir, "index verify index"));
        assert_eq!(verdict["sound"], true, "{command}, {sign}: {verdict}");
        let after = succeed(dir, "index info index");
        let changed = after["identity"] != before["identity"];
        let documents = if changed { &json!(expected) } else { &before["documents"] };
        assert_eq!(&after["documents"], documents, "{command}, {sign}");
        both.insert(changed);
        assert_eq!(found(dir, "honey", "-k 3").len().min(1), 1);
        // Doing it again brings it to its end, whatever was left.
        if round % 3 != 1 || !changed {
            succeed(dir, command);
        }
        assert_eq!(succeed(dir, "index info index")["documents"], expected);
    }
    assert!(at_work >= 8, "only {at_work} kills met a command at work");
    assert_eq!(both.len(), 2, "no kill came before the swap of the manifest, or none after it");
    // Nothing is left of what was cut short: one part and the lock.
    succeed(dir, "index compact index");
    let left: Vec<String> =
        fs::read_dir(&index).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_while_adding_keeps_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_corpus(&dir.join("base.jsonl"), 0..50, 0);
    write_corpus(&dir.join("more.jsonl"), 100..4000, 0);
    let before = succeed(dir, "index build base.jsonl --out index");
    let child = sidenote(dir, "index add index more.jsonl --quiet").spawn().unwrap();
    while !has(&dir.join("index"), "part-000001") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let said = common::said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted") && said.contains("same command again"), "{said}");
    assert_eq!(succeed(dir, "index info index")["identity"], before["identity"]);
    let output = sidenote(dir, "index add index more.jsonl").output().unwrap();
    assert!(common::said(&output).contains("going on behind part"), "{}", common::said(&output));
    assert_eq!(succeed(dir, "index info index")["documents"], 3950);
    assert_eq!(succeed(dir, "index verify index")["sound"], true);
}
