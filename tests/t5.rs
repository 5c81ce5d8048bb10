//! T5 against transformers, on the small checkpoints that scripts/golden_t5.py makes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use common::{json_of, sidenote, text_of};
use serde_json::Value;
use sidenote::corpus::Tokenizer;
use sidenote::model::EncoderDecoder;
use sidenote::model::generate::Autoregressive;
use sidenote_kernels::{CrossEntropyOptions, linear_cross_entropy};

/// v1.0 with a tied head; v1.1 stored in f16, with a SentencePiece model alone; mT5 as transformers 5 writes it.
const CHECKPOINTS: [&str; 3] = ["t5_v1_0", "t5_v1_1", "t5_mt5"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder(name).join("golden.json")).unwrap()).unwrap()
}

fn load(folder: &Path) -> EncoderDecoder {
    EncoderDecoder::load(folder, false, &Device::Cpu).unwrap()
}

fn of<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Largest differences of the encoder's states, the logits and the loss.
fn differences(model: &EncoderDecoder, golden: &Value) -> [f32; 3] {
    let network = &model.network;
    let inputs: Vec<Vec<u32>> = of(&golden["inputs"]);
    let rows: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let encoded = network.encoder().read(&rows, None).unwrap();
    let states = encoded.states.to_vec3::<f32>().unwrap();
    let right: Vec<Vec<Vec<f32>>> = of(&golden["states"]);
    let state = states.iter().zip(&right).map(|(a, b)| largest(&a[..b.len()].concat(), &b.concat()));
    let state = state.fold(0.0, f32::max);

    let targets: Vec<Vec<u32>> = of(&golden["targets"]);
    let targets = Tensor::new(targets, &Device::Cpu).unwrap();
    let hidden = network.predict(&encoded, &targets, None).unwrap();
    let logits = network.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let right: Vec<Vec<Vec<f32>>> = of(&golden["logits"]);
    let logit = largest(&logits, &right.concat().concat());

    let targets = targets.flatten_all().unwrap();
    let hidden = hidden.flatten(0, 1).unwrap();
    let loss =
        linear_cross_entropy(&hidden, &network.head().unwrap(), &targets, &CrossEntropyOptions::default());
    let loss = loss.unwrap().to_scalar::<f32>().unwrap() / targets.elem_count() as f32;
    [state, logit, (loss - of::<f32>(&golden["loss"])).abs()]
}

#[test]
fn states_logits_and_loss_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let found = differences(&load(&folder(name)), &golden(name));
        println!("{name}: states {:e}, logits {:e}, loss {:e}", found[0], found[1], found[2]);
        assert!(found.iter().all(|difference| *difference < 1e-4), "{name}: {found:?}");
    }
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for name in CHECKPOINTS {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        load(&folder(name)).save(&copy).unwrap();
        let found = differences(&load(&copy), &golden(name));
        assert!(found.iter().all(|difference| *difference < 1e-4), "{name}: {found:?}");
        let config: Value = serde_json::from_slice(&fs::read(copy.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], name == "t5_v1_0");
        assert_eq!(config["scale_decoder_outputs"], name == "t5_v1_0");
        assert_eq!(config["initializer_factor"], 1.0, "a field that is not understood is kept");
    }
}

#[test]
fn texts_have_the_tokens_of_transformers() {
    for name in CHECKPOINTS {
        let tokenizer = load(&folder(name)).tokenizer;
        check_tokens(&tokenizer, &golden(name));
    }
    // The same out of the old file.
    let model = fs::read(folder("t5_v1_0").join("spiece.model")).unwrap();
    check_tokens(&Tokenizer::from_sentencepiece(&model, 7).unwrap(), &golden("t5_v1_0"));
}

fn check_tokens(tokenizer: &Tokenizer, golden: &Value) {
    for row in golden["tokens"].as_array().unwrap() {
        let (text, right): (String, Vec<u32>) = (of(&row["text"]), of(&row["ids"]));
        let mut ids = tokenizer.encode_marked(&text).unwrap();
        ids.extend(tokenizer.end_of_text());
        assert_eq!(ids, right, "{text:?}");
        assert_eq!(tokenizer.decode(&right).unwrap(), of::<String>(&row["back"]), "{text:?}");
    }
}

/// Greedy texts through what the generator reads, all prompts in one batch, until each has ended.
#[test]
fn greedy_texts_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let (model, golden) = (load(&folder(name)), golden(name));
        let inputs: Vec<Vec<u32>> = of(&golden["inputs"]);
        let right: Vec<Vec<u32>> = of(&golden["generated"]);
        assert_eq!(write(&model, &inputs), right, "{name}");
        // From texts, too.
        for row in golden["from_text"].as_array().unwrap() {
            let prompt = model.prompt(row["prompt"].as_str().unwrap()).unwrap();
            let ids = write(&model, &[prompt]).remove(0);
            assert_eq!(ids, of::<Vec<u32>>(&row["ids"]), "{name}");
            assert_eq!(model.tokenizer.decode(&ids).unwrap(), row["text"].as_str().unwrap(), "{name}");
        }
    }
}

