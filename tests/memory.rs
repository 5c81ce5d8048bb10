//! Token-level memories through the program: made, tuned, read, damaged.

mod common;
mod tiny;

use std::fs;
use std::path::Path;

use common::{fail, failure_of, sidenote, succeed, write_lines};
use serde_json::Value;

const TOPICS: [&[&str]; 2] = [
    &["river", "bridge", "boat", "water", "fish", "stone"],
    &["honey", "bee", "hive", "flower", "wax", "queen"],
];

const PLAIN: &str = r#"
    kind = "lm"
    out = "plain"
    index = "index"
    [model]
    hidden_size = 16
    layers = 2
    heads = 2
    max_positions = 64
    [training]
    steps = 30
    batch_tokens = 256
    learning_rate = 0.02
"#;

fn documents(numbers: std::ops::Range<usize>) -> Vec<Value> {
    common::documents(&TOPICS, numbers)
}

fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    tiny::write_encoder(&dir.join("encoder"), &TOPICS);
    write_lines(&dir.join("corpus.jsonl"), &documents(0..60));
    write_lines(&dir.join("valid.jsonl"), &documents(100..112));
    write_lines(&dir.join("held.jsonl"), &documents(200..212));
    succeed(dir, "tokenizer train corpus.jsonl --vocab-size 300 --out tokenizer.json");
    succeed(
        dir,
        "index build corpus.jsonl --encoder encoder --tokenizer tokenizer.json --chunk-tokens 8 --out index",
    );
    fs::write(dir.join("plain.toml"), PLAIN).unwrap();
    succeed(dir, "train plain.toml");
    place
}

fn loss(dir: &Path, corpus: &str, options: &str) -> f64 {
    let report = succeed(dir, &format!("eval perplexity plain/model --corpus {corpus} {options}"));
    report["perplexity"].as_f64().unwrap().ln()
}

#[test]
fn a_memory_makes_what_was_read_likelier_and_says_nothing_at_a_share_of_nothing() {
    let place = workplace();
    let dir = place.path();
    let built = succeed(dir, "memory build plain/model --corpus corpus.jsonl --out memory");
    let of_index = succeed(dir, "memory build plain/model --text-of index --out again");
    assert_eq!(built["entries"], of_index["entries"]);
    assert!(built["entries"].as_u64().unwrap() > 1000 && built["index"] == "Flat", "{built}");
    assert_eq!(succeed(dir, "memory verify memory")["sound"], true);

    let alone = loss(dir, "held.jsonl", "");
    for nothing in ["--memory memory --lambda 0", "--cache 50 --cache-lambda 0"] {
        assert!((loss(dir, "held.jsonl", nothing) - alone).abs() < 1e-5, "{nothing}");
    }
    // Its own text is found word for word, and what a document has said already comes again.
    let own = loss(dir, "corpus.jsonl", "--memory memory --lambda 0.5 --temperature 0.1 -k 4");
    assert!(own < loss(dir, "corpus.jsonl", "") - 0.3, "{own}");
    let cached = loss(dir, "held.jsonl", "--cache 50 --cache-lambda 0.2");
    assert!(cached < alone, "{cached} {alone}");

    let before = loss(dir, "valid.jsonl", "--memory memory");
    let tuned = succeed(dir, "memory tune memory plain/model --corpus valid.jsonl --adaptive -k 32");
    assert!((tuned["loss_before"].as_f64().unwrap() - before).abs() < 1e-5, "{tuned}");
    let after = loss(dir, "valid.jsonl", "--memory memory");
    assert!((tuned["loss_after"].as_f64().unwrap() - after).abs() < 1e-5, "{tuned} {after}");
    assert!(after < before && after < loss(dir, "valid.jsonl", ""), "{after} {before}");
    assert!(loss(dir, "held.jsonl", "--memory memory") < alone);
    let kept = succeed(dir, "memory info memory");
    assert_eq!(kept["interpolation"], tuned["interpolation"]);
    // One share for all does no better here, and what is better stays.
    let again = succeed(dir, "memory tune memory plain/model --corpus valid.jsonl -k 4");
    assert!(again["better"] == false && again["loss_after"] == again["loss_before"], "{again}");
    assert_eq!(succeed(dir, "memory info memory")["interpolation"], kept["interpolation"]);
    // Most contexts of this small language were read before, so that few distances tell them apart.
    assert!(!kept["interpolation"]["edges"].as_array().unwrap().is_empty(), "{kept}");
    assert_eq!(succeed(dir, "memory verify memory")["sound"], true);

    // What was deleted is not remembered.
    write_lines(&dir.join("rest.jsonl"), &documents(2..60));
    let rest = succeed(dir, "memory build plain/model --corpus rest.jsonl --out rest");
    succeed(dir, "index delete index d0 d1");
    let of_index = succeed(dir, "memory build plain/model --text-of index --out less");
    assert_eq!(of_index["entries"], rest["entries"]);
    assert!(rest["entries"].as_u64() < built["entries"].as_u64(), "{rest}");
}

