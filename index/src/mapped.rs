//! Data files as slices of numbers, without reading them first.

use std::fs::File;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use memmap2::{Mmap, MmapRaw};

use crate::artefact::ArtefactError;
use crate::pages::PageWriter;

#[cfg(target_endian = "big")]
compile_error!("data files are little-endian and mapped as they are");

/// Numbers for which every pattern of bytes is a value.
pub(crate) trait Number: Copy + sealed::Plain {}
impl Number for i8 {}
impl Number for f32 {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for u32 {}
impl Number for u64 {}

mod sealed {
    pub trait Plain {}
    impl Plain for i8 {}
    impl Plain for f32 {}
    impl Plain for u8 {}
    impl Plain for u16 {}
    impl Plain for u32 {}
    impl Plain for u64 {}
}

/// A read-only file of little-endian numbers, mapped into memory. Maps begin at a page, so the
/// numbers are aligned.
pub(crate) struct Mapped<T> {
    /// None for an empty file, which cannot be mapped.
    map: Option<Mmap>,
    numbers: PhantomData<T>,
}

impl<T: Number> Mapped<T> {
    /// Maps the file at `path`, which must hold exactly `len` numbers.
    pub fn open(path: &Path, len: usize) -> Result<Self, ArtefactError> {
        Self::of(&File::open(path).map_err(ArtefactError::io(path))?, path, len)
    }

    /// Maps an open file, which errors call `path`.
    pub fn of(file: &File, path: &Path, len: usize) -> Result<Self, ArtefactError> {
        let found = file.metadata().map_err(ArtefactError::io(path))?.len();
        let wanted = (len as u64).checked_mul(size_of::<T>() as u64);
        if wanted != Some(found) {
            let why = format!("{found} bytes, but it must hold {len} numbers of {} bytes", size_of::<T>());
            return Err(ArtefactError::Damaged { path: path.into(), why });
        }
        if found == 0 {
            return Ok(Self { map: None, numbers: PhantomData });
        }
        // SAFETY: the bytes are only read. Data files are never written again once they have the
        // name they are opened by (see `artefact`): a rewrite makes a new file, and the mapping
        // keeps the old one alive. A program that breaks this by truncating the file stops this
        // one with SIGBUS, as with every mapped file. Files without a name, which builds use, are
        // not written to once they have been mapped.
        let map = unsafe { Mmap::map(file) }.map_err(ArtefactError::io(path))?;
        if map.len() as u64 != found {
            let why = "its length changed while it was being opened".into();
            return Err(ArtefactError::Damaged { path: path.into(), why });
        }
        Ok(Self { map: Some(map), numbers: PhantomData })
    }

    /// Asks the system to read these numbers from disk, without waiting for them.
    pub fn will_need(&self, numbers: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            let bytes = numbers.start * size_of::<T>()..(numbers.end * size_of::<T>()).min(map.len());
            // A hint: where the system does not take it, the numbers are read when they are used.
            let _ = map.advise_range(memmap2::Advice::WillNeed, bytes.start, bytes.len());
        }
        #[cfg(not(unix))]
        let _ = numbers;
    }

    /// Tells the system that what lies around a number is not likely to be read next.
    pub fn read_here_and_there(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // A hint, as above.
            let _ = map.advise(memmap2::Advice::Random);
        }
    }

    /// All numbers of the file.
    pub fn as_slice(&self) -> &[T] {
        let Some(map) = &self.map else { return &[] };
        debug_assert!(map.as_ptr().cast::<T>().is_aligned());
        // SAFETY: the pointer is valid for `map.len()` bytes as long as `map` lives, which the
        // returned borrow ensures; it is the start of a page, so it is aligned for `T`; and `T` is
        // one of the types above, for which every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<T>(), map.len() / size_of::<T>()) }
    }
}

/// Locks that the rows of a [`SharedRows`] share.
const LOCKS: usize = 1 << 12;

/// A file `[rows, width]` of numbers that many threads change, one row at a time: memory that the
/// system can put out to disk.
pub(crate) struct SharedRows {
    /// None where there is nothing to map.
    map: Option<MmapRaw>,
    rows: usize,
    width: usize,
    locks: Vec<Mutex<()>>,
}

