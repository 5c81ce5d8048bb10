//! Safetensors files, one or several.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;

use super::Stored;
use crate::corpus::Mapped;
use crate::error::{Error, Result};

/// Tensors by name, each in one of several files.
pub(super) struct Files {
    files: Vec<File>,
    place: BTreeMap<String, usize>,
}

struct File {
    path: PathBuf,
    map: Mapped<u8>,
    /// Where the data begin.
    data: usize,
    metadata: Metadata,
}

impl File {
    fn open(path: PathBuf) -> Result<Self> {
        let map = Mapped::whole(&path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::file(&path, format!("not a readable safetensors file: {e}")))?;
        Ok(Self { path, data: 8 + header, map, metadata })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let fault = |why: String| Error::file(&self.path, format!("tensor {name}: {why}"));
        let info = self.metadata.info(name).ok_or_else(|| fault("is missing".into()))?;
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            Dtype::U8 => DType::U8,
            Dtype::U32 => DType::U32,
            Dtype::I64 => DType::I64,
            other => return Err(fault(format!("is of type {other:?}; F32, F16 and BF16 are read"))),
        };
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data + start..self.data + end);
        let bytes = bytes.ok_or_else(|| fault(format!("ends at byte {end}, after the file's end")))?;
        Ok(Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}

impl Files {
    /// One file.
    pub fn single(path: PathBuf) -> Result<Self> {
        let file = File::open(path)?;
        let place = file.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { files: vec![file], place })
    }

    /// The files that an index names, which stand beside it.
    pub fn sharded(index: &Path) -> Result<Self> {
        let shards = shards(index)?;
        let mut opened = Self { files: Vec::new(), place: BTreeMap::new() };
        for (path, names) in shards {
            let file = File::open(path)?;
            for name in names {
                if file.metadata.info(&name).is_none() {
                    let why = format!("tensor {name} is missing, which {} looks for here", index.display());
                    return Err(Error::file(&file.path, why));
                }
                opened.place.insert(name, opened.files.len());
            }
            opened.files.push(file);
        }
        Ok(opened)
    }

    pub fn names(&self) -> Vec<String> {
        self.place.keys().cloned().collect()
    }

    pub fn read(&self, name: &str) -> Result<Stored> {
        let file = self.place.get(name).map(|&place| &self.files[place]);
        let file = file.ok_or_else(|| Error::setting(name, "there is no such tensor"))?;
        file.read(name).map(Stored::Dense)
    }
}

/// The files that an index (`model.safetensors.index.json` and its like) names, and the tensors
/// that are in each.
pub(super) fn shards(index: &Path) -> Result<BTreeMap<PathBuf, BTreeSet<String>>> {
    let fault = |why: String| Error::file(index, why);
    let text = fs::read_to_string(index).map_err(Error::io(index))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| fault(e.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| fault("weight_map is missing, or no object".into()))?;
    let folder = index.parent().unwrap_or(Path::new("."));
    let mut shards: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (name, file) in map {
        let plain = |file: &&str| Path::new(file).file_name() == Some(file.as_ref());
        let file = file.as_str().filter(plain);
        let why = || fault(format!("weight_map[{name:?}] is not the name of a file beside the index"));
        shards.entry(folder.join(file.ok_or_else(why)?)).or_default().insert(name.clone());
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A tensor of `dtype` that counts up from `first`.
    fn counting(first: u32, shape: &[usize], dtype: DType) -> Tensor {
        let count = shape.iter().product::<usize>() as u32;
        let values: Vec<f32> = (first..first + count).map(|i| i as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn write(path: &Path, tensors: &[(&str, &Tensor)]) {
        let tensors: HashMap<&str, Tensor> = tensors.iter().map(|&(name, t)| (name, t.clone())).collect();
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    #[test]
    fn tensors_come_out_of_one_file_or_several_in_their_own_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (a, b) = (counting(0, &[2, 3], DType::F16), counting(6, &[5], DType::BF16));
        let c = counting(9, &[1, 1, 2], DType::F32);
        write(&at("one.safetensors"), &[("a", &a), ("b", &b)]);
        write(&at("two.safetensors"), &[("c", &c), ("unnamed", &c)]);
        let index = r#"{"metadata": {"total_size": 1}, "weight_map":
            {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}"#;
        fs::write(at("index.json"), index).unwrap();
        let files = Files::sharded(&at("index.json")).unwrap();
        assert_eq!(files.names(), ["a", "b", "c"]);
        for (name, expected) in [("a", &a), ("b", &b), ("c", &c)] {
            let Stored::Dense(read) = files.read(name).unwrap() else { panic!("blocks") };
            assert_eq!((read.dtype(), read.dims()), (expected.dtype(), expected.dims()));
            let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>();
            assert_eq!(values(&read).unwrap(), values(expected).unwrap());
        }
        assert_eq!(Files::single(at("two.safetensors")).unwrap().names(), ["c", "unnamed"]);
    }

    #[test]
    fn a_bad_index_is_told_by_field() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        write(&dir.path().join("one.safetensors"), &[("a", &counting(0, &[1], DType::F32))]);
        for (text, word) in [
            ("{", "index.json"),
            ("{}", "weight_map"),
            (r#"{"weight_map": {"a": 1}}"#, "weight_map[\"a\"]"),
            (r#"{"weight_map": {"a": "../one.safetensors"}}"#, "weight_map[\"a\"]"),
            (r#"{"weight_map": {"a": "two.safetensors"}}"#, "two.safetensors"),
            (r#"{"weight_map": {"b": "one.safetensors"}}"#, "tensor b"),
        ] {
            fs::write(&index, text).unwrap();
            let said = Files::sharded(&index).err().expect(text).to_string();
            assert!(said.contains(word), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_or_read_but_never_a_panic(
            flips in proptest::collection::vec((0usize..400, any::<u8>()), 1..4),
            keep in 0usize..500,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.safetensors");
            write(&path, &[("a", &counting(0, &[4, 3], DType::F32)), ("b", &counting(0, &[7], DType::BF16))]);
            let mut bytes = fs::read(&path).unwrap();
            for (place, mask) in flips {
                let place = place % bytes.len();
                bytes[place] ^= mask;
            }
            bytes.truncate(keep);
            fs::write(&path, bytes).unwrap();
            match Files::single(path.clone()) {
                Ok(files) => files.names().iter().for_each(|name| drop(files.read(name))),
                Err(e) => prop_assert!(e.to_string().contains("model.safetensors")),
            }
        }
    }
}
