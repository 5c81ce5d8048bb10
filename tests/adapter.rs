//! Adapters against PEFT, over the small models of tests/data/models; scripts/golden_adapter.py made the files.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use sidenote::adapter::{Adapter, Method};
use sidenote::model::source::Source;
use sidenote::model::{Cache, EncoderDecoder, LanguageModel, Network, Wanted, WritingModel};

const PROMPTS: [&[u32]; 1] = [&[5, 90, 17, 3, 3, 61, 8]];
const TARGET: [u32; 6] = [6, 30, 2, 44, 9, 1];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A small model, with the tokenizer that the decoders share.
fn base(dir: &Path, name: &str) -> PathBuf {
    let out = dir.join(name);
    if name.starts_with("t5") {
        return data("models").join(name);
    }
    if !out.exists() {
        fs::create_dir(&out).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(data("models").join(name).join(file), out.join(file)).unwrap();
        }
        fs::copy(data("models/tokenizer.json"), out.join("tokenizer.json")).unwrap();
    }
    out
}

/// The adapters that PEFT made: methods, the models underneath, and their folders.
fn adapters(dir: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let mut all: Vec<_> =
        fs::read_dir(data("adapters")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    let named = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let (of, method) = name.rsplit_once('_').unwrap();
        (method.to_string(), base(dir, of), path)
    };
    all.into_iter().map(named).collect()
}

fn prompts() -> Vec<Vec<u32>> {
    let second = (0..19).map(|i| (7 * i * i + 11 * i + 2) % 97).collect();
    vec![PROMPTS[0].to_vec(), second]
}

/// The model with its adapter beside it, or put into its weights.
fn adapted(base: &Path, adapter: Adapter, trainable: bool) -> Model {
    let source = Source::open(base).unwrap();
    let t5 = source.config()["model_type"] == "t5";
    let wanted = Wanted { adapter, name: base, trainable, seed: 1 };
    match t5 {
        true => Model::T5(Box::new(EncoderDecoder::adapted(source, wanted, &Device::Cpu).unwrap())),
        false => Model::Decoder(Box::new(LanguageModel::adapted(source, wanted, &Device::Cpu).unwrap())),
    }
}

enum Model {
    Decoder(Box<LanguageModel>),
    T5(Box<EncoderDecoder>),
}

impl Model {
    fn logits(&self, prompt: &[u32]) -> Tensor {
        match self {
            Self::Decoder(model) => {
                let Network::Plain(decoder) = &model.network else { panic!() };
                let tokens = Tensor::new(vec![prompt.to_vec()], &Device::Cpu).unwrap();
                let hidden = decoder.forward(&tokens, &mut Cache::default()).unwrap();
                decoder.logits(&hidden.squeeze(0).unwrap()).unwrap()
            }
            Self::T5(model) => {
                let network = &model.network;
                let encoded = network.encoder().read(&[prompt], None).unwrap();
                let targets = Tensor::new(vec![TARGET.to_vec()], &Device::Cpu).unwrap();
                let hidden = network.predict(&encoded, &targets, None).unwrap();
                network.logits(&hidden.squeeze(0).unwrap()).unwrap()
            }
        }
    }

    fn save(&self, dir: &Path) {
        match self {
            Self::Decoder(model) => model.save(dir).unwrap(),
            Self::T5(model) => model.save(dir).unwrap(),
        }
    }

    fn trained(&self) -> usize {
        match self {
            Self::Decoder(model) => model.variables().len(),
            Self::T5(model) => model.variables().len(),
        }
    }
}

/// Largest difference of the model's logits from PEFT's.
fn far(model: &Model, golden: &Path) -> f32 {
    let golden = candle_core::safetensors::load(golden.join("golden.safetensors"), &Device::Cpu).unwrap();
    let one = |(i, prompt): (usize, &Vec<u32>)| {
        let far = (model.logits(prompt) - &golden[&i.to_string()]).unwrap().abs().unwrap();
        far.max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    prompts().iter().enumerate().map(one).fold(0.0, f32::max)
}

/// Fails when a name, a scale, a shape, or the place of a row in a fused layer is not PEFT's.
#[test]
fn adapters_of_peft_give_its_logits() {
    let dir = tempfile::tempdir().unwrap();
    for (_, base, folder) in adapters(dir.path()) {
        for trainable in [false, true] {
            let model = adapted(&base, Adapter::open(&folder).unwrap(), trainable);
            let far = far(&model, &folder);
            assert!(far < 2e-5, "{}: {far}, trained: {trainable}", folder.display());
            assert_eq!(model.trained() > 0, trainable);
        }
    }
}

/// What is saved holds PEFT's own tensors, bit for bit, under its names, and the settings that PEFT reads.
#[test]
fn what_is_saved_is_what_peft_saved() {
    let dir = tempfile::tempdir().unwrap();
    for (method, base, folder) in adapters(dir.path()) {
        let name = folder.file_name().unwrap();
        let out = dir.path().join("saved").join(name);
        fs::create_dir_all(dir.path().join("saved")).unwrap();
        let mut adapter = Adapter::open(&folder).unwrap();
        if method == "bitfit" {
            // PEFT has no name for it.
            adapter.method = Method::BitFit(Default::default());
        }
        adapted(&base, adapter, true).save(&out);
        let tensors = |dir: &Path| -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
            let all = candle_core::safetensors::load(dir.join("adapter_model.safetensors"), &Device::Cpu);
            let bits = |tensor: &Tensor| {
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect()
            };
            all.unwrap().iter().map(|(name, t)| (name.clone(), (t.dims().to_vec(), bits(t)))).collect()
        };
        let (mut ours, mut theirs) = (tensors(&out), tensors(&folder));
        if method == "bitfit" {
            // Which layer is wrapped for nothing is not the same.
            for all in [&mut ours, &mut theirs] {
                *all = std::mem::take(all)
                    .into_iter()
                    .filter(|(name, _)| !name.contains("lora_"))
                    .map(|(name, tensor)| (name.replace(".base_layer", ""), tensor))
                    .collect();
            }
        }
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name:?}");
        assert!(ours == theirs, "{name:?}: other values");
        let config = |dir: &Path| -> Value {
            serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (config(&out), config(&folder));
        for field in [
            "peft_type",
            "task_type",
            "r",
            "lora_alpha",
            "use_rslora",
            "num_virtual_tokens",
            "num_transformer_submodules",
            "num_layers",
        ] {
            let number = |value: &Value| value.as_f64().map_or(value.clone(), Value::from);
            assert_eq!(number(&ours[field]), number(&theirs[field]), "{name:?}: {field}");
        }
        // Read back, it gives the same logits, also in the program's own terms.
        let again = adapted(&base, Adapter::open(&out).unwrap(), false);
        let far = far(&again, &folder);
        assert!(far < 2e-5, "{name:?}: {far}");
    }
}

