//! Instances that are there already, word for word or nearly.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::Instance;
use super::ngrams;
use crate::error::{Error, Result};

/// Two texts whose runs of words overlap by so much (Jaccard) are nearly the same (Lee et al. 2022).
const SAME: f64 = 0.8;
/// MinHash's bands and the hashes of each: a pair at [`SAME`] shares a band with probability 1 - (1 - 0.8^5)^14 = 0.996.
const BANDS: usize = 14;
const IN_BAND: usize = 5;
const NONE: u32 = u32::MAX;

/// What an instance is to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Another one.
    New,
    /// The same input and target.
    Exactly,
    /// The same task, template and target, and nearly the same text.
    Nearly,
}

/// The instances so far. Memory grows by some 300 bytes an instance; the runs of words lie in a file without a name.
pub struct Duplicates {
    exact: HashSet<[u8; 16]>,
    /// The last row of each band's value; its predecessors follow in `before`.
    last: HashMap<u64, u32>,
    before: Vec<[u32; BANDS]>,
    sets: Sets,
    near: bool,
}

impl Duplicates {
    /// None so far; `near` says whether near ones are looked for. `dir` has room for the runs of words.
    pub fn new(near: bool, dir: &Path) -> Result<Self> {
        let sets = Sets::create(dir)?;
        Ok(Self { exact: HashSet::new(), last: HashMap::new(), before: Vec::new(), sets, near })
    }

    /// Whether `instance` is new; if so, later ones are compared with it.
    ///
    /// Near are instances of one task (or, where none is named, one instruction) and template with the same target: what is alike
    /// then are the examples' own texts, not the instructions before them.
    pub fn add(&mut self, instance: &Instance) -> Result<Seen> {
        let mut hasher = blake3::Hasher::new();
        for part in [&instance.input, &instance.target] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        if !self.exact.insert(key) {
            return Ok(Seen::Exactly);
        }
        if !self.near {
            return Ok(Seen::New);
        }
        let set = ngrams::set(instance.own_text());
        if set.is_empty() {
            return Ok(Seen::New);
        }
        let bands = bands(&set, kin(instance));
        let mut compared = HashSet::new();
        for (band, value) in bands.iter().enumerate() {
            let mut row = self.last.get(value).copied().unwrap_or(NONE);
            while row != NONE {
                if compared.insert(row) && jaccard(&self.sets.get(row)?, &set) >= SAME {
                    return Ok(Seen::Nearly);
                }
                row = self.before[row as usize][band];
            }
        }
        let row = self.before.len() as u32;
        self.before.push(bands.map(|value| self.last.insert(value, row).unwrap_or(NONE)));
        self.sets.push(&set)?;
        Ok(Seen::New)
    }
}

/// A hash of what near instances share.
fn kin(instance: &Instance) -> u64 {
    let target = ngrams::words(&instance.target).into_iter().fold(1, |all, word| ngrams::mix(all ^ word));
    // A target of signs alone is told apart by them.
    let target = if target == 1 { text_hash(&instance.target) } else { target };
    let of = |name: &Option<String>| name.as_deref().map_or(7, text_hash);
    // Where no task is named, it is what the words around the example's own text say.
    let task = match (&instance.task, &instance.own) {
        (None, Some(own)) => text_hash(&instance.input.replacen(own, "", 1)),
        (task, _) => of(task),
    };
    ngrams::mix(ngrams::mix(target ^ task) ^ of(&instance.template))
}

fn text_hash(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()[..8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// MinHash (Broder 1997): the value of each band.
fn bands(set: &[u64], kin: u64) -> [u64; BANDS] {
    std::array::from_fn(|band| {
        (0..IN_BAND).fold(ngrams::mix(kin ^ band as u64), |all, i| {
            let number = (band * IN_BAND + i) as u64 + 1;
            let (factor, shift) = (ngrams::mix(number) | 1, ngrams::mix(!number));
            let least = set.iter().map(|run| run.wrapping_mul(factor).wrapping_add(shift)).min().unwrap_or(0);
            ngrams::mix(all ^ least)
        })
    })
}

/// Overlap of two sorted sets: their common part over all of both.
fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
        }
    }
    both as f64 / (a.len() + b.len() - both) as f64
}

