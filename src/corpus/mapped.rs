//! Files as slices of numbers.

use std::fs::File;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// Numbers whose bytes on disk are their bytes in memory.
///
/// # Safety
/// Every bit pattern must be a value, and there must be no padding.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: integers and floats have neither padding nor forbidden bit patterns.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// A memory-mapped file of little-endian numbers.
pub(crate) struct Mapped<T> {
    map: Mmap,
    of: PhantomData<T>,
}

impl Mapped<u8> {
    /// Maps the file at `path`, however long it is.
    pub fn whole(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
        let length = usize::try_from(length).map_err(|_| Error::file(path, "too large to be mapped"))?;
        Self::open(path, length)
    }
}

impl<T: Plain> Mapped<T> {
    /// Maps the file at `path`, which must hold exactly `len` numbers.
    pub fn open(path: &Path, len: usize) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the files of an artefact are written once under a temporary name and never
        // changed after, and so are the checkpoints of other programs; whoever truncates one under
        // a running program breaks that program.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        if Some(map.len()) != len.checked_mul(size_of::<T>()) {
            let why = format!("{} bytes, but {len} numbers of {} bytes are due", map.len(), size_of::<T>());
            return Err(Error::file(path, why));
        }
        Ok(Self { map, of: PhantomData })
    }
}

impl<T: Plain> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: T is plain; a mapping begins at a page and so is aligned, and `open` checked
        // that its length is a whole number of T. `align_to` makes no assumption besides.
        unsafe { self.map.align_to().1 }
    }
}

/// The bytes of `numbers` as they go to disk.
pub(crate) fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: T is plain, and bytes have no alignment to keep.
    unsafe { numbers.align_to().1 }
}

/// Reads the file at `path` as a whole number of T.
pub(crate) fn read_numbers<T: Plain + Default>(path: &Path) -> Result<Vec<T>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if !bytes.len().is_multiple_of(size_of::<T>()) {
        return Err(Error::file(path, format!("{} bytes are no whole number of entries", bytes.len())));
    }
    let mut numbers = vec![T::default(); bytes.len() / size_of::<T>()];
    // SAFETY: T is plain, so any bytes are values of it.
    unsafe { numbers.align_to_mut::<u8>().1 }.copy_from_slice(&bytes);
    Ok(numbers)
}