/// Fails when rows of a batch that begin with padding see it, or miss what the adapter puts before the text.
#[test]
fn uneven_prompts_read_as_they_do_alone() {
    use sidenote::model::generate::Autoregressive;
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "gpt2_prompt",
        "gpt2_prefix",
        "llama_prompt",
        "stablelm_prefix",
        "t5_v1_1_prompt",
        "t5_v1_0_prefix",
        "llama_lora",
    ] {
        let folder = data("adapters").join(name);
        let base = base(dir.path(), name.rsplit_once('_').unwrap().0);
        let model = adapted(&base, Adapter::open(&folder).unwrap(), false);
        let rows = prompts();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let states = |rows: &[&[u32]]| -> Vec<Vec<f32>> {
            let next = Tensor::new(vec![vec![7u32, 8]; rows.len()], &Device::Cpu).unwrap();
            let (first, rest) = match &model {
                Model::Decoder(model) => {
                    let decoder = model.network.decoder();
                    let (mut cache, first) = decoder.start(rows).unwrap();
                    (first, decoder.read(&next, &mut cache).unwrap())
                }
                Model::T5(model) => {
                    let network = &model.network;
                    let (mut state, first) = Autoregressive::start(network, rows).unwrap();
                    (first, Autoregressive::read(network, &next, &mut state).unwrap())
                }
            };
            let rest = rest.flatten_from(1).unwrap();
            Tensor::cat(&[&first, &rest], 1).unwrap().to_vec2().unwrap()
        };
        let together = states(&rows);
        for (row, all) in rows.iter().zip(&together) {
            let alone = &states(&[row])[0];
            let far = alone.iter().zip(all).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 2e-5, "{name}: {far}");
        }
    }
}

/// An adapter of another model, or with what has no place in it, is refused by name.
#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, adapter: &Path| match WritingModel::load_adapted(
        &base(dir.path(), name),
        adapter,
        &Device::Cpu,
    ) {
        Ok(_) => panic!("{name} took {}", adapter.display()),
        Err(error) => error.to_string(),
    };
    let lora = data("adapters/llama_lora");
    assert!(refused("gpt2", &lora).contains("model.layers.0.mlp.down_proj.lora_A.weight"));
    // A fused layer and another size.
    assert!(refused("gpt2", &data("adapters/gpt2_lora").join("nothing")).contains("adapter_config.json"));
    // Ours names the model by its hash.
    let ours = dir.path().join("ours");
    adapted(&base(dir.path(), "llama"), Adapter::open(&lora).unwrap(), true).save(&ours);
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let other = base(&elsewhere, "llama");
    let tensors = candle_core::safetensors::load(other.join("model.safetensors"), &Device::Cpu).unwrap();
    let moved = tensors.into_iter().map(|(name, tensor)| (name, (tensor * 1.5).unwrap())).collect();
    candle_core::safetensors::save(&moved, other.join("model.safetensors")).unwrap();
    let error = WritingModel::load_adapted(&other, &ours, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("the model that the adapter was trained on"), "{error}");
    let config = fs::read_to_string(lora.join("adapter_config.json")).unwrap();
    let strange = dir.path().join("strange");
    fs::create_dir(&strange).unwrap();
    fs::copy(lora.join("adapter_model.safetensors"), strange.join("adapter_model.safetensors")).unwrap();
    fs::write(
        strange.join("adapter_config.json"),
        config.replace("\"use_dora\": false", "\"use_dora\": true"),
    )
    .unwrap();
    assert!(refused("llama", &strange).contains("use_dora"));
    // What would be read as something else: parts of the model underneath, other layers, other tokens.
    let with = |field: &str, value: Value| {
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config[field] = value;
        fs::write(strange.join("adapter_config.json"), config.to_string()).unwrap();
    };
    for (field, value) in [
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("alora_invocation_tokens", json!([5, 6])),
        ("trainable_token_indices", json!([5])),
        ("trainable_token_indices", json!({"embed_tokens": [5]})),
    ] {
        with(field, value.clone());
        let why = refused("llama", &strange);
        assert!(why.contains("adapter_config.json") && why.contains(field), "{field} {value}: {why}");
    }
    for start in
        [json!(true), json!(false), Value::Null, json!("gaussian"), json!("eva"), json!("orthogonal")]
    {
        with("init_lora_weights", start.clone());
        assert!(Adapter::open(&strange).is_ok(), "{start}");
    }
    fs::write(strange.join("adapter_config.json"), config.replace("\"LORA\"", "\"VERA\"")).unwrap();
    assert!(refused("llama", &strange).contains("VERA"));
}
