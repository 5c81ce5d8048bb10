//! Training, measuring and generating, through the program: what a run leaves behind, the way back
//! after a kill, and that a frozen base stays what it was.

mod common;
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{
    fail, failure_of, free_address, json_of, kill_at, sidenote, succeed, text_of, together, write_lines,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::{Value, json};

const TOPICS: [&[&str]; 4] = [
    &["river", "bridge", "boat", "water", "fish", "stone", "bank"],
    &["honey", "bee", "hive", "flower", "wax", "nectar", "queen"],
    &["planet", "moon", "orbit", "star", "comet", "sun", "dust"],
    &["piano", "violin", "drum", "flute", "harp", "song", "choir"],
];

const PLAIN: &str = r#"
    kind = "lm"
    out = "plain"
    index = "index"
    held_out = "held-out"
    [model]
    hidden_size = 16
    layers = 2
    heads = 2
    max_positions = 64
    [training]
    steps = 40
    batch_tokens = 256
    learning_rate = 0.02
    warmup_steps = 3
    decay_steps = 8
    evaluate_every = 15
    checkpoint_every = 10
"#;

const RETRO: &str = r#"
    kind = "retrofit"
    out = "retro"
    index = "index"
    neighbours = "neighbours"
    held_out = "held-out"
    base = "plain/model"
    [retro]
    layers = [1, 2]
    heads = 2
    head_dim = 16
    encoder_hidden_size = 32
    encoder_heads = 4
    encoder_layers = 1
    initialisation = "copy"
    [training]
    steps = 24
    batch_tokens = 256
    evaluate_every = 10
    checkpoint_every = 10
"#;

fn documents(numbers: std::ops::Range<usize>) -> Vec<Value> {
    common::documents(&TOPICS, numbers)
}

/// A folder with an index of 60 documents, its neighbours, 12 documents held out with theirs, and
/// plain.toml and retro.toml.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    tiny::write_encoder(&dir.join("encoder"), &TOPICS);
    write_lines(&dir.join("corpus.jsonl"), &documents(0..60));
    write_lines(&dir.join("held.jsonl"), &documents(100..112));
    succeed(dir, "tokenizer train corpus.jsonl --vocab-size 300 --out tokenizer.json");
    succeed(dir, &format!("{BUILD} --out index"));
    succeed(dir, "neighbours index -k 2 --out neighbours");
    succeed(dir, "neighbours index --queries held.jsonl -k 2 --out held-out");
    fs::write(dir.join("plain.toml"), PLAIN).unwrap();
    fs::write(dir.join("retro.toml"), RETRO).unwrap();
    place
}

const BUILD: &str = "index build corpus.jsonl --encoder encoder --tokenizer tokenizer.json --chunk-tokens 8";
/// Settings with which retro.toml trains everything, without a base.
const FROM_SCRATCH: &str = "--set out=scratch --set retro.initialisation=random";

/// Writes scratch.toml, which is retro.toml with a decoder of its own instead of a base.
fn write_scratch(dir: &Path) {
    let model = "[model]\nhidden_size = 16\nlayers = 2\nheads = 2\nmax_positions = 64";
    let text = RETRO.replace("base = \"plain/model\"", "").replace("[retro]", &format!("{model}\n[retro]"));
    let text = text.replace("retrofit", "retro");
    fs::write(dir.join("scratch.toml"), text).unwrap();
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("model/model.safetensors")).unwrap()
}

/// A run's lines of metrics.jsonl, without the one thing that is not the same each time.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        assert!(value["seconds"].take().as_f64().unwrap() >= 0.0);
        value
    };
    text.lines().map(line).collect()
}

/// Tensors of a safetensors file: shape and bytes by name.
fn tensors(bytes: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        (name.to_string(), (view.shape().to_vec(), view.data().to_vec()))
    };
    file.iter().map(tensor).collect()
}

/// Whether everything that a finished run leaves is there and says what `report` says.
fn check_run(dir: &Path, report: &Value, out: &str, steps: u64) {
    let run = dir.join(out);
    for file in ["config.json", "tokenizer.json", "model.safetensors", "manifest.json"] {
        assert!(run.join("model").join(file).is_file(), "{out}/model/{file}");
    }
    assert_eq!(report["model"], format!("{out}/model"));
    assert_eq!((&report["steps"], &report["skipped_steps"]), (&json!(steps), &json!(0)));
    let metrics = metrics(&run);
    let last = metrics.last().unwrap();
    assert_eq!(last["step"], steps);
    for name in ["tokens", "loss", "held_out_loss"] {
        assert_eq!(last[name], report[name], "{out}: {name}");
        assert!(last[name].as_f64().unwrap() > 0.0, "{out}: {name}");
    }
    let held_out = |line: &Value| line.get("held_out_loss").and_then(Value::as_f64);
    let losses: Vec<f64> = metrics.iter().filter_map(held_out).collect();
    assert!(losses.len() >= 3 && losses.last() < losses.first(), "{out}: {losses:?}");
    let curve = fs::read_to_string(run.join("curve.svg")).unwrap();
    assert!(curve.starts_with("<svg") && curve.contains("<polyline"), "{out}: {curve}");
}

#[test]
fn a_plain_decoder_and_three_ways_to_retro() {
    let place = workplace();
    let dir = place.path();
    let plain = succeed(dir, "train plain.toml");
    check_run(dir, &plain, "plain", 40);
    assert_eq!(plain["trained_parameters"], plain["parameters"]);
    let base = tensors(&weights(&dir.join("plain")));

    let copy = succeed(dir, "train retro.toml --set training.keep_checkpoints=9");
    check_run(dir, &copy, "retro", 24);
    let random = succeed(
        dir,
        "train retro.toml --set out=random --set retro.initialisation=random --set training.keep_checkpoints=9",
    );
    check_run(dir, &random, "random", 24);
    for (out, report) in [("retro", &copy), ("random", &random)] {
        let added = report["parameters"].as_u64().unwrap() - plain["parameters"].as_u64().unwrap();
        assert_eq!(report["trained_parameters"], added, "{out}: only what RETRO adds is trained");
        // The base is frozen, and only named: what is saved is what was added.
        let all = tensors(&weights(&dir.join(out)));
        assert!(all.keys().all(|name| name.starts_with("retro.")), "{out}: {:?}", all.keys());
        assert!(base == tensors(&weights(&dir.join("plain"))));
        // And what is not frozen moves.
        let early = fs::read(dir.join(out).join("checkpoints/step-0000010/model.safetensors")).unwrap();
        let early = tensors(&early);
        let moved = all.iter().filter(|(name, tensor)| early[*name] != **tensor).count();
        assert_eq!(moved, all.len(), "{out}: every tensor that RETRO adds is trained");
    }

    // Without a word about it, layers start by copying, beside a frozen base and from scratch.
    write_scratch(dir);
    for (kind, file) in
        [("retrofit", RETRO.to_string()), ("retro", fs::read_to_string(dir.join("scratch.toml")).unwrap())]
    {
        let bare =
            file.split("[retro]").next().unwrap().to_string() + "[training]\nsteps = 1\nbatch_tokens = 256\n";
        fs::write(dir.join("bare.toml"), bare).unwrap();
        succeed(dir, &format!("train bare.toml --set out=bare-{kind}"));
        let config = fs::read_to_string(dir.join(format!("bare-{kind}/model/config.json"))).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["retro"]["initialisation"], "copy", "{config}");
    }

    let scratch = succeed(dir, &format!("train scratch.toml {FROM_SCRATCH}"));
    check_run(dir, &scratch, "scratch", 24);
    assert_eq!(scratch["trained_parameters"], scratch["parameters"]);
    assert_eq!(scratch["parameters"], random["parameters"]);

    // The configuration that a run keeps makes the same run.
    succeed(dir, "train scratch/config.toml --set out=again");
    assert!(weights(&dir.join("again")) == weights(&dir.join("scratch")));
}

