//! Data files as slices of numbers, without reading them first.

use std::fs::File;
use std::marker::PhantomData;
use std::path::Path;

use memmap2::Mmap;

use crate::artefact::ArtefactError;

#[cfg(target_endian = "big")]
compile_error!("data files are little-endian and mapped as they are");

/// Numbers for which every pattern of bytes is a value.
pub(crate) trait Number: Copy + sealed::Plain {}
impl Number for f32 {}
impl Number for u32 {}
impl Number for u64 {}

mod sealed {
    pub trait Plain {}
    impl Plain for f32 {}
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
        let file = File::open(path).map_err(ArtefactError::io(path))?;
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
        // one with SIGBUS, as with every mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(ArtefactError::io(path))?;
        if map.len() as u64 != found {
            let why = "its length changed while it was being opened".into();
            return Err(ArtefactError::Damaged { path: path.into(), why });
        }
        Ok(Self { map: Some(map), numbers: PhantomData })
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