/// A model trained with a memory predicts better with it than without, whichever memory it is; and better than one that
/// was not trained so does with the same memory.
#[test]
fn a_model_trained_with_memories_makes_use_of_them() {
    let place = workplace();
    let dir = place.path();
    let measure = |model: &str, options: &str| {
        let report = succeed(dir, &format!("eval perplexity {model} --corpus held.jsonl {options}"));
        report["perplexity"].as_f64().unwrap().ln()
    };
    succeed(dir, "neighbours index --queries held.jsonl -k 2 --out held-out");
    for kind in ["local", "long", "external"] {
        let toml = format!("{PLAIN}[trime]\nmemory = \"{kind}\"\n");
        fs::write(dir.join(format!("{kind}.toml")), toml).unwrap();
        let settings = format!("--set out={kind} --set training.steps=60 --set held_out=held-out");
        let report = succeed(dir, &format!("train {kind}.toml {settings}"));
        let model = format!("{kind}/model");
        // While it is trained it is measured with the memory that a sequence is to it: four chunks of eight.
        let held_out = report["held_out_loss"].as_f64().unwrap();
        let asked = measure(&model, "");
        assert!((held_out - asked).abs() < 1e-5, "{kind}: {held_out}, not {asked}");
        assert_eq!(asked, measure(&model, "--trime 32"), "{kind}");
        let written = sidenote(dir, &format!("generate {model} river --max-tokens 2")).output().unwrap();
        assert!(written.status.success() && common::said(&written).contains("32 contexts"), "{written:?}");
        let mut options = "--trime 40".to_string();
        if kind == "external" {
            succeed(dir, &format!("memory build {model} --text-of index --out of-external"));
            let window = measure(&model, &options);
            options += " --memory of-external";
            let untuned = measure(&model, &options);
            let tuned = succeed(
                dir,
                &format!("memory tune of-external {model} --corpus held.jsonl --trime 40 -k 32"),
            );
            let loss = |name: &str| tuned[name].as_f64().unwrap();
            // What it was tuned beside, and what it came to, is what the text is then scored with.
            assert!(
                (loss("loss_without") - window).abs() < 1e-6 && (loss("loss_before") - untuned).abs() < 1e-6
            );
            assert!((loss("loss_after") - measure(&model, &options)).abs() < 1e-6);
            assert!(loss("loss_after") < window, "{tuned}");
        }
        let (with, without) = (measure(&model, &options), measure(&model, "--trime 0"));
        assert!(with < without, "{kind}: {with} with, {without} without");
        let untrained = measure("plain/model", "--trime 40");
        assert!(with < untrained, "{kind}: {with}, {untrained} untrained");
    }
    // A model that was not trained so is asked without.
    assert_eq!(measure("plain/model", ""), measure("plain/model", "--trime 0"));
    for (setting, name) in [("trime.memory=distant", "distant"), ("trime.local_rate=2", "local_rate")] {
        assert!(fail(dir, &format!("train local.toml --set out=x --set {setting}")).contains(name));
    }
}