/// Neighbours that were found for a text of their own have that learnt, and as many are read as are asked for.
#[test]
fn neighbours_bring_the_text_that_is_learnt() {
    let place = workplace();
    let dir = place.path();
    write_scratch(dir);
    let perplexity = |run: &str, more: &str| {
        let report =
            succeed(dir, &format!("eval perplexity {run}/model --corpus held.jsonl --index index {more}"));
        report["perplexity"].as_f64().unwrap()
    };
    succeed(dir, &format!("train scratch.toml {FROM_SCRATCH} --set training.steps=40"));
    succeed(
        dir,
        &format!(
            "train scratch.toml {FROM_SCRATCH} --set training.steps=40 --set out=own --set neighbours=held-out"
        ),
    );
    let (index_s, own) = (perplexity("scratch", ""), perplexity("own", ""));
    assert!(own < 0.95 * index_s, "{own} where held-out text was learnt, {index_s} where the index's was");

    assert_eq!(perplexity("own", "--neighbours 2"), own, "as many as in training where nothing is said");
    assert_ne!(perplexity("own", "--neighbours 1"), own);
    for wrong in ["--neighbours 0 --index index", "--neighbours 1"] {
        let command = format!("eval perplexity own/model --corpus held.jsonl {wrong}");
        assert!(failure_of(sidenote(dir, &command), 2).contains("--"));
    }
    succeed(dir, "train plain.toml --set out=base");
    for nothing in ["own/model --retrieval off", "base/model"] {
        let command = format!("eval perplexity {nothing} --corpus held.jsonl --index index --neighbours 1");
        assert!(fail(dir, &command).contains("--neighbours"), "{nothing}");
    }
}

/// A model goes on looking up by what its neighbours were found by.
#[test]
fn a_model_looks_up_as_it_learnt_to() {
    let place = workplace();
    let dir = place.path();
    write_scratch(dir);
    succeed(dir, "neighbours index -k 2 --ranking hybrid --out neighbours --force");
    let said = fail(dir, &format!("train scratch.toml {FROM_SCRATCH}"));
    assert!(
        ["held-out", "found by vectors", "--ranking hybrid"].iter().all(|word| said.contains(word)),
        "{said}"
    );
    succeed(dir, "neighbours index --queries held.jsonl -k 2 --ranking hybrid --out held-out --force");
    let report = succeed(dir, &format!("train scratch.toml {FROM_SCRATCH}"));
    let config = fs::read_to_string(dir.join("scratch/model/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["retro"]["ranking"], "hybrid", "{config}");
    // What was kept for training and what is looked up when it is asked are the same.
    let eval = succeed(dir, "eval perplexity scratch/model --corpus held.jsonl --index index");
    let (kept, asked) =
        (report["held_out_loss"].as_f64().unwrap(), eval["perplexity"].as_f64().unwrap().ln());
    assert!((kept - asked).abs() < 1e-5, "{kept}, {asked}");
    text_of(sidenote(dir, "generate scratch/model river --index index --max-tokens 9"));
}

/// What `sidenote train retro.toml` leaves is found again wherever both folders go together, and refuses another base.
#[test]
fn a_retrofit_stands_on_its_base_and_no_other() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml");
    succeed(dir, "train retro.toml --set retro.gate=true");
    let perplexity = |model: &str| {
        let report = succeed(dir, &format!("eval perplexity {model} --corpus held.jsonl --index index"));
        report["perplexity"].as_f64().unwrap()
    };
    let there = perplexity("retro/model");
    // Together they can move.
    fs::create_dir(dir.join("elsewhere")).unwrap();
    for run in ["plain", "retro"] {
        fs::rename(dir.join(run), dir.join("elsewhere").join(run)).unwrap();
    }
    assert_eq!(perplexity("elsewhere/retro/model"), there);
    fs::rename(dir.join("elsewhere/plain"), dir.join("plain")).unwrap();
    // From here the name that the run was given leads to it.
    assert_eq!(perplexity("elsewhere/retro/model"), there);
    fs::rename(dir.join("plain"), dir.join("gone")).unwrap();
    let said = fail(dir, "generate elsewhere/retro/model river");
    assert!(["base_model", "plain/model", "config.json"].iter().all(|word| said.contains(word)), "{said}");
    succeed(dir, "train plain.toml --set training.seed=1");
    let said = fail(dir, "generate elsewhere/retro/model river");
    assert!(said.contains("base_model") && said.contains("stands on"), "{said}");
}

/// RETRO's layers on decoders of other families, half precision and blocks among them: off is the base.
#[test]
fn any_decoder_gets_retros_layers() {
    let place = workplace();
    let dir = place.path();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    // The tokenizer of a model.
    fs::create_dir(dir.join("gpt2")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(data.join("gpt2").join(file), dir.join("gpt2").join(file)).unwrap();
    }
    fs::copy(data.join("tokenizer.json"), dir.join("gpt2/tokenizer.json")).unwrap();
    let build = BUILD.replace("tokenizer.json", "gpt2");
    succeed(dir, &format!("{build} --out other-index"));
    succeed(dir, "neighbours other-index -k 2 --out other-neighbours");
    for family in ["gpt2", "gemma3_text", "bloom", "qwen3"] {
        let base = dir.join(family);
        fs::create_dir_all(&base).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(data.join(family).join(file), base.join(file)).unwrap();
        }
        fs::copy(data.join("tokenizer.json"), base.join("tokenizer.json")).unwrap();
        let settings = format!(
            "--set base={family} --set out=run-{family} --set index=other-index --set neighbours=other-neighbours"
        );
        let toml = RETRO.split("[retro]").next().unwrap().replace("held_out = \"held-out\"", "");
        let toml =
            format!("{toml}[training]\nsteps = 3\nchunks = 3\nbatch_tokens = 64\nevaluate_every = 3\n");
        fs::write(dir.join("family.toml"), toml).unwrap();
        let report = succeed(dir, &format!("train family.toml {settings}"));
        assert!(report["trained_parameters"].as_u64() < report["parameters"].as_u64(), "{family}");
        let measure = |arguments: &str| {
            let arguments = format!("eval perplexity {arguments} --corpus held.jsonl --index other-index");
            succeed(dir, &arguments)["perplexity"].as_f64().unwrap()
        };
        let (off, on) = (
            measure(&format!("run-{family}/model --retrieval off")),
            measure(&format!("run-{family}/model")),
        );
        assert_eq!(off, measure(family), "{family}");
        assert_ne!(on, off, "{family}");
    }
}

