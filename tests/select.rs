//! `sidenote select`, through the command.

mod tiny;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const TOPICS: [&[&str]; 3] = [
    &["dog", "cat", "horse", "cow", "sheep"],
    &["red", "green", "blue", "yellow", "black"],
    &["piano", "violin", "drum", "flute", "harp"],
];
const TASKS: [&str; 3] = ["animals", "colours", "music"];

/// A directory with an encoder, a pool of 20 rows a task in turn (and three of no task), and a
/// target about animals.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_encoder(&dir.path().join("encoder"), &TOPICS);
    let mut pool = String::new();
    for row in 0..60 {
        let (task, words) = (TASKS[row % 3], TOPICS[row % 3]);
        let input = format!("{} {}", words[row / 3 % 5], words[row / 15]);
        let line = json!({"task": task, "input": input, "target": "yes", "answer_choices": ["yes", "no"]});
        pool.push_str(&format!("{line}\n"));
    }
    for row in 0..3 {
        pool.push_str(&format!("{{\"target\": \"\",  \"input\": \"unheard {row}\", \"weight\": 1.50}}\n"));
    }
    fs::write(dir.path().join("pool.jsonl"), pool).unwrap();
    fs::write(
        dir.path().join("target.jsonl"),
        "{\"input\": \"the dog\"}\n{\"input\": \"my cat\", \"target\": \"labels are not read\"}\n",
    )
    .unwrap();
    dir
}

