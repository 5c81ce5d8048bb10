//! PyTorch's files (`pytorch_model.bin`, `.pth`), one or several.
//!
//! They are zip archives of raw numbers and one pickle that says what they are. The pickle is
//! taken apart by candle's reader, which builds plain values and runs nothing; what is no tensor
//! is left aside.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use candle_core::pickle::{Object, Stack};
use candle_core::{DType, Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::Stored;
use super::safetensors::shards;
use crate::corpus::Mapped;
use crate::error::{Error, Result};

/// Keys under which training scripts put the weights.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// Bounds of a pickle: real ones stay far below, and a hostile one must not fill memory or nest
/// deeper than the stack.
const MAX_PICKLE: u64 = 1 << 28;
const MAX_STACK: usize = 4096;
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 1 << 22;

/// Tensors by name, each in one of several files.
pub(super) struct Files {
    files: Vec<(PathBuf, Mapped<u8>)>,
    place: BTreeMap<String, Place>,
}

struct Place {
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// Whether the numbers are column after column.
    transposed: bool,
    /// Where they are in the file.
    start: usize,
    length: usize,
}

/// What a pickle says of a tensor; sizes count numbers.
struct Description {
    storage: String,
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Files {
    /// One file.
    pub fn single(path: PathBuf) -> Result<Self> {
        let mut files = Self { files: Vec::new(), place: BTreeMap::new() };
        files.add(path)?;
        Ok(files)
    }

    /// The files that an index names, which stand beside it.
    pub fn sharded(index: &Path) -> Result<Self> {
        let mut files = Self { files: Vec::new(), place: BTreeMap::new() };
        for (path, names) in shards(index)? {
            files.add(path.clone())?;
            let missing = names.iter().find(|name| !files.place.contains_key(*name));
            if let Some(name) = missing {
                let why = format!("tensor {name} is missing, which {} looks for here", index.display());
                return Err(Error::file(path, why));
            }
        }
        Ok(files)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let map = Mapped::whole(&path)?;
        let file = self.files.len();
        for (name, mut place) in read(&path, &map)? {
            place.file = file;
            self.place.insert(name, place);
        }
        self.files.push((path, map));
        Ok(())
    }

    pub fn names(&self) -> Vec<String> {
        self.place.keys().cloned().collect()
    }

    pub fn read(&self, name: &str) -> Result<Stored> {
        let place = self.place.get(name).ok_or_else(|| Error::setting(name, "there is no such tensor"))?;
        let (path, map) = &self.files[place.file];
        let bytes = map.get(place.start..place.start + place.length);
        let bytes =
            bytes.ok_or_else(|| Error::file(path, format!("tensor {name}: ends after the file's end")))?;
        let mut shape = place.shape.clone();
        if place.transposed {
            shape.reverse();
        }
        let tensor = Tensor::from_raw_buffer(bytes, place.dtype, &shape, &Device::Cpu)?;
        Ok(Stored::Dense(if place.transposed { tensor.t()?.contiguous()? } else { tensor }))
    }
}

/// The tensors in the archive `bytes`, which is the file at `path`.
fn read(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Place)>> {
    let fault = |why: String| Error::file(path, why);
    if !bytes.starts_with(b"PK") {
        return Err(fault(
            "no archive of PyTorch 1.6 or later; load it with PyTorch and save it again, best as safetensors"
                .into(),
        ));
    }
    let unreadable = |e: zip::result::ZipError| fault(format!("not a readable zip archive: {e}"));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    let mut names = Vec::new();
    for i in 0..archive.len() {
        names.push(archive.by_index_raw(i).map_err(unreadable)?.name().map_err(unreadable)?.to_string());
    }
    let pickle = names.iter().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let pickle = pickle.ok_or_else(|| fault("no data.pkl in it, so it is none of PyTorch's".into()))?;
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
    let mut content = Vec::new();
    let entry = archive.by_name(pickle).map_err(unreadable)?;
    entry.take(MAX_PICKLE).read_to_end(&mut content).map_err(|e| fault(format!("{pickle}: {e}")))?;
    let object = unpickle(&content).map_err(|why| fault(format!("{pickle}: {why}")))?;
    let mut places = Vec::new();
    for (name, value) in entries(object) {
        let Some(described) = describe(value) else { continue };
        let fault = |why: String| fault(format!("tensor {name}: {why}"));
        let tensor = described.map_err(&fault)?;
        let entry = format!("{folder}data/{}", tensor.storage);
        let storage = archive.by_name(&entry).map_err(|e| fault(format!("{entry}: {e}")))?;
        if storage.compression() != CompressionMethod::Stored {
            return Err(fault(format!("{entry} is compressed, which PyTorch never does")));
        }
        let beyond = || fault(format!("goes beyond {entry}"));
        let size = tensor.dtype.size_in_bytes();
        let count = tensor.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        let length = count.and_then(|count| count.checked_mul(size)).ok_or_else(beyond)?;
        let offset = tensor.offset.checked_mul(size).ok_or_else(beyond)?;
        let end = offset.checked_add(length).ok_or_else(beyond)?;
        if end as u64 > storage.size() {
            return Err(beyond());
        }
        let data = storage.data_start().and_then(|start| usize::try_from(start).ok()).ok_or_else(beyond)?;
        let start = data.checked_add(offset).ok_or_else(beyond)?;
        if start.checked_add(length).is_none_or(|end| end > bytes.len()) {
            return Err(beyond());
        }
        let transposed = match tensor.order() {
            Some(transposed) => transposed,
            None => {
                let why = format!(
                    "strides {:?} of shape {:?} are not read here; call contiguous() before saving",
                    tensor.strides, tensor.shape
                );
                return Err(fault(why));
            }
        };
        places.push((
            name,
            Place { file: 0, dtype: tensor.dtype, shape: tensor.shape, transposed, start, length },
        ));
    }
    match places.is_empty() {
        true => Err(fault("holds no tensors; a state_dict is read".into())),
        false => Ok(places),
    }
}

/// Builds the value that a pickle describes, within bounds.
fn unpickle(mut bytes: &[u8]) -> std::result::Result<Object, String> {
    let mut stack = Stack::empty();
    loop {
        // What may make a value larger: tuples, calls, copies out of the memo.
        let grows = bytes.first().is_some_and(|op| b"tRbhjd\x81\x85\x86\x87".contains(op));
        let stop = stack.read(&mut bytes).map_err(|e| e.to_string())?;
        if stack.stack().len() > MAX_STACK {
            return Err("holds more than any state_dict".into());
        }
        if grows && let Some(top) = stack.stack().last() {
            weigh(top, MAX_DEPTH, &mut 0)?;
        }
        if stop {
            return stack.finalize().map_err(|e| e.to_string());
        }
    }
}

/// Refuses a value that is too deep or too large.
fn weigh(object: &Object, depth: usize, nodes: &mut usize) -> std::result::Result<(), String> {
    *nodes += 1;
    let deeper = depth.checked_sub(1).filter(|_| *nodes < MAX_NODES);
    let deeper = deeper.ok_or("is nested deeper, or holds more, than any state_dict")?;
    match object {
        Object::Tuple(items) | Object::List(items) => {
            items.iter().try_for_each(|item| weigh(item, deeper, nodes))
        }
        Object::Dict(items) => items.iter().try_for_each(|(key, value)| {
            weigh(key, deeper, nodes).and_then(|()| weigh(value, deeper, nodes))
        }),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            weigh(callable, deeper, nodes).and_then(|()| weigh(args, deeper, nodes))
        }
        Object::PersistentLoad(object) => weigh(object, deeper, nodes),
        _ => Ok(()),
    }
}

/// The entries of a state_dict, also of one inside a checkpoint.
fn entries(object: Object) -> Vec<(String, Object)> {
    let Object::Dict(entries) = object else { return Vec::new() };
    let mut entries: Vec<(String, Object)> =
        entries.into_iter().filter_map(|(key, value)| Some((key.unicode().ok()?, value))).collect();
    let wrapped = entries
        .iter()
        .position(|(key, value)| WRAPPERS.contains(&key.as_str()) && matches!(value, Object::Dict(_)));
    match wrapped {
        Some(place) => self::entries(entries.swap_remove(place).1),
        None => entries,
    }
}

/// What `object` says of a tensor; `None` if it is none.
fn describe(object: Object) -> Option<std::result::Result<Description, String>> {
    let Object::Reduce { callable, args } = object else { return None };
    let (Object::Class { module_name, class_name }, Object::Tuple(args)) = (*callable, *args) else {
        return None;
    };
    let mut args = args.into_iter();
    match (module_name.as_str(), class_name.as_str()) {
        ("torch._utils", "_rebuild_tensor_v2") => {}
        ("torch._utils", "_rebuild_parameter") => return describe(args.next()?),
        ("torch._tensor", "_rebuild_from_type_v2") => {
            let args = Box::new(args.nth(2)?);
            let callable = Box::new(Object::Class {
                module_name: "torch._utils".into(),
                class_name: "_rebuild_tensor_v2".into(),
            });
            return describe(Object::Reduce { callable, args });
        }
        _ => return None,
    }
    let described = (|| {
        let storage = args.next()?.persistent_load().ok()?.tuple().ok()?;
        let offset = usize::try_from(args.next()?.int_or_long().ok()?).ok()?;
        let numbers = |object: Object| -> Option<Vec<usize>> {
            object.tuple().ok()?.into_iter().map(|n| usize::try_from(n.int_or_long().ok()?).ok()).collect()
        };
        let (shape, strides) = (numbers(args.next()?)?, numbers(args.next()?)?);
        let mut storage = storage.into_iter().skip(1);
        let (_, class) = storage.next()?.class().ok()?;
        let key = storage.next()?.unicode().ok()?;
        (shape.len() == strides.len()).then_some((class, key, offset, shape, strides))
    })();
    let Some((class, storage, offset, shape, strides)) = described else {
        return Some(Err("the pickle describes it in a way that is not read here".into()));
    };
    let dtype = match class.as_str() {
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "DoubleStorage" => DType::F64,
        "LongStorage" => DType::I64,
        "ByteStorage" | "BoolStorage" => DType::U8,
        other => {
            return Some(Err(format!(
                "a {other} is not read here; FloatStorage, HalfStorage and BFloat16Storage are"
            )));
        }
    };
    Some(Ok(Description { storage, dtype, offset, shape, strides }))
}

impl Description {
    /// Whether the numbers stand column after column; `None` if neither so nor row after row.
    fn order(&self) -> Option<bool> {
        let follows = |dimensions: &mut dyn Iterator<Item = (usize, usize)>| {
            let mut step = 1usize;
            dimensions.filter(|(size, _)| *size != 1).all(|(size, stride)| {
                let fits = stride == step;
                step = step.saturating_mul(size);
                fits
            })
        };
        let pairs = || self.shape.iter().copied().zip(self.strides.iter().copied());
        if self.shape.contains(&0) || follows(&mut pairs().rev()) {
            return Some(false);
        }
        (self.shape.len() == 2 && follows(&mut pairs())).then_some(true)
    }
}
