//! Sentence encoders with weights of 8 bits, written as folders that are read like any other's.
//!
//! The layout is that of the package compressed-tensors ("int-quantized": weights by row, inputs by token as they come), which
//! transformers loads. A layer's matrix becomes codes `[out, in]` in `I8` under its own name and what each row is multiplied by,
//! `[out, 1]` in `F32`, under that name with `_scale` behind it. Tables of embeddings are kept in `F16`, all else in `F32`.

use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use sidenote_kernels::inference::round_rows;

use super::copied;
use super::folder::{CONFIG, Files, WEIGHTS, scale_of};
use super::names;
use super::sentence::{SentenceEncoder, family_of};
use crate::error::{Error, Result};
use crate::model::source::Source;

/// What [`quantise`] has done.
pub struct Quantised {
    /// Bytes of the weights in `f32`.
    pub f32_bytes: usize,
    /// Bytes of the file that was written.
    pub bytes: usize,
}

/// Reads the sentence encoder (of BERT's families) in the folder `source` and writes it with weights of 8 bits to the new
/// folder `out`, which appears whole or not at all.
///
/// # Errors
/// What [`SentenceEncoder::open`] reports; an encoder whose weights are rounded already; a folder that is there already.
pub fn quantise(source: &str, out: &Path) -> Result<Quantised> {
    copied::check_new(out)?;
    // Whatever is wrong with it is found before anything is written.
    SentenceEncoder::open(source)?;
    let files = Files::open(source)?;
    let (family, Some(folder)) = (family_of(&files)?, files.folder()) else {
        return Err(files.fault(CONFIG, "the encoder inside the program has no layers"));
    };
    let checkpoint = Source::open(folder)?;
    let (names, prefix) = (names::of(family), names::prefix(|name| checkpoint.has(name)));
    let (mut written, mut kept, mut f32_bytes) = (Vec::new(), Vec::new(), 0);
    for name in checkpoint.names() {
        if checkpoint.has(&scale_of(&name)) {
            return Err(files.fault(WEIGHTS, format!("tensor {name:?} is rounded already")));
        }
        let Some(stored) = checkpoint.peek(&name)? else { continue };
        let (shape, values) = (stored.shape().to_vec(), stored.to_f32()?.flatten_all()?.to_vec1::<f32>()?);
        f32_bytes += size_of_val(&values[..]);
        match shape[..] {
            [rows, input] if names.is_multiplied(name.strip_prefix(prefix).unwrap_or(&name)) => {
                let (codes, scales) = round_rows(&values, input)
                    .map_err(|why| files.fault(WEIGHTS, format!("tensor {name:?}: {why}")))?;
                written.push(Written::new(scale_of(&name), Dtype::F32, [rows, 1], scales, f32::to_le_bytes));
                written.push(Written::new(name, Dtype::I8, shape, codes, i8::to_le_bytes));
            }
            [_, _] => {
                kept.extend(name.strip_suffix(".weight").map(str::to_string));
                let halves = values.into_iter().map(f16::from_f32);
                written.push(Written::new(name, Dtype::F16, shape, halves, f16::to_le_bytes));
            }
            _ => written.push(Written::new(name, Dtype::F32, shape, values, f32::to_le_bytes)),
        }
    }
    let path = out.join(WEIGHTS);
    let wrong = |e: safetensors::SafeTensorError| Error::file(&path, e.to_string());
    let views = written.iter().map(|tensor| Ok((&tensor.name, tensor.view().map_err(wrong)?)));
    let weights = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(wrong)?;
    let settings = copied::settings(folder)?.into_iter().map(|(path, bytes)| {
        let is_config = path == Path::new(CONFIG);
        Ok((path, if is_config { said_in(&files, &bytes, &kept)? } else { bytes }))
    });
    let settings: Vec<(PathBuf, Vec<u8>)> = settings.collect::<Result<_>>()?;
    copied::write(out, &settings, |dir| {
        let path = dir.join(WEIGHTS);
        std::fs::write(&path, &weights).map_err(Error::io(path))
    })?;
    Ok(Quantised { f32_bytes, bytes: weights.len() })
}

/// The configuration, which then says how weights are rounded, but for those of the modules that are `kept`.
fn said_in(files: &Files, config: &[u8], kept: &[String]) -> Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(config).map_err(|e| files.fault(CONFIG, e.to_string()))?;
    let rounded = |strategy: &str, dynamic: bool| json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": strategy, "dynamic": dynamic});
    config["quantization_config"] = json!({
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": rounded("channel", false),
            "input_activations": rounded("token", true),
        }},
        "ignore": kept,
    });
    Ok(format!("{config:#}\n").into_bytes())
}

/// A tensor of the file.
struct Written {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Written {
    fn new<T, const N: usize>(
        name: String,
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        values: impl IntoIterator<Item = T>,
        bytes_of: impl Fn(T) -> [u8; N],
    ) -> Self {
        Self { name, dtype, shape: shape.into(), bytes: values.into_iter().flat_map(bytes_of).collect() }
    }

    fn view(&self) -> std::result::Result<TensorView<'_>, safetensors::SafeTensorError> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes)
    }
}
