//! `sidenote train` with kind = "tune", over the small models of tests/data/models.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{fail, files, has, kill_at, sidenote, succeed, write_lines};
use serde_json::{Value, json};

/// A small model in `dir`.
fn base(dir: &Path, name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let out = dir.join(name);
    fs::create_dir(&out).unwrap();
    for file in fs::read_dir(data.join(name)).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, out.join(file.file_name().unwrap())).unwrap();
    }
    if !name.starts_with("t5") {
        fs::copy(data.join("tokenizer.json"), out.join("tokenizer.json")).unwrap();
    }
    out
}

/// Two tasks: whether a word is there, and which of two comes first; of uneven sizes.
fn pool(dir: &Path) {
    let words = ["moon", "text", "line", "read", "side", "note"];
    let item = |i: usize| {
        let (a, b) = (words[i % 6], words[(i / 6 + i) % 6]);
        match i % 3 {
            0 => {
                json!({"input": format!("{a} {b}: first?"), "target": a, "task": "first", "cluster": "order"})
            }
            _ => {
                let answer = if i.is_multiple_of(2) { "yes" } else { "no" };
                json!({"input": format!("{a} {b} {answer}?"), "target": answer, "choices": ["yes", "no"],
                    "task": "there", "cluster": "words"})
            }
        }
    };
    write_lines(&dir.join("pool.jsonl"), &(0..48).map(item).collect::<Vec<_>>());
    write_lines(&dir.join("held_out.jsonl"), &(48..60).map(item).collect::<Vec<_>>());
}

fn config(dir: &Path, name: &str, base: &str, more: &str) {
    let text = format!(
        "kind = \"tune\"\nout = \"{name}\"\nbase = \"{base}\"\nheld_out = \"held_out.jsonl\"\n{more}\n[training]\nsteps = 24\n\
         batch_tokens = 200\nlearning_rate = 0.02\nevaluate_every = 12\ncheckpoint_every = 8\nweight_decay = 0.0\n"
    );
    fs::write(dir.join(format!("{name}.toml")), text).unwrap();
}

fn losses(dir: &Path, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(dir.join(name).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| line["loss"].as_f64().unwrap()).collect()
}

const DATA: &str = "[tune]\ndata = [\"pool.jsonl\"]\n";
const TFEW: &str = "[tune]\ndata = [\"pool.jsonl\"]\nlosses = [\"lm\", \"length-normalised\", \"unlikelihood\"]\nby = \"cluster\"\n\
                    mixing = \"uniform\"\n";

/// Fails when a method has no gradient, trains what it should leave, or is not saved as it was trained.
#[test]
fn every_method_learns_and_leaves_the_model_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    for name in ["gpt2", "llama", "t5_v1_1"] {
        base(dir, name);
    }
    let before: Vec<_> = ["gpt2", "llama", "t5_v1_1"].map(|name| files(&dir.join(name))).into();
    for (model, method) in [
        ("gpt2", "lora"),
        ("llama", "ia3"),
        ("gpt2", "bitfit"),
        ("llama", "prompt"),
        ("gpt2", "prefix"),
        ("llama", "prefix"),
        ("t5_v1_1", "prefix"),
        ("t5_v1_1", "ia3"),
        ("t5_v1_1", "lora"),
        ("t5_v1_1", "prompt"),
    ] {
        let name = format!("{model}-{method}");
        let tokens = if ["prompt", "prefix"].contains(&method) { "tokens = 3\n" } else { "" };
        config(dir, &name, model, &format!("{DATA}[adapter]\nmethod = \"{method}\"\n{tokens}"));
        // Embeddings are far larger than what is learnt of other weights.
        let rate = if tokens.is_empty() { 0.02 } else { 0.3 };
        let result = succeed(dir, &format!("train {name}.toml --set training.learning_rate={rate}"));
        let losses = losses(dir, &name);
        // Three tokens cannot do much.
        let share = if tokens.is_empty() { 0.9 } else { 1.0 };
        assert!(losses[losses.len() - 1] < share * losses[0], "{name}: {losses:?}");
        assert!(result["trained_parameters"].as_u64() < result["parameters"].as_u64(), "{name}: {result}");
        assert!(dir.join(&name).join("model/adapter_config.json").exists(), "{name}");
        let written =
            succeed(dir, &format!("generate {model} moon --raw --max-tokens 3 --adapter {name}/model"));
        assert!(written.is_object(), "{written}");
    }
    let after: Vec<_> = ["gpt2", "llama", "t5_v1_1"].map(|name| files(&dir.join(name))).into();
    assert!(before == after, "a model underneath was changed");
}

