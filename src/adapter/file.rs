//! PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`. Ours has a manifest beside them, which names
//! the model underneath by its hash.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::prompt::PROMPT;
use super::{Adapter, BitFit, Ia3, Lora, Method, Prefix, Prompt};
use crate::artefact;
use crate::error::{Error, Result};
use crate::sealed;

/// The file that makes a folder an adapter's.
pub const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of a tensor.
const WRAPPED: &str = "base_model.model.";
/// What PEFT puts between the name of a layer and what belongs to the layer itself.
const BASE_LAYER: &str = ".base_layer";
const KIND: &str = "adapter";
const FORMAT_VERSION: u32 = 1;

/// The fields of `adapter_config.json` that are read here.
#[derive(Deserialize)]
struct Fields {
    peft_type: String,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    feedforward_modules: Value,
    #[serde(default)]
    r: Option<usize>,
    #[serde(default)]
    lora_alpha: Option<f64>,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    num_virtual_tokens: Option<usize>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Fields that ask for what is not done here, where they are neither null, false nor empty.
const REFUSED: [&str; 9] = [
    "use_dora",
    "lora_bias",
    "alpha_pattern",
    "modules_to_save",
    "prefix_projection",
    "megatron_config",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
];

/// How A and B may have begun, beside true and false. Any other beginning (PiSSA, OLoRA, CorDA, LoftQ and their like) changes the
/// model underneath, and A and B fit only what is left of it.
const STARTS: (&str, [&str; 3]) = ("init_lora_weights", ["gaussian", "eva", "orthogonal"]);

impl Adapter {
    /// Reads the adapter in the folder `dir`, PEFT's or our own. Every byte of one with a manifest is checked.
    ///
    /// # Errors
    /// Names the file and what in it is missing or not done here.
    pub fn open(dir: &Path) -> Result<Self> {
        sealed::check(dir, KIND, FORMAT_VERSION)?;
        let path = dir.join(CONFIG);
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let fields: Fields = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        let empty = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if let Some(name) = REFUSED.iter().find(|name| fields.rest.get(**name).is_some_and(|v| !empty(v))) {
            return Err(Error::file(&path, format!("{name}: {} is not done here", fields.rest[*name])));
        }
        let (name, harmless) = STARTS;
        if let Some(Value::String(start)) = fields.rest.get(name)
            && !harmless.contains(&start.as_str())
        {
            let why = format!("{name}: {start:?} changes the model underneath, which is not done here");
            let hint = "let PEFT save it as a plain LoRA adapter (path_initial_model_for_weight_conversion)";
            return Err(Error::file(&path, format!("{why}; {hint}")));
        }
        let weights = dir.join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&weights, &Device::Cpu)
            .map_err(|e| Error::file(&weights, format!("not a readable safetensors file: {e}")))?;
        let mut named = BTreeMap::new();
        for (name, tensor) in tensors {
            let name = name.strip_prefix(WRAPPED).unwrap_or(&name).replace(BASE_LAYER, "");
            named.insert(name, tensor.to_dtype(DType::F32)?);
        }
        let method = method(&fields, &named).map_err(|why| Error::file(&path, why))?;
        Ok(Self { method, base: fields.base_model_name_or_path, path: Some(dir.into()), tensors: named })
    }

    /// What the manifest of one that was made here says of the model underneath.
    ///
    /// # Errors
    /// A manifest that cannot be read.
    pub fn base_in_manifest<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>> {
        match &self.path {
            Some(dir) if dir.join(artefact::MANIFEST).exists() => {
                Ok(artefact::read_manifest(dir)?.meta_as::<Option<T>>(dir)?)
            }
            _ => Ok(None),
        }
    }
}

fn method(fields: &Fields, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<Method, String> {
    // Layers by their whole names, where the file has them as a pattern.
    let strings = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(list) => list.iter().filter_map(Value::as_str).map(String::from).collect(),
            _ => Vec::new(),
        }
    };
    let modules = |value: &Value, end: &str| -> Vec<String> {
        match value {
            Value::Array(_) => strings(value),
            _ => tensors.keys().filter_map(|name| Some(name.strip_suffix(end)?.to_string())).collect(),
        }
    };
    let needed = |value: Option<usize>, name: &str| value.ok_or(format!("{name}: is missing"));
    Ok(match fields.peft_type.as_str() {
        "LORA" => Method::Lora(Lora {
            rank: needed(fields.r, "r")?,
            alpha: fields.lora_alpha.ok_or("lora_alpha: is missing")?,
            rslora: fields.use_rslora.unwrap_or(false),
            targets: modules(&fields.target_modules, ".lora_A.weight"),
        }),
        "IA3" => Method::Ia3(Ia3 {
            targets: modules(&fields.target_modules, ".ia3_l"),
            feed_forward: strings(&fields.feedforward_modules),
        }),
        "PROMPT_TUNING" => {
            Method::Prompt(Prompt { tokens: needed(fields.num_virtual_tokens, "num_virtual_tokens")? })
        }
        "PREFIX_TUNING" => {
            Method::Prefix(Prefix { tokens: needed(fields.num_virtual_tokens, "num_virtual_tokens")? })
        }
        other => {
            let why = "LORA, IA3, PROMPT_TUNING and PREFIX_TUNING are";
            return Err(format!("peft_type: {other:?} is not read here; {why}"));
        }
    })
}

