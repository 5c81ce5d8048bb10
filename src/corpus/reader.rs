//! A corpus as a stream of documents.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{self, Compression, Format, SourceFile};
use super::known::Known;
use super::parquet::ParquetRows;
use super::record::Record;
use super::{Document, OnError, Skipped, Store};
use crate::{Error, Result};

/// The documents of a corpus, in the order of the arguments and, in folders, of sorted names.
///
/// Read are text and Markdown (a document a file), JSON lines (`{"id", "title", "section",
/// "text"}`, only `text` being necessary) and Parquet with those columns; all but Parquet also
/// as `.gz` and `.zst`. Under [`OnError::Fail`] the first line that cannot be used ends the
/// stream with an error; under [`OnError::Skip`] it is counted in [`skipped`](Self::skipped).
/// A corpus without a single usable document is an error in either case.
pub struct Documents<'a> {
    files: Vec<SourceFile>,
    next_file: usize,
    current: Option<Records>,
    on_error: OnError,
    skipped: Skipped,
    /// Where each id was first seen, by the hash of the id.
    seen: HashMap<[u8; 16], Place>,
    /// What the index that this is read for holds already.
    known: Option<Known<'a>>,
    bytes_read: Arc<AtomicU64>,
    yielded: u64,
    done: bool,
}

/// A file, by its number, and a line in it (0 for the whole file).
#[derive(Debug, Clone, Copy)]
struct Place {
    file: u32,
    line: u64,
}

impl<'a> Documents<'a> {
    /// Lists the files of the corpus; reads nothing of them yet.
    pub fn open(corpus: &[PathBuf], on_error: OnError) -> Result<Self> {
        if corpus.is_empty() {
            return Err(Error::setting("CORPUS", "name at least one file or folder"));
        }
        Ok(Self {
            files: files::find(corpus)?,
            next_file: 0,
            current: None,
            on_error,
            skipped: Skipped::default(),
            seen: HashMap::new(),
            known: None,
            bytes_read: Arc::default(),
            yielded: 0,
            done: false,
        })
    }

    /// Reads for an index that holds `store`: a document that states no id but is there already gets the id and the source
    /// that it has there, any other one an id that nothing there has.
    ///
    /// A whole file is the document whose source is the end of its path: `notes/a.md` is that, given with its folder or
    /// alone, and in a folder of another name it is another document. A file that was given alone has the source `a.md`;
    /// what is given alone under this name is taken for it, wherever it lies, what is given with a folder only where it
    /// has the same text. A line or row is the document with the same text whose source is the end of its file's path.
    ///
    /// # Errors
    /// The stream's: a file whose text has changed and that may be any of several documents, because fewer files of its
    /// name are left in this corpus than there are documents.
    pub fn beside(mut self, store: &'a Store) -> Self {
        self.known = Some(Known::of(store));
        self
    }

