//! The lines of a text file that is plain, gzip or Zstandard.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What some editors begin a UTF-8 text with.
const MARK: &[u8] = "\u{FEFF}".as_bytes();

/// Reads the file at `path`, decompressed if its name ends in `.gz` or `.zst`.
pub fn reader(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    let mut reader: Box<dyn BufRead> = match extension.as_deref() {
        Some("gz") => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        Some("zst") => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(Error::io(path))?;
            Box::new(BufReader::new(decoder))
        }
        _ => Box::new(file),
    };
    if reader.fill_buf().map_err(Error::io(path))?.starts_with(MARK) {
        reader.consume(MARK.len());
    }
    Ok(reader)
}

/// The lines of a text file that is plain, gzip (`.gz`) or Zstandard (`.zst`).
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    line: u64,
    buffer: Vec<u8>,
}

impl Lines {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_path_buf(), reader: reader(path)?, line: 0, buffer: Vec::new() })
    }

    /// The next line that is not blank, without the space around it, and its number from 1.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(u64, &str)>> {
        loop {
            self.buffer.clear();
            let read = self.reader.read_until(b'\n', &mut self.buffer).map_err(Error::io(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let text = std::str::from_utf8(&self.buffer)
            .map_err(|why| Error::line(&self.path, self.line, format!("not UTF-8: {why}")))?;
        Ok(Some((self.line, text.trim_ascii())))
    }
}

/// What serde says about a line, without the line's number, which it counts within this one line.
pub fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line 1 column").next().unwrap_or(&message);
    format!("{message} (column {})", error.column())
}
