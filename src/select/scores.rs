//! Scores that take long to make, kept while they are made: a run that was cut off goes on with them.
//!
//! They lie in a file: what they are scores of, and blocks of them. A block counts when its checksum holds, so that
//! neither a kill nor a torn write leaves a score that nobody has made.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::Source;
use crate::model::source::BaseModel;

/// Scores of a block: what a run that is killed loses at most. Few in unit tests, so that they have several.
const BLOCK: usize = if cfg!(test) { 16 } else { 256 };

/// See [the module](self).
pub struct Scores {
    path: PathBuf,
    file: File,
    all: Vec<f64>,
    /// How many of them are in the file.
    kept: usize,
}

impl Scores {
    /// Those in the file `path`, if they are scores `of` this; others make room for none.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: &Path, of: &str) -> Result<Self> {
        let fault = |e| Error::io(path)(e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let bytes = if path.exists() { fs::read(path).map_err(fault)? } else { Vec::new() };
        let head = format!("{of}\n").into_bytes();
        let (all, good) = match bytes.strip_prefix(head.as_slice()) {
            Some(blocks) => {
                let (all, good) = read(blocks);
                (all, head.len() + good)
            }
            None => {
                fs::write(path, &head).map_err(fault)?;
                (Vec::new(), head.len())
            }
        };
        let file = File::options().append(true).open(path).map_err(fault)?;
        // What a block that was torn has left.
        file.set_len(good as u64).map_err(fault)?;
        Ok(Self { path: path.into(), file, kept: all.len(), all })
    }

    /// All so far.
    pub fn all(&self) -> &[f64] {
        &self.all
    }

    /// Adds the next.
    ///
    /// # Errors
    /// A full disk.
    pub fn push(&mut self, score: f64) -> Result<()> {
        self.all.push(score);
        if self.all.len() - self.kept == BLOCK { self.keep() } else { Ok(()) }
    }

    /// Writes what is not written yet, before an interruption.
    ///
    /// # Errors
    /// A full disk.
    pub fn keep(&mut self) -> Result<()> {
        let new = &self.all[self.kept..];
        if new.is_empty() {
            return Ok(());
        }
        let mut block = (new.len() as u32).to_le_bytes().to_vec();
        block.extend(new.iter().flat_map(|score| score.to_le_bytes()));
        let sum = crc32c::crc32c(&block);
        block.extend(sum.to_le_bytes());
        self.file.write_all(&block).map_err(Error::io(&self.path))?;
        self.kept = self.all.len();
        Ok(())
    }

    /// All of them, which stay where they are.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(mut self) -> Result<Vec<f64>> {
        self.keep()?;
        Ok(self.all)
    }
}

/// Hash over the weights of the model called `name`, for what its scores are kept under.
///
/// # Errors
/// As for the model.
pub fn identity_of(name: &Path) -> Result<String> {
    Ok(BaseModel::of(name, &Source::open(name)?)?.blake3)
}

/// The scores of the whole blocks at the beginning of `bytes`, and how many bytes these are.
fn read(bytes: &[u8]) -> (Vec<f64>, usize) {
    let (mut all, mut good) = (Vec::new(), 0);
    while let Some((count, _)) = bytes[good..].split_first_chunk::<4>() {
        let length = 4 + 8 * u32::from_le_bytes(*count) as usize;
        let Some((block, rest)) = bytes[good..].split_at_checked(length) else { break };
        let Some((sum, _)) = rest.split_first_chunk::<4>() else { break };
        if crc32c::crc32c(block) != u32::from_le_bytes(*sum) {
            break;
        }
        all.extend(block[4..].as_chunks::<8>().0.iter().map(|score| f64::from_le_bytes(*score)));
        good += length + 4;
    }
    (all, good)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cut anywhere, or with any byte changed, what is read is a beginning of what was written, and goes on to the same.
    #[test]
    fn what_is_read_was_written_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scores");
        let score = |i: usize| if i % 7 == 3 { f64::NAN } else { (i as f64).sin() };
        let bits = |all: &[f64]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let wanted: Vec<f64> = (0..600).map(score).collect();
        let go_on = || {
            let mut scores = Scores::open(&path, "these").unwrap();
            let there = scores.all().len();
            assert_eq!(bits(scores.all()), bits(&wanted[..there]));
            (there..600).for_each(|i| scores.push(score(i)).unwrap());
            scores.keep().unwrap();
            there
        };
        assert_eq!(go_on(), 0);
        let whole = fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(37) {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(go_on() < 600);
            assert!(fs::read(&path).unwrap().len() >= whole.len());
            let mut changed = whole.clone();
            changed[cut] ^= 0x10;
            fs::write(&path, &changed).unwrap();
            go_on();
        }
        let scores = Scores::open(&path, "these").unwrap();
        assert_eq!(bits(&scores.finish().unwrap()), bits(&wanted));
        // Those of something else are not taken.
        assert_eq!(Scores::open(&path, "others").unwrap().all().len(), 0);
        assert_eq!(go_on(), 0);
    }
}