/// Sets of numbers, on disk.
struct Sets {
    dir: PathBuf,
    file: File,
    ends: Vec<u64>,
}

impl Sets {
    fn create(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(Error::io(dir))?;
        Ok(Self { dir: dir.to_path_buf(), file, ends: vec![0] })
    }

    fn push(&mut self, set: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = set.iter().flat_map(|run| run.to_le_bytes()).collect();
        let end = self.ends[self.ends.len() - 1];
        self.file.seek(SeekFrom::Start(end)).map_err(Error::io(&self.dir))?;
        self.file.write_all(&bytes).map_err(Error::io(&self.dir))?;
        self.ends.push(end + bytes.len() as u64);
        Ok(())
    }

    fn get(&mut self, row: u32) -> Result<Vec<u64>> {
        let (start, end) = (self.ends[row as usize], self.ends[row as usize + 1]);
        let mut bytes = vec![0; (end - start) as usize];
        self.file.seek(SeekFrom::Start(start)).map_err(Error::io(&self.dir))?;
        self.file.read_exact(&mut bytes).map_err(Error::io(&self.dir))?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        Ok(bytes.chunks_exact(8).map(number).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(task: &str, input: &str, target: &str) -> Instance {
        let (input, target, task) = (input.to_string(), target.to_string(), Some(task.to_string()));
        Instance { input, target, task, ..Instance::default() }
    }

    /// Sixty words, the last `changed` of them others.
    fn text(changed: usize) -> String {
        let word = |i| if i < 60 - changed { format!("w{i}") } else { format!("v{changed}x{i}") };
        (0..60).map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn near_is_by_the_true_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Duplicates::new(true, dir.path()).unwrap();
        assert_eq!(seen.add(&example("a", &text(0), "yes")).unwrap(), Seen::New);
        assert_eq!(seen.add(&example("a", &text(0), "yes")).unwrap(), Seen::Exactly);
        assert_eq!(seen.add(&example("a", &text(0).to_uppercase(), "Yes.")).unwrap(), Seen::Nearly);
        // 48 runs; with the last 5 words others, 43 are common: 43 / 53 = 0.81; with 6, 42 / 54 = 0.78.
        assert_eq!(seen.add(&example("a", &text(5), "yes")).unwrap(), Seen::Nearly);
        assert_eq!(seen.add(&example("a", &text(6), "yes")).unwrap(), Seen::New);
        // Another answer, another task or another instruction make another instance.
        assert_eq!(seen.add(&example("a", &text(5), "no")).unwrap(), Seen::New);
        assert_eq!(seen.add(&example("b", &text(4), "yes")).unwrap(), Seen::New);
    }

    #[test]
    fn an_instruction_in_front_makes_nothing_alike() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Duplicates::new(true, dir.path()).unwrap();
        for (i, word) in ["bees", "kings", "moons"].iter().enumerate() {
            let mut example = example("a", &format!("{} {word}", text(0)), "yes");
            example.own = Some(word.to_string());
            assert_eq!(seen.add(&example).unwrap(), Seen::New, "{i}");
        }
        let mut again = example("a", &format!("{} bees!", text(0)), "yes");
        again.own = Some("Bees!".to_string());
        assert_eq!(seen.add(&again).unwrap(), Seen::Nearly);
        let unnamed = |instruction: &str, own: &str| Instance {
            input: format!("{} {instruction} {own}", text(0)),
            target: "yes".to_string(),
            own: Some(own.to_string()),
            ..Instance::default()
        };
        for (instruction, own) in
            [("Is it rich?", "Spain is rich"), ("Is it rich?", "Peru is rich"), ("Is it?", "Peru is rich")]
        {
            assert_eq!(seen.add(&unnamed(instruction, own)).unwrap(), Seen::New, "{instruction} {own}");
        }
        assert_eq!(seen.add(&unnamed("Is it?", "Peru is rich!")).unwrap(), Seen::Nearly);
        let mut exact_only = Duplicates::new(false, dir.path()).unwrap();
        assert_eq!(exact_only.add(&example("a", &text(0), "yes")).unwrap(), Seen::New);
        assert_eq!(exact_only.add(&example("a", &text(1), "yes")).unwrap(), Seen::New);
    }
}