#[test]
fn retrieval_off_measures_the_plain_model() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml");
    succeed(dir, "train retro.toml");
    let measure = |arguments: &str| {
        succeed(dir, &format!("eval perplexity {arguments} --corpus held.jsonl --index index"))
    };
    let (plain, on) = (measure("plain/model"), measure("retro/model"));
    let off = measure("retro/model --retrieval off");
    let shuffled = measure("retro/model --retrieval shuffled");
    assert_eq!(shuffled["retrieval"], "shuffled");
    assert!([&on, &off].iter().all(|other| other["perplexity"] != shuffled["perplexity"]));
    assert_eq!(measure("plain/model --retrieval shuffled")["retrieval"], "off");
    for name in ["perplexity", "bits_per_byte", "filtered", "tokens", "bytes", "documents"] {
        assert_eq!(off[name], plain[name], "{name}");
    }
    // Without an index there is nothing to filter by, but the measure is the same.
    let alone = succeed(dir, "eval perplexity retro/model --retrieval off --corpus held.jsonl");
    assert_eq!((&alone["perplexity"], &alone["filtered"]), (&plain["perplexity"], &Value::Null));
    assert_ne!(on["perplexity"], off["perplexity"]);
    assert_eq!((&on["retrieval"], &off["retrieval"]), (&json!("on"), &json!("off")));
    assert_eq!(on["documents"], 12);
    let bytes: usize =
        documents(100..112).iter().map(|document| document["text"].as_str().unwrap().len()).sum();
    assert_eq!(on["bytes"], bytes, "every byte is predicted once");

    for report in [&plain, &on, &off] {
        let points = report["filtered"].as_array().unwrap();
        let alphas: Vec<f64> = points.iter().map(|point| point["alpha"].as_f64().unwrap()).collect();
        assert_eq!(alphas, [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]);
        let chunks: Vec<u64> = points.iter().map(|point| point["chunks"].as_u64().unwrap()).collect();
        assert!(chunks.is_sorted() && chunks[0] < chunks[7], "{chunks:?}");
        // All chunks share at most all of themselves.
        let (last, all) = (&points[7]["bits_per_byte"], &report["bits_per_byte"]);
        assert!((last.as_f64().unwrap() - all.as_f64().unwrap()).abs() < 1e-12, "{last} {all}");
    }
    // Without an index, a plain model whose positions are few is read in windows that fit it.
    assert!(succeed(dir, "eval perplexity plain/model --corpus held.jsonl")["perplexity"].is_f64());
}

/// Whether a checkpoint after `step` steps or more is there or being written.
fn has_checkpoint(checkpoints: &Path, step: usize) -> bool {
    let Ok(entries) = fs::read_dir(checkpoints) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let digits = name.trim_start_matches("step-").split('.').next().unwrap();
        digits.parse::<usize>().unwrap() >= step
    })
}

/// Trains once without a break and once killed again and again; the bytes must be the same.
fn killed_and_resumed(dir: &Path, config: &str, random: &mut ChaCha8Rng) {
    let settings = "--set training.steps=120 --set training.checkpoint_every=4";
    let whole = succeed(dir, &format!("train {config} {settings} --set out=whole"));
    let command = format!("train {config} {settings} --set out=broken");
    let run = dir.join("broken");
    let checkpoints = run.join("checkpoints");
    let mut kills = 0;
    // While a checkpoint is being written, and in the steps after it.
    for step in [4, 12, 24, 36, 48] {
        let delay = Duration::from_micros(random.random_range(0..8_000));
        let resumed = sidenote(dir, &format!("{command} --resume"));
        kills += usize::from(kill_at(resumed, || has_checkpoint(&checkpoints, step), delay));
        assert!(!run.join("model").exists(), "{config}: over soon after step {step}");
        // A kill before the first checkpoint leaves nothing to resume, and nothing to lose.
        if checkpoints.join("step-0000004").exists() || step > 4 {
            assert!(fail(dir, &command).contains("--resume"));
        }
    }
    assert!(kills >= 3, "{config}: only {kills} kills met a run at work");

    // A checkpoint that a crash left half-written, newer than every whole one.
    for (number, half) in [("0000116", "config.json"), ("9999999", "model.safetensors")] {
        let part = checkpoints.join(format!("step-{number}.part"));
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join(half), "{\"hidden").unwrap();
    }
    let resumed = succeed(dir, &format!("{command} --resume"));
    assert!(weights(&run) == weights(&dir.join("whole")), "{config}: other weights after resuming");
    assert_eq!(metrics(&run), metrics(&dir.join("whole")), "{config}");
    for name in ["steps", "tokens", "loss", "held_out_loss", "parameters", "trained_parameters"] {
        assert_eq!(resumed[name], whole[name], "{config}: {name}");
    }
}

#[test]
fn a_plain_run_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    killed_and_resumed(place.path(), "plain.toml", &mut ChaCha8Rng::seed_from_u64(1));
}

