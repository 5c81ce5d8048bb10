//! Near nodes of all rows in files, block by block of rows, so that they are not in memory and that
//! a build can go on after the last whole block.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use crate::artefact::ArtefactError;
use crate::graph::near::Near;
use crate::mapped::{Mapped, write_numbers};
use crate::pages::PageWriter;
use crate::scratch::Scratch;

/// Where a row has no more near nodes.
const NONE: u64 = u64::MAX;
/// Rows that are worked on at a time.
pub(super) const STRIP: usize = 4096;
/// Rows of a file: as many as one part in so many, but not fewer than make a file worth it.
const PARTS: usize = 64;
const LEAST: usize = if cfg!(test) { 512 } else { 1 << 16 };

/// Up to `width` near nodes of each row, nearest first.
pub(super) struct Table {
    blocks: Vec<Mapped<u64>>,
    width: usize,
    /// Rows of every block but the last.
    block: usize,
}

impl Table {
    /// The table called `name`, where all of it is there.
    pub fn whole(
        scratch: &Scratch,
        name: &str,
        rows: usize,
        width: usize,
    ) -> Result<Option<Self>, ArtefactError> {
        let there = (0..blocks(rows).len()).all(|number| scratch.is_there(&format!("{name}-{number}")));
        match there {
            true => Self::make(scratch, name, rows, width, |_, _| Ok(())).map(Some),
            false => Ok(None),
        }
    }

    /// The table called `name`, of which `work` makes the blocks that are not there: it gives the
    /// near nodes of each row of a range, in order, to the file.
    pub fn make(
        scratch: &Scratch,
        name: &str,
        rows: usize,
        width: usize,
        mut work: impl FnMut(Range<usize>, &mut TableFile) -> Result<(), ArtefactError>,
    ) -> Result<Self, ArtefactError> {
        let mut all = Vec::new();
        for (number, range) in blocks(rows).into_iter().enumerate() {
            let path = scratch.make(&format!("{name}-{number}"), |path| {
                let file = File::create(path).map_err(ArtefactError::io(path))?;
                let mut out = TableFile { out: PageWriter::new(file), path, width };
                work(range.clone(), &mut out)?;
                out.out.flush().map_err(ArtefactError::io(path))
            })?;
            all.push(Mapped::open(&path, range.len() * width)?);
        }
        Ok(Self { blocks: all, width, block: block_rows(rows) })
    }

    /// One file made otherwise, with the near nodes of all rows.
    pub fn of_one(path: &Path, rows: usize, width: usize) -> Result<Self, ArtefactError> {
        Ok(Self { blocks: vec![Mapped::open(path, rows * width)?], width, block: rows.max(1) })
    }

    /// The near nodes of row `id`.
    pub fn near(&self, id: usize) -> Vec<Near> {
        unpack(&self.blocks[id / self.block].as_slice()[id % self.block * self.width..][..self.width])
            .collect()
    }

    /// The near nodes of each row, from the first.
    pub fn iter(&self) -> impl Iterator<Item = impl Iterator<Item = Near>> {
        self.blocks.iter().flat_map(|block| block.as_slice().chunks_exact(self.width).map(unpack))
    }
}

/// A block of a table, being written.
pub(super) struct TableFile<'a> {
    out: PageWriter,
    path: &'a Path,
    width: usize,
}

impl TableFile<'_> {
    /// The near nodes of the rows of a range, as `make` gives them for one strip after the other;
    /// those of a strip are written while the next ones are made.
    pub fn write(
        &mut self,
        range: Range<usize>,
        make: impl Fn(Range<usize>) -> Vec<Vec<Near>> + Sync,
    ) -> Result<(), ArtefactError> {
        let mut ready = Vec::new();
        for strip in strips(range) {
            let (written, next) = rayon::join(|| self.write_lists(&ready), || make(strip));
            written?;
            ready = next;
        }
        self.write_lists(&ready)
    }

    fn write_lists(&mut self, lists: &[Vec<Near>]) -> Result<(), ArtefactError> {
        let mut row = vec![NONE; self.width];
        for near in lists {
            pack(near, &mut row);
            write_numbers(&mut self.out, &row).map_err(ArtefactError::io(self.path))?;
        }
        Ok(())
    }
}

/// As the row of a file.
pub(super) fn pack(near: &[Near], row: &mut [u64]) {
    row.fill(NONE);
    for (place, near) in row.iter_mut().zip(near) {
        // Minus zero would sort last.
        *place = u64::from((near.distance + 0.0).to_bits()) << 32 | u64::from(near.id);
    }
}

/// From the row of a file.
pub(super) fn unpack(row: &[u64]) -> impl Iterator<Item = Near> {
    let there = row.iter().take_while(|entry| **entry != NONE);
    there.map(|entry| Near { distance: f32::from_bits((entry >> 32) as u32), id: *entry as u32 })
}

fn block_rows(rows: usize) -> usize {
    rows.div_ceil(PARTS).max(LEAST)
}

fn blocks(rows: usize) -> Vec<Range<usize>> {
    let block = block_rows(rows);
    (0..rows).step_by(block).map(|first| first..rows.min(first + block)).collect()
}

/// A range in pieces of [`STRIP`] rows.
fn strips(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(STRIP).map(move |first| first..end.min(first + STRIP))
}