impl SharedRows {
    /// Makes the file at `path` with the content of the file `like`, or with all bits set.
    pub fn create(
        path: &Path,
        rows: usize,
        width: usize,
        like: Option<&Path>,
    ) -> Result<Self, ArtefactError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        // Written in full: a place that the disk has no room for would be found out by a signal.
        let mut out = PageWriter::new(file.map_err(ArtefactError::io(path))?);
        match like {
            None => {
                let row = vec![u64::MAX; width];
                (0..rows).try_for_each(|_| write_numbers(&mut out, &row)).map_err(ArtefactError::io(path))?;
            }
            Some(like) => {
                let mut from = File::open(like).map_err(ArtefactError::io(like))?;
                let mut piece = vec![0; 1 << 20];
                loop {
                    match from.read(&mut piece).map_err(ArtefactError::io(like))? {
                        0 => break,
                        n => out.write_all(&piece[..n]).map_err(ArtefactError::io(path))?,
                    }
                }
            }
        }
        let file = out.into_file().map_err(ArtefactError::io(path))?;
        let (found, wanted) = (
            file.metadata().map_err(ArtefactError::io(path))?.len(),
            rows as u64 * width as u64 * size_of::<u64>() as u64,
        );
        if found != wanted {
            let why = format!("{found} bytes, but it must hold {wanted}");
            return Err(ArtefactError::Damaged { path: like.unwrap_or(path).into(), why });
        }
        let map = match found {
            0 => None,
            _ => Some(MmapRaw::map_raw(&file).map_err(ArtefactError::io(path))?),
        };
        Ok(Self { map, rows, width, locks: (0..LOCKS).map(|_| Mutex::new(())).collect() })
    }

    /// What `work` makes of row `row` while nobody else has it.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn with<T>(&self, row: usize, work: impl FnOnce(&mut [u64]) -> T) -> T {
        assert!(row < self.rows);
        let _lock = self.locks[row % LOCKS].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(map) = &self.map else { return work(&mut []) };
        // SAFETY: the map holds `rows * width` numbers, which was checked, so those of `row` lie
        // inside of it; it begins at a page, so they are aligned, and every pattern of bits is a
        // value. Rows do not overlap, and the map is touched nowhere else, so under the lock of
        // this row nobody else has a reference to it; `work` cannot keep the one that it gets.
        let numbers = unsafe {
            std::slice::from_raw_parts_mut(map.as_mut_ptr().cast::<u64>().add(row * self.width), self.width)
        };
        work(numbers)
    }
}

/// The bytes of numbers as they lie in memory, which is as they lie in files.
pub(crate) fn as_bytes<T: Number>(numbers: &[T]) -> &[u8] {
    // SAFETY: the pointer is valid for the bytes of the slice for as long as it is borrowed; bytes
    // need no alignment; and numbers have no padding, so each of their bytes is a value.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// The same four bytes each, as other numbers.
pub(crate) fn as_u32(numbers: &[f32]) -> &[u32] {
    // SAFETY: `f32` and `u32` have the same size and alignment, and every pattern of bits is a
    // value of both.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

/// Writes numbers as little-endian bytes.
pub(crate) fn write_numbers<T: Number>(out: &mut impl Write, numbers: &[T]) -> std::io::Result<()> {
    out.write_all(as_bytes(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_numbers_and_refuses_any_other_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.f32");
        let bytes: Vec<u8> = [1.5f32, -2.0, 3.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Mapped::<f32>::open(&path, 3).unwrap().as_slice(), [1.5, -2.0, 3.25]);
        for len in [0, 2, 4, usize::MAX] {
            let error = Mapped::<f32>::open(&path, len).err().expect("must be refused");
            assert!(matches!(error, ArtefactError::Damaged { .. }), "{len}: {error}");
        }
        std::fs::write(&path, &bytes[..11]).unwrap();
        assert!(Mapped::<f32>::open(&path, 2).is_err(), "a part of a number must be refused");
    }

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.u64");
        std::fs::write(&path, b"").unwrap();
        assert!(Mapped::<u64>::open(&path, 0).unwrap().as_slice().is_empty());
        assert!(matches!(
            Mapped::<u64>::open(&dir.path().join("absent"), 0).err(),
            Some(ArtefactError::Io { .. })
        ));
    }
}
