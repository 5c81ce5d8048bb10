//! Decoders of every family against transformers, on small checkpoints with random weights that it has saved.
//! The golden files are made by scripts/golden_models.py.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use sidenote::model::generate::Autoregressive;
use sidenote::model::retro::State;
use sidenote::model::{
    Cache, Decoder, Initialisation, LanguageModel, Network, Retrieved, RetroConfig, Trainable,
};
use sidenote::ranking::Ranking;

const FAMILIES: [&str; 9] =
    ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "stablelm", "gpt2", "opt", "bloom"];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

/// A copy of a family's checkpoint with the tokenizer that all share, its `config.json` changed.
fn checkpoint(family: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(data().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let from = data().join(family);
    fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn load(family: &str, trainable: Trainable) -> LanguageModel {
    let dir = checkpoint(family, |_| {});
    LanguageModel::load(dir.path(), trainable, &Device::Cpu).unwrap()
}

/// Prompts and their logits, a row a token.
fn golden(family: &str) -> Vec<(Vec<u32>, Vec<Vec<f32>>)> {
    let path = data().join(family).join("golden.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let prompt = |i: usize| -> Vec<u32> {
        tensors[&format!("tokens.{i}")].to_vec1::<i64>().unwrap().iter().map(|id| *id as u32).collect()
    };
    (0..2).map(|i| (prompt(i), tensors[&format!("logits.{i}")].to_vec2().unwrap())).collect()
}

/// Weights in 16 bits stay so where nothing is trained, and mean the same numbers as widened ones.
#[test]
fn halves_give_the_logits_of_the_same_numbers_in_f32() {
    for family in FAMILIES {
        for dtype in [DType::F16, DType::BF16] {
            let dir = checkpoint(family, |_| {});
            let path = dir.path().join("model.safetensors");
            let halved: HashMap<String, Tensor> = candle_core::safetensors::load(&path, &Device::Cpu)
                .unwrap()
                .into_iter()
                .map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()))
                .collect();
            candle_core::safetensors::save(&halved, &path).unwrap();
            let open = |trainable| LanguageModel::load(dir.path(), trainable, &Device::Cpu).unwrap();
            let (kept, widened) = (open(Trainable::Nothing), open(Trainable::Everything));
            let (tokens, _) = golden(family).swap_remove(0);
            let of = |model: &LanguageModel| forward(model.network.decoder(), &tokens);
            let worst = difference(&of(&kept), &of(&widened));
            assert!(worst < 1e-4, "{family} {dtype:?}: off by {worst:e}");
            assert_eq!(kept.identity().unwrap(), widened.identity().unwrap());
        }
    }
}