    /// What was left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Bytes of the corpus's files read so far, as they lie on disk.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of all the corpus's files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    fn try_next(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(records) = &mut self.current else {
                let Some(file) = self.files.get(self.next_file) else {
                    return self.end();
                };
                self.next_file += 1;
                match Records::open(file, &self.bytes_read) {
                    Ok(records) => self.current = Some(records),
                    Err(e) => self.unusable(e)?,
                }
                continue;
            };
            let outcome = match records.next() {
                None => {
                    self.current = None;
                    continue;
                }
                Some(Ok((line, record))) => self.document(line, record),
                Some(Err(e)) => Err(e),
            };
            match outcome {
                Ok(document) => return Ok(Some(document)),
                Err(e) => self.unusable(e)?,
            }
        }
    }

    fn end(&self) -> Result<Option<Document>> {
        if self.yielded > 0 {
            return Ok(None);
        }
        let first =
            self.skipped.first.first().map(|why| format!("; the first reason: {why}")).unwrap_or_default();
        let why = format!(
            "no usable document in {} file(s); {} line(s) or file(s) were skipped{first}",
            self.files.len(),
            self.skipped.count
        );
        Err(Error::setting("CORPUS", why))
    }

    fn unusable(&mut self, error: Error) -> Result<()> {
        match self.on_error {
            OnError::Fail => Err(error),
            OnError::Skip => {
                self.skipped.add(error.to_string());
                Ok(())
            }
        }
    }

    /// Makes a document of a record found at `line` of the file being read.
    fn document(&mut self, line: u64, record: Record) -> Result<Document> {
        let place = Place { file: (self.next_file - 1) as u32, line };
        let text = match record.text {
            Some(text) if !text.trim().is_empty() => text,
            Some(_) => return Err(self.at(place, "the text is empty")),
            None => return Err(self.at(place, "no field \"text\"")),
        };
        let given = record.id.filter(|id| !id.is_empty());
        let (id, source) = match given {
            Some(id) => {
                if let Some(&first) = self.seen.get(&key(&id)) {
                    let why = format!("the id {id:?} was already used at {}", self.name(first));
                    return Err(self.at(place, &why));
                }
                (id, self.files[place.file as usize].name.clone())
            }
            None => self.id_and_source(place, &text)?,
        };
        self.seen.insert(key(&id), place);
        self.yielded += 1;
        let title = record.title.filter(|t| !t.trim().is_empty()).unwrap_or_else(|| id.clone());
        Ok(Document { id, title, section: record.section.filter(|s| !s.is_empty()), source, text })
    }

    /// The id and the source of a document that states no id.
    fn id_and_source(&self, place: Place, text: &str) -> Result<(String, String)> {
        let file = &self.files[place.file as usize];
        let seen = |id: &str| self.seen.contains_key(&key(id));
        let mut found = self.known.as_ref().map(|known| known.find(file, text)).unwrap_or_default();
        found.retain(|document| !seen(document.id));
        if let Some(first) = found.first() {
            let same_name: Vec<&str> =
                found.iter().filter(|d| d.source == first.source).map(|d| d.id).collect();
            let left = || self.files[place.file as usize..].iter().filter(|f| f.name == file.name).count();
            if first.text != text && same_name.len() > 1 && same_name.len() > left() {
                let why = format!(
                    "this may be the new text of any of the documents {same_name:?}, whose files are all called {:?}; \
                     add all those files at once, or delete the document that it replaces first",
                    first.source
                );
                return Err(self.at(place, &why));
            }
            return Ok((first.id.into(), first.source.into()));
        }
        let made = match place.line {
            0 => file.stem.clone(),
            line => format!("{}#{line}", file.stem),
        };
        let mut id = made.clone();
        let mut copy = 2;
        while seen(&id) || self.known.as_ref().is_some_and(|known| known.has(&id)) {
            id = format!("{made}~{copy}");
            copy += 1;
        }
        Ok((id, file.name.clone()))
    }

    fn at(&self, place: Place, why: &str) -> Error {
        let path = &self.files[place.file as usize].path;
        match place.line {
            0 => Error::file(path, why),
            line => Error::line(path, line, why),
        }
    }

    fn name(&self, place: Place) -> impl fmt::Display + use<> {
        let path = self.files[place.file as usize].path.display().to_string();
        match place.line {
            0 => path,
            line => format!("{path}:{line}"),
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.try_next().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

fn key(id: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    key
}

/// The records of one open file, each with its line (0 for the whole file).
enum Records {
    /// The file is one record.
    Whole(Option<Record>),
    /// Each line is one.
    Lines(Lines),
    /// Each row is one.
    Rows { path: PathBuf, rows: Box<ParquetRows>, row: u64, broken: bool },
}

impl Records {
    fn open(file: &SourceFile, counter: &Arc<AtomicU64>) -> Result<Self> {
        let path = &file.path;
        match file.format {
            Format::Parquet => {
                let rows = ParquetRows::open(path).map_err(|why| Error::file(path, why))?;
                counter.fetch_add(file.bytes, Ordering::Relaxed);
                Ok(Self::Rows { path: path.clone(), rows: Box::new(rows), row: 0, broken: false })
            }
            Format::JsonLines => {
                let input = open_reader(file, counter)?;
                Ok(Self::Lines(Lines {
                    path: path.clone(),
                    input,
                    line: 0,
                    buffer: Vec::new(),
                    broken: false,
                }))
            }
            Format::Text | Format::Markdown => {
                let mut bytes = Vec::new();
                open_reader(file, counter)?.read_to_end(&mut bytes).map_err(Error::io(path))?;
                let text = String::from_utf8(bytes).map_err(|e| {
                    let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
                    let line = 1 + good.iter().filter(|&&b| b == b'\n').count() as u64;
                    Error::line(path, line, "not UTF-8; convert the file")
                })?;
                let text = text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text);
                let name = file.stem.rsplit('/').next().unwrap_or(&file.stem);
                let heading = (file.format == Format::Markdown).then(|| first_heading(&text)).flatten();
                let title = heading.map_or_else(|| name.to_string(), String::from);
                let record = Record { title: Some(title), text: Some(text), ..Record::default() };
                Ok(Self::Whole(Some(record)))
            }
        }
    }

    fn next(&mut self) -> Option<Result<(u64, Record)>> {
        match self {
            Self::Whole(record) => record.take().map(|record| Ok((0, record))),
            Self::Lines(lines) => lines.next(),
            Self::Rows { path, rows, row, broken } => {
                if *broken {
                    return None;
                }
                *row += 1;
                Some(match rows.next()? {
                    Ok(record) => Ok((*row, record)),
                    Err(why) => {
                        *broken = true;
                        Err(Error::file(path.clone(), why))
                    }
                })
            }
        }
    }
}

struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    line: u64,
    buffer: Vec<u8>,
    broken: bool,
}

