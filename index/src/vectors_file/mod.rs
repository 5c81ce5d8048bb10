//! Files of vectors that people already have, read a block at a time, so that they may be larger
//! than memory.

mod npy;
mod tensors;
mod vecs;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::{Builder, IndexError};

/// About this many bytes of numbers are held at a time where nobody says otherwise.
const BLOCK_BYTES: usize = 4 << 20;

/// What can be wrong with a file of vectors.
#[derive(Debug, thiserror::Error)]
pub enum VectorFileError {
    /// The operating system refused.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file's name says nothing about its format.
    #[error("{}: not known by its name: use .npy, .fvecs, .bvecs or .safetensors", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not what the format wants.
    #[error("{}: byte {byte}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it.
        byte: u64,
        /// What is there, and what to do.
        why: String,
    },
    /// The file is of another length than its header says.
    #[error("{}: {found} bytes, but its header asks for {wanted}: copy or write it again", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The length that follows from the header.
        wanted: u128,
    },
    /// A good file, but not rows of numbers that can be read here.
    #[error("{}: {why}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it holds, and what to do.
        why: String,
    },
    /// A row of another dimension than the first.
    #[error("{}: row {row} has {found} numbers and the first row {dim}: write it with one dimension", path.display())]
    RowDimension {
        /// The file.
        path: PathBuf,
        /// The row's number, from 0.
        row: usize,
        /// What it says its dimension is.
        found: i64,
        /// The first row's dimension.
        dim: usize,
    },
}

/// How a number is kept in the file; all little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I8,
    U8,
}

impl Dtype {
    fn bytes(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::I8 | Dtype::U8 => 1,
        }
    }

    /// Adds the numbers of `bytes`, a whole number of them, to `out`.
    fn read(self, bytes: &[u8], out: &mut Vec<f32>) {
        let (two, four, eight) = (bytes.as_chunks().0, bytes.as_chunks().0, bytes.as_chunks().0);
        match self {
            Dtype::F64 => out.extend(eight.iter().map(|&b| f64::from_le_bytes(b) as f32)),
            Dtype::F32 => out.extend(four.iter().map(|&b| f32::from_le_bytes(b))),
            Dtype::F16 => out.extend(two.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
            Dtype::Bf16 => out.extend(two.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
            Dtype::I8 => out.extend(bytes.iter().map(|&b| f32::from(b as i8))),
            Dtype::U8 => out.extend(bytes.iter().map(|&b| f32::from(b))),
        }
    }
}

/// Where the rows lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    dtype: Dtype,
    rows: usize,
    dim: usize,
    /// The byte at which the first row begins.
    offset: u64,
    /// Bytes of the dimension before each row (.fvecs), or 0.
    prefix: usize,
}

impl Layout {
    /// Bytes from a row to the next, of a dimension up to [`Builder::MAX_DIM`].
    fn stride(&self) -> usize {
        self.prefix + self.dim * self.dtype.bytes()
    }
}

/// Vectors `[len, dim]` in a file, read a block at a time: memory is bounded by the block, not by
/// the file. Numbers become `f32`; other types are converted, and bytes count from 0 to 255.
///
/// | name           | what                                                                              |
/// | -------------- | --------------------------------------------------------------------------------- |
/// | `.npy`         | a 2-D array in C order of float64, float32, float16, int8 or uint8 (NumPy's format, versions 1 to 3) |
/// | `.fvecs`       | rows of an int32 dimension and as many float32 (the format of the TEXMEX sets)    |
/// | `.bvecs`       | the same with bytes for numbers                                                   |
/// | `.safetensors` | a 2-D tensor of F64, F32, F16, BF16, I8 or U8: the only one, or `FILE#NAME`        |
///
/// ```
/// use sidenote_index::{Builder, Index, Metric, Spec, VectorFile};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temporary = tempfile::tempdir()?;
/// # let (path, dir) = (temporary.path().join("rows.fvecs"), temporary.path().join("index"));
/// # std::fs::write(&path, [[1, 0, 0, 0], [0, 0, 0x80, 0x3f]].concat())?;
/// let mut file = VectorFile::open(&path)?;
/// let mut builder = Builder::create(&dir, file.dim(), Metric::L2, &Spec::default_for(file.len(), file.dim()), 0)?;
/// builder.add_file(&mut file)?;
/// builder.finish()?;
/// assert_eq!(Index::open(&dir)?.vector(0).unwrap()[..], [1.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct VectorFile {
    path: PathBuf,
    file: File,
    layout: Layout,
}