/// The command writes what transformers writes, for one prompt and for several side by side.
#[test]
fn the_command_writes_it() {
    for name in CHECKPOINTS {
        let golden = golden(name);
        let rows = golden["from_text"].as_array().unwrap();
        let text = |row: &Value| row["text"].as_str().unwrap().to_string();
        let generate = |prompts: &[&Value], options: &str| {
            let mut command = sidenote(Path::new("."), "generate");
            command.arg(folder(name)).args(prompts.iter().map(|row| row["prompt"].as_str().unwrap()));
            command.args(["--max-tokens", "14"]).args(options.split_whitespace());
            command
        };
        for row in rows {
            let shown = text_of(generate(&[row], ""));
            assert_eq!(shown.strip_suffix('\n').unwrap(), text(row), "{name}");
        }
        let report = json_of(generate(&rows.iter().collect::<Vec<_>>(), ""));
        let written: Vec<&str> = report["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| result["text"].as_str().unwrap())
            .collect();
        assert_eq!(written, rows.iter().map(text).collect::<Vec<_>>(), "{name}");
        // Beams cannot be less likely than the greedy text is, unless its beginning fell out of them.
        let report = json_of(generate(&[&rows[0]], "--beams 3 --length-penalty 0"));
        assert!(report["score"].as_f64().unwrap() < 0.0);
    }
}

/// The likeliest tokens, 14 at most, after the start token.
fn write(model: &EncoderDecoder, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let network = &model.network;
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (mut state, mut hidden) = Autoregressive::start(network, &prompts).unwrap();
    let mut written = vec![vec![network.config().start_token()]; prompts.len()];
    let ended = |row: &[u32]| row[1..].iter().any(|token| model.end_tokens().contains(token));
    for _ in 0..14 {
        let logits = network.logits(&hidden).unwrap();
        let best = logits.argmax(1).unwrap();
        for (row, token) in written.iter_mut().zip(best.to_vec1::<u32>().unwrap()) {
            if !ended(row) {
                row.push(token);
            }
        }
        hidden = network.read(&best.unsqueeze(1).unwrap(), &mut state).unwrap().squeeze(1).unwrap();
    }
    written
}

#[test]
fn damaged_folders_are_refused_by_name() {
    let config = fs::read_to_string(folder("t5_v1_1").join("config.json")).unwrap();
    for (old, new, word) in [
        ("\"d_ff\": 33", "\"d_ff\": 32", "DenseReluDense.wi_0.weight"),
        ("\"num_layers\": 2", "\"num_layers\": 3", "encoder.block.2"),
        ("\"num_decoder_layers\": 2", "\"num_decoder_layers\": 1", "decoder.block.1"),
        (
            "\"feed_forward_proj\": \"gated-gelu\"",
            "\"feed_forward_proj\": \"relu\"",
            "DenseReluDense.wi.weight",
        ),
        ("\"feed_forward_proj\": \"gated-gelu\"", "\"feed_forward_proj\": \"maxout\"", "maxout"),
        ("\"vocab_size\": 120", "\"vocab_size\": 100", "vocab_size"),
        ("\"d_kv\": 6", "\"d_kv\": 0", "d_kv"),
    ] {
        assert!(config.contains(old), "{old}");
        let dir = copy("t5_v1_1");
        fs::write(dir.path().join("config.json"), config.replace(old, new)).unwrap();
        let why = complaint(dir.path());
        assert!(why.contains(word), "{new}: {why}");
    }
    let dir = copy("t5_v1_1");
    fs::write(dir.path().join("spiece.model"), b"\x0a\xffcut").unwrap();
    assert!(complaint(dir.path()).contains("spiece.model"));
    fs::remove_file(dir.path().join("spiece.model")).unwrap();
    assert!(complaint(dir.path()).contains("tokenizer.json"));
}

fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in
        ["config.json", "model.safetensors", "spiece.model", "tokenizer.json", "tokenizer_config.json"]
    {
        if folder(name).join(file).exists() {
            fs::copy(folder(name).join(file), dir.path().join(file)).unwrap();
        }
    }
    dir
}

fn complaint(folder: &Path) -> String {
    EncoderDecoder::load(folder, false, &Device::Cpu).err().expect("loaded a damaged model").to_string()
}
