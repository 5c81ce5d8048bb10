//! The header of NumPy's .npy files: magic, version, length, and a Python dictionary with `descr`,
//! `fortran_order` and `shape` (NumPy enhancement proposal 1).

use std::fs::File;
use std::path::Path;

use super::{Dtype, Layout, VectorFileError, read_header};

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy itself refuses to read headers above ten thousand bytes.
const MAX_HEADER: usize = 1 << 16;

pub(super) fn layout(path: &Path, file: &mut File) -> Result<Layout, VectorFileError> {
    let malformed = |byte: u64, why: String| VectorFileError::Malformed { path: path.into(), byte, why };
    let start = read_header(path, file, 0, 8)?;
    if &start[..6] != MAGIC {
        return Err(malformed(0, "no .npy file begins like this: write it with numpy.save".into()));
    }
    let (version, width) = match start[6] {
        1 => (1, 2),
        2 | 3 => (start[6], 4),
        other => {
            let why = format!("version {other} of .npy; versions 1 to 3 are read here");
            return Err(malformed(6, why));
        }
    };
    let length = read_header(path, file, 8, width)?;
    let length = length.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
    if length > MAX_HEADER {
        return Err(malformed(8, format!("a header of {length} bytes, above {MAX_HEADER}")));
    }
    let at = 8 + width as u64;
    let text = read_header(path, file, at, length)?;
    // Version 3 only adds names of fields in UTF-8, and there are no fields in a plain array.
    let header = Header::parse(&text)
        .ok_or_else(|| malformed(at, format!("not a dictionary as version {version} of .npy has it")))?;

    let unsupported = |why: String| VectorFileError::Unsupported { path: path.into(), why };
    let dtype = match header.descr.as_str() {
        "<f8" => Dtype::F64,
        "<f4" => Dtype::F32,
        "<f2" => Dtype::F16,
        "|i1" => Dtype::I8,
        "|u1" => Dtype::U8,
        other => {
            return Err(unsupported(format!("numbers of type {other:?}: save a.astype('<f4')")));
        }
    };
    let &[rows, dim] = header.shape.as_slice() else {
        let why = format!("an array of shape {:?}: vectors need two dimensions, [rows, dim]", header.shape);
        return Err(unsupported(why));
    };
    if header.fortran_order && rows > 1 && dim > 1 {
        return Err(unsupported("in Fortran order: save numpy.ascontiguousarray(a)".into()));
    }
    Ok(Layout { dtype, rows, dim, offset: at + length as u64, prefix: 0 })
}

/// The three entries of the dictionary.
#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads the literal that NumPy writes. A `descr` that is no string (a record) gives its text.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut rest = std::str::from_utf8(text).ok()?.trim().strip_prefix('{')?.trim_start();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.starts_with('}') {
            let (key, after) = string(rest)?;
            rest = after.trim_start().strip_prefix(':')?.trim_start();
            rest = match key {
                "descr" if rest.starts_with('[') => {
                    let end = rest.find("'fortran_order'").unwrap_or(rest.len());
                    descr = Some(rest[..end].trim_end_matches([',', ' ']).to_string());
                    &rest[rest[..end].rfind(']')? + 1..]
                }
                "descr" => {
                    let (value, after) = string(rest)?;
                    descr = Some(value.to_string());
                    after
                }
                "fortran_order" => {
                    fortran_order = Some(rest.starts_with("True"));
                    rest.strip_prefix("True").or_else(|| rest.strip_prefix("False"))?
                }
                "shape" => {
                    let (inside, after) = rest.strip_prefix('(')?.split_once(')')?;
                    let inside = inside.trim().trim_end_matches(',');
                    let numbers = inside.split(',').map(str::trim).filter(|n| !n.is_empty());
                    // Old versions of NumPy wrote 3L for 3.
                    shape = Some(
                        numbers
                            .map(|n| n.trim_end_matches('L').parse().ok())
                            .collect::<Option<Vec<usize>>>()?,
                    );
                    after
                }
                _ => return None,
            };
            rest = rest.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        (rest == "}")
            .then_some(())
            .and_then(|()| Some(Self { descr: descr?, fortran_order: fortran_order?, shape: shape? }))
    }
}

/// A quoted string at the beginning of `text`, and what follows it.
fn string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_numpy_writes_and_refuses_the_rest() {
        let parse = |text: &str| Header::parse(text.as_bytes());
        let header = |descr: &str, fortran_order, shape: &[usize]| {
            Some(Header { descr: descr.into(), fortran_order, shape: shape.into() })
        };
        for (text, wanted) in [
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n",
                header("<f4", false, &[3, 4]),
            ),
            (
                "{\"shape\": (3L, 4L), \"fortran_order\": True, \"descr\": \">f8\"}",
                header(">f8", true, &[3, 4]),
            ),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }", header("|u1", false, &[7])),
            ("{'descr': '|u1', 'fortran_order': False, 'shape': (), }", header("|u1", false, &[])),
            (
                "{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (2,), }",
                header("[('a', '<f4'), ('b', '<i4')]", false, &[2]),
            ),
            ("", None),
            ("{}", None),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4), }", None),
            ("{'descr': '<f4', 'fortran_order': Maybe, 'shape': (3, 4), }", None),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)", None),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } x", None),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4), }", None),
            ("{'descr': '<f4", None),
            ("{'descr': é", None),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }
}
