//! The files of an encoder: found, read, hashed; every complaint names the file.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::hub;

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const WEIGHTS: &str = "model.safetensors";

/// The name of the encoder inside the program.
const DEFAULT: &str = "default";

/// Where the files of an encoder are, and the running hash over those that were read.
pub(super) struct Files {
    /// `None` for the encoder inside the program.
    folder: Option<PathBuf>,
    hasher: blake3::Hasher,
}

impl Files {
    /// The files of the encoder that the user calls `name`.
    pub fn open(name: &str) -> Result<Self> {
        if name == DEFAULT {
            return Ok(Self { folder: None, hasher: blake3::Hasher::new() });
        }
        let wrong = |why: String| {
            let give = format!("give {DEFAULT:?}, or a folder with {CONFIG}, {TOKENIZER} and {WEIGHTS}");
            Error::setting("encoder", format!("{why}; {give}"))
        };
        let folder = hub::resolve(Path::new(name)).map_err(|e| wrong(e.to_string()))?;
        if !folder.is_dir() {
            return Err(wrong(format!("{name:?} is no folder")));
        }
        Ok(Self { folder: Some(folder), hasher: blake3::Hasher::new() })
    }

    fn path(&self, file: &str) -> PathBuf {
        match &self.folder {
            Some(folder) => folder.join(file),
            None => Path::new("assets/encoder").join(file),
        }
    }

    /// An error about `file`.
    pub fn fault(&self, file: &str, why: impl Into<String>) -> Error {
        Error::file(self.path(file), why)
    }

    fn bytes(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let path = self.path(file);
        if self.folder.is_none() {
            let bytes: &'static [u8] = match file {
                CONFIG => include_bytes!("../../assets/encoder/config.json"),
                TOKENIZER => include_bytes!("../../assets/encoder/tokenizer.json"),
                WEIGHTS => include_bytes!("../../assets/encoder/model.safetensors"),
                _ => return Ok(None),
            };
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path)(e)),
        }
    }

    /// Reads `file`, where it exists, into the identity.
    fn read_optional(&mut self, file: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let bytes = self.bytes(file)?;
        if let Some(bytes) = &bytes {
            self.hasher.update(file.as_bytes()).update(&[0]);
            self.hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        Ok(bytes)
    }

    fn read(&mut self, file: &str) -> Result<Cow<'static, [u8]>> {
        let bytes = self.read_optional(file)?;
        bytes.ok_or_else(|| self.fault(file, "the file is missing, and an encoder needs it"))
    }

    /// Architecture that the configuration states.
    pub fn model_type(&self) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct Kind {
            model_type: String,
        }
        let bytes = self.bytes(CONFIG)?.ok_or_else(|| self.fault(CONFIG, "the file is missing"))?;
        self.parse::<Kind>(CONFIG, &bytes).map(|kind| kind.model_type)
    }

    fn parse<T: DeserializeOwned>(&self, file: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|e| self.fault(file, e.to_string()))
    }

    /// Reads a JSON file.
    pub fn json<T: DeserializeOwned>(&mut self, file: &str) -> Result<T> {
        let bytes = self.read(file)?;
        self.parse(file, &bytes)
    }

    /// Reads a JSON file that may be absent.
    pub fn json_optional<T: DeserializeOwned>(&mut self, file: &str) -> Result<Option<T>> {
        let bytes = self.read_optional(file)?;
        bytes.map(|bytes| self.parse(file, &bytes)).transpose()
    }

    /// Reads the tokenizer, without the padding and truncation that its file may ask for.
    pub fn tokenizer(&mut self) -> Result<Tokenizer> {
        let bytes = self.read(TOKENIZER)?;
        let mut tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|e| self.fault(TOKENIZER, e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| self.fault(TOKENIZER, e.to_string()))?;
        Ok(tokenizer)
    }

    /// Reads the weights and hands them to `build`.
    pub fn weights<T>(&mut self, build: impl FnOnce(&Weights) -> Result<T>) -> Result<T> {
        self.weights_in(WEIGHTS, build)
    }

    /// Reads the weights of a file and hands them to `build`.
    pub fn weights_in<T>(&mut self, file: &str, build: impl FnOnce(&Weights) -> Result<T>) -> Result<T> {
        let bytes = self.read(file)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| self.fault(file, format!("not a readable safetensors file: {e}")))?;
        build(&Weights { path: self.path(file), tensors })
    }

    /// Hash over every file that was read.
    pub fn identity(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_string()
    }
}

/// The tensors of a weight file.
pub(super) struct Weights<'a> {
    path: PathBuf,
    tensors: SafeTensors<'a>,
}

impl Weights<'_> {
    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let missing = |_| Error::file(&self.path, format!("tensor {name:?} is missing"));
        self.tensors.tensor(name).map_err(missing)
    }

    /// Shape of the tensor `name`.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.view(name)?.shape().to_vec())
    }

    /// The tensor `name`, which must have `shape`.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let view = self.view(name)?;
        if view.shape() != shape {
            let why = format!(
                "tensor {name:?} has shape {:?}, but {CONFIG} and {TOKENIZER} ask for {shape:?}",
                view.shape()
            );
            return Err(Error::file(&self.path, why));
        }
        Ok(view)
    }

    fn wrong_type(&self, name: &str, found: Dtype, wanted: &str) -> Error {
        Error::file(&self.path, format!("tensor {name:?} has type {found:?}; {wanted} is needed"))
    }

    /// The tensor `name`, which must have `shape` and type U8.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        let view = self.shaped(name, shape)?;
        match view.dtype() {
            Dtype::U8 => Ok(view.data().to_vec()),
            other => Err(self.wrong_type(name, other, "U8")),
        }
    }

    /// The tensor `name`, which must have `shape`, as f32 numbers in row-major order.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let view = self.shaped(name, shape)?;
        let dtype = match view.dtype() {
            Dtype::I8 => return Ok(view.data().iter().map(|&byte| f32::from(byte as i8)).collect()),
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            other => return Err(self.wrong_type(name, other, "floating point or I8")),
        };
        let tensor = Tensor::from_raw_buffer(
            view.data(),
            dtype,
            &[view.data().len() / dtype.size_in_bytes()],
            &Device::Cpu,
        )?;
        Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
    }
}
