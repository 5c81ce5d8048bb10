use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::{Index, Metric, Spec};

const ROWS: [f32; 6] = [1.0, -2.0, 0.5, 3.0, 0.0, 64.0];

/// A .npy file of `data` as NumPy writes it.
fn npy(version: u8, descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (header.len() + 10) % 64));
    header.push('\n');
    let mut bytes = [b"\x93NUMPY".as_slice(), &[version, 0]].concat();
    match version {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

fn floats(rows: &[f32]) -> Vec<u8> {
    rows.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn fvecs(rows: &[f32], dim: usize) -> Vec<u8> {
    let row = |row: &[f32]| [(dim as i32).to_le_bytes().to_vec(), floats(row)].concat();
    rows.chunks(dim).flat_map(row).collect()
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Writes the bytes under `name` in a folder of their own.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn read_all(path: &Path) -> (usize, usize, Vec<f32>) {
    let mut file = VectorFile::open(path).unwrap();
    let rows = file.read(0, usize::MAX).unwrap();
    (file.len(), file.dim(), rows)
}

#[test]
fn every_format_gives_its_rows() {
    let f16s: Vec<u8> = ROWS.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let bf16s: Vec<u8> = ROWS.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let f64s: Vec<u8> = ROWS.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
    let tensor = |dtype: &str, bytes: usize| {
        format!(
            r#"{{"__metadata__":{{"by":"test"}},"v":{{"dtype":"{dtype}","shape":[2,3],"data_offsets":[0,{bytes}]}}}}"#
        )
    };
    for (name, bytes) in [
        ("v1.npy", npy(1, "'<f4'", "False", "(2, 3)", &floats(&ROWS))),
        ("v2.npy", npy(2, "'<f4'", "False", "(2, 3)", &floats(&ROWS))),
        ("v3.NPY", npy(3, "'<f2'", "False", "(2, 3)", &f16s)),
        ("f64.npy", npy(1, "'<f8'", "False", "(2, 3)", &f64s)),
        ("a.fvecs", fvecs(&ROWS, 3)),
        ("f32.safetensors", safetensors(&tensor("F32", 24), &floats(&ROWS))),
        ("f16.safetensors", safetensors(&tensor("F16", 12), &f16s)),
        ("bf16.safetensors", safetensors(&tensor("BF16", 12), &bf16s)),
    ] {
        let (_dir, path) = file(name, &bytes);
        assert_eq!(read_all(&path), (2, 3, ROWS.to_vec()), "{name}");
    }

    let (_dir, path) = file("a.bvecs", &[2, 0, 0, 0, 0, 255, 2, 0, 0, 0, 7, 128]);
    assert_eq!(read_all(&path), (2, 2, vec![0.0, 255.0, 7.0, 128.0]));
    let (_dir, path) = file("signed.npy", &npy(1, "'|i1'", "False", "(1, 2)", &[255, 127]));
    assert_eq!(read_all(&path), (1, 2, vec![-1.0, 127.0]));
    let (_dir, path) = file("none.npy", &npy(1, "'<f4'", "False", "(0, 3)", &[]));
    assert_eq!(read_all(&path), (0, 3, vec![]));
    // A single row or column is the same in both orders, and NumPy may call it either.
    let (_dir, path) = file("column.npy", &npy(1, "'<f4'", "True", "(6, 1)", &floats(&ROWS)));
    assert_eq!(read_all(&path), (6, 1, ROWS.to_vec()));
}

#[test]
fn one_of_several_tensors_is_read_by_name() {
    let header = r#"{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
                     "b#2":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]}}"#;
    let (dir, path) = file("two.safetensors", &safetensors(header, &floats(&ROWS)));
    let named = |name: &str| dir.path().join(format!("two.safetensors#{name}"));
    assert_eq!(read_all(&named("a")), (1, 2, ROWS[..2].to_vec()));
    assert_eq!(read_all(&named("b#2")), (2, 2, ROWS[2..].to_vec()));
    for (path, wanted) in [(path, "2 tensors (a, b#2): name one"), (named("c"), "no tensor \"c\"")] {
        let error = VectorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let good = npy(1, "'<f4'", "False", "(2, 3)", &floats(&ROWS));
    let tensor = |entry: &str| safetensors(&format!(r#"{{"v":{entry}}}"#), &floats(&ROWS));
    let wide = r#"{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}"#;
    let mut ragged = fvecs(&ROWS, 3);
    ragged[16] = 2; // the second row's dimension
    for (name, bytes, wanted) in [
        ("a.txt", vec![], "not known by its name"),
        ("magic.npy", b"PK\x03\x04PK\x03\x04".to_vec(), "byte 0: no .npy file begins like this"),
        ("empty.npy", vec![], "byte 0: the file ends within its header"),
        ("header.npy", good[..40].to_vec(), "byte 40: the file ends within its header"),
        ("short.npy", good[..good.len() - 1].to_vec(), "its header asks for 152"),
        ("long.npy", [&good[..], &[0]].concat(), "its header asks for 152"),
        ("version.npy", [b"\x93NUMPY\x09\0".as_slice(), &good[8..]].concat(), "byte 6: version 9"),
        ("big.npy", npy(1, "'>f4'", "False", "(2, 3)", &floats(&ROWS)), "type \">f4\": save a.astype"),
        ("ints.npy", npy(1, "'<i8'", "False", "(2, 3)", &[0; 48]), "type \"<i8\""),
        ("record.npy", npy(1, "[('a', '<f4')]", "False", "(6,)", &floats(&ROWS)), "type \"[('a'"),
        ("fortran.npy", npy(1, "'<f4'", "True", "(2, 3)", &floats(&ROWS)), "Fortran order: save numpy.asc"),
        ("line.npy", npy(1, "'<f4'", "False", "(6,)", &floats(&ROWS)), "shape [6]: vectors need two"),
        ("flat.npy", npy(1, "'<f4'", "False", "(6, 0)", &[]), "have 0 numbers"),
        // Dimensions whose bytes are 2^64, and four more.
        ("wide.npy", npy(1, "'<f4'", "False", "(0, 4611686018427387904)", &[]), "1 to 65536 are possible"),
        ("wider.npy", npy(1, "'<f4'", "False", "(1, 4611686018427387905)", &[0; 4]), "1 to 65536 are"),
        ("vast.npy", npy(1, "'<f4'", "False", "(4611686018427387904, 65536)", &[]), "its header asks for"),
        ("empty.fvecs", vec![], "the file is empty"),
        ("stub.fvecs", vec![1, 0], "byte 2: the file ends within its header"),
        ("cut.fvecs", fvecs(&ROWS, 3)[..20].to_vec(), "byte 20: the file ends within row 1"),
        ("zero.fvecs", vec![0; 8], "the first row says that it has 0 numbers"),
        ("minus.fvecs", vec![255; 8], "the first row says that it has -1 numbers"),
        ("ragged.fvecs", ragged, "row 1 has 2 numbers and the first row 3"),
        ("none.safetensors", safetensors("{}", &[]), "0 tensors"),
        ("junk.safetensors", safetensors("not", &[]), "the header is no JSON"),
        ("magic.safetensors", good.clone(), "not a .safetensors file"),
        ("type.safetensors", tensor(r#"{"dtype":"I64","shape":[1,3],"data_offsets":[0,24]}"#), "type I64"),
        ("shape.safetensors", tensor(r#"{"dtype":"F32","shape":[6],"data_offsets":[0,24]}"#), "shape [6]"),
        ("place.safetensors", tensor(r#"{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}"#), "0..20"),
        ("wide.safetensors", tensor(wide), "1 to 65536 are possible"),
        ("cut.safetensors", tensor(r#"{"dtype":"F32","shape":[9,3],"data_offsets":[0,108]}"#), "asks for"),
    ] {
        let (_dir, path) = file(name, &bytes);
        let error = VectorFile::open(&path).and_then(|mut file| file.read(0, usize::MAX));
        let error = error.expect_err(name).to_string();
        assert!(error.contains(wanted) && error.contains(name), "{name}: {error}");
    }
    let absent = VectorFile::open("absent.npy").unwrap_err();
    assert!(matches!(&absent, VectorFileError::Io { .. }), "{absent}");
}

#[test]
fn an_index_takes_a_file_in_one_call_and_names_its_faults() {
    let (dir, path) = file("a.fvecs", &fvecs(&ROWS, 3));
    let build = |path: &Path| {
        let mut file = VectorFile::open(path)?;
        let mut builder = Builder::create(&dir.path().join("index"), 3, Metric::L2, &Spec::Flat, 0)?;
        builder.add_file(&mut file)?;
        builder.finish()
    };
    build(&path).unwrap();
    let index = Index::open(&dir.path().join("index")).unwrap();
    assert_eq!(index.vector(1).unwrap(), &ROWS[3..]);

    let (_dir, path) = file("b.fvecs", &fvecs(&[1.0, 2.0, 3.0, 1.0, f32::NAN, 0.0], 3));
    assert!(matches!(build(&path), Err(IndexError::NotFinite { what: "row", number: 1 })));
    let (_dir, path) = file("c.fvecs", &fvecs(&ROWS, 2));
    // Six numbers would make whole rows of three, but other ones than the file's.
    let error = build(&path).unwrap_err();
    assert!(matches!(error, IndexError::Length { found: 2, dim: 3, .. }), "{error}");
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_an_error() {
    let (_dir, path) = file("a.fvecs", &fvecs(&ROWS, 3));
    let mut file = VectorFile::open(&path).unwrap();
    fs::write(&path, [3, 0, 0, 0]).unwrap();
    let error = file.read(0, 2).unwrap_err();
    assert!(matches!(&error, VectorFileError::Io { .. }), "{error}");
}

proptest! {
    #[test]
    fn blocks_put_together_are_the_whole_file(dim in 1usize..6, rows in 0usize..40, block in 0usize..50) {
        let numbers: Vec<f32> = (0..rows * dim).map(|i| i as f32).collect();
        let shape = format!("({rows}, {dim})");
        let (_dir, path) = file("a.npy", &npy(1, "'<f4'", "False", &shape, &floats(&numbers)));
        let mut file = VectorFile::open(&path).unwrap();
        let blocks: Vec<Vec<f32>> = file.blocks(block).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(blocks.len(), rows.div_ceil(block.max(1)));
        prop_assert_eq!(blocks.concat(), numbers);
    }

    /// Good files with some bytes changed and the end cut off: an error, or as many rows as said.
    #[test]
    fn damaged_files_are_refused_or_read_but_never_a_panic(
        kind in 0usize..4,
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8),
        cut in 0usize..40,
    ) {
        let tensor = r#"{"v":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        let (name, mut bytes) = match kind {
            0 => ("a.npy", npy(1, "'<f4'", "False", "(2, 3)", &floats(&ROWS))),
            1 => ("a.fvecs", fvecs(&ROWS, 3)),
            2 => ("a.bvecs", vec![2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 3, 4]),
            _ => ("a.safetensors", safetensors(tensor, &floats(&ROWS))),
        };
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        let (_dir, path) = file(name, &bytes);
        if let Ok(mut file) = VectorFile::open(&path) {
            prop_assert!(file.len() <= bytes.len());
            if let Ok(rows) = file.read(0, usize::MAX) {
                prop_assert_eq!(rows.len(), file.len() * file.dim());
            }
        }
    }
}
