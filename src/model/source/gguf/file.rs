//! The container: metadata by key, and where each tensor is (ggml's docs/gguf.md, versions 2 and 3).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::blocks::{BlockKind, Blocks};
use crate::corpus::Mapped;
use crate::error::{Error, Result};

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// An opened file.
pub(super) struct File {
    pub path: PathBuf,
    map: Arc<Mapped<u8>>,
    metadata: HashMap<String, Value>,
    tensors: BTreeMap<String, Place>,
}

struct Place {
    kind: BlockKind,
    /// In PyTorch's order.
    shape: Vec<usize>,
    start: usize,
    length: usize,
}

/// Most dimensions of a tensor in ggml.
const MAX_DIMENSIONS: u32 = 4;
/// Lists of lists go no deeper than this.
const MAX_DEPTH: usize = 4;

impl File {
    pub fn open(path: &Path) -> Result<Self> {
        let map = Arc::new(Mapped::whole(path)?);
        let mut reader = Reader { bytes: &map, at: 0, path };
        if reader.take(4, "the magic")? != b"GGUF" {
            return Err(Error::file(path, "no GGUF file: it does not begin with \"GGUF\""));
        }
        let version = reader.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(Error::file(path, format!("GGUF version {version}; 2 and 3 are read")));
        }
        let tensors = reader.length("tensor count")?;
        let keys = reader.length("metadata count")?;
        let mut metadata = HashMap::new();
        for _ in 0..keys {
            let key = reader.text("a metadata key")?;
            let kind = reader.u32(&key)?;
            let value = reader.value(kind, &key, 0)?;
            metadata.insert(key, value);
        }
        let mut found = Vec::new();
        for _ in 0..tensors {
            found.push(reader.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Integer(n)) if n > 0 && n <= 1 << 20 => n as usize,
            Some(_) => return Err(Error::file(path, "general.alignment is no number from 1 to 1048576")),
        };
        let data = reader.at.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, kind, shape, offset) in found {
            let fault = |why: String| Error::file(path, format!("tensor {name}: {why}"));
            let length = Blocks::byte_len(kind, &shape)
                .ok_or_else(|| fault(format!("shape {shape:?} is no whole number of blocks of {kind:?}")))?;
            let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
            let end = start.and_then(|start| start.checked_add(length));
            match (start, end) {
                (Some(start), Some(end)) if end <= map.len() => {
                    tensors.insert(name, Place { kind, shape, start, length });
                }
                _ => {
                    let why = format!("its {length} bytes go beyond the file's end; is the file whole?");
                    return Err(fault(why));
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), map, metadata, tensors })
    }

    /// An error about `field`.
    pub fn fault(&self, field: &str, why: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{field}: {why}"))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn required<T>(&self, key: &str, value: Result<Option<T>>) -> Result<T> {
        value?.ok_or_else(|| self.fault(key, "this metadata key is missing"))
    }

    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Integer(n)) if n >= 0 => Ok(Some(n as u64)),
            // Some writers give one number a layer; where all are the same, it is one number.
            Some(Value::List(list)) if !list.is_empty() && list.iter().all(|n| n == &list[0]) => {
                match list[0] {
                    Value::Integer(n) if n >= 0 => Ok(Some(n as u64)),
                    _ => Err(self.fault(key, "must be a number of 0 or more")),
                }
            }
            Some(Value::List(_)) => {
                Err(self.fault(key, "differs from layer to layer, which is not read here"))
            }
            Some(_) => Err(self.fault(key, "must be a number of 0 or more")),
        }
    }

    pub fn needed_integer(&self, key: &str) -> Result<u64> {
        self.required(key, self.integer(key))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(x)) if x.is_finite() => Ok(Some(x)),
            Some(&Value::Integer(n)) => Ok(Some(n as f64)),
            Some(_) => Err(self.fault(key, "must be a finite number")),
        }
    }

    pub fn needed_float(&self, key: &str) -> Result<f64> {
        self.required(key, self.float(key))
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(b)) => Ok(Some(b)),
            Some(_) => Err(self.fault(key, "must be true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.fault(key, "must be a string")),
        }
    }

    pub fn needed_text(&self, key: &str) -> Result<&str> {
        self.required(key, self.text(key))
    }

    /// A list, each element as `read` understands it.
    pub fn list<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        let list = match self.get(key) {
            None => return Ok(None),
            Some(Value::List(list)) => list,
            Some(_) => return Err(self.fault(key, "must be a list")),
        };
        let read = |(i, value)| {
            read(value).ok_or_else(|| self.fault(key, format!("element {i} is of another type")))
        };
        list.iter().enumerate().map(read).collect::<Result<_>>().map(Some)
    }

    /// Names of the tensors, as the file has them.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|place| place.shape.as_slice())
    }

    /// The tensor that the file calls `name`.
    pub fn tensor(&self, name: &str) -> Result<Blocks> {
        let place = self.tensors.get(name).ok_or_else(|| self.fault(name, "this tensor is missing"))?;
        let range = place.start..place.start + place.length;
        Blocks::mapped(place.kind, place.shape.clone(), self.map.clone(), range)
            .ok_or_else(|| self.fault(name, "this tensor does not fit its place"))
    }
}