/// Fails where writing looks at other contexts than scoring does, or mixes otherwise.
#[test]
fn texts_are_written_as_they_are_scored() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "memory build plain/model --corpus corpus.jsonl --out memory");
    // What two documents say after their first word. A choice that is the beginning of another counts with its end, as a
    // document does.
    let choices = [" bridge fish", " water river", " bridge fish water", " water river water"];
    for options in ["", "--memory memory"] {
        let mut command = sidenote(dir, &format!("generate plain/model river {options}"));
        choices.iter().for_each(|choice| _ = command.args(["--choice", choice]));
        let written = common::json_of(command);
        let differences: Vec<f64> = (0..2)
            .map(|i| {
                let text = format!("river{}", choices[i]);
                write_lines(&dir.join("written.jsonl"), &[serde_json::json!({"id": "w", "text": text})]);
                let command = format!("eval perplexity plain/model --corpus written.jsonl {options}");
                let scored = succeed(dir, &command);
                let nats = scored["perplexity"].as_f64().unwrap().ln() * scored["tokens"].as_f64().unwrap();
                nats + written["choices"][i]["logprob"].as_f64().unwrap()
            })
            .collect();
        // What is left is the prompt's.
        assert!((differences[0] - differences[1]).abs() < 1e-4, "{options} {differences:?}");
    }
    // Step by step, with several texts side by side, all of them whole distributions.
    let greedy = |options: &str| {
        succeed(dir, &format!("generate plain/model river --logprobs 300 --max-tokens 8 {options}"))
    };
    let (with, without) = (greedy("--memory memory"), greedy(""));
    assert_ne!(with["logprobs"], without["logprobs"]);
    for step in with["logprobs"].as_array().unwrap() {
        let all = step["top"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["logprob"].as_f64().unwrap().exp())
            .sum::<f64>();
        assert!((all - 1.0).abs() < 1e-4, "{all}");
    }
    let samples = succeed(
        dir,
        "generate plain/model river --memory memory --temperature 1 -n 3 --batch 2 --max-tokens 8",
    );
    assert_eq!(samples["results"].as_array().unwrap().len(), 3, "{samples}");
    // Another model's contexts are no good.
    succeed(dir, "train plain.toml --set out=other --set training.seed=9");
    assert!(
        fail(dir, "generate other/model river --memory memory").contains("build a memory with this model")
    );
}

/// What a RETRO model reads moves its contexts: a memory is made, tuned and asked with neighbours, or none of it is.
#[test]
fn a_retro_models_memory_is_made_as_it_is_asked() {
    let place = workplace();
    let dir = place.path();
    succeed(dir, "neighbours index -k 2 --out neighbours");
    succeed(dir, "neighbours index --queries held.jsonl -k 2 --out held-out");
    let toml = r#"
        kind = "retrofit"
        out = "retro"
        index = "index"
        neighbours = "neighbours"
        base = "plain/model"
        [retro]
        layers = [2]
        heads = 1
        head_dim = 16
        encoder_hidden_size = 32
        encoder_heads = 4
        encoder_layers = 1
        initialisation = "copy"
        [training]
        steps = 12
        batch_tokens = 256
    "#;
    fs::write(dir.join("retro.toml"), toml).unwrap();
    succeed(dir, "train retro.toml");
    let on = succeed(dir, "memory build retro/model --text-of index --neighbours neighbours --out on");
    let off = succeed(dir, "memory build retro/model --text-of index --out off");
    assert_eq!((&on["retrieval"], &off["retrieval"]), (&true.into(), &false.into()));
    assert_eq!(on["entries"], off["entries"]);
    assert_ne!(on["contexts"], off["contexts"]);

    let asked = |options: &str| {
        let command = format!("eval perplexity retro/model --corpus valid.jsonl --index index {options}");
        succeed(dir, &command)["perplexity"].as_f64().unwrap().ln()
    };
    let alone = asked("");
    assert!((alone - asked("--retrieval off")).abs() > 1e-3, "retrieval does nothing here: {alone}");
    let before = asked("--memory on");
    let tuned = succeed(dir, "memory tune on retro/model --corpus valid.jsonl --index index -k 32");
    let close = |name: &str, wanted: f64| (tuned[name].as_f64().unwrap() - wanted).abs() < 1e-5;
    assert!(close("loss_without", alone) && close("loss_before", before), "{tuned} {alone} {before}");
    assert!(close("loss_after", asked("--memory on")), "{tuned}");
    asked("--retrieval off --memory off");

    for mixed in [
        "eval perplexity retro/model --corpus held.jsonl --index index --memory off",
        "eval perplexity retro/model --corpus held.jsonl --index index --retrieval off --memory on",
        "memory tune on retro/model --corpus valid.jsonl",
        "memory tune off retro/model --corpus valid.jsonl --index index",
    ] {
        assert!(fail(dir, mixed).contains("ways to read"), "{mixed}");
    }
    let said = fail(dir, "memory build plain/model --text-of index --neighbours neighbours --out plain-on");
    assert!(said.contains("plain"), "{said}");
    let said = fail(dir, "memory build retro/model --text-of index --neighbours held-out --out other");
    assert!(said.contains("held-out"), "{said}");
}