/// Weights of 16 bits, whose masters a killed run finds again: half a file, and the model that was measured.
#[test]
fn a_run_in_bf16_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    let dir = place.path();
    let halved = |text: &str| text.replace("[training]", "[training]\nprecision = \"bf16\"");
    fs::write(dir.join("half.toml"), halved(PLAIN)).unwrap();
    killed_and_resumed(dir, "half.toml", &mut ChaCha8Rng::seed_from_u64(5));
    let all_halves = |run: &str| {
        let all = tensors(&weights(&dir.join(run)));
        all.values().all(|(shape, bytes)| bytes.len() == 2 * shape.iter().product::<usize>())
    };
    assert!(all_halves("whole"));
    let config: Value =
        serde_json::from_slice(&fs::read(dir.join("whole/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
    let perplexity = |arguments: &str| {
        let report = succeed(dir, &format!("eval perplexity {arguments} --corpus held.jsonl"));
        report["perplexity"].as_f64().unwrap()
    };
    let last = metrics(&dir.join("whole")).pop().unwrap();
    let (measured, there) = (last["held_out_loss"].as_f64().unwrap(), perplexity("whole/model").ln());
    assert!((measured - there).abs() < 2e-3, "{measured} while it was trained, {there} as it is saved");

    // Numbers of 32 bits do no better.
    let settings = "--set training.steps=120 --set training.checkpoint_every=100";
    let exact = succeed(dir, &format!("train plain.toml {settings}"));
    let exact = exact["held_out_loss"].as_f64().unwrap();
    assert!((measured - exact).abs() < 0.1, "{measured} {exact}");

    // What is added to a base is as precise as it is asked to be; the base stays as it is.
    fs::write(dir.join("half-retro.toml"), halved(RETRO)).unwrap();
    succeed(dir, "train half-retro.toml");
    assert!(all_halves("retro") && !all_halves("plain"));
    let with = |retrieval: &str| perplexity(&format!("retro/model --index index --retrieval {retrieval}"));
    assert_eq!(with("off"), perplexity("plain/model --index index"));
    assert_ne!(with("on"), with("off"));
}

const T5: &str = r#"
    kind = "t5"
    out = "t5"
    index = "marked-index"
    held_out = "marked-held-out"
    objectives = [{kind = "spans", weight = 2}, {kind = "prefix"}, {kind = "denoising"}, {kind = "continuation"}]
    [t5]
    hidden_size = 16
    layers = 2
    heads = 2
    dropout = 0.1
    [training]
    steps = 40
    batch_tokens = 256
    learning_rate = 0.02
    warmup_steps = 3
    decay_steps = 8
    evaluate_every = 15
    checkpoint_every = 10
"#;

/// A workplace whose index knows the tokens that T5's objectives need.
fn workplace_of_t5() -> tempfile::TempDir {
    let place = workplace();
    let dir = place.path();
    let special: String = (0..8).map(|i| format!(" --special <extra_id_{i}>")).collect();
    succeed(
        dir,
        &format!("tokenizer train corpus.jsonl --vocab-size 320{special} --special [CLM] --out marked.json"),
    );
    succeed(dir, &format!("{} --out marked-index", BUILD.replace("tokenizer.json", "marked.json")));
    succeed(dir, "neighbours marked-index --queries held.jsonl -k 1 --out marked-held-out");
    fs::write(dir.join("t5.toml"), T5).unwrap();
    place
}

#[test]
fn an_encoder_decoder_learns_from_scratch_and_goes_on_from_itself() {
    let place = workplace_of_t5();
    let dir = place.path();
    let report = succeed(dir, "train t5.toml");
    check_run(dir, &report, "t5", 40);
    assert_eq!(report["trained_parameters"], report["parameters"]);
    // What it writes can be generated, and it is a base.
    succeed(dir, "generate t5/model river --max-tokens 5");
    let half = succeed(dir, "train t5.toml --set out=half --set training.precision=bf16");
    let loss = |report: &Value| report["held_out_loss"].as_f64().unwrap();
    assert!((loss(&half) - loss(&report)).abs() < 0.2, "{half} {report}");
    assert!(weights(&dir.join("half")).len() < weights(&dir.join("t5")).len() * 6 / 10);
    succeed(dir, "generate half/model river --max-tokens 5");
    let text = T5.split("[t5]").next().unwrap().to_string() + "base = \"t5/model\"\n[training]\nsteps = 4\n";
    fs::write(dir.join("on.toml"), text).unwrap();
    let on = succeed(dir, "train on.toml --set out=on");
    assert!(loss(&on) < loss(&report) + 0.3, "{on}");
    for (setting, words) in [
        ("objectives=[]", &["objectives", "spans"][..]),
        ("objectives=[{kind=\"causal\"}]", &["objectives"]),
        ("t5.dropout=1.0", &["t5.dropout"]),
        ("t5.heads=0", &["num_heads"]),
        ("base=t5/model", &["t5", "base"]),
        ("index=index --set held_out=held-out", &["token", "extra_id"]),
        ("kind=lm", &["t5"]),
    ] {
        let said = fail(dir, &format!("train t5.toml --set out=failed --set {setting}"));
        assert!(words.iter().all(|word| said.contains(word)), "{setting}: {said}");
    }
}

#[test]
fn an_encoder_decoders_run_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace_of_t5();
    killed_and_resumed(place.path(), "t5.toml", &mut ChaCha8Rng::seed_from_u64(4));
}

/// Three processes with a batch each take the steps of one with three batches, to the last bit.
#[test]
fn processes_that_train_together_are_one_that_reads_as_much() {
    let place = workplace();
    let dir = place.path();
    let alone = succeed(dir, "train plain.toml --set training.accumulate=3 --set out=alone");
    let report = together(dir, "train plain.toml --set out=together", 3);
    assert_eq!((&report["steps"], &report["tokens"]), (&alone["steps"], &alone["tokens"]));
    assert!(weights(&dir.join("together")) == weights(&dir.join("alone")));
    let said = fail(dir, "train plain.toml --set out=x --together 127.0.0.1:0 --rank 3 --of 3");
    assert!(said.contains("--rank"), "{said}");
}

/// Those that would not train one model, or not go on with the one that was begun, are told.
#[test]
fn processes_and_runs_that_differ_are_refused() {
    let place = workplace();
    let dir = place.path();
    let address = free_address();
    for different in
        ["training.seed=5", "held_out=neighbours", "continue_from=plain/checkpoints/step-0000010"]
    {
        let process = |rank: usize, more: &str| {
            sidenote(
                dir,
                &format!("train plain.toml --set out=apart --together {address} --rank {rank} --of 2 {more}"),
            )
        };
        let other = process(1, &format!("--set {different}")).spawn().unwrap();
        let first = process(0, "").output().unwrap();
        for output in [first, other.wait_with_output().unwrap()] {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains("different settings"), "{different}: {said}");
        }
        assert!(!dir.join("apart").exists());
    }
    let report = succeed(dir, "train plain.toml --set training.checkpoint_every=10");
    let steps = report["steps"].as_u64().unwrap();
    fs::remove_dir_all(dir.join("plain/model")).unwrap();
    let build = BUILD.replace("corpus.jsonl", "held.jsonl");
    succeed(dir, &format!("{build} --out other-text"));
    let said =
        fail(dir, "train plain.toml --resume --set training.checkpoint_every=10 --set index=other-text");
    assert!(said.contains("index") && said.contains("continue_from"), "{said}");
    // Nor may anything come or go.
    let inputs = dir.join("plain/inputs.json");
    let text = fs::read_to_string(&inputs).unwrap();
    for (changed, wanted) in [
        (text.replacen("\"index\":", "\"pairs\": \"7\", \"index\":", 1), "pairs: was there when"),
        (text.replacen("\"index\":", "\"pairs\":", 1), "index: was not there when"),
    ] {
        fs::write(&inputs, changed).unwrap();
        let said = fail(dir, "train plain.toml --resume --set training.checkpoint_every=10");
        assert!(said.contains(wanted), "{said}");
    }
    fs::write(&inputs, text).unwrap();
    fs::rename(dir.join("index"), dir.join("moved")).unwrap();
    succeed(dir, "train plain.toml --resume --set training.checkpoint_every=10 --set index=moved");
    fs::rename(dir.join("moved"), dir.join("index")).unwrap();
    let on = "--set continue_from=plain/checkpoints/step-0000030 --set training.steps=30 --set out=on";
    let said = fail(dir, &format!("train plain.toml {on}"));
    assert!(steps > 30 && said.contains("training.steps") && said.contains("step 30"), "{said}");
}

