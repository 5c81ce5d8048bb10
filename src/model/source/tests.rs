//! Files of every format against what the programs that wrote them make of them (see
//! scripts/golden_gguf.py, golden_torch.py and golden_llama2c.py), and damaged ones.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::model::generate::{Sampling, generate};
use crate::model::{LanguageModel, Trainable};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data(name), &Device::Cpu).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn logits(model: &LanguageModel, tokens: &[u32]) -> Vec<f32> {
    let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let hidden = model.network.forward(&tokens, None).unwrap();
    numbers(&model.network.decoder().logits(&hidden).unwrap())
}

#[test]
fn every_block_type_is_dequantised_as_ggml_does() {
    let expected = tensors("gguf/blocks.safetensors");
    let kinds = gguf::blocks(&data("gguf/blocks.gguf")).unwrap();
    assert_eq!(kinds.len(), 13);
    for (name, blocks) in kinds {
        let read = blocks.dequantise().unwrap();
        assert_eq!(read.dims(), expected[&name].dims(), "{name}");
        let (read, expected) = (numbers(&read), numbers(&expected[&name]));
        // Sums of a scale times a few bits: only their rounding may differ.
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        assert!(furthest(&read, &expected) <= 1e-6 * largest, "{name}");
    }
}

#[test]
fn models_out_of_gguf_give_the_logits_of_transformers() {
    let golden = tensors("gguf/golden.safetensors");
    for name in ["llama", "qwen2", "qwen3", "gemma3", "gpt2"] {
        let path = data(&format!("gguf/{name}.gguf"));
        let tokens = golden[&format!("{name}.tokens")].to_vec1::<i64>().unwrap();
        let tokens: Vec<u32> = tokens.into_iter().map(|id| id as u32).collect();
        let expected = numbers(&golden[&format!("{name}.logits")]);
        // What is trained is dequantised; what is only run stays in blocks, and rounds its inputs to 8 bits.
        for (trainable, tolerance) in [(Trainable::Everything, 1e-4), (Trainable::Nothing, 0.2)] {
            let model = LanguageModel::load(&path, trainable, &Device::Cpu).unwrap();
            let off = furthest(&logits(&model, &tokens), &expected);
            assert!(off < tolerance, "{name}, {trainable:?}: off by {off}");
        }
    }
}

#[test]
fn gguf_speaks_in_transformers_terms() {
    for (name, kind, field, value, tensor) in [
        ("llama", "llama", "num_key_value_heads", 2.0, "model.layers.1.self_attn.k_proj.weight"),
        ("qwen2", "qwen2", "rope_theta", 5000.0, "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", "qwen3", "head_dim", 12.0, "model.layers.0.self_attn.q_norm.weight"),
        ("gemma3", "gemma3_text", "sliding_window", 4.0, "model.layers.5.pre_feedforward_layernorm.weight"),
        ("gpt2", "gpt2", "n_positions", 64.0, "transformer.h.1.mlp.c_fc.bias"),
    ] {
        let mut source = Source::open(data(&format!("gguf/{name}.gguf"))).unwrap();
        assert_eq!(source.config()["model_type"], kind);
        assert_eq!(source.config()[field].as_f64(), Some(value), "{name}");
        assert_eq!(source.config()["tie_word_embeddings"], name != "llama");
        assert!(source.names().contains(&tensor.to_string()), "{name}");
        assert!(source.take(tensor).unwrap().is_some());
        assert!(source.take(tensor).unwrap().is_none(), "each is given once");
        assert!(source.left().all(|name| name != tensor));
    }
    let source = Source::open(data("gguf/gpt2.gguf")).unwrap();
    let layout = |name: &str| source.checkpoint.read(name).unwrap().shape().to_vec();
    assert_eq!(layout("transformer.h.0.attn.c_attn.weight"), [32, 96]);
    let llama = Source::open(data("gguf/llama.gguf")).unwrap();
    assert_eq!(llama.end_tokens(), [2]);
    let template = llama.chat_template().unwrap().unwrap();
    assert_eq!(template.render(&[Message::new("user", "Hi")], true).unwrap(), "<s>user: Hi</s>");
}