#[test]
fn what_does_not_belong_together_or_is_damaged_is_told() {
    let place = workplace();
    let dir = place.path();
    let built = succeed(dir, "memory build plain/model --corpus corpus.jsonl --out memory --index SQ8");
    assert!(built["index"] == "SQ8" && built["disk_bytes"].as_u64().unwrap() > 0);
    let said = fail(dir, "memory build plain/model --corpus corpus.jsonl --out memory");
    assert!(said.contains("memory") && said.contains("already"), "{said}");
    succeed(dir, "train plain.toml --set out=other --set training.seed=9");
    let said = fail(dir, "eval perplexity other/model --corpus held.jsonl --memory memory");
    assert!(said.contains("models") && said.contains("plain/model"), "{said}");
    let said = fail(dir, "memory tune memory other/model --corpus valid.jsonl");
    assert!(said.contains("models"), "{said}");
    for (option, name) in [
        ("--lambda 1.5", "lambda"),
        ("--lambda 1", "below 1"),
        ("--temperature 0", "temperature"),
        ("-k 0", "k"),
        ("--lambda NaN", "lambda"),
    ] {
        let said =
            fail(dir, &format!("eval perplexity plain/model --corpus held.jsonl --memory memory {option}"));
        assert!(said.contains(name), "{option}: {said}");
    }
    for (option, name) in [
        ("--cache-lambda 1", "cache-lambda"),
        ("--cache-theta nan", "cache-theta"),
        ("--cache-theta inf", "cache-theta"),
        ("--cache-theta=-1", "cache-theta"),
    ] {
        let said = fail(dir, &format!("eval perplexity plain/model --corpus held.jsonl --cache 5 {option}"));
        assert!(said.contains(name), "{option}: {said}");
    }
    assert!(fail(dir, "memory info nowhere").contains("nowhere"));

    let tokens = fs::read_dir(dir.join("memory")).unwrap().flatten().map(|e| e.path());
    let tokens = tokens.into_iter().find(|path| path.to_string_lossy().contains("tokens.")).unwrap();
    let bytes = fs::read(&tokens).unwrap();
    let mut flipped = bytes.clone();
    flipped[7] ^= 1;
    fs::write(&tokens, &flipped).unwrap();
    let output = sidenote(dir, "memory verify memory --json").output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && report["sound"] == false, "{report}");
    assert!(report["problems"][0].as_str().unwrap().contains("tokens."), "{report}");
    fs::write(&tokens, &bytes[..bytes.len() - 4]).unwrap();
    assert!(failure_of(sidenote(dir, "memory info memory"), 1).contains("tokens."));
}