/// Computing activations again changes how much memory a run takes, and nothing else.
#[test]
fn a_run_that_computes_activations_again_learns_the_same() {
    let place = workplace();
    let dir = place.path();
    for run in ["plain.toml", "retro.toml"] {
        let kept = succeed(dir, &format!("train {run}"));
        let again = succeed(dir, &format!("train {run} --set out=again-{run} --set training.recompute=1"));
        let loss = |report: &Value| report["held_out_loss"].as_f64().unwrap();
        assert!((loss(&kept) - loss(&again)).abs() < 1e-3, "{kept} {again}");
    }
}

const RETRIEVER: &str = r#"
    kind = "retriever"
    out = "retriever"
    index = "index"
    held_out = "held-pairs.jsonl"
    base = "bert"
    [retriever]
    batch = 6
    [training]
    steps = 30
    learning_rate = 0.003
    evaluate_every = 10
    checkpoint_every = 10
"#;

/// A workplace with an encoder of BERT's kind, and pairs: two sentences about the same of two things.
fn workplace_of_retriever() -> tempfile::TempDir {
    let place = workplace();
    let dir = place.path();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder/bert_mean");
    fs::create_dir_all(dir.join("bert/1_Pooling")).unwrap();
    for file in
        ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"]
    {
        fs::copy(data.join(file), dir.join("bert").join(file)).unwrap();
    }
    let pair = |i: usize| {
        let (a, b) = [
            ("the moon", "the Earth and its moon"),
            ("a king", "the king in his castle"),
            ("April", "a month"),
        ][i % 3];
        json!({"query": a, "positive": b, "negatives": ["a line of a b c"]})
    };
    write_lines(&dir.join("pairs.jsonl"), &(0..24).map(pair).collect::<Vec<_>>());
    write_lines(&dir.join("held-pairs.jsonl"), &(0..12).map(pair).collect::<Vec<_>>());
    fs::write(dir.join("retriever.toml"), RETRIEVER).unwrap();
    place
}

#[test]
fn an_encoder_learns_from_pairs_and_from_crops_and_is_used_like_any_other() {
    let place = workplace_of_retriever();
    let dir = place.path();
    let pairs = "--set index= --set pairs=pairs.jsonl --set out=paired";
    for (out, settings) in [("retriever", ""), ("paired", pairs)] {
        let report = succeed(dir, &format!("train retriever.toml {settings}"));
        assert_eq!(report["skipped_steps"], 0, "{report}");
        let losses: Vec<f64> =
            metrics(&dir.join(out)).iter().filter_map(|m| m["held_out_loss"].as_f64()).collect();
        assert!(losses.len() == 3 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        if out == "paired" {
            assert!(losses[2] < losses[0], "{losses:?}");
        }
        let before = tensors(&fs::read(dir.join("bert/model.safetensors")).unwrap());
        let after = tensors(&weights(&dir.join(out)));
        assert!(before.keys().eq(after.keys()) && before != after);
        let build = BUILD.replace("--encoder encoder", &format!("--encoder {out}/model"));
        succeed(dir, &format!("{build} --out by-{out}"));
    }
    for (setting, word) in [
        ("retriever.batch=1", "retriever.batch"),
        ("retriever.batch=1000", "retriever.batch"),
        ("retriever.temperature=0", "retriever.temperature"),
        ("retriever.queue=1000", "retriever.queue"),
        ("retriever.queue=4 --set retriever.symmetric=true", "symmetric"),
        ("retriever.momentum=1", "retriever.momentum"),
        ("retriever.learn_temperature=true --set training.precision=bf16", "learn_temperature"),
        ("base=nowhere", "nowhere"),
        ("pairs=corpus.jsonl", "line 1"),
        ("index=", "index"),
        ("kind=lm", "retriever"),
    ] {
        let said = fail(dir, &format!("train retriever.toml --set out=failed --set {setting}"));
        assert!(said.contains(word), "{setting}: {said}");
    }
    // What was deleted is not learnt from.
    let too_many = "train retriever.toml --set out=failed --set retriever.batch=1000";
    let all = fail(dir, too_many);
    succeed(dir, "index delete index d0 d1");
    let less = fail(dir, too_many);
    let texts = |said: &str| -> usize {
        let (_, after) = said.split_once("only ").expect("how many there are");
        after.split(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(texts(&less) + 2, texts(&all), "{less}");
}

#[test]
fn a_retrievers_run_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace_of_retriever();
    killed_and_resumed(place.path(), "retriever.toml", &mut ChaCha8Rng::seed_from_u64(5));
}

/// So do the encoder that follows, the keys in its queue, and a temperature that is learnt.
#[test]
fn a_retrievers_run_with_a_queue_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace_of_retriever();
    let dir = place.path();
    let queued = "batch = 6\n    queue = 10\n    momentum = 0.9\n    learn_temperature = true";
    fs::write(dir.join("queued.toml"), RETRIEVER.replace("batch = 6", queued)).unwrap();
    killed_and_resumed(dir, "queued.toml", &mut ChaCha8Rng::seed_from_u64(6));
    // What is in the queue makes a difference, and what keeps the temperature learnt is not part of the encoder.
    let pairs = "--set index= --set pairs=pairs.jsonl --set retriever.queue=0";
    let losses = |out: &str| -> Vec<f64> {
        metrics(&dir.join(out)).iter().filter_map(|m| m["held_out_loss"].as_f64()).collect()
    };
    let report = succeed(dir, &format!("train queued.toml {pairs} --set out=learnt"));
    succeed(
        dir,
        &format!("train queued.toml {pairs} --set out=fixed --set retriever.learn_temperature=false"),
    );
    assert_ne!(losses("learnt"), losses("fixed"));
    assert_eq!(report["trained_parameters"].as_u64().unwrap(), report["parameters"].as_u64().unwrap() + 1);
    let names = tensors(&weights(&dir.join("learnt")));
    assert!(names.keys().all(|name| name != "log_scale"));
    succeed(dir, &format!("train queued.toml {pairs} --set out=queued-pairs --set retriever.queue=10"));
    assert_ne!(losses("learnt"), losses("queued-pairs"));
    assert!(losses("queued-pairs")[2] < losses("queued-pairs")[0], "{:?}", losses("queued-pairs"));
}

/// Batches by words are found again, and so is who saw whom.
#[test]
fn a_run_with_memories_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    let toml = format!("{PLAIN}[trime]\nmemory = \"external\"\nlocal_rate = 0.5\n");
    fs::write(place.path().join("trime.toml"), toml).unwrap();
    killed_and_resumed(place.path(), "trime.toml", &mut ChaCha8Rng::seed_from_u64(3));
}