#[test]
fn tokenizers_out_of_gguf_give_the_tokens_of_transformers() {
    let texts = json(&data("gguf/texts.json"));
    for (name, cases) in texts.as_object().unwrap() {
        let tokenizer = Source::open(data(&format!("gguf/{name}.gguf"))).unwrap().tokenizer().unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let ids = tokenizer.encode(text).unwrap().ids;
            let qwen = name.starts_with("qwen");
            // transformers leaves digits together where the file says "smollm", composes no letters for Qwen as its
            // own tokenizer does, and takes a byte's name for the byte.
            let apart = name == "gemma3" && text.contains(|c: char| c.is_numeric())
                || qwen && text.contains('\u{301}')
                || text.contains("<0x0A>");
            assert!(ids == expected || apart, "{name}, {text:?}: {ids:?} instead of {expected:?}");
            let whole = if qwen { text.replace("e\u{301}", "é") } else { text.into() };
            let first = name == "llama";
            let decoded = tokenizer.decode(&ids).unwrap();
            let survives = decoded == whole || first && decoded == whole.strip_prefix(' ').unwrap_or(&whole);
            assert!(survives, "{name}: {decoded:?} instead of {whole:?}");
        }
    }
}

#[test]
fn torch_files_hold_what_was_saved() {
    let expected = tensors("torch/expected.safetensors");
    let files = torch::Files::single(data("torch/plain.bin")).unwrap();
    assert_eq!(files.names().len(), 8);
    for name in files.names() {
        let Stored::Dense(read) = files.read(&name).unwrap() else { panic!("blocks") };
        assert_eq!(read.dims(), expected[&name].dims(), "{name}");
        assert_eq!(read.dtype(), expected[&name].dtype(), "{name}");
        assert_eq!(numbers(&read), numbers(&expected[&name]), "{name}");
    }
    let wrapped = torch::Files::single(data("torch/wrapped.pth")).unwrap();
    assert_eq!(wrapped.names(), ["bias", "weight"]);
    let weight = wrapped.read("weight").unwrap().to_f32().unwrap();
    assert_eq!(numbers(&weight), numbers(&expected["state.weight"]));

    // Several files by an index, as the hub has them.
    let dir = tempfile::tempdir().unwrap();
    for file in ["plain.bin", "wrapped.pth"] {
        fs::copy(data("torch").join(file), dir.path().join(file)).unwrap();
    }
    let index = dir.path().join("pytorch_model.bin.index.json");
    fs::write(&index, r#"{"weight_map": {"half": "plain.bin", "weight": "wrapped.pth"}}"#).unwrap();
    assert!(torch::Files::sharded(&index).unwrap().names().contains(&"weight".to_string()));
    fs::write(&index, r#"{"weight_map": {"nothing": "plain.bin"}}"#).unwrap();
    let said = torch::Files::sharded(&index).err().unwrap().to_string();
    assert!(said.contains("plain.bin") && said.contains("tensor nothing"), "{said}");
}

#[test]
fn torch_files_that_cannot_be_read_say_why() {
    for (file, word) in [("strided.bin", "tensor strided: strides"), ("legacy.bin", "save it again")] {
        let said = torch::Files::single(data("torch").join(file)).err().unwrap().to_string();
        assert!(said.contains(file) && said.contains(word), "{said}");
    }
}

#[test]
fn stories_are_continued_as_llama2c_does() {
    let path = data("llama2c/stories260K.bin");
    let source = Source::open(&path).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    let ends = source.end_tokens();
    let model = LanguageModel::load(&path, Trainable::Nothing, &Device::Cpu).unwrap();
    for case in json(&data("llama2c/expected.json")).as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let numbers = |field: &str| -> Vec<u32> { serde_json::from_value(case[field].clone()).unwrap() };
        let (tokens, expected) = (numbers("tokens"), numbers("generated"));
        let ids = tokenizer.encode(prompt).unwrap().ids;
        assert_eq!(ids, tokens[1..], "{prompt:?}");
        let first: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
        let ours = logits(&model, &tokens);
        assert!(furthest(&ours[ours.len() - first.len()..], &first) < 1e-4, "{prompt:?}");
        let sampling = Sampling { max_tokens: expected.len(), temperature: 0.0, seed: 0 };
        let mut written = Vec::new();
        generate(&model, &tokens, &sampling, None, &mut |token| {
            written.push(token);
            true
        })
        .unwrap();
        written.retain(|token| !ends.contains(token));
        assert_eq!(written, expected, "{prompt:?}");
    }
}

#[test]
fn a_file_without_its_vocabulary_or_its_end_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stories.bin");
    let whole = fs::read(data("llama2c/stories260K.bin")).unwrap();
    fs::write(&path, &whole).unwrap();
    let said = Source::open(&path).unwrap().tokenizer().unwrap_err().to_string();
    assert!(said.contains("tokenizer.bin"), "{said}");
    fs::write(dir.path().join("tok.bin"), &whole[..100]).unwrap();
    assert!(Source::open(&path).unwrap().tokenizer().unwrap_err().to_string().contains("tok.bin"));
    fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    assert!(Source::open(&path).err().unwrap().to_string().contains("stories.bin"));
    for (content, word) in [
        (b"GGUF\x07\0\0\0".as_slice(), "version 7"),
        (b"nothing", "not a checkpoint"),
        (b"", "not a checkpoint"),
    ] {
        fs::write(&path, content).unwrap();
        let said = Source::open(&path).err().unwrap().to_string();
        assert!(said.contains("stories.bin") && said.contains(word), "{said}");
    }
}