fn row(tokens: &[u32]) -> Tensor {
    Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

/// Logits of every token of `hidden` `[1, tokens, d]`.
fn logits(decoder: &Decoder, hidden: &Tensor) -> Vec<Vec<f32>> {
    decoder.logits(&hidden.squeeze(0).unwrap()).unwrap().to_vec2().unwrap()
}

fn forward(decoder: &Decoder, tokens: &[u32]) -> Vec<Vec<f32>> {
    logits(decoder, &decoder.forward(&row(tokens), &mut Cache::default()).unwrap())
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}

#[test]
fn logits_are_those_of_transformers() {
    for family in FAMILIES {
        let model = load(family, Trainable::Nothing);
        for (prompt, expected) in golden(family) {
            let worst = difference(&forward(model.network.decoder(), &prompt), &expected);
            println!("{family}: {} tokens, largest difference {worst:e}", prompt.len());
            assert!(worst < 1e-4, "{family}: off by {worst:e}");
        }
    }
}

#[test]
fn reading_in_pieces_equals_reading_at_once() {
    for family in FAMILIES {
        let model = load(family, Trainable::Nothing);
        let decoder = model.network.decoder();
        let (prompt, _) = golden(family).pop().unwrap();
        let whole = forward(decoder, &prompt);
        for pieces in [vec![1; prompt.len()], vec![7, 1, 1, 5, prompt.len() - 14]] {
            let mut cache = Cache::default();
            let mut read = Vec::new();
            for piece in pieces {
                let now = row(&prompt[read.len()..read.len() + piece]);
                read.extend(logits(decoder, &decoder.forward(&now, &mut cache).unwrap()));
            }
            let worst = difference(&read, &whole);
            assert!(worst < 1e-4, "{family}: off by {worst:e}");
            // Cut back and read otherwise: as if it had never gone further.
            cache.truncate(9).unwrap();
            let other = [&prompt[..9], &[4, 77]].concat();
            let again = logits(decoder, &decoder.forward(&row(&other[9..]), &mut cache).unwrap());
            let worst = difference(&again, &forward(decoder, &other)[9..]);
            assert!(worst < 1e-4, "{family}: off by {worst:e} after being cut back");
        }
    }
}

#[test]
fn prompts_of_a_batch_are_read_as_if_alone() {
    for family in FAMILIES {
        let model = load(family, Trainable::Nothing);
        let decoder = model.network.decoder();
        let prompts: Vec<Vec<u32>> =
            golden(family).into_iter().map(|(prompt, _)| prompt).chain([vec![8]]).collect();
        let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let (cache, last) = decoder.start(&slices).unwrap();
        let check = |rows: &[usize], more: &[Vec<u32>], hidden: &Tensor| {
            let now: Vec<Vec<f32>> = Autoregressive::logits(decoder, hidden).unwrap().to_vec2().unwrap();
            for ((prompt, more), now) in rows.iter().map(|row| &prompts[*row]).zip(more).zip(now) {
                let alone = forward(decoder, &[&prompt[..], more].concat());
                let worst = difference(&[now], &alone[alone.len() - 1..]);
                assert!(worst < 1e-4, "{family}: off by {worst:e} after {prompt:?} and {more:?}");
            }
        };
        check(&[0, 1, 2], &vec![Vec::new(); 3], &last);
        // Rows that were picked and repeated go their own ways.
        let rows = [2, 0, 0, 1];
        let mut picked = decoder.pick(&cache, &rows).unwrap();
        let mut more = vec![Vec::new(); 4];
        for step in 0..3u32 {
            let next: Vec<u32> = (0..4).map(|i| (i * 17 + step * 5 + 3) % 97).collect();
            more.iter_mut().zip(&next).for_each(|(more, token)| more.push(*token));
            let tokens = Tensor::from_vec(next, (4, 1), &Device::Cpu).unwrap();
            let hidden = decoder.read(&tokens, &mut picked).unwrap();
            check(&rows, &more, &hidden.squeeze(1).unwrap());
        }
    }
}

/// The squared size of each variable's gradient, none of which is absent.
fn gradients(model: &LanguageModel, hidden: &Tensor) -> BTreeMap<String, f32> {
    let hidden = hidden.flatten(0, 1).unwrap();
    let targets: Vec<u32> = (0..hidden.dim(0).unwrap() as u32).map(|i| (i * 31 + 4) % 97).collect();
    let targets = Tensor::new(targets, &Device::Cpu).unwrap();
    let head = &model.network.decoder().head().unwrap();
    let loss = sidenote_kernels::linear_cross_entropy(&hidden, head, &targets, &Default::default()).unwrap();
    let gradients = loss.backward().unwrap();
    let size = |(name, variable): &(String, candle_core::Var)| {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        (name.clone(), gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
    };
    model.variables().iter().map(size).collect()
}

#[test]
fn every_trainable_tensor_gets_a_gradient() {
    for family in FAMILIES {
        let model = load(family, Trainable::Everything);
        let (prompt, _) = golden(family).pop().unwrap();
        let hidden = model.network.decoder().forward(&row(&prompt), &mut Cache::default()).unwrap();
        let sizes = gradients(&model, &hidden);
        assert_eq!(sizes.len(), model.variables().len());
        for (name, size) in sizes {
            // A bias of all keys moves a query's scores alike, and the softmax does not see it: nothing but
            // rounding, but for keys that turn.
            let unseen = family == "bloom" || family == "gpt2" || family == "opt";
            let of_keys = name.ends_with("k_proj.bias") || name.ends_with(".bias[1]");
            if !(unseen && of_keys) {
                assert!(size > 1e-12 && size.is_finite(), "{family}: {name}: squared gradient {size}");
            }
        }
    }
}

/// Names and shapes of a checkpoint's tensors.
fn shapes(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec())).collect()
}

#[test]
fn what_is_saved_is_what_was_loaded_under_transformers_names() {
    // Where scripts/golden_models.py is to check that transformers loads what is saved.
    let kept = std::env::var_os("SIDENOTE_SAVE_MODELS").map(PathBuf::from);
    for family in FAMILIES {
        let model = load(family, Trainable::Nothing);
        let dir = tempfile::tempdir().unwrap();
        let saved = kept.as_deref().unwrap_or(dir.path()).join(family);
        model.save(&saved).unwrap();
        assert_eq!(shapes(&saved), shapes(&data().join(family)), "{family}");
        let mut files: Vec<_> = fs::read_dir(&saved)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"]);
        let again = LanguageModel::load(&saved, Trainable::Nothing, &Device::Cpu).unwrap();
        assert_eq!(again.network.decoder().config(), model.network.decoder().config());
        for (prompt, _) in golden(family) {
            let (before, after) = (&model.network, &again.network);
            assert_eq!(forward(before.decoder(), &prompt), forward(after.decoder(), &prompt), "{family}");
        }
    }
}