#[test]
fn a_retro_run_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    succeed(place.path(), "train plain.toml");
    killed_and_resumed(place.path(), "retro.toml", &mut ChaCha8Rng::seed_from_u64(2));
}

/// Its layers, which start by copying, learn at a rate of their own.
#[test]
fn a_retro_run_from_scratch_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    write_scratch(place.path());
    killed_and_resumed(place.path(), "scratch.toml", &mut ChaCha8Rng::seed_from_u64(9));
}

/// Everything that a run can be told to do otherwise.
const OTHERWISE: &str = r#"
    objectives = [
        {kind = "causal"},
        {kind = "infilling", weight = 2, level = "document"},
        {kind = "spans", weight = 0.5},
        {kind = "prefix"},
        {kind = "denoising"},
        {kind = "continuation"},
    ]
    [training]
    optimiser = "adafactor"
    schedule = "cosine"
    final_rate = 0.1
    accumulate = 3
    keep_checkpoints = 1
"#;

#[test]
fn a_run_with_other_objectives_and_optimiser_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    let dir = place.path();
    let special =
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<extra_id_0>", "<extra_id_1>", "[CLM]"];
    let special: String = special.iter().map(|name| format!(" --special {name}")).collect();
    succeed(dir, &format!("tokenizer train corpus.jsonl --vocab-size 310 --out tokenizer.json{special}"));
    succeed(dir, &format!("{BUILD} --out index --force"));
    succeed(dir, "neighbours index --queries held.jsonl -k 2 --out held-out --force");
    let (objectives, training) = OTHERWISE.split_once("[training]").unwrap();
    let text = PLAIN.replace("[model]", &format!("{objectives}[model]"));
    let text = text.replace("[training]", &format!("[training]{training}")).replace("decay_steps = 8", "");
    fs::write(dir.join("otherwise.toml"), text).unwrap();
    killed_and_resumed(dir, "otherwise.toml", &mut ChaCha8Rng::seed_from_u64(5));
    // The checkpoint with the lowest held-out loss is kept, beside the last.
    let run = dir.join("broken");
    let held_out = |line: &Value| Some((line["held_out_loss"].as_f64()?, line["step"].as_u64()?));
    let measured: Vec<(f64, u64)> = metrics(&run).iter().filter_map(held_out).collect();
    let best = measured.iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
    let last = measured.last().unwrap().1;
    let kept = run.join(format!("checkpoints/step-{best:07}"));
    assert!(best == last || kept.is_dir(), "{} is gone", kept.display());
    let kept = fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert!(kept <= 2 + 2, "{kept} checkpoints, two of them left by a crash");
    let events = fs::read_dir(&run).unwrap().flatten();
    let events =
        events.filter(|entry| entry.file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert_eq!(events.count(), 1);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_the_step_and_a_longer_run_goes_on_from_it() {
    let place = workplace();
    let dir = place.path();
    let settings = "--set training.steps=200 --set training.checkpoint_every=5";
    succeed(dir, &format!("train plain.toml {settings} --set out=whole"));
    let child = sidenote(dir, &format!("train plain.toml {settings} --quiet")).spawn().unwrap();
    while !dir.join("plain/checkpoints/step-0000005").exists() {
        std::thread::sleep(Duration::from_micros(200));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let said = common::said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted") && said.contains("--resume"), "{said}");
    assert!(output.stdout.is_empty());
    succeed(dir, &format!("train plain.toml {settings} --resume"));
    assert!(weights(&dir.join("plain")) == weights(&dir.join("whole")));

    // The checkpoint from which the learning rate falls stays, for a run that goes on from there.
    let from = "whole/checkpoints/step-0000192";
    let longer = format!("train plain.toml --set training.steps=210 --set continue_from={from}");
    assert_eq!(succeed(dir, &format!("{longer} --set out=longer"))["steps"], 210);
    assert!(weights(&dir.join("longer")) != weights(&dir.join("whole")));
}

#[test]
fn a_seed_decides_every_byte() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml");
    write_scratch(dir);
    let scratch = format!("scratch.toml {FROM_SCRATCH}");
    let random = "retro.toml --set retro.initialisation=random";
    for (kind, config) in
        [("plain", "plain.toml"), ("copy", "retro.toml"), ("random", random), ("scratch", &scratch)]
    {
        let train = |seed: u32, threads: &str| {
            let out = format!("{kind}-{seed}-{threads}");
            let arguments = format!(
                "train {config} --set training.steps=6 --set training.warmup_steps=0 --set training.decay_steps=0 \
                 --set training.seed={seed} --set out={out}"
            );
            let mut command = sidenote(dir, &arguments);
            command.env("RAYON_NUM_THREADS", threads);
            json_of(command);
            weights(&dir.join(out))
        };
        let first = train(1, "2");
        assert!(first == train(1, "1"), "{kind}: the same seed, other bytes");
        assert!(first != train(2, "2"), "{kind}: another seed, the same bytes");
    }
}

#[test]
fn generation_writes_the_text_and_nothing_else() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml");
    succeed(dir, "train retro.toml");
    const PROMPT: &str = "river bridge boat water river stone boat water fish river boat";
    let generate = |arguments: &str| {
        let mut command = sidenote(dir, &format!("generate {arguments} --max-tokens 24"));
        command.arg(PROMPT);
        command
    };
    for model in ["plain/model", "retro/model", "retro/model --index index"] {
        let text = text_of(generate(model));
        assert_eq!(text, text_of(generate(model)), "{model}: temperature 0 leaves nothing to chance");
        let report = json_of(generate(model));
        assert_eq!(format!("{}\n", report["text"].as_str().unwrap()), text, "{model}");
        assert_eq!(report["prompt"], PROMPT);
        assert!((1..=24).contains(&report["tokens"].as_u64().unwrap()), "{model}: {report}");
        // The prompt alone is longer than one chunk.
        let retrievals = report["retrievals"].as_u64().unwrap();
        assert_eq!(retrievals > 0, model.contains("--index"), "{model}: {retrievals}");
        // Progress, if any, is not on stdout.
        let loud = generate(model).output().unwrap();
        assert_eq!(String::from_utf8(loud.stdout).unwrap(), text, "{model}");

        let sampled = |seed: u32| text_of(generate(&format!("{model} --temperature 1 --seed {seed}")));
        assert_eq!(sampled(1), sampled(1), "{model}");
        assert!((2..6).any(|seed| sampled(seed) != sampled(1)), "{model}: no seed makes a difference");
    }
    // Without an index RETRO is its base.
    assert_eq!(text_of(generate("retro/model")), text_of(generate("plain/model")));
    let none = text_of(sidenote(dir, "generate plain/model river --max-tokens 0"));
    assert_eq!(none, "\n");
    // The model's positions end a text, too.
    let long = succeed(dir, "generate plain/model river --max-tokens 500 --temperature 3");
    assert!(long["tokens"].as_u64().unwrap() < 64, "{long}");
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_the_name_of_the_setting() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml --set training.steps=12");
    write_scratch(dir);
    fs::write(dir.join("typing-error.toml"), RETRO.replace("head_dim", "head_dmi")).unwrap();
    fs::write(dir.join("not.toml"), "kind = lm").unwrap();
    // A model where a checkpoint should be.
    fs::create_dir(dir.join("step-0000007")).unwrap();
    for file in fs::read_dir(dir.join("plain/model")).unwrap().flatten() {
        fs::copy(file.path(), dir.join("step-0000007").join(file.file_name())).unwrap();
    }
    for (arguments, words) in [
        ("typing-error.toml", &["typing-error.toml", "head_dmi"][..]),
        ("not.toml", &["not.toml"]),
        ("nowhere.toml", &["nowhere.toml"]),
        ("plain.toml --set training.stepz=3", &["plain.toml", "stepz"]),
        ("plain.toml --set training.steps=many", &["plain.toml", "steps"]),
        ("plain.toml --set training.steps=0", &["training.steps"]),
        ("plain.toml --set training.batch_tokens=0", &["training.batch_tokens"]),
        ("plain.toml --set training.warmup_steps=39", &["training.warmup_steps"]),
        ("plain.toml --set training.learning_rate=nan", &["training.learning_rate"]),
        ("plain.toml --set training.clip=0", &["training.clip"]),
        ("plain.toml --set training.chunks=9", &["training.chunks", "64"]),
        ("plain.toml --set kind=gru", &["gru"]),
        ("plain.toml --set model.heads=3", &["num_attention_heads"]),
        ("plain.toml --set model.hidden_size=0", &["hidden_size"]),
        ("plain.toml --set base=plain/model", &["kind", "retrofit"]),
        ("plain.toml --set neighbours=neighbours", &["kind", "neighbours"]),
        ("plain.toml --set index=nowhere", &["nowhere"]),
        ("plain.toml --set index=neighbours", &["neighbours", "corpus-index"]),
        ("plain.toml --set held_out=nowhere", &["nowhere"]),
        ("plain.toml --set held_out=neighbours", &["neighbours", "--queries"]),
        ("plain.toml --set continue_from=nowhere", &["nowhere"]),
        ("plain.toml --set continue_from=plain/model", &["continue_from", "step-0000100"]),
        ("plain.toml --set continue_from=step-0000007", &["step-0000007", "optimizer.safetensors"]),
        ("scratch.toml --set base=plain/model", &["base", "retrofit"]),
        ("scratch.toml --set base=plain/model --set kind=retrofit", &["model: ", "base"]),
        ("retro.toml --set kind=retro", &["base", "retrofit"]),
        ("retro.toml --set retro.gate=maybe", &["retro.toml", "gate"]),
        ("retro.toml --set base=nowhere", &["nowhere"]),
        ("retro.toml --set neighbours=nowhere", &["nowhere"]),
        ("retro.toml --set neighbours=index", &["index", "neighbours"]),
        ("retro.toml --set retro.layers=[3]", &["retro.layers"]),
        ("retro.toml --set retro.layers=[]", &["retro.layers"]),
        ("retro.toml --set retro.encoder_hidden_size=16", &["retro.encoder_hidden_size", "copy"]),
        ("retro.toml --set retro.encoder_hidden_size=33", &["retro.encoder_hidden_size"]),
        ("retro.toml --set retro.head_dim=4", &["retro.head_dim", "copy"]),
        ("retro.toml --set retro.initialisation=zero", &["retro.toml", "zero"]),
        ("retro.toml --set retro.neighbours=3", &["retro.neighbours", "3", "2"]),
        ("retro.toml --set retro.neighbours=0", &["retro.neighbours"]),
        ("retro.toml --set training.chunks=1", &["training.chunks"]),
        ("retro.toml --set continue_from=plain/checkpoints/step-0000010", &["step-0000010", "RETRO"]),
    ] {
        let said = fail(dir, &format!("train {arguments} --set out=failed"));
        for word in words {
            assert!(said.contains(word), "{arguments}: no {word:?} in: {said}");
        }
        assert!(!dir.join("failed/model").exists(), "{arguments}");
    }
    assert!(fail(dir, "train retro.toml --set out").contains("key=value"));
    // A base that is a RETRO model already.
    succeed(dir, "train retro.toml --set training.steps=2");
    let said = fail(dir, "train retro.toml --set base=retro/model --set out=failed");
    assert!(said.contains("retro/model") && said.contains("plain model"), "{said}");
}

