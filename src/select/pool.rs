//! The pool that is chosen from and the target that it is chosen for: JSON Lines, plain or compressed, or a built pool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};
use crate::pool::UNKNOWN_TASK;
use crate::pool::lines::{Lines, reason};
use crate::pool::parts;

/// The instances to choose from. Only the tasks are held in memory; the text stays in the file,
/// which is read again, front to back, whenever it is needed.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    /// The files of lines, in order.
    parts: Vec<PathBuf>,
    identity: String,
    tasks: Vec<String>,
    task_of: Vec<u32>,
}

impl Pool {
    /// Reads and checks the whole pool at `path` once, a folder that `pool build` made or a file: every line must be an
    /// object with the strings `input` and `target`, and may have a string `task`. Blank lines are passed over. A row's
    /// number, from 0, is its place among the rows.
    ///
    /// # Errors
    /// An unreadable line, with its number; an empty pool; anything but a regular file, because the
    /// pool is read more than once.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(Error::io(path))?;
        if !metadata.is_file() && !metadata.is_dir() {
            return Err(Error::file(path, "the pool is read more than once, so it must be a regular file"));
        }
        let parts = parts(path)?;
        let mut numbers = BTreeMap::new();
        let mut task_of = Vec::new();
        let mut hasher = blake3::Hasher::new();
        for part in &parts {
            let mut lines = Lines::open(part)?;
            while let Some((line, text)) = lines.next()? {
                hasher.update(text.as_bytes());
                hasher.update(b"\n");
                let row = Row::parse(part, line, text)?;
                let task = row.task.unwrap_or_else(|| UNKNOWN_TASK.to_string());
                let next = numbers.len() as u32;
                task_of.push(*numbers.entry(task).or_insert(next));
            }
        }
        if task_of.is_empty() {
            return Err(Error::file(
                path,
                "the pool is empty: give at least one line of {\"input\", \"target\"}",
            ));
        }
        if u32::try_from(task_of.len()).is_err() {
            return Err(Error::file(path, "the pool has more than 4,294,967,295 rows; split it"));
        }
        let mut tasks = vec![String::new(); numbers.len()];
        for (name, number) in numbers {
            tasks[number as usize] = name;
        }
        let identity = hasher.finalize().to_hex()[..32].to_string();
        Ok(Self { path: path.to_path_buf(), parts, identity, tasks, task_of })
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hash over all its lines.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// How many rows there are to choose from; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.task_of.len()
    }

    /// The tasks' names, in the order of their first row.
    pub fn tasks(&self) -> &[String] {
        &self.tasks
    }

    /// The number of row `row`'s task in [`Pool::tasks`].
    pub fn task_of(&self, row: usize) -> usize {
        self.task_of[row] as usize
    }

    /// Reads the pool once more and hands each row's number, line and fields to `visit`.
    ///
    /// # Errors
    /// What `visit` returns, or a file that is not what it was when it was opened.
    pub fn for_each(&self, mut visit: impl FnMut(usize, &str, Row) -> Result<()>) -> Result<()> {
        let changed = || Error::file(&self.path, "the pool changed while it was being read; run again");
        let mut count = 0;
        for part in &self.parts {
            let mut lines = Lines::open(part)?;
            while let Some((line, text)) = lines.next()? {
                let row = Row::parse(part, line, text)?;
                if count == self.len() {
                    return Err(changed());
                }
                visit(count, text, row)?;
                count += 1;
            }
        }
        if count == self.len() { Ok(()) } else { Err(changed()) }
    }
}

/// The fields of a pool row that selection looks at.
#[derive(Debug, Deserialize)]
pub struct Row {
    /// The text that the model would be given.
    pub input: String,
    /// The text that it should answer.
    pub target: String,
    /// The task that the row belongs to.
    pub task: Option<String>,
    /// The template that made the input.
    pub template: Option<String>,
    /// The row's own text, where `input` has an instruction or a template's words around it.
    pub own: Option<String>,
    index_id: Option<IgnoredAny>,
    attribution_frequency: Option<IgnoredAny>,
}

impl Row {
    fn parse(path: &Path, line: u64, text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|why| {
            let wanted = "a row is an object with the strings \"input\" and \"target\"";
            Error::line(path, line, format!("{}; {wanted}", reason(&why)))
        })
    }

    /// Whether an earlier selection has already left its marks on this row.
    pub(super) fn is_annotated(&self) -> bool {
        self.index_id.is_some() || self.attribution_frequency.is_some()
    }
}

/// The examples of the task to choose for, which need no labels but for methods that say so.
#[derive(Debug, Default)]
pub struct Target {
    path: PathBuf,
    inputs: Vec<String>,
    own: Vec<Option<String>>,
    /// The first example without a label.
    unlabelled: Option<usize>,
    lines: Vec<u64>,
}