#[test]
fn tokens_that_end_a_text_are_kept() {
    let dir = checkpoint("llama", |config| config["eos_token_id"] = json!([2, 64]));
    let model = LanguageModel::load(dir.path(), Trainable::Nothing, &Device::Cpu).unwrap();
    assert_eq!(model.end_tokens(), [2, 64]);
    let saved = dir.path().join("saved");
    model.save(&saved).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(saved.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["eos_token_id"], json!([2, 64]));
}

#[test]
fn retro_reads_over_any_decoder() {
    const M: usize = 4;
    let retro = RetroConfig {
        chunk_size: M,
        neighbours: 2,
        ranking: Ranking::Vectors,
        layers: vec![2],
        heads: 3,
        head_dim: 5,
        encoder_hidden_size: 20,
        encoder_intermediate_size: 12,
        encoder_heads: 4,
        encoder_layers: 2,
        encoder_cross_layers: vec![1],
        initialisation: Initialisation::Random,
        gate: false,
    };
    let neighbours: Vec<Vec<Vec<u32>>> = (0..4u32)
        .map(|u| (0..2).map(|j| (0..8 - j).map(|i| (u * 13 + j * 29 + i * 7) % 97).collect()).collect())
        .collect();
    for family in FAMILIES {
        let dir = checkpoint(family, |_| {});
        let model = LanguageModel::retrofit(dir.path(), &retro, 5, &Device::Cpu).unwrap();
        let Network::Retro(network) = &model.network else { panic!("not a RETRO model") };
        let (prompt, expected) = golden(family).pop().unwrap();
        let off = network.forward(&row(&prompt), None).unwrap();
        assert_eq!(logits(network.base(), &off), forward(network.base(), &prompt), "{family}");
        assert!(difference(&logits(network.base(), &off), &expected) < 1e-4, "{family}");
        let retrieved = Retrieved::pack(std::slice::from_ref(&neighbours), 2, 2 * M, &Device::Cpu).unwrap();
        let hidden = network.forward(&row(&prompt), Some(&retrieved)).unwrap();
        let on = logits(network.base(), &hidden);
        assert_eq!(on[..M - 1], logits(network.base(), &off)[..M - 1], "{family}: nothing is retrieved yet");
        assert!(difference(&on[M..], &logits(network.base(), &off)[M..]) > 1e-3, "{family}");
        for (name, size) in gradients(&model, &hidden) {
            assert!(name.starts_with("retro.") && size > 0.0, "{family}: {name}: squared gradient {size}");
        }
        // In pieces.
        let (mut state, mut pieces) = (State::default(), Vec::new());
        for piece in [&prompt[..6], &prompt[6..7], &prompt[7..]] {
            let mut retrieve = |chunk: usize| Ok(neighbours[chunk].clone());
            pieces.push(network.read(piece, &mut state, &mut retrieve).unwrap());
        }
        let read = logits(network.base(), &Tensor::cat(&pieces, 1).unwrap());
        let worst = difference(&read, &on);
        assert!(worst < 1e-4, "{family}: off by {worst:e}");
    }
}

/// What was said of a checkpoint whose `config.json` was changed.
fn complaint(family: &str, field: &str, value: Value) -> String {
    let dir = checkpoint(family, |config| config[field] = value.clone());
    let loaded = LanguageModel::load(dir.path(), Trainable::Nothing, &Device::Cpu);
    loaded.err().unwrap_or_else(|| panic!("{family}: {field} = {value} was taken")).to_string()
}