/// Whole models, T-Few's losses, mixtures; killed and gone on with, the same bytes come out.
#[test]
fn a_run_that_was_killed_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    base(dir, "llama");
    base(dir, "t5_v1_1");
    for (model, what, settings) in [
        ("llama", "whole", format!("{DATA}temperature = 2.0\ncap = 10\n")),
        ("llama", "bitfit", format!("{DATA}[adapter]\nmethod = \"bitfit\"\n")),
        ("t5_v1_1", "tfew", format!("{TFEW}[adapter]\nmethod = \"ia3\"\n")),
    ] {
        let (once, twice) = (format!("{model}-{what}-once"), format!("{model}-{what}-twice"));
        config(dir, &once, model, &settings);
        config(dir, &twice, model, &settings);
        let adafactor = "--set training.optimiser=adafactor";
        succeed(dir, &format!("train {once}.toml {adafactor}"));
        let command = sidenote(dir, &format!("train {twice}.toml {adafactor} --quiet"));
        let out = dir.join(&twice).join("checkpoints");
        kill_at(command, || has(&out, "step-0000008") && !has(&out, ".part"), Duration::from_millis(1));
        if !dir.join(&twice).join("model").exists() {
            succeed(dir, &format!("train {twice}.toml {adafactor} --resume"));
        }
        let model_of = |name: &str| {
            let mut all = files(&dir.join(name).join("model"));
            // The manifest of an adapter names the model from the folder that it is in.
            all.remove(Path::new("manifest.json"));
            all
        };
        assert!(model_of(&once) == model_of(&twice), "{what}");
        let measured = losses(dir, &once);
        assert!(measured[measured.len() - 1] < measured[0], "{what}: {measured:?}");
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    base(dir, "llama");
    let error = |settings: &str| {
        config(dir, "bad", "llama", settings);
        let said = fail(dir, "train bad.toml --quiet");
        let _ = fs::remove_dir_all(dir.join("bad"));
        said
    };
    assert!(error("").contains("[tune]"));
    // Clusters and tasks, in capitals or not.
    for name in ["order", "Order", "FIRST"] {
        let said = error(&format!("{DATA}held_out_clusters = [\"{name}\"]"));
        assert!(said.contains(&format!("pool.jsonl:1: is of {name}")), "{said}");
        assert!(said.contains("tune.held_out_clusters"), "{said}");
    }
    assert!(error(&format!("{DATA}mixing = \"uniform\"\ncap = 3")).contains("tune.mixing"));
    assert!(error(&format!("{DATA}losses = []")).contains("tune.losses"));
    assert!(error(&format!("{DATA}max_examples = 0")).contains("tune.max_examples"));
    assert!(error(&format!("{DATA}formats = {{ few_shot = 2.0 }}")).contains("tune.formats"));
    assert!(
        error(&format!("{DATA}formats = {{ chain_of_thought = 0.5 }}")).contains("no instance is a chain")
    );
    assert!(error(&format!("{DATA}packing = true\n[adapter]\nmethod = \"prompt\"")).contains("tune.packing"));
    let adapter = |settings: &str| error(&format!("{DATA}[adapter]\n{settings}"));
    assert!(adapter("method = \"lora\"\nrank = 0").contains("adapter.rank"));
    assert!(adapter("method = \"lora\"\nranks = 3").contains("ranks"));
    assert!(adapter("method = \"lora\"\ntargets = [\"query\"]").contains("q_proj"));
    assert!(adapter("method = \"dora\"").contains("dora"));
    let unranked = json!({"input": "Is it moon?", "own": "moon", "target": "yes"});
    write_lines(&dir.join("pool.jsonl"), &[unranked]);
    for settings in
        ["losses = [\"lm\", \"length-normalised\"]", "losses = [\"unlikelihood\"]\nlearn = \"instruction\""]
    {
        let said = error(&format!("{DATA}{settings}"));
        assert!(said.contains("tune.losses: none of the 1 instances has choices"), "{said}");
    }
    write_lines(&dir.join("pool.jsonl"), &[json!({"input": "", "target": "x"})]);
    assert!(error(DATA).contains("pool.jsonl:1"));
}

/// A pool's folder is learnt from; of a pool that was split each held-out part is measured by itself, and none is learnt from.
#[test]
fn a_pool_is_split_in_four_and_each_part_is_measured_apart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir, "llama");
    let words = ["moon", "text", "line", "read", "side", "note"];
    let item = |i: usize| {
        let (task, input) = (i % 8, format!("{} {} {i} yes?", words[i % 6], words[(i / 6) % 6]));
        let target = if i.is_multiple_of(3) { "yes" } else { "no" };
        json!({"input": input, "target": target, "choices": ["yes", "no"], "task": format!("task{task}"),
            "cluster": format!("cluster{}", task % 2)})
    };
    let mut rows: Vec<Value> = (0..160).map(item).collect();
    rows.extend((0..20).map(|i| {
        json!({"input": format!("{i} moon"), "target": "moon", "task": "copy", "cluster": "copying", "choices": ["moon", "note"]})
    }));
    write_lines(&dir.join("rows.jsonl"), &rows);
    write_lines(&dir.join("held_out.jsonl"), &rows[..3]);
    succeed(dir, "pool build rows.jsonl --out pool");
    let split = "pool split pool --out splits --category copying --tasks 0.25 --instances 0.1";
    let report = succeed(dir, split);
    let count = |kind: &str| report["parts"][kind]["instances"].as_u64().unwrap();
    assert_eq!((count("categories"), count("tasks")), (20, 40));
    assert!(fail(dir, split).contains("holds something"));
    let splits = "[tune.splits]\ncategories = \"splits/categories\"\ntasks = \"splits/tasks\"\n\
                  instances = \"splits/instances\"\n[adapter]\nmethod = \"ia3\"\n";
    config(dir, "run", "llama", &format!("[tune]\ndata = [\"splits/train\"]\n{splits}"));
    let outcome = succeed(dir, "train run.toml");
    let kinds = ["categories", "instances", "tasks"];
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&outcome["held_out_losses"]), kinds);
    let metrics = fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["held_out_losses"], outcome["held_out_losses"]);
    assert_ne!(last["held_out_losses"]["tasks"], last["held_out_losses"]["categories"]);
    // The whole pool holds all three.
    config(dir, "leak", "llama", &format!("[tune]\ndata = [\"pool\"]\n{splits}"));
    let said = fail(dir, "train leak.toml --quiet");
    assert!(said.contains("held out (tune.splits."), "{said}");
    let data = kinds.map(|kind| format!("splits/{kind}")).join(" ");
    let found = succeed(dir, &format!("eval tasks llama --adapter run/model --data {data}"));
    let sets = found["sets"].as_array().unwrap();
    assert_eq!(sets.iter().map(|set| set["tasks"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 6, 2]);
    assert_eq!(sets[0]["scores"]["sum"], found["tasks"][0]["scores"]["sum"]["mean"]);
    assert_eq!(sets[2]["items"], 40);
}