impl VectorFile {
    /// Opens a file of vectors, whose format its name tells. Its header and its length are checked;
    /// the rows of .fvecs and .bvecs, each of which states its dimension, as they are read.
    ///
    /// # Errors
    /// A file that cannot be read, of unknown format, malformed, cut short, with numbers of a type
    /// that is not read here, with none or more than [`Builder::MAX_DIM`] in a vector, or in Fortran
    /// order: each names the file and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, VectorFileError> {
        let (path, tensor) = split_name(path.as_ref());
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let bytes = file.metadata().map_err(io_error(&path))?.len();
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let layout = match extension.as_deref() {
            Some("npy") => npy::layout(&path, &mut file)?,
            Some("fvecs") => vecs::layout(&path, &mut file, bytes, Dtype::F32)?,
            Some("bvecs") => vecs::layout(&path, &mut file, bytes, Dtype::U8)?,
            Some("safetensors") => tensors::layout(&path, &mut file, bytes, tensor.as_deref())?,
            _ => return Err(VectorFileError::UnknownFormat { path }),
        };
        // What follows multiplies by it.
        if !(1..=Builder::MAX_DIM).contains(&layout.dim) {
            let why = format!(
                "its vectors have {} numbers, and 1 to {} are possible: write it with another dimension",
                layout.dim,
                Builder::MAX_DIM
            );
            return Err(VectorFileError::Unsupported { path, why });
        }
        let wanted = u128::from(layout.offset) + layout.rows as u128 * layout.stride() as u128;
        // Other tensors may follow the one that is read; nothing follows the rows of the others.
        if u128::from(bytes) < wanted || (extension.as_deref() == Some("npy") && u128::from(bytes) > wanted) {
            return Err(VectorFileError::WrongLength { path, found: bytes, wanted });
        }
        Ok(Self { path, file, layout })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.layout.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in a vector, 1 to [`Builder::MAX_DIM`].
    pub fn dim(&self) -> usize {
        self.layout.dim
    }

    /// The vectors `first..first + count`, as far as the file has them: `[rows, dim]`, row-major.
    ///
    /// # Errors
    /// A file that has been cut since it was opened, a row of another dimension than the first.
    pub fn read(&mut self, first: usize, count: usize) -> Result<Vec<f32>, VectorFileError> {
        let first = first.min(self.len());
        let count = count.min(self.len() - first);
        let stride = self.layout.stride();
        let mut numbers = Vec::with_capacity(count * self.dim());
        self.file
            .seek(SeekFrom::Start(self.layout.offset + first as u64 * stride as u64))
            .map_err(io_error(&self.path))?;
        let at_once = (BLOCK_BYTES / stride).max(1);
        let mut bytes = vec![0; at_once.min(count) * stride];
        let mut done = 0;
        while done < count {
            let rows = at_once.min(count - done);
            let bytes = &mut bytes[..rows * stride];
            self.file.read_exact(bytes).map_err(io_error(&self.path))?;
            if self.layout.prefix == 0 {
                self.layout.dtype.read(bytes, &mut numbers);
            } else {
                for (i, row) in bytes.chunks_exact(stride).enumerate() {
                    let row = vecs::check(&self.path, row, first + done + i, self.layout.dim)?;
                    self.layout.dtype.read(row, &mut numbers);
                }
            }
            done += rows;
        }
        Ok(numbers)
    }

    /// All vectors in blocks of `rows` (at least one; the last block may have fewer), each as
    /// [`read`](VectorFile::read) gives it.
    pub fn blocks(&mut self, rows: usize) -> impl Iterator<Item = Result<Vec<f32>, VectorFileError>> {
        let rows = rows.max(1);
        (0..self.len()).step_by(rows).map(move |first| self.read(first, rows))
    }
}

impl Builder {
    /// Adds all vectors of a file, a few megabytes at a time.
    ///
    /// # Errors
    /// As [`add`](Builder::add), a file of another dimension, and what is wrong with the file; the
    /// rows before the fault stay added.
    pub fn add_file(&mut self, file: &mut VectorFile) -> Result<(), IndexError> {
        if file.dim() != self.dim {
            let what = "rows of the file";
            return Err(IndexError::Length { what, found: file.dim(), dim: self.dim, many: false });
        }
        let rows = BLOCK_BYTES / (4 * file.dim());
        for block in file.blocks(rows) {
            self.add(&block?)?;
        }
        Ok(())
    }
}

/// `FILE#NAME` as the file and the name of a tensor in it. A file whose own name has that form wins.
fn split_name(path: &Path) -> (PathBuf, Option<String>) {
    let whole = || (path.to_path_buf(), None);
    if path.exists() {
        return whole();
    }
    match path.to_str().and_then(|text| text.split_once(".safetensors#")) {
        Some((stem, tensor)) => (PathBuf::from(format!("{stem}.safetensors")), Some(tensor.into())),
        None => whole(),
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> VectorFileError {
    |cause| VectorFileError::Io { path: path.into(), cause }
}

/// Reads `count` bytes of a header at the file's current place, which is byte `at`.
fn read_header(path: &Path, file: &mut File, at: u64, count: usize) -> Result<Vec<u8>, VectorFileError> {
    let mut bytes = Vec::with_capacity(count.min(1 << 16));
    file.take(count as u64).read_to_end(&mut bytes).map_err(io_error(path))?;
    if bytes.len() < count {
        return Err(VectorFileError::Malformed {
            path: path.into(),
            byte: at + bytes.len() as u64,
            why: "the file ends within its header: copy or write it again".into(),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