#[test]
fn pieces_that_do_not_belong_together_are_both_named() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml --set training.steps=12");
    succeed(dir, "train retro.toml --set training.steps=2");
    let index = succeed(dir, "index info index");
    let text_of = |value: &Value| value.as_str().unwrap().to_string();

    // Neighbours found in another index.
    write_lines(&dir.join("corpus.jsonl"), &documents(0..50));
    let other = text_of(&succeed(dir, &format!("{BUILD} --out other"))["identity"]);
    let said = fail(dir, "train retro.toml --set index=other --set out=failed");
    assert!(said.contains(&other) && said.contains(&text_of(&index["identity"])), "{said}");
    assert!(said.contains("do not match") && said.contains("neighbours"), "{said}");

    // An index of another tokenizer.
    succeed(dir, "tokenizer train held.jsonl --vocab-size 280 --out tokenizer.json");
    let built = succeed(dir, &format!("{BUILD} --out foreign"));
    succeed(dir, "neighbours foreign -k 2 --out foreign-neighbours");
    let foreign = "--set index=foreign --set neighbours=foreign-neighbours --set held_out=foreign-neighbours";
    for command in [
        &format!("train retro.toml {foreign} --set out=failed") as &str,
        "eval perplexity plain/model --corpus held.jsonl --index foreign",
        "eval perplexity retro/model --corpus held.jsonl --index foreign",
        "generate retro/model river --index foreign",
    ] {
        let said = fail(dir, command);
        assert!(said.contains("tokenizers do not match"), "{command}: {said}");
        for tokenizer in [&index["tokenizer"], &built["tokenizer"]] {
            assert!(said.contains(&text_of(tokenizer)), "{command}: {said}");
        }
    }

    // An index cut into other chunks.
    fs::copy(dir.join("retro/model/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    succeed(dir, &format!("{} --out longer", BUILD.replace("--chunk-tokens 8", "--chunk-tokens 9")));
    let said = fail(dir, "generate retro/model river --index longer");
    assert!(said.contains("chunk sizes do not match") && said.contains("--chunk-tokens 8"), "{said}");
    // A model that reads without anything to read, and one that cannot read.
    let said = fail(dir, "eval perplexity retro/model --corpus held.jsonl");
    assert!(said.contains("--index") && said.contains("--retrieval off"), "{said}");
    let said = fail(dir, "generate plain/model river --index index");
    assert!(said.contains("plain/model") && said.contains("--index"), "{said}");
}

#[test]
fn damaged_models_and_runs_are_told_by_file() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml --set training.steps=12 --set training.checkpoint_every=5");
    assert!(fail(dir, "train plain.toml").contains("plain/model: this run is finished"));
    assert!(fail(dir, "train plain.toml --resume").contains("plain/model: this run is finished"));
    assert!(succeed(dir, "generate plain/model river")["text"].is_string());

    let model = dir.join("plain/model");
    let sound = weights(&dir.join("plain"));
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    // Beside its manifest, a model is read only if no bit of it has changed.
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = model.join(file);
        let before = fs::read(&path).unwrap();
        let mut flipped = before.clone();
        flipped[before.len() / 2] ^= 1;
        fs::write(&path, flipped).unwrap();
        let said = fail(dir, "generate plain/model river");
        assert!(said.contains(file), "{said}");
        fs::write(&path, before).unwrap();
    }
    // A model from elsewhere has none.
    fs::remove_file(model.join("manifest.json")).unwrap();
    let mut fewer = tensors(&sound);
    fewer.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    let views = fewer.iter().map(|(name, (shape, data))| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.clone(), view.unwrap())
    });
    let fewer = safetensors::serialize(views, None).unwrap();
    let damages: [(&str, Option<&[u8]>, &str); 13] = [
        ("config.json", None, "config.json"),
        ("config.json", Some(b"{"), "config.json"),
        ("config.json", Some(&config.as_bytes()[..config.len() / 2]), "config.json"),
        ("config.json", Some(br#"{"model_type": "mamba"}"#), "mamba"),
        ("config.json", Some(br#"{"model_type": "llama"}"#), "vocab_size"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", Some(b"{}"), "tokenizer.json"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", Some(b""), "model.safetensors"),
        ("model.safetensors", Some(&sound[..7]), "model.safetensors"),
        ("model.safetensors", Some(&sound[..100]), "model.safetensors"),
        ("model.safetensors", Some(&sound[..sound.len() - 4]), "model.safetensors"),
        ("model.safetensors", Some(&fewer), "model.layers.1.mlp.up_proj.weight"),
    ];
    for (number, (file, content, word)) in damages.into_iter().enumerate() {
        let path = model.join(file);
        let before = fs::read(&path).unwrap();
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        for command in [
            "generate plain/model river",
            "eval perplexity plain/model --corpus held.jsonl",
            "train retro.toml --set out=failed",
        ] {
            let said = fail(dir, command);
            assert!(said.contains(word) && said.contains("plain/model"), "{number}, {command}: {said}");
        }
        fs::write(&path, before).unwrap();
    }
    // Weights of another shape than the configuration's.
    fs::write(model.join("config.json"), config.replace("\"hidden_size\": 16", "\"hidden_size\": 32"))
        .unwrap();
    let said = fail(dir, "generate plain/model river");
    assert!(said.contains("model.safetensors") && said.contains("model.embed_tokens.weight"), "{said}");
    fs::write(model.join("config.json"), config).unwrap();
    succeed(dir, "generate plain/model river");
    assert!(fail(dir, "generate nowhere river").contains("nowhere"));

    // A run that was stopped, and whose newest checkpoint is damaged.
    fs::rename(&model, dir.join("finished")).unwrap();
    let said = fail(dir, "train plain.toml --set training.steps=12");
    assert!(said.contains("plain: ") && said.contains("--resume"), "{said}");
    let said = fail(dir, "train plain.toml --set training.steps=12 --set training.seed=9 --resume");
    assert!(said.contains("plain/config.toml") && said.contains("other settings"), "{said}");
    let newest = dir.join("plain/checkpoints/step-0000010");
    for (file, keep) in
        [("optimizer.safetensors", 200), ("optimizer.safetensors", 0), ("model.safetensors", 200)]
    {
        let before = fs::read(newest.join(file)).unwrap();
        fs::write(newest.join(file), &before[..keep]).unwrap();
        let said = fail(dir, "train plain.toml --set training.steps=12 --resume");
        assert!(said.contains("step-0000010") && said.contains(file), "{said}");
        fs::write(newest.join(file), before).unwrap();
    }
    succeed(dir, "train plain.toml --set training.steps=12 --set training.checkpoint_every=5 --resume");
    assert!(weights(&dir.join("plain")) == sound);
}

#[test]
fn what_cannot_be_generated_or_measured_is_said() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "train plain.toml --set training.steps=12");
    let mut empty = sidenote(dir, "generate plain/model");
    empty.arg("");
    assert!(failure_of(empty, 1).contains("prompt"));
    for temperature in ["NaN", "-1", "-inf"] {
        let said = fail(dir, &format!("generate plain/model river --temperature={temperature}"));
        assert!(said.contains("temperature"), "{said}");
    }
    let mut long = sidenote(dir, "generate plain/model");
    long.arg("river ".repeat(200));
    let said = failure_of(long, 1);
    assert!(said.contains("prompt") && said.contains("64"), "{said}");
    fs::write(dir.join("empty.txt"), "").unwrap();
    for corpus in ["nowhere.jsonl", "empty.txt"] {
        assert!(fail(dir, &format!("eval perplexity plain/model --corpus {corpus}")).contains(corpus));
    }
    let said = fail(dir, "eval perplexity plain/model --corpus held.jsonl --index nowhere");
    assert!(said.contains("nowhere"), "{said}");
    for usage in [
        "train",
        "train plain.toml --set",
        "generate plain/model",
        "generate plain/model river --temperature warm",
        "generate plain/model river --max-tokens -3",
        "eval perplexity plain/model",
        "eval perplexity plain/model --corpus held.jsonl --retrieval maybe",
    ] {
        failure_of(sidenote(dir, usage), 2);
    }
}