/// What Flipped Learning reads and writes, by hand; and that it learns.
#[test]
fn an_instruction_is_learnt_from_text_and_answer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    base(dir, "llama");
    let item = |text: &str, answer: &str| json!({"input": format!("Read: {text} Is it so?"), "own": text, "target": answer, "choices": ["yes", "no"]});
    let by_hand = |text: &str, answer: &str| json!({"input": format!("Input: {text}\nOutput: {answer}\nInstruction:"), "target": "Read: Is it so?"});
    let first_loss = |name: &str, rows: &[Value], settings: &str| {
        write_lines(&dir.join("pool.jsonl"), rows);
        write_lines(&dir.join("held_out.jsonl"), rows);
        config(dir, name, "llama", &format!("{DATA}{settings}[adapter]\nmethod = \"ia3\"\n"));
        let more = "--set training.steps=1 --set training.evaluate_every=1";
        let outcome = succeed(dir, &format!("train {name}.toml {more}"));
        outcome["loss"].as_f64().unwrap()
    };
    let flipped = "learn = \"instruction\"\n";
    let rows = [item("moon and text", "yes")];
    let lm = first_loss("flipped", &rows, flipped);
    let expected = first_loss("by-hand", &[by_hand("moon and text", "yes")], "");
    assert!((lm - expected).abs() < 1e-5, "{lm} {expected}");
    // T-Few's unlikelihood of a wrong answer is the same once the instruction stands in its place.
    let both = "losses = [\"lm\", \"unlikelihood\"]\n";
    let unlikely = first_loss("unlikely", &rows, &format!("{flipped}{both}")) - lm;
    assert!(unlikely > 0.0, "{unlikely}");
    let error = |rows: &[Value], settings: &str| {
        write_lines(&dir.join("pool.jsonl"), rows);
        config(dir, "bad", "llama", &format!("{DATA}{settings}"));
        let said = fail(dir, "train bad.toml --quiet");
        let _ = fs::remove_dir_all(dir.join("bad"));
        said
    };
    let unsaid = json!({"input": "Is it so?", "target": "yes"});
    assert!(error(&[item("moon", "yes"), unsaid], flipped).contains("pool.jsonl:2: does not say"));
    let elsewhere = json!({"input": "Is it so?", "target": "yes", "own": "moon"});
    assert!(error(&[elsewhere], flipped).contains("not found in its input"));
    let ranked = format!("{flipped}losses = [\"length-normalised\"]\n");
    assert!(error(&rows, &ranked).contains("tune.losses"));

    // The answer says which of two instructions it was.
    let words = ["moon", "text", "line", "read", "side", "note"];
    let rows: Vec<Value> = (0..48)
        .map(|i| {
            let (text, is) = (format!("{} {}", words[i % 6], words[(i / 6) % 6]), i.is_multiple_of(2));
            let (asked, answer) = if is { ("Yes or no?", "yes") } else { ("True or false?", "true") };
            json!({"input": format!("{text} {asked}"), "own": text, "target": answer, "choices": ["yes", "true"]})
        })
        .collect();
    write_lines(&dir.join("pool.jsonl"), &rows);
    write_lines(&dir.join("held_out.jsonl"), &rows[..8]);
    config(dir, "learns", "llama", &format!("{DATA}{flipped}{both}[adapter]\nmethod = \"lora\"\n"));
    succeed(dir, "train learns.toml --set training.steps=60");
    let found = succeed(dir, "eval tasks llama --adapter learns/model --data pool.jsonl --flipped");
    let score = found["tasks"][0]["scores"]["flipped"]["mean"].as_f64().unwrap();
    assert!(score > 0.95, "{found}");
}
