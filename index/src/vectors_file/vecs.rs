//! .fvecs and .bvecs: before each row its dimension as an int32. There is no header, so the first
//! row tells the dimension of all.

use std::fs::File;
use std::path::Path;

use super::{Dtype, Layout, VectorFileError, read_header};
use crate::Builder;

const PREFIX: usize = 4;

pub(super) fn layout(
    path: &Path,
    file: &mut File,
    bytes: u64,
    dtype: Dtype,
) -> Result<Layout, VectorFileError> {
    if bytes == 0 {
        let why = "the file is empty, which leaves the dimension open: give at least one row".into();
        return Err(VectorFileError::Unsupported { path: path.into(), why });
    }
    let first = read_header(path, file, 0, PREFIX)?;
    let found = i32::from_le_bytes([first[0], first[1], first[2], first[3]]);
    let dim = usize::try_from(found).ok().filter(|dim| (1..=Builder::MAX_DIM).contains(dim));
    let Some(dim) = dim else {
        let why = format!(
            "the first row says that it has {found} numbers, and rows have 1 to {}: \
             the file is damaged, big-endian or of another format",
            Builder::MAX_DIM
        );
        return Err(VectorFileError::Malformed { path: path.into(), byte: 0, why });
    };
    let mut layout = Layout { dtype, rows: 0, dim, offset: 0, prefix: PREFIX };
    let stride = layout.stride() as u64;
    if !bytes.is_multiple_of(stride) {
        let why = format!(
            "the file ends within row {} (rows of {dim} numbers take {stride} bytes): it has been cut short, \
             or its rows differ in dimension; copy or write it again",
            bytes / stride
        );
        return Err(VectorFileError::Malformed { path: path.into(), byte: bytes, why });
    }
    layout.rows = usize::try_from(bytes / stride).unwrap_or(usize::MAX);
    Ok(layout)
}

/// The numbers of a row, once its dimension is seen to be that of the others.
pub(super) fn check<'a>(
    path: &Path,
    bytes: &'a [u8],
    row: usize,
    dim: usize,
) -> Result<&'a [u8], VectorFileError> {
    let (prefix, numbers) = bytes.split_at(PREFIX);
    let found = i32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
    if usize::try_from(found) != Ok(dim) {
        return Err(VectorFileError::RowDimension { path: path.into(), row, found: i64::from(found), dim });
    }
    Ok(numbers)
}