/// What an adapter's files say.
pub struct Saved<'a, B> {
    /// How it changes the model.
    pub method: &'a Method,
    /// The model underneath, as the user called it.
    pub base_name: String,
    /// The same as the manifest has it.
    pub base: B,
    /// Whether that is an encoder-decoder.
    pub encoder_decoder: bool,
    /// The linear layers of its blocks, from input to output numbers: what BitFit's file is written with.
    pub layers: &'a [(String, usize, usize)],
    /// Whether the model's file has its matrices turned over, as GPT-2's.
    pub transposed: bool,
    /// Blocks, width, heads of keys and values, and their width: what PEFT asks of a prefix.
    pub shape: [usize; 4],
}

/// Writes an adapter to the new folder `dir`, which appears whole or not at all.
///
/// # Errors
/// A folder that is there already, a full disk.
pub fn save<B: Serialize>(
    dir: &Path,
    saved: &Saved<'_, B>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let (config, tensors) = as_peft(saved, tensors)?;
    sealed::write_folder(dir, "an adapter", |dir| {
        let path = dir.join(CONFIG);
        fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))?;
        sealed::write_tensors(&dir.join(WEIGHTS), &tensors)?;
        sealed::seal(dir, KIND, FORMAT_VERSION, &saved.base, &[CONFIG, WEIGHTS])
    })
}

/// The configuration and the tensors as PEFT has them.
fn as_peft<B>(
    saved: &Saved<'_, B>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(Value, HashMap<String, Tensor>)> {
    let task = if saved.encoder_decoder { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" };
    let mut config = json!({
        "base_model_name_or_path": saved.base_name,
        "inference_mode": true,
        "task_type": task,
    });
    let mut add = |fields: Value| {
        if let (Some(config), Value::Object(fields)) = (config.as_object_mut(), fields) {
            config.extend(fields);
        }
    };
    let lora = |lora: &Lora, bias: &str| {
        json!({"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "use_rslora": lora.rslora,
            "target_modules": lora.targets, "fan_in_fan_out": saved.transposed, "lora_dropout": 0.0, "bias": bias})
    };
    let wrapped = |name: &str| format!("{WRAPPED}{name}");
    let mut all: HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| (wrapped(name), tensor.clone())).collect();
    let [blocks, width, heads, head_dim] = saved.shape;
    // PEFT makes twice as many for an encoder-decoder, and uses the first of them.
    let rows = tensors.get(PROMPT).map_or(0, |prompt| prompt.dims()[0]);
    let virtual_tokens = |peft_type: &str, tokens: usize| {
        json!({"peft_type": peft_type, "num_virtual_tokens": tokens, "num_layers": blocks,
            "num_transformer_submodules": rows / tokens.max(1)})
    };
    match saved.method {
        Method::Lora(settings) => add(lora(settings, "none")),
        Method::Ia3(ia3) => add(json!({"peft_type": "IA3", "target_modules": ia3.targets,
            "feedforward_modules": ia3.feed_forward, "fan_in_fan_out": saved.transposed})),
        Method::BitFit(BitFit {}) => {
            // PEFT needs a layer that it wraps; what it puts beside that is nothing.
            let own = |name: &str| name.rsplit('.').next().unwrap_or(name).to_string();
            let Some((first, ..)) = saved.layers.first() else {
                return Err(Error::setting("adapter", "the model has no linear layer"));
            };
            let target = own(first);
            for (layer, input, output) in saved.layers.iter().filter(|(layer, ..)| own(layer) == target) {
                let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
                all.insert(wrapped(&format!("{layer}.lora_A.weight")), zeros((1, *input))?);
                all.insert(wrapped(&format!("{layer}.lora_B.weight")), zeros((*output, 1))?);
                if let Some(bias) = all.remove(&wrapped(&format!("{layer}.bias"))) {
                    all.insert(wrapped(&format!("{layer}{BASE_LAYER}.bias")), bias);
                }
            }
            let settings = Lora { rank: 1, alpha: 1.0, rslora: false, targets: vec![target] };
            add(lora(&settings, "all"));
        }
        Method::Prompt(prompt) => {
            add(virtual_tokens("PROMPT_TUNING", prompt.tokens));
            add(json!({"token_dim": width, "num_attention_heads": heads, "prompt_tuning_init": "RANDOM"}));
        }
        Method::Prefix(prefix) => {
            add(virtual_tokens("PREFIX_TUNING", prefix.tokens));
            let modules = if saved.encoder_decoder { 2 } else { 1 };
            add(
                json!({"num_transformer_submodules": modules, "token_dim": heads * head_dim, "num_attention_heads": heads,
                "encoder_hidden_size": width, "prefix_projection": false}),
            );
        }
    }
    // PEFT has no wrapper around the names of these.
    if let Some(prompt) = all.remove(&wrapped(PROMPT)) {
        all.insert(PROMPT.into(), prompt);
    }
    Ok((config, all))
}