fn select(dir: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sidenote"))
        .current_dir(dir)
        .args(["select", "--quiet"])
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

fn succeed(dir: &Path, arguments: &str) -> String {
    let output = select(dir, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs with `arguments`, which must fail with `code`, and gives what was said about it.
fn fail(dir: &Path, arguments: &str, code: i32) -> String {
    let output = select(dir, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn rows(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What lies in `dir`, hidden files too.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn deft_chooses_the_targets_neighbours() {
    let dir = workplace();
    let dir = dir.path();
    let arguments = "pool.jsonl --method deft --target target.jsonl --encoder encoder -n 17 --out out.jsonl --scores scores.jsonl --json";
    let report: Value = serde_json::from_str(&succeed(dir, arguments)).unwrap();
    assert_eq!(report["method"], "deft");
    assert_eq!((&report["chosen"], &report["pool"]), (&json!(17), &json!(63)));
    assert_eq!(report["tasks"], json!({"animals": 17}));
    let random = report["random_tasks"].as_object().unwrap();
    assert_eq!(random.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), 17);
    assert_eq!(random["unknown"], 3, "rows without a task are a task of their own: {random:?}");
    assert_eq!(report["nearest_tasks"]["names"], json!(["animals"]));
    assert_eq!(report["nearest_tasks"]["chosen_share"], 1.0);
    assert!(report["seconds"].as_f64().unwrap() > 0.0);

    let chosen = rows(&dir.join("out.jsonl"));
    assert_eq!(chosen.len(), 17);
    let pool = rows(&dir.join("pool.jsonl"));
    let mut last = None;
    for row in &chosen {
        let id = row["index_id"].as_u64().unwrap();
        assert!(last < Some(id), "not in the pool's order");
        last = Some(id);
        assert!((1..=2).contains(&row["attribution_frequency"].as_u64().unwrap()));
        let mut untouched = row.clone();
        untouched
            .as_object_mut()
            .unwrap()
            .retain(|name, _| name != "index_id" && name != "attribution_frequency");
        assert_eq!(untouched, pool[id as usize]);
    }
    // Of the nearest rows, "dog dog" and "cat cat", both are chosen; the log says how near.
    let scores = rows(&dir.join("scores.jsonl"));
    assert_eq!(scores.len(), 2);
    for (line, word) in scores.iter().zip(["dog", "cat"]) {
        let first = line["ids"][0].as_u64().unwrap();
        assert_eq!(pool[first as usize]["input"], format!("{word} {word}"));
        assert!(chosen.iter().any(|row| row["index_id"] == first));
        let distances: Vec<_> =
            line["distances"].as_array().unwrap().iter().map(|d| d.as_f64().unwrap()).collect();
        assert!(distances[0] < 1e-5 && distances.is_sorted() && distances[distances.len() - 1] < 2.0);
        assert_eq!(distances.len(), line["ids"].as_array().unwrap().len());
    }

    // Again it is the same, and a smaller selection is part of a larger one.
    let before = fs::read(dir.join("out.jsonl")).unwrap();
    succeed(dir, arguments);
    assert_eq!(fs::read(dir.join("out.jsonl")).unwrap(), before);
    succeed(dir, "pool.jsonl --method deft --target target.jsonl --encoder encoder -n 5 --out few.jsonl");
    let few = rows(&dir.join("few.jsonl"));
    assert!(few.iter().all(|row| chosen.iter().any(|other| row["index_id"] == other["index_id"])));
    // Without a size, all that any example has among its nearest: DEFT's own union.
    let union = "pool.jsonl --method deft --target target.jsonl --encoder encoder -k 5 --out few.jsonl --scores scores.jsonl";
    succeed(dir, union);
    let ids = |name: &str, of: &dyn Fn(&Value) -> Vec<u64>| -> std::collections::BTreeSet<u64> {
        rows(&dir.join(name)).iter().flat_map(of).collect()
    };
    let nearest = |line: &Value| {
        line["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert!(rows(&dir.join("scores.jsonl")).iter().all(|line| nearest(line).len() == 5));
    let all = ids("scores.jsonl", &nearest);
    assert_eq!(ids("few.jsonl", &|row| vec![row["index_id"].as_u64().unwrap()]), all);
    assert_eq!(rows(&dir.join("few.jsonl")).len(), all.len());
    assert_eq!(
        listing(dir),
        ["encoder", "few.jsonl", "out.jsonl", "pool.jsonl", "scores.jsonl", "target.jsonl"],
        "the index over the pool is gone"
    );
}

#[test]
fn words_choose_the_targets_task_too() {
    let dir = workplace();
    let dir = dir.path();
    for method in ["bm25", "dsir"] {
        let arguments =
            format!("pool.jsonl --method {method} --target target.jsonl -n 8 --out {method}.jsonl --json");
        let report: Value = serde_json::from_str(&succeed(dir, &arguments)).unwrap();
        assert_eq!((&report["method"], &report["chosen"]), (&json!(method), &json!(8)));
        let animals = report["tasks"]["animals"].as_u64().unwrap_or(0);
        assert!(animals >= 7, "{report}");
        let before = fs::read(dir.join(format!("{method}.jsonl"))).unwrap();
        succeed(dir, &arguments);
        assert_eq!(fs::read(dir.join(format!("{method}.jsonl"))).unwrap(), before);
        assert!(
            fail(dir, &format!("pool.jsonl --method {method} -n 8 --out x.jsonl"), 2).contains("--target")
        );
    }
    let said = fail(dir, "pool.jsonl --method bm25 --target target.jsonl -n 63 --out x.jsonl", 1);
    assert!(
        said.contains("only 14 rows were found, and 63 are wanted") && said.contains("lower -n"),
        "{said}"
    );
    assert!(!said.contains("-k"), "{said}");
    let said = fail(dir, "pool.jsonl --method bm25 --target target.jsonl -n 63 -k 2 --out x.jsonl", 1);
    assert!(said.contains("raise -k, leave it out, or lower -n"), "{said}");
    let said =
        fail(dir, "pool.jsonl --method dsir --target target.jsonl -n 8 --out x.jsonl --scores s.jsonl", 1);
    assert!(said.contains("--scores"), "{said}");
}

#[test]
fn every_row_can_be_chosen_and_keeps_its_bytes() {
    let dir = workplace();
    let dir = dir.path();
    for method in [
        "deft --target target.jsonl --encoder encoder",
        "dsir --target target.jsonl",
        "random",
        "random-balanced",
    ] {
        succeed(dir, &format!("pool.jsonl --method {method} -n 63 --out out.jsonl"));
        let (pool, out) = (
            fs::read_to_string(dir.join("pool.jsonl")).unwrap(),
            fs::read_to_string(dir.join("out.jsonl")).unwrap(),
        );
        assert_eq!(out.lines().count(), 63);
        for (before, after) in pool.lines().zip(out.lines()) {
            assert!(after.starts_with(before.strip_suffix('}').unwrap()), "{before} became {after}");
        }
    }
}

#[test]
fn random_draws_are_reported_beside_the_balanced_one() {
    let dir = workplace();
    let dir = dir.path();
    let draw = |method: &str, seed: u32| {
        let arguments =
            format!("pool.jsonl --target target.jsonl --method {method} -n 23 --out {method}.jsonl");
        let report = succeed(dir, &format!("{arguments} --seed {seed} --json"));
        let ids: Vec<_> = rows(&dir.join(format!("{method}.jsonl")))
            .iter()
            .map(|row| row["index_id"].as_u64().unwrap())
            .collect();
        (serde_json::from_str::<Value>(&report).unwrap(), ids)
    };
    let (report, ids) = draw("random-balanced", 7);
    assert_eq!(report["tasks"], report["random_tasks"]);
    // Three rows without a task; 20 are left for three tasks.
    let tasks = report["tasks"].as_object().unwrap();
    assert_eq!(tasks["unknown"], 3);
    assert!(TASKS.iter().all(|task| (6..=7).contains(&tasks[*task].as_u64().unwrap())), "{tasks:?}");
    assert_eq!(ids, draw("random-balanced", 7).1);
    assert_ne!(ids, draw("random-balanced", 8).1);
    let (report, ids) = draw("random", 7);
    assert!(report.get("nearest_tasks").is_none());
    assert_eq!(report["random_tasks"].as_object().unwrap(), tasks);
    assert_eq!(ids.len(), 23);
    assert_eq!(rows(&dir.join("random.jsonl"))[0]["attribution_frequency"], 0);
}

#[test]
fn people_get_a_table() {
    let dir = workplace();
    let table = succeed(
        dir.path(),
        "pool.jsonl --method deft --target target.jsonl --encoder encoder -n 22 --out out.jsonl",
    );
    assert!(table.starts_with("deft: 22 of 63 rows chosen in "), "{table}");
    assert!(
        table.lines().any(|line| line.starts_with("animals ") && line.contains("20 (90.9 %)")),
        "{table}"
    );
    assert!(table.contains("nearest tasks (animals) make up 90.9 % of the chosen rows"), "{table}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let dir = workplace();
    let dir = dir.path();
    let before = listing(dir);
    let deft = "--method deft --target target.jsonl --encoder encoder --out out.jsonl";
    assert!(fail(dir, &format!("pool.jsonl {deft} -n 64"), 1).contains("only 63 rows"));
    assert!(fail(dir, "pool.jsonl --method random -n 64 --out out.jsonl", 1).contains("only 63 rows"));
    assert!(
        fail(dir, &format!("pool.jsonl {deft} -n 40 -k 3"), 1)
            .contains("only 6 rows were found, and 40 are wanted; raise -k")
    );
    assert!(fail(dir, &format!("none.jsonl {deft} -n 1"), 1).contains("none.jsonl"));
    assert!(fail(dir, &format!("encoder {deft} -n 1"), 1).contains("manifest.json"));
    assert!(
        fail(dir, "pool.jsonl --method deft --target none.jsonl --encoder encoder --out out.jsonl -n 1", 1)
            .contains("none.jsonl")
    );
    assert!(
        fail(dir, "pool.jsonl --method deft --target target.jsonl --encoder nowhere --out out.jsonl -n 1", 1)
            .contains("nowhere")
    );
    assert!(fail(dir, "pool.jsonl --method random -n 1 --out no/out.jsonl", 1).contains("no/out.jsonl"));
    assert!(fail(dir, "pool.jsonl --method random -n 1 --out pool.jsonl", 1).contains("--out"));
    assert!(
        fail(dir, "pool.jsonl --method random -n 1 --out out.jsonl --scores s.jsonl", 1).contains("--scores")
    );
    assert!(fail(dir, "pool.jsonl --method random -k 3 --out out.jsonl", 1).contains("-n"));
    // A random choice reads no target, but says where there is none.
    assert!(
        fail(dir, "pool.jsonl --method random --target none.jsonl -n 1 --out out.jsonl", 1)
            .contains("none.jsonl")
    );
    for method in [
        "bm25 --target target.jsonl",
        "dsir --target target.jsonl",
        "two-stage --first dsir --encoder encoder --target target.jsonl",
        "random",
        "random-balanced",
    ] {
        let said = fail(dir, &format!("pool.jsonl --method {method} -n 1 --out out.jsonl --vectors kept"), 1);
        let name = method.split(' ').next().unwrap();
        assert!(said.contains("--vectors") && said.contains(&format!("the method {name} ")), "{said}");
    }
    let dsir = "pool.jsonl --method dsir --target target.jsonl -n 1 --out out.jsonl --smoothing 1";
    assert!(fail(dir, dsir, 1).contains("--smoothing"));
    // Wrong usage.
    fail(dir, &format!("pool.jsonl {deft}"), 2);
    assert!(fail(dir, "pool.jsonl --method deft -n 1 --out out.jsonl", 2).contains("--target"));
    fail(dir, &format!("pool.jsonl {deft} -n 0"), 2);
    fail(dir, "pool.jsonl -n 1 --method best --out out.jsonl", 2);
    assert_eq!(listing(dir), before, "a failed selection leaves nothing");

    fs::write(dir.join("bad.jsonl"), "{\"input\": \"a\", \"target\": \"b\"}\n{\"input\": \"a\"}\n").unwrap();
    assert!(fail(dir, &format!("bad.jsonl {deft} -n 1"), 1).contains("bad.jsonl:2: missing field `target`"));
    fs::write(dir.join("bad.jsonl"), "\n").unwrap();
    assert!(fail(dir, &format!("bad.jsonl {deft} -n 1"), 1).contains("the pool is empty"));
    assert!(
        fail(dir, "pool.jsonl --method deft --target bad.jsonl --encoder encoder -n 1 --out out.jsonl", 1)
            .contains("no example")
    );
    fs::write(dir.join("bad.jsonl"), "{\"input\": \"dog\"}\n{\"input\": \"zebra\"}\n").unwrap();
    let why =
        fail(dir, "pool.jsonl --method deft --target bad.jsonl --encoder encoder -n 1 --out out.jsonl", 1);
    assert!(why.contains("bad.jsonl:2: the encoder knows no word"), "{why}");
    assert!(!dir.join("out.jsonl").exists());
}

#[test]
fn examples_take_turns_and_so_do_targets() {
    let dir = workplace();
    let dir = dir.path();
    fs::write(dir.join("colours.jsonl"), "{\"input\": \"red\"}\n").unwrap();
    for method in [
        "rds+ --encoder encoder",
        "two-stage --encoder encoder --first dsir",
        "two-stage --encoder encoder --first encoder",
    ] {
        let one = format!("pool.jsonl --method {method} --target target.jsonl -n 10 --out one.jsonl --json");
        let report: Value = serde_json::from_str(&succeed(dir, &one)).unwrap();
        assert_eq!(report["chosen"], 10);
        assert!(report["tasks"]["animals"].as_u64().unwrap() >= 9, "{method}: {report}");
        assert!(report.get("targets").is_none());
        let before = fs::read(dir.join("one.jsonl")).unwrap();
        succeed(dir, &one);
        assert_eq!(fs::read(dir.join("one.jsonl")).unwrap(), before, "{method}");
        let both = format!(
            "pool.jsonl --method {method} --target target.jsonl --target colours.jsonl -n 9 --out both.jsonl --json"
        );
        let report: Value = serde_json::from_str(&succeed(dir, &both)).unwrap();
        assert_eq!(report["chosen"], 9);
        assert_eq!(report["targets"][0], json!({"target": "target.jsonl", "rows": 5}));
        assert_eq!(report["targets"][1], json!({"target": "colours.jsonl", "rows": 4}));
        assert!(report["tasks"]["colours"].as_u64().unwrap() >= 4, "{method}: {report}");
    }
    succeed(
        dir,
        "pool.jsonl --method two-stage --encoder encoder --first encoder --target target.jsonl -n 8 -k 3 --out apart.jsonl --scores s.jsonl",
    );
    // Of the chosen rows the three nearest to each example, the nearest first.
    let chosen: Vec<Value> =
        rows(&dir.join("apart.jsonl")).iter().map(|row| row["index_id"].clone()).collect();
    for line in rows(&dir.join("s.jsonl")) {
        let (ids, distances) = (line["ids"].as_array().unwrap(), line["distances"].as_array().unwrap());
        assert!(ids.len() == 3 && ids.iter().all(|id| chosen.contains(id)), "{line}");
        assert!(distances.iter().map(|d| d.as_f64().unwrap()).is_sorted(), "{line}");
    }
    // Copies of a row say nothing new to the second stage: it takes other rows than the nearest ones.
    let mut copies = String::new();
    for first in TOPICS[0] {
        for second in TOPICS[0] {
            let row = json!({"input": format!("{first} {second}"), "target": "yes"});
            copies.push_str(&format!("{row}\n").repeat(if first == second { 8 } else { 1 }));
        }
    }
    fs::write(dir.join("copies.jsonl"), copies).unwrap();
    let kinds = |method: &str| {
        let options = "--encoder encoder --target target.jsonl -n 8 --out of-copies.jsonl";
        succeed(dir, &format!("copies.jsonl --method {method} {options}"));
        let rows = rows(&dir.join("of-copies.jsonl"));
        rows.iter().map(|row| row["input"].to_string()).collect::<std::collections::HashSet<_>>().len()
    };
    // Eight rows say "dog dog" and eight "cat cat".
    assert_eq!(kinds("rds+"), 2);
    assert!(kinds("two-stage --first encoder") > 2);
    succeed(dir, "pool.jsonl --method rds+ --encoder encoder --target target.jsonl -n 8 --out near.jsonl");
    succeed(
        dir,
        "pool.jsonl --method rds+ --encoder encoder --vectors kept --target target.jsonl -n 8 --out again.jsonl",
    );
    succeed(
        dir,
        "pool.jsonl --method rds+ --encoder encoder --vectors kept --target target.jsonl -n 8 --out again.jsonl",
    );
    assert_eq!(fs::read(dir.join("again.jsonl")).unwrap(), fs::read(dir.join("near.jsonl")).unwrap());
    let said = fail(
        dir,
        "pool.jsonl --method deft --encoder default --vectors kept --target target.jsonl -n 8 --out x.jsonl",
        1,
    );
    assert!(said.contains("encoders do not match"), "{said}");
}

#[test]
fn a_decoder_gives_vectors_and_likelihoods() {
    let dir = workplace();
    let dir = dir.path();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/gguf/llama.gguf");
    let model = models.display();
    succeed(
        dir,
        &format!("pool.jsonl --method rds+ --encoder {model} --target target.jsonl -n 9 --out rds.jsonl"),
    );
    assert_eq!(rows(&dir.join("rds.jsonl")).len(), 9);
    for method in ["perplexity", "ifd"] {
        let arguments = format!("pool.jsonl --method {method} -n 9 --out {method}.jsonl");
        succeed(dir, &format!("{arguments} --model {model}"));
        assert_eq!(rows(&dir.join(format!("{method}.jsonl"))).len(), 9);
        assert!(fail(dir, &arguments, 2).contains("--model"));
    }
}

#[test]
fn a_choice_is_explained() {
    let dir = workplace();
    let dir = dir.path();
    succeed(dir, "pool.jsonl --method deft --target target.jsonl --encoder encoder -n 12 --out out.jsonl");
    let explain =
        "explain out.jsonl --pool pool.jsonl --target target.jsonl --encoder encoder --pairs 2 --map map.svg";
    let said: Value = serde_json::from_str(&succeed(dir, &format!("{explain} --json"))).unwrap();
    assert_eq!((&said["pool"], &said["chosen"]), (&json!(63), &json!(12)));
    assert_eq!(said["tasks"], json!([{"task": "animals", "chosen": 12, "pool": 20}]));
    let coverage = &said["coverage"][0];
    assert_eq!((&coverage["examples"], &coverage["nearest_was_chosen"]), (&json!(2), &json!(1.0)));
    assert_eq!(coverage["nearest_chosen"], coverage["nearest_in_pool"]);
    assert_eq!(said["pairs"].as_array().unwrap().len(), 2);
    let inputs: Vec<_> =
        said["pairs"].as_array().unwrap().iter().map(|pair| pair["input"].as_str().unwrap()).collect();
    assert!(inputs.contains(&"dog dog") && inputs.contains(&"cat cat"), "{inputs:?}");
    let map = fs::read_to_string(dir.join("map.svg")).unwrap();
    assert_eq!(map.matches("<circle").count(), 63 + 12 + 2 + 3, "rows, choice, examples, legend");
    let human = succeed(dir, explain);
    assert!(human.contains("animals") && human.contains("the dog") && human.contains("100.0 %"), "{human}");

    // Of chance's choice the coverage is less, and a result of another pool is told.
    succeed(dir, "pool.jsonl --method random --seed 3 -n 3 --out chance.jsonl");
    let chance =
        succeed(dir, "explain chance.jsonl --pool pool.jsonl --target target.jsonl --encoder encoder --json");
    let chance: Value = serde_json::from_str(&chance).unwrap();
    assert!(chance["coverage"][0]["nearest_chosen"].as_f64() < coverage["nearest_chosen"].as_f64());
    let said = fail(dir, "explain out.jsonl --pool out.jsonl --target target.jsonl --encoder encoder", 1);
    assert!(said.contains("out.jsonl:") && said.contains("another one"), "{said}");
    assert!(
        fail(dir, "explain target.jsonl --pool pool.jsonl --target target.jsonl", 1).contains("index_id")
    );
}

/// Rows of two tasks: one asks what the target asks, of other things; the other asks another thing, of the same things. Fails when
/// templates are not told from own texts, or only one of them counts.
#[test]
fn a_task_counts_as_much_as_its_topic() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let topics: [&[&str]; 4] = [TOPICS[0], TOPICS[1], &["same", "meaning"], &["translate", "french"]];
    tiny::write_encoder(&dir.join("encoder"), &topics);
    let (animals, colours) = (TOPICS[0], TOPICS[1]);
    let four = |i: usize| [0, 1, 2, 3].map(|k| animals[(i * (k + 1) + k + i / 5) % 5]).join(" ");
    let mut pool = Vec::new();
    for i in 0..10 {
        let other = [0, 1, 2].map(|k| colours[(i * (k + 1) + k + i / 5) % 5]).join(" ");
        let input = format!("meaning same: {} {other}", animals[i % 5]);
        pool.push(json!({"input": input, "target": "yes", "task": "paraphrase"}));
        pool.push(
            json!({"input": format!("translate french: {}", four(i)), "target": "non", "task": "translate"}),
        );
    }
    let lines = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    fs::write(dir.join("pool.jsonl"), lines(&pool)).unwrap();
    let target: Vec<_> = (0..10).map(|i| json!({"input": format!("{} same meaning", four(i + 3))})).collect();
    fs::write(dir.join("target.jsonl"), lines(&target)).unwrap();
    let chosen = |method: &str| {
        let options = "--target target.jsonl --encoder encoder -n 10 --out out.jsonl --vectors";
        succeed(dir, &format!("pool.jsonl --method {method} {options} vectors-{method}"));
        let tasks =
            rows(&dir.join("out.jsonl")).into_iter().map(|row| row["task"].as_str().unwrap().to_string());
        tasks.filter(|task| task == "paraphrase").count()
    };
    assert_eq!(chosen("deft"), 0);
    assert_eq!(chosen("task-aware"), 10);
    assert_eq!(chosen("task-aware"), 10, "the vectors are found again");
    let options = "--target target.jsonl --encoder encoder -n 10 --out out.jsonl --vectors vectors-deft";
    let said = fail(dir, &format!("pool.jsonl --method task-aware {options}"), 1);
    assert!(said.contains("own texts and tasks here, inputs in"), "{said}");
}

/// Fails when gradients are not those of the target's answers.
#[test]
fn gradients_choose_what_teaches_the_targets_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    fs::create_dir(dir.join("model")).unwrap();
    for file in fs::read_dir(models.join("gpt2")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, dir.join("model").join(file.file_name().unwrap())).unwrap();
    }
    fs::copy(models.join("tokenizer.json"), dir.join("model/tokenizer.json")).unwrap();
    let words = ["moon", "text", "line", "read", "side", "note"];
    let row = |i: usize, answer: &str| json!({"input": format!("{} {}", words[i % 6], words[i / 2 % 6]), "target": answer});
    let pool: Vec<_> =
        (0..24).map(|i| row(i, if i % 3 == 0 { "moon moon" } else { "the line is read" })).collect();
    let lines = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    fs::write(dir.join("pool.jsonl"), lines(&pool)).unwrap();
    let target: Vec<_> = (30..34).map(|i| row(i, "moon moon")).collect();
    fs::write(dir.join("target.jsonl"), lines(&target)).unwrap();
    let command = "pool.jsonl --method less --model model --target target.jsonl -n 8 --seed 3 --out";
    succeed(dir, &format!("{command} one.jsonl"));
    let found = rows(&dir.join("one.jsonl"));
    assert_eq!(found.iter().filter(|row| row["target"] == "moon moon").count(), 8, "{found:?}");
    // Each example names the rows that are best for it, the best first: of one alone these are the choice.
    succeed(dir, &format!("{command} two.jsonl -k 5 --scores two-scores.jsonl"));
    assert_eq!(found, rows(&dir.join("two.jsonl")));
    assert!(found.iter().any(|row| row["attribution_frequency"].as_u64().unwrap() > 0), "{found:?}");
    let asked = rows(&dir.join("two-scores.jsonl"));
    assert_eq!(asked.len(), target.len());
    for line in asked {
        let (ids, distances) = (line["ids"].as_array().unwrap(), line["distances"].as_array().unwrap());
        assert!(ids.len() == 5 && distances.iter().map(|d| d.as_f64().unwrap()).is_sorted(), "{line}");
    }
    fs::write(dir.join("one-target.jsonl"), lines(&target[..1])).unwrap();
    let command = command.replace("target.jsonl -n 8", "one-target.jsonl -n 5");
    succeed(dir, &format!("{command} alone.jsonl -k 5 --scores alone-scores.jsonl"));
    let mut named: Vec<u64> = rows(&dir.join("alone-scores.jsonl"))[0]["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    named.sort_unstable();
    let chosen: Vec<u64> =
        rows(&dir.join("alone.jsonl")).iter().map(|row| row["index_id"].as_u64().unwrap()).collect();
    assert_eq!(named, chosen);

    fs::write(dir.join("bare.jsonl"), format!("{}\n{}\n", target[0], json!({"input": "moon"}))).unwrap();
    let said = fail(dir, "pool.jsonl --method less --model model --target bare.jsonl -n 8 --out no.jsonl", 1);
    assert!(said.contains("bare.jsonl:2:") && said.contains("\"target\""), "{said}");
    assert!(
        fail(dir, "pool.jsonl --method less --target target.jsonl -n 8 --out no.jsonl", 2)
            .contains("--model")
    );
    assert!(!dir.join("no.jsonl").exists());
}

/// A task of animals with one answer, one with two of which one is usual, and one of stars. Fails where answers are not levelled,
/// where a template's are not its own, or where fewer rows are looked at than that takes.
#[test]
fn answers_are_level_where_that_is_wanted() {
    let dir = workplace();
    let dir = dir.path();
    let mut pool = String::new();
    for row in 0..120 {
        let words = TOPICS[usize::from(row >= 80)];
        let (task, answer) = match row {
            0..40 => ("sorted", "yes"),
            40..80 => ("usual", if row % 5 == 0 { "no" } else { "yes" }),
            _ => ("stars", ["yes", "no"][row / 2 % 2]),
        };
        let input = format!("{} {}", words[row % 5], words[row / 5 % 5]);
        let template = ["one", "two"][row % 2];
        pool +=
            &format!("{}\n", json!({"task": task, "template": template, "input": input, "target": answer}));
    }
    fs::write(dir.join("answers.jsonl"), pool).unwrap();
    let choose = |options: &str| {
        let options = format!(
            "answers.jsonl --method deft --target target.jsonl --encoder encoder --out out.jsonl {options}"
        );
        let report: Value = serde_json::from_str(&succeed(dir, &format!("{options} --json"))).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for row in rows(&dir.join("out.jsonl")) {
            let name = ["task", "template", "target"].map(|name| row[name].as_str().unwrap().to_string());
            *counts.entry(name).or_insert(0) += 1;
        }
        (report, counts)
    };
    let count = |counts: &std::collections::BTreeMap<[String; 3], i32>, name: [&str; 3]| {
        counts.get(&name.map(String::from)).copied().unwrap_or(0)
    };
    let (report, counts) = choose("-n 24");
    assert!(report.get("passed_over").is_none());
    assert_eq!(count(&counts, ["stars", "one", "yes"]), 0, "{counts:?}");
    for options in ["-n 24", "-n 24 -k 120", "-k 120"] {
        let (report, counts) = choose(&format!("{options} --level-answers"));
        let chosen: i32 = counts.values().sum();
        assert!(chosen == 24 || !options.contains("-n"), "{counts:?}");
        assert!(report["passed_over"].as_u64().unwrap() > 20, "{report}");
        for template in ["one", "two"] {
            assert_eq!(count(&counts, ["sorted", template, "yes"]), 1, "{counts:?}");
            let [yes, no] = ["yes", "no"].map(|answer| count(&counts, ["usual", template, answer]));
            assert!(yes == 5 && no == 4, "{counts:?}");
        }
    }
    assert!(
        fail(dir, "answers.jsonl --method random -n 100 --out out.jsonl --level-answers", 1)
            .contains("usual answer")
    );
    // Chance is drawn again until there is enough, and is balanced all the same.
    let options = "answers.jsonl --method random-balanced -n 21 --out out.jsonl --level-answers --json";
    let report: Value = serde_json::from_str(&succeed(dir, options)).unwrap();
    assert_eq!(report["tasks"]["sorted"], 2, "{report}");
}