impl Target {
    /// Reads the examples at `path`: objects with the string `input`, and where they say it with `own`, what of the input is the
    /// example's own text apart from instructions; any other field is ignored.
    ///
    /// # Errors
    /// An unreadable line, with its number; a file without a single example.
    pub fn open(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Query {
            input: String,
            own: Option<String>,
            target: Option<IgnoredAny>,
            targets: Option<IgnoredAny>,
        }
        let mut target = Self { path: path.to_path_buf(), ..Self::default() };
        let mut lines = Lines::open(path)?;
        while let Some((line, text)) = lines.next()? {
            let query: Query = serde_json::from_str(text).map_err(|why| {
                let wanted = "an example is an object with the string \"input\"";
                Error::line(path, line, format!("{}; {wanted}", reason(&why)))
            })?;
            target.inputs.push(query.input);
            target.own.push(query.own);
            if query.target.is_none() && query.targets.is_none() {
                target.unlabelled.get_or_insert(target.lines.len());
            }
            target.lines.push(line);
        }
        if target.inputs.is_empty() {
            return Err(Error::file(path, "there is no example here: give at least one line of {\"input\"}"));
        }
        Ok(target)
    }

    /// The examples' texts, in the file's order; never empty.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// The examples' own texts, of those that say it.
    pub fn own(&self) -> &[Option<String>] {
        &self.own
    }

    /// The first example that does not say what is right.
    pub fn unlabelled(&self) -> Option<usize> {
        self.unlabelled
    }

    /// The file that they are from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about example `query`, naming its line.
    pub fn error(&self, query: usize, why: &str) -> Error {
        Error::line(&self.path, self.lines[query], why)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ROWS: &str = "{\"input\":\"a\",\"target\":\"b\",\"task\":\"two\"}\r\n\n{\"input\":\"c\",\"target\":\"d\",\"x\":[1]}\n{\"task\":\"two\",\"input\":\"é\",\"target\":\"\"}";

    fn inputs(pool: &Pool) -> Vec<String> {
        let mut inputs = Vec::new();
        pool.for_each(|row, _, fields| {
            assert_eq!(row, inputs.len());
            inputs.push(fields.input);
            Ok(())
        })
        .unwrap();
        inputs
    }

    #[test]
    fn plain_and_compressed_files_are_the_same_pool() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("pool.jsonl");
        std::fs::write(&plain, ROWS).unwrap();
        let gz = dir.path().join("pool.jsonl.gz");
        // Two gzip members behind one another, as `cat a.gz b.gz` and bgzip make them.
        let mut bytes = Vec::new();
        for half in [&ROWS[..50], &ROWS[50..]] {
            let mut encoder = flate2::write::GzEncoder::new(&mut bytes, flate2::Compression::fast());
            encoder.write_all(half.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        std::fs::write(&gz, bytes).unwrap();
        let zst = dir.path().join("pool.jsonl.zst");
        std::fs::write(&zst, zstd::encode_all(ROWS.as_bytes(), 1).unwrap()).unwrap();
        for path in [plain, gz, zst] {
            let pool = Pool::open(&path).unwrap();
            assert_eq!(pool.tasks(), ["two", UNKNOWN_TASK]);
            assert_eq!((0..pool.len()).map(|row| pool.task_of(row)).collect::<Vec<_>>(), [0, 1, 0]);
            assert_eq!(inputs(&pool), ["a", "c", "é"]);
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let good = "{\"input\":\"a\",\"target\":\"b\"}\n\n";
        for bad in [
            "{\"input\":\"a\"}",
            "{\"target\":\"a\"}",
            "{\"input\":1,\"target\":\"a\"}",
            "{\"input\":\"a\",\"target\":\"a\",\"task\":3}",
            "[\"a\",\"b\"]",
            "{\"input\":\"a\",\"target\":\"b\"",
        ] {
            std::fs::write(&path, format!("{good}{bad}\n")).unwrap();
            let why = Pool::open(&path).unwrap_err().to_string();
            assert!(why.contains("pool.jsonl:3:"), "{bad}: {why}");
        }
        std::fs::write(&path, [good.as_bytes(), b"{\"input\":\"\xff\",\"target\":\"b\"}"].concat()).unwrap();
        assert!(Pool::open(&path).unwrap_err().to_string().contains(":3: not UTF-8"));
        std::fs::write(&path, "{\"output\":\"a\"}").unwrap();
        assert!(Target::open(&path).unwrap_err().to_string().contains("pool.jsonl:1:"));
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.jsonl");
        std::fs::write(&path, "\n \n").unwrap();
        assert!(Pool::open(&path).unwrap_err().to_string().contains("empty"));
        assert!(Target::open(&path).unwrap_err().to_string().contains("no example"));
        assert!(Pool::open(dir.path()).unwrap_err().to_string().contains("manifest.json"));
        assert!(Pool::open(&dir.path().join("none.jsonl")).unwrap_err().to_string().contains("none.jsonl"));
        let cut = dir.path().join("cut.jsonl.gz");
        std::fs::write(&cut, b"\x1f\x8b\x08\x00").unwrap();
        assert!(Pool::open(&cut).unwrap_err().to_string().contains("cut.jsonl.gz"));
    }

    #[test]
    fn a_pool_that_changes_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        std::fs::write(&path, ROWS).unwrap();
        let pool = Pool::open(&path).unwrap();
        for changed in [format!("{ROWS}\n{ROWS}"), ROWS.lines().take(1).collect()] {
            std::fs::write(&path, changed).unwrap();
            assert!(pool.for_each(|_, _, _| Ok(())).unwrap_err().to_string().contains("changed"));
        }
    }
}
