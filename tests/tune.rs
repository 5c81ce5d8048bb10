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
    assert!(error(&format!("{DATA}held_out_clusters = [\"order\"]")).contains("pool.jsonl:1: is of order"));
    assert!(error(&format!("{DATA}mixing = \"uniform\"\ncap = 3")).contains("tune.mixing"));
    assert!(error(&format!("{DATA}losses = []")).contains("tune.losses"));
    let adapter = |settings: &str| error(&format!("{DATA}[adapter]\n{settings}"));
    assert!(adapter("method = \"lora\"\nrank = 0").contains("adapter.rank"));
    assert!(adapter("method = \"lora\"\nranks = 3").contains("ranks"));
    assert!(adapter("method = \"lora\"\ntargets = [\"query\"]").contains("q_proj"));
    assert!(adapter("method = \"dora\"").contains("dora"));
    write_lines(&dir.join("pool.jsonl"), &[json!({"input": "", "target": "x"})]);
    assert!(error(DATA).contains("pool.jsonl:1"));
}