#[test]
fn settings_that_are_not_known_are_refused_by_name() {
    for (family, field, value) in [
        ("llama", "rope_parameters", json!({ "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0 })),
        ("llama", "rope_parameters", json!({ "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0 })),
        ("llama", "hidden_act", json!("tanh")),
        ("llama", "num_key_value_heads", json!(4)),
        ("llama", "vocab_size", json!("97")),
        ("llama", "vocab_size", Value::Null),
        ("llama", "quantization_config", json!({ "quant_method": "gptq" })),
        ("llama", "head_dim", json!(5)),
        ("llama", "model_type", json!("mamba")),
        ("gemma3_text", "attn_logit_softcapping", json!(50.0)),
        ("gemma3_text", "final_logit_softcapping", json!(30.0)),
        ("gemma3_text", "use_bidirectional_attention", json!(true)),
        ("gemma3_text", "layer_types", json!(["full_attention", "chunked_attention"])),
        ("gemma3_text", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("opt", "do_layer_norm_before", json!(false)),
        ("opt", "word_embed_proj_dim", json!(12)),
        ("bloom", "apply_residual_connection_post_layernorm", json!(true)),
        ("stablelm", "qk_layernorm", json!(true)),
        ("stablelm", "use_parallel_residual", json!(true)),
        ("mistral", "sliding_window", json!(0)),
    ] {
        let said = complaint(family, field, value);
        let name = if field == "rope_parameters" { "rope" } else { field };
        assert!(said.contains(name) && said.contains("config.json"), "{family}, {field}: {said}");
    }
    // A shape that the tensors do not have.
    let said = complaint("gpt2", "n_inner", json!(45));
    assert!(said.contains("transformer.h.0.mlp.c_fc.weight") && said.contains("[24, 45]"), "{said}");
    let said = complaint("bloom", "n_layer", json!(1));
    assert!(said.contains("transformer.h.1"), "{said}");
}

#[test]
fn a_position_beyond_the_last_is_an_error() {
    for family in ["gpt2", "opt"] {
        let model = load(family, Trainable::Nothing);
        let text: Vec<u32> = (0..41).collect();
        let said =
            model.network.decoder().forward(&row(&text), &mut Cache::default()).unwrap_err().to_string();
        assert!(said.contains("40"), "{said}");
        model.network.decoder().forward(&row(&text[..40]), &mut Cache::default()).unwrap();
    }
}

/// As old checkpoints are: saved without the output head, so that names lack their first part, and with masks.
#[test]
fn networks_without_their_head_are_read() {
    for (family, prefix) in [("gpt2", "transformer."), ("opt", "model."), ("bloom", "transformer.")] {
        let dir = checkpoint(family, |_| {});
        let path = dir.path().join("model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let renamed = |name: String| name.strip_prefix(prefix).map(str::to_string).unwrap_or(name);
        let mut tensors: std::collections::HashMap<String, Tensor> =
            tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
        if family == "gpt2" {
            let mask = Tensor::ones((1, 1, 40, 40), candle_core::DType::U8, &Device::Cpu).unwrap();
            tensors.insert("h.0.attn.bias".into(), mask);
        }
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let model = LanguageModel::load(dir.path(), Trainable::Nothing, &Device::Cpu).unwrap();
        for (prompt, expected) in golden(family) {
            assert!(difference(&forward(model.network.decoder(), &prompt), &expected) < 1e-4, "{family}");
        }
    }
}

#[derive(serde::Deserialize)]
struct SmolLm2 {
    rows: Vec<SmolLm2Row>,
}

#[derive(serde::Deserialize)]
struct SmolLm2Row {
    text: String,
    tokens: Vec<u32>,
    positions: Vec<usize>,
    largest: Vec<Largest>,
}

/// The largest logits of a position.
#[derive(serde::Deserialize)]
struct Largest {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// Real weights: SmolLM2-135M-Instruct out of a GGUF file. The golden file is made by scripts/golden_smollm2.py.
#[test]
fn smollm2_gives_the_logits_of_transformers() {
    let Some(file) = std::env::var_os("SIDENOTE_SMOLLM2") else {
        println!("skipped: SIDENOTE_SMOLLM2 does not name a GGUF file (scripts/fetch_models.sh fetches one)");
        return;
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2_golden.json");
    let golden: SmolLm2 = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    // What is trained is dequantised; what is only run stays in blocks, and rounds its inputs to 8 bits.
    for (trainable, tolerance) in [(Trainable::Everything, 1e-4), (Trainable::Nothing, 1.0)] {
        let model = LanguageModel::load(Path::new(&file), trainable, &Device::Cpu).unwrap();
        let mut worst = 0f32;
        for row in &golden.rows {
            assert_eq!(model.tokenizer.encode(&row.text).unwrap().ids, row.tokens, "{}", row.text);
            let logits = forward(model.network.decoder(), &row.tokens);
            for (position, largest) in row.positions.iter().zip(&row.largest) {
                let own = &logits[*position];
                for (id, expected) in largest.ids.iter().zip(&largest.logits) {
                    worst = worst.max((own[*id as usize] - expected).abs());
                }
            }
        }
        println!("SmolLM2, {trainable:?}: largest difference {worst:e}");
        assert!(worst < tolerance, "{trainable:?}: off by {worst:e}");
    }
}
