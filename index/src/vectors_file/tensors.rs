//! The header of .safetensors files: its length as a u64, then JSON with the type, the shape and
//! the place of each tensor. Only this is read here, since the crate `safetensors` wants the whole
//! file in memory or mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::Deserialize;

use super::{Dtype, Layout, VectorFileError, read_header};

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;
const METADATA: &str = "__metadata__";

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

pub(super) fn layout(
    path: &Path,
    file: &mut File,
    bytes: u64,
    name: Option<&str>,
) -> Result<Layout, VectorFileError> {
    let malformed = |byte: u64, why: String| VectorFileError::Malformed { path: path.into(), byte, why };
    let unsupported = |why: String| VectorFileError::Unsupported { path: path.into(), why };
    let length = read_header(path, file, 0, 8)?;
    let length = length.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    if length > MAX_HEADER.min(bytes) {
        let why = format!(
            "says that its header has {length} bytes, in a file of {bytes}: not a .safetensors file, or cut short"
        );
        return Err(malformed(0, why));
    }
    let header = read_header(path, file, 8, length as usize)?;
    let mut tensors: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| malformed(8, format!("the header is no JSON: {e}")))?;
    tensors.remove(METADATA);

    let (name, tensor) = match name {
        Some(name) => tensors.remove_entry(name),
        None if tensors.len() == 1 => tensors.pop_first(),
        None => None,
    }
    .ok_or_else(|| {
        let names: Vec<_> = tensors.keys().take(16).map(String::as_str).collect();
        let list = names.join(", ");
        match name {
            Some(name) => unsupported(format!("no tensor {name:?}; there are {} ({list})", tensors.len())),
            None => unsupported(format!("{} tensors ({list}): name one, FILE#NAME", tensors.len())),
        }
    })?;
    let tensor: Tensor =
        serde_json::from_value(tensor).map_err(|e| malformed(8, format!("tensor {name:?}: {e}")))?;
    let dtype = match tensor.dtype.as_str() {
        "F64" => Dtype::F64,
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        "I8" => Dtype::I8,
        "U8" => Dtype::U8,
        other => return Err(unsupported(format!("tensor {name:?} is of type {other}: save it as F32"))),
    };
    let &[rows, dim] = tensor.shape.as_slice() else {
        let why = format!(
            "tensor {name:?} is of shape {:?}: vectors need two dimensions, [rows, dim]",
            tensor.shape
        );
        return Err(unsupported(why));
    };
    let [begin, end] = tensor.data_offsets;
    let wanted = (rows as u128).checked_mul(dim as u128).and_then(|n| n.checked_mul(dtype.bytes() as u128));
    if begin > end || wanted != Some(u128::from(end - begin)) {
        let why = format!(
            "tensor {name:?} lies at {begin}..{end}, which is not the place of {rows} x {dim} {}",
            tensor.dtype
        );
        return Err(malformed(8, why));
    }
    let offset = (8 + length)
        .checked_add(begin)
        .ok_or_else(|| malformed(8, format!("tensor {name:?} lies at {begin}")))?;
    Ok(Layout { dtype, rows, dim, offset, prefix: 0 })
}