/// Reads numbers and strings, one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let bytes = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or_else(|| {
            Error::file(
                self.path,
                format!("{what}: the file ends at byte {}, in the middle of it", self.bytes.len()),
            )
        })?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things, each of which takes at least a byte.
    fn length(&mut self, what: &str) -> Result<usize> {
        let length = self.u64(what)?;
        let left = self.bytes.len() - self.at;
        usize::try_from(length).ok().filter(|&length| length <= left).ok_or_else(|| {
            Error::file(
                self.path,
                format!("{what}: {length} of them cannot be in the {left} bytes that are left"),
            )
        })
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.length(what)?;
        // Some writers' vocabularies hold tokens that are no UTF-8.
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        let path = self.path;
        let fault = |why: String| Error::file(path, format!("{key}: {why}"));
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Integer(self.u32(key)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(u8::from_le_bytes(self.array(key)?) != 0),
            8 => Value::Text(self.text(key)?),
            9 if depth >= MAX_DEPTH => return Err(fault("lists are nested too deep".into())),
            9 => {
                let kind = self.u32(key)?;
                let length = self.length(key)?;
                let values = (0..length).map(|_| self.value(kind, key, depth + 1));
                Value::List(values.collect::<Result<_>>()?)
            }
            10 => {
                let n = self.u64(key)?;
                Value::Integer(i64::try_from(n).map_err(|_| fault(format!("{n} is too large")))?)
            }
            11 => Value::Integer(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(fault(format!("type {other} of a value is not known"))),
        })
    }

    /// Name, format, shape, and offset from where the data begin.
    fn tensor(&mut self) -> Result<(String, BlockKind, Vec<usize>, u64)> {
        let name = self.text("a tensor's name")?;
        let path = self.path;
        let fault = |why: String| Error::file(path, format!("tensor {name}: {why}"));
        let dimensions = self.u32(&name)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(fault(format!("{dimensions} dimensions; at most {MAX_DIMENSIONS} are possible")));
        }
        let sizes = (0..dimensions).map(|_| self.u64(&name)).collect::<Result<Vec<u64>>>()?;
        // ggml's first dimension is the contiguous one.
        let shape: Option<Vec<usize>> = sizes.iter().rev().map(|&n| usize::try_from(n).ok()).collect();
        let shape = shape.ok_or_else(|| fault(format!("shape {sizes:?} is too large")))?;
        let number = self.u32(&name)?;
        let kind = kind(number).ok_or_else(|| {
            fault(format!(
                "block type {number} is not read; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K are"
            ))
        })?;
        Ok((name.clone(), kind, shape, self.u64(&name)?))
    }
}

/// ggml's numbers of its types.
fn kind(number: u32) -> Option<BlockKind> {
    Some(match number {
        0 => BlockKind::F32,
        1 => BlockKind::F16,
        2 => BlockKind::Q4_0,
        3 => BlockKind::Q4_1,
        6 => BlockKind::Q5_0,
        7 => BlockKind::Q5_1,
        8 => BlockKind::Q8_0,
        10 => BlockKind::Q2K,
        11 => BlockKind::Q3K,
        12 => BlockKind::Q4K,
        13 => BlockKind::Q5K,
        14 => BlockKind::Q6K,
        30 => BlockKind::BF16,
        _ => return None,
    })
}
