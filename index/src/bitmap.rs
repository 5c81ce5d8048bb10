//! A set of rows, one bit each.

use crate::IndexError;

/// One bit a row, such as which rows were deleted.
///
/// On disk: little-endian `u64` words, row `i` in bit `i % 64` of word `i / 64`; the bits beyond
/// the last row are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    /// `len` rows, none of them in the set.
    pub fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// Number of rows, in the set or not.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no rows at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether row `i` is in the set; false for what is no row.
    pub fn get(&self, i: usize) -> bool {
        i < self.len && self.words[i / 64] >> (i % 64) & 1 == 1
    }

    /// Puts row `i` into the set. Whether it was new there.
    ///
    /// # Panics
    /// If `i` is no row: the caller holds the number of rows.
    pub fn set(&mut self, i: usize) -> bool {
        assert!(i < self.len, "bit {i} of {}", self.len);
        let (word, bit) = (&mut self.words[i / 64], 1 << (i % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// How many rows are in the set.
    pub fn count_ones(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The bytes to keep on disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What [`to_bytes`](Bitmap::to_bytes) gave for `len` rows.
    ///
    /// # Errors
    /// Bytes of another length, or bits beyond the last row.
    pub fn from_bytes(bytes: &[u8], len: usize) -> Result<Self, IndexError> {
        let wrong = |why: String| Err(IndexError::Bitmap { why });
        let (words, rest) = bytes.as_chunks::<8>();
        if words.len() != len.div_ceil(64) || !rest.is_empty() {
            return wrong(format!("{} bytes, which are not the bits of {len} rows", bytes.len()));
        }
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if !len.is_multiple_of(64) && words.last().is_some_and(|last| last >> (len % 64) != 0) {
            return wrong(format!("bits beyond the last of {len} rows"));
        }
        Ok(Self { words, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_once_counted_and_kept() {
        for len in [0, 1, 63, 64, 65, 200] {
            let mut bits = Bitmap::new(len);
            let members: Vec<usize> = (0..len).filter(|i| i % 7 == 0 || i + 1 == len).collect();
            for &i in &members {
                assert!(bits.set(i));
                assert!(!bits.set(i), "new twice");
            }
            assert_eq!(bits.count_ones(), members.len());
            assert!((0..len + 70).all(|i| bits.get(i) == members.contains(&i)));
            assert_eq!(bits.to_bytes().len(), len.div_ceil(64) * 8);
            assert_eq!(Bitmap::from_bytes(&bits.to_bytes(), len).unwrap(), bits);
        }
    }

    #[test]
    fn other_lengths_and_stray_bits_are_refused() {
        for (bytes, len) in [(0, 1), (7, 1), (9, 1), (16, 64), (8, 65), (8, 0)] {
            assert!(Bitmap::from_bytes(&vec![0; bytes], len).is_err(), "{bytes} bytes for {len} rows");
        }
        let mut bytes = [0; 8];
        bytes[1] = 1 << 3;
        assert!(Bitmap::from_bytes(&bytes, 11).is_err());
        assert!(Bitmap::from_bytes(&bytes, 12).unwrap().get(11));
        assert!(Bitmap::from_bytes(&[255; 8], 64).is_ok());
    }
}