impl Lines {
    fn next(&mut self) -> Option<Result<(u64, Record)>> {
        while !self.broken {
            self.buffer.clear();
            self.line += 1;
            match self.input.read_until(b'\n', &mut self.buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => {
                    // A damaged compressed file cannot be read on from here.
                    self.broken = true;
                    return Some(Err(Error::line(
                        &self.path,
                        self.line,
                        format!("the rest is unreadable: {e}"),
                    )));
                }
            }
            let mut line = self.buffer.as_slice();
            if self.line == 1 {
                line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            }
            line = line.trim_ascii_end();
            if !line.is_empty() {
                let record = parse(line).map_err(|why| Error::line(&self.path, self.line, why));
                return Some(record.map(|record| (self.line, record)));
            }
        }
        None
    }
}

fn parse(line: &[u8]) -> std::result::Result<Record, String> {
    let text = std::str::from_utf8(line)
        .map_err(|e| format!("not UTF-8 (at byte {} of the line)", e.valid_up_to() + 1))?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err("not a JSON object".into());
    }
    serde_json::from_str(text).map_err(|e| {
        // serde counts lines within this one line, which would only confuse.
        let message = e.to_string();
        let message = message.split(" at line 1 column").next().unwrap_or(&message);
        format!("not a usable JSON object: {message} (column {})", e.column())
    })
}

fn open_reader(file: &SourceFile, counter: &Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>> {
    let path: &Path = &file.path;
    let raw = File::open(path).map_err(Error::io(path))?;
    let raw = BufReader::new(Counting { inner: raw, counter: counter.clone() });
    Ok(match file.compression {
        Compression::None => Box::new(raw),
        Compression::Gzip => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(raw))),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(Error::io(path))?;
            Box::new(BufReader::new(decoder))
        }
    })
}

