//! Writing files that are to be mapped.

use std::fs::File;
use std::io::{self, Write};

/// What is written at once: Linux keeps it in memory in pieces as large as the writes, up to 2 MiB,
/// and maps a piece of 2 MiB as one page. Searches that jump about in a file of ordinary pages wait
/// for the tables of these pages more than for the data.
const PIECE: usize = 4 << 20;

/// Writes a file from its beginning in large pieces.
pub(crate) struct PageWriter {
    file: File,
    piece: Vec<u8>,
}

impl PageWriter {
    pub fn new(file: File) -> Self {
        Self { file, piece: Vec::new() }
    }

    /// Makes what was written survive a power cut, after a flush.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The file, with everything written.
    pub fn into_file(mut self) -> io::Result<File> {
        self.flush()?;
        Ok(self.file)
    }
}

impl Write for PageWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}
