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

use crate::corpus::bytes_of;
use crate::error::{Error, Result};
use crate::hub;
use crate::model::source::{SENTENCEPIECE, Source, Stored, TOKENIZER_CONFIG};

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const WEIGHTS: &str = "model.safetensors";

/// The tensor with the scales of the rounded tensor `name`.
pub(super) fn scale_of(name: &str) -> String {
    format!("{name}_scale")
}

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

    /// Where they are; `None` for the encoder inside the program.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
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
        self.plain(TOKENIZER, &bytes)
    }

    /// The same of a T5, whose older repositories have a SentencePiece model alone: as models read it.
    pub fn t5_tokenizer(&mut self) -> Result<Tokenizer> {
        let Some(folder) = self.folder.clone().filter(|_| self.tokenizer_file() == SENTENCEPIECE) else {
            return self.tokenizer();
        };
        self.read(SENTENCEPIECE)?;
        // Says how many sentinels come after its pieces.
        self.read_optional(TOKENIZER_CONFIG)?;
        let tokenizer = Source::open(&folder)?.tokenizer()?;
        self.plain(SENTENCEPIECE, tokenizer.json())
    }

    /// The file that the tokenizer is in.
    pub fn tokenizer_file(&self) -> &'static str {
        let there = |file: &str| self.path(file).exists();
        if !there(TOKENIZER) && there(SENTENCEPIECE) { SENTENCEPIECE } else { TOKENIZER }
    }

    /// The tokenizer of `file`, which a `tokenizer.json` describes.
    fn plain(&self, file: &str, json: &[u8]) -> Result<Tokenizer> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| self.fault(file, e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| self.fault(file, e.to_string()))?;
        Ok(tokenizer)
    }

    /// Reads the weights and hands them to `build`.
    pub fn weights<T>(&mut self, build: impl FnOnce(&Weights) -> Result<T>) -> Result<T> {
        self.weights_of("", build)
    }

    /// Reads the weights of the module in the folder `module` and hands them to `build`. Where they are not in one
    /// safetensors file, they are read as any checkpoint's: in several files, or in PyTorch's format.
    pub fn weights_of<T>(&mut self, module: &str, build: impl FnOnce(&Weights) -> Result<T>) -> Result<T> {
        let file = if module.is_empty() { WEIGHTS.to_string() } else { format!("{module}/{WEIGHTS}") };
        if let Some(folder) = self.folder.as_ref().filter(|_| !self.path(&file).exists()) {
            let source = Source::open(folder.join(module))?;
            self.hash_tensors(&source)?;
            return build(&Weights {
                path: source.weights().to_path_buf(),
                tensors: Tensors::Checkpoint(&source),
            });
        }
        let bytes = self.read(&file)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| self.fault(&file, format!("not a readable safetensors file: {e}")))?;
        build(&Weights { path: self.path(&file), tensors: Tensors::File(tensors) })
    }

    /// Takes all tensors into the identity, whatever they are stored as.
    fn hash_tensors(&mut self, source: &Source) -> Result<()> {
        for name in source.names() {
            let Some(stored) = source.peek(&name)? else { continue };
            let values = stored.to_f32()?.flatten_all()?.to_vec1::<f32>()?;
            self.hasher.update(name.as_bytes()).update(&[0]).update(bytes_of(&values));
        }
        Ok(())
    }

    /// Hash over every file that was read.
    pub fn identity(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_string()
    }
}

/// The tensors of a weight file.
pub(super) struct Weights<'a> {
    path: PathBuf,
    tensors: Tensors<'a>,
}

enum Tensors<'a> {
    File(SafeTensors<'a>),
    Checkpoint(&'a Source),
}

impl Weights<'_> {
    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        match &self.tensors {
            Tensors::File(tensors) => tensors.tensor(name).is_ok(),
            Tensors::Checkpoint(source) => source.has(name),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::file(&self.path, format!("tensor {name:?} is missing"))
    }

    fn view<'a>(&self, tensors: &'a SafeTensors, name: &str) -> Result<TensorView<'a>> {
        tensors.tensor(name).map_err(|_| self.missing(name))
    }

    fn stored(&self, source: &Source, name: &str) -> Result<Stored> {
        source.peek(name)?.ok_or_else(|| self.missing(name))
    }

    /// Shape of the tensor `name`.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(match &self.tensors {
            Tensors::File(tensors) => self.view(tensors, name)?.shape().to_vec(),
            Tensors::Checkpoint(source) => self.stored(source, name)?.shape().to_vec(),
        })
    }

    fn check_shape(&self, name: &str, found: &[usize], shape: &[usize]) -> Result<()> {
        if found == shape {
            return Ok(());
        }
        let why =
            format!("tensor {name:?} has shape {found:?}, but {CONFIG} and {TOKENIZER} ask for {shape:?}");
        Err(Error::file(&self.path, why))
    }

    fn wrong_type(&self, name: &str, found: impl std::fmt::Debug, wanted: &str) -> Error {
        Error::file(&self.path, format!("tensor {name:?} has type {found:?}; {wanted} is needed"))
    }

    /// The tensor `name`, which must have `shape` and type U8.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        let view = match &self.tensors {
            Tensors::File(tensors) => self.view(tensors, name)?,
            Tensors::Checkpoint(_) => return Err(self.wrong_type(name, "of a checkpoint", "U8")),
        };
        self.check_shape(name, view.shape(), shape)?;
        match view.dtype() {
            Dtype::U8 => Ok(view.data().to_vec()),
            other => Err(self.wrong_type(name, other, "U8")),
        }
    }

    /// The tensor `name`, which must have `shape`, where it is of type I8.
    pub fn integers(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<i8>>> {
        let Tensors::File(tensors) = &self.tensors else { return Ok(None) };
        let view = self.view(tensors, name)?;
        self.check_shape(name, view.shape(), shape)?;
        let is_i8 = view.dtype() == Dtype::I8;
        Ok(is_i8.then(|| view.data().iter().map(|&byte| byte as i8).collect()))
    }

    /// The tensor `name` of `[rows, input]` as [`quantise`](super::quantise) rounds it, where it is rounded: codes, and
    /// the scale of each row.
    pub fn rounded(&self, name: &str, [rows, input]: [usize; 2]) -> Result<Option<(Vec<i8>, Vec<f32>)>> {
        let Some(codes) = self.integers(name, &[rows, input])? else { return Ok(None) };
        Ok(Some((codes, self.values(&scale_of(name), &[rows, 1])?)))
    }

    /// The tensor `name`, which must have `shape`, as f32 numbers in row-major order.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let view = match &self.tensors {
            Tensors::File(tensors) => self.view(tensors, name)?,
            Tensors::Checkpoint(source) => {
                let stored = self.stored(source, name)?;
                self.check_shape(name, stored.shape(), shape)?;
                return Ok(stored.to_f32()?.flatten_all()?.to_vec1()?);
            }
        };
        self.check_shape(name, view.shape(), shape)?;
        let dtype = match view.dtype() {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            other => return Err(self.wrong_type(name, other, "floating point")),
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