/// The real SmolLM2, where `SIDENOTE_SMOLLM2` says where its GGUF file is.
#[test]
fn smollm2_is_tokenised_as_transformers_and_llama_cpp_do() {
    let Ok(path) = std::env::var("SIDENOTE_SMOLLM2") else { return };
    let source = Source::open(&path).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    let texts = std::env::var("SIDENOTE_SMOLLM2_TEXTS").map_or(data("smollm2_texts.json"), PathBuf::from);
    let cases = json(&texts);
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap().ids, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
    }
    assert_eq!(source.end_tokens(), [2, 0]);
    let chat = source.chat_template().unwrap().unwrap().render(&[Message::new("user", "Hi")], true).unwrap();
    assert!(
        chat.starts_with("<|im_start|>system\nYou are")
            && chat.ends_with("user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        "{chat}"
    );
}

/// Any GGUF file, where `SIDENOTE_GGUF` says where it is and `SIDENOTE_GGUF_TEXTS` what scripts/golden_tokens.py has
/// made of it.
#[test]
fn a_file_of_ones_own_is_tokenised_as_transformers_and_llama_cpp_do() {
    let [Ok(path), Ok(texts)] = ["SIDENOTE_GGUF", "SIDENOTE_GGUF_TEXTS"].map(std::env::var) else { return };
    let tokenizer = Source::open(&path).unwrap().tokenizer().unwrap();
    for case in json(Path::new(&texts)).as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap().ids, expected, "{text:?}");
    }
}

/// Opens a damaged copy of a file and reads all of it; what it said if it could not.
fn read_damaged(name: &str, flips: &[(usize, u8)], keep: f64) -> Option<String> {
    let mut bytes = fs::read(data(name)).unwrap();
    for (place, mask) in flips {
        // Mostly where the structure is: at the beginning, and for zip archives at the end.
        let place = if place % 2 == 0 {
            place % bytes.len().min(6000)
        } else {
            bytes.len() - 1 - place % bytes.len().min(900)
        };
        bytes[place] ^= mask;
    }
    bytes.truncate((bytes.len() as f64 * keep) as usize);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(Path::new(name).file_name().unwrap());
    fs::write(&path, bytes).unwrap();
    let read = || -> Result<()> {
        if name.starts_with("torch") {
            let files = torch::Files::single(path.clone())?;
            return files.names().iter().try_for_each(|name| files.read(name).map(drop));
        }
        let mut source = Source::open(&path)?;
        for name in source.names() {
            source.take(&name)?.map(|stored| stored.to_f32()).transpose()?;
        }
        if name.starts_with("gguf") {
            source.tokenizer()?;
            source.chat_template()?;
            source.end_tokens();
        }
        Ok(())
    };
    let said = read().err()?.to_string();
    let file = path.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(file) || said.contains("tensor"), "{said}");
    Some(said)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn damaged_files_never_panic(
        file in prop::sample::select(vec!["gguf/llama.gguf", "gguf/gpt2.gguf", "torch/plain.bin", "torch/wrapped.pth"]),
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        keep in prop_oneof![Just(1.0), 0.0..1.0f64],
    ) {
        let said = read_damaged(file, &flips, keep);
        prop_assert!(said.is_some() || keep > 0.9, "{keep} of {file} was read as if whole");
    }
}