/// Counts what is read of a file.
struct Counting {
    inner: File,
    counter: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.counter.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The text of the first Markdown heading (`# Title`) outside a code fence.
fn first_heading(text: &str) -> Option<&str> {
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") || line.trim_start().starts_with("~~~") {
            fenced = !fenced;
        }
        let rest = line.trim_start_matches('#');
        let level = line.len() - rest.len();
        if !fenced && (1..=6).contains(&level) && rest.starts_with([' ', '\t']) {
            let title = rest.trim().trim_end_matches('#').trim_end();
            if !title.is_empty() {
                return Some(title);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn read(dir: &Path, on_error: OnError) -> (Vec<Result<Document>>, Skipped) {
        let mut documents = Documents::open(&[dir.into()], on_error).unwrap();
        let all = documents.by_ref().collect();
        (all, documents.skipped().clone())
    }

    fn ids(documents: &[Result<Document>]) -> Vec<&str> {
        documents.iter().map(|d| d.as_ref().unwrap().id.as_str()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const LINES: &str = "\u{feff}{\"id\":\"x\",\"title\":\"X\",\"section\":\"s\",\"text\":\"one\",\"more\":[1]}\n\n\
                         {\"id\": 7, \"text\": \"two\"}\r\n{\"text\":\"three\"}";

    #[test]
    fn every_format_gives_its_documents_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.jsonl"), LINES).unwrap();
        fs::write(dir.path().join("b.txt"), "\u{feff}plain\ntext").unwrap();
        let markdown = "```\n# no\n```\n##  The *title* ##\nbody";
        fs::write(dir.path().join("c.md.zst"), zstd::encode_all(markdown.as_bytes(), 1).unwrap()).unwrap();
        // Two gzip members in one file are one text.
        let members = [gzip(b"{\"text\":\"four\"}\n{\"te"), gzip(b"xt\":\"five\"}\n")].concat();
        fs::write(dir.path().join("d.jsonl.gz"), members).unwrap();
        let (documents, skipped) = read(dir.path(), OnError::Fail);
        assert_eq!(ids(&documents), ["x", "7", "a#4", "b", "c", "d#1", "d#2"]);
        let documents: Vec<_> = documents.into_iter().map(Result::unwrap).collect();
        assert_eq!(documents[0].section.as_deref(), Some("s"));
        assert_eq!((documents[0].title.as_str(), documents[1].title.as_str()), ("X", "7"));
        assert_eq!((documents[3].title.as_str(), documents[3].text.as_str()), ("b", "plain\ntext"));
        assert_eq!(documents[4].title, "The *title*");
        assert_eq!(documents[4].text, markdown);
        assert_eq!(documents[6].text, "five");
        let folder = dir.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(documents[6].source, format!("{folder}/d.jsonl.gz"));
        assert_eq!(skipped, Skipped::default());
    }

    #[test]
    fn an_unusable_line_is_named_or_skipped_and_counted() {
        let lines: [(&[u8], &str); 6] = [
            (b"{\"id\":1}", "no field \"text\""),
            (b"{\"text\": \"  \"}", "empty"),
            (b"{\"text\": \"a\xff\"}", "not UTF-8 (at byte 12"),
            (b"{\"text\": 3}", "invalid type"),
            (b"[\"text\"]", "not a JSON object"),
            (b"{\"text\": \"a\"", "column 12"),
        ];
        for (line, why) in lines {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.jsonl");
            let bytes = [b"{\"text\":\"good\"}\n", line, b"\n{\"text\":\"also good\"}\n"].concat();
            fs::write(&path, bytes).unwrap();
            let (documents, _) = read(dir.path(), OnError::Fail);
            assert_eq!(documents.len(), 2, "the stream ends with the error");
            let error = documents[1].as_ref().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}:2: ", path.display())), "{error}");
            assert!(error.contains(why), "{error}");
            let (documents, skipped) = read(dir.path(), OnError::Skip);
            assert_eq!(ids(&documents), ["a#1", "a#3"]);
            assert_eq!((skipped.count, &skipped.first), (1, &vec![error]));
        }
    }

    #[test]
    fn a_damaged_file_is_named_or_skipped() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.txt"), "good").unwrap();
        fs::write(dir.path().join("b.txt"), b"line\nbad \xff").unwrap();
        let lines: String = (0..3000).map(|i| format!("{{\"text\":\"{}\"}}\n", i * 7919 % 3001)).collect();
        let whole = gzip(lines.as_bytes());
        fs::write(dir.path().join("c.jsonl.gz"), &whole[..whole.len() / 2]).unwrap();
        fs::write(dir.path().join("d.md.zst"), b"not zstd at all").unwrap();
        fs::write(dir.path().join("e.parquet"), b"PAR1 but no more").unwrap();
        fs::write(dir.path().join("f.txt"), "").unwrap();
        let (documents, skipped) = read(dir.path(), OnError::Skip);
        assert!(documents.iter().all(Result::is_ok));
        assert!(documents.len() > 100 && documents.len() < 3001, "the good half of c is used");
        assert_eq!(skipped.count, 5);
        for (why, part) in skipped.first.iter().zip([
            "b.txt:2: not UTF-8",
            "c.jsonl.gz:",
            "d.md",
            "e.parq",
            "f.txt: the text is empty",
        ]) {
            assert!(why.contains(part), "{why}");
        }
        let (documents, _) = read(dir.path(), OnError::Fail);
        assert!(documents.last().unwrap().as_ref().unwrap_err().to_string().contains("b.txt:2"));
    }

    #[test]
    fn stated_ids_must_differ_and_made_ones_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("a.jsonl"),
            "{\"id\":\"q\",\"text\":\"x\"}\n{\"id\":\"b\",\"text\":\"x\"}\n",
        )
        .unwrap();
        fs::write(dir.path().join("b.md"), "x").unwrap();
        fs::write(dir.path().join("b.txt"), "x").unwrap();
        let (documents, _) = read(dir.path(), OnError::Fail);
        assert_eq!(ids(&documents), ["q", "b", "b~2", "b~3"]);
        fs::write(
            dir.path().join("c.jsonl"),
            "{\"id\":\"z\",\"text\":\"x\"}\n{\"id\":\"q\",\"text\":\"x\"}\n",
        )
        .unwrap();
        let (documents, _) = read(dir.path(), OnError::Fail);
        let error = documents.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(
            error.contains("c.jsonl:2") && error.contains("a.jsonl:1") && error.contains("\"q\""),
            "{error}"
        );
        let (documents, skipped) = read(dir.path(), OnError::Skip);
        assert_eq!((documents.len(), skipped.count), (5, 1));
    }

    #[test]
    fn an_empty_corpus_is_an_error_that_says_why() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.jsonl"), "\n\n").unwrap();
        for on_error in [OnError::Fail, OnError::Skip] {
            let (documents, _) = read(dir.path(), on_error);
            assert!(documents[0].as_ref().unwrap_err().to_string().contains("no usable document in 1 file"));
        }
        fs::write(dir.path().join("a.jsonl"), "{\n").unwrap();
        let (documents, _) = read(dir.path(), OnError::Skip);
        assert!(documents[0].as_ref().unwrap_err().to_string().contains("a.jsonl:1"));
    }

    #[test]
    fn all_bytes_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.jsonl"), LINES).unwrap();
        fs::write(dir.path().join("b.jsonl.gz"), gzip(b"{\"text\":\"x\"}")).unwrap();
        let mut documents = Documents::open(&[dir.path().into()], OnError::Fail).unwrap();
        assert_eq!(documents.by_ref().count(), 4);
        assert_eq!(documents.bytes_read(), documents.total_bytes());
    }
}
