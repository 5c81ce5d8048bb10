//! Block formats repacked so that products need no sums across a vector.
//!
//! 16 rows of a weight make a strip, one row for each lane of 32 bits. A line of 64 bytes then holds, for each of the 16
//! rows, codes of four neighbouring columns, which one instruction multiplies with four inputs and adds to the
//! row's own sum. Scales and minima lie as vectors of one number a row.

use super::blocks::{Block, BlockKind, GROUP, SUPER, widened};

/// How many rows lie side by side.
pub const ROWS: usize = 16;

/// A vector of codes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// A weight `[output, input]` in strips.
#[derive(Clone, Debug)]
pub struct Packed {
    pub kind: BlockKind,
    pub output: usize,
    pub input: usize,
    /// Of 32 columns, along a row that is filled up with zeros to whole blocks.
    pub groups: usize,
    /// For each strip and group the lower four bits of its codes in 4 lines (byte `4 r + i` of line `j` holds column
    /// `4 j + i` of row `r` below and column `16 + 4 j + i` above), or codes of 8 bits in 8 lines (column `4 j + i`).
    pub low: Vec<Line>,
    /// The fifth bits in one line for each group (bit `j` of byte `4 r + i` belongs to column `4 j + i`), or
    /// the fifth and sixth in two (bits `2 (j % 4)` and the next of line `j / 4`).
    pub high: Vec<Line>,
    /// Scales as `f16`, `[strips, groups, 16]`, or in the `K` formats their units, `[strips, groups / 8, 16]`.
    pub units: Vec<u16>,
    /// Minima or their units likewise, if there are any.
    pub minima: Vec<u16>,
    /// In the `K` formats the scales, `[strips, groups, scales of a group, 16]`.
    pub small_scales: Vec<u8>,
    /// In the `K` formats what is subtracted, `[strips, groups, 16]`, if there is anything.
    pub small_minima: Vec<u8>,
}

impl Packed {
    /// Repacks rows of blocks: `blocks(row, i)` is block `i` of a row.
    pub fn new(kind: BlockKind, output: usize, input: usize, blocks: impl Fn(usize, usize) -> Block) -> Self {
        let count = input.div_ceil(kind.weights());
        let (groups, strips) = (count * kind.weights() / GROUP, output.div_ceil(ROWS));
        let large = kind.weights() == SUPER;
        let lines = |a_group: usize| vec![Line([0; 64]); strips * groups * a_group];
        let numbers = |wanted: bool, a_strip: usize| if wanted { strips * a_strip * ROWS } else { 0 };
        let mut packed = Self {
            kind,
            output,
            input,
            groups,
            low: lines(if kind.bits() == 8 { 8 } else { 4 }),
            high: lines(kind.bits().saturating_sub(4) % 4),
            units: vec![0; numbers(true, count)],
            minima: vec![0; numbers(kind.has_minimum(), count)],
            small_scales: vec![0; numbers(large, groups * kind.scales())],
            small_minima: vec![0; numbers(large && kind.has_minimum(), groups)],
        };
        for row in 0..output {
            for i in 0..count {
                packed.place(row, i, count, &blocks(row, i));
            }
        }
        packed
    }

    fn place(&mut self, row: usize, i: usize, count: usize, block: &Block) {
        let (strip, lane) = (row / ROWS, row % ROWS);
        let numbers = (strip * count + i) * ROWS + lane;
        self.units[numbers] = block.unit;
        if self.kind.has_minimum() {
            self.minima[numbers] = block.minimum;
        }
        for part in 0..self.kind.weights() / GROUP {
            let at = strip * self.groups + i * self.kind.weights() / GROUP + part;
            if self.kind.weights() == SUPER {
                for half in 0..self.kind.scales() {
                    self.small_scales[(at * self.kind.scales() + half) * ROWS + lane] =
                        block.scales[part * self.kind.scales() + half];
                }
                if self.kind.has_minimum() {
                    self.small_minima[at * ROWS + lane] = block.minima[part];
                }
            }
            for (column, &code) in block.codes[part * GROUP..][..GROUP].iter().enumerate() {
                let (j, byte) = (column / 4, lane * 4 + column % 4);
                match self.kind.bits() {
                    8 => self.low[at * 8 + j].0[byte] = code,
                    bits => {
                        self.low[at * 4 + j % 4].0[byte] |= (code & 15) << (j / 4 * 4);
                        match bits {
                            5 => self.high[at].0[byte] |= code >> 4 << j,
                            6 => self.high[at * 2 + j / 4].0[byte] |= code >> 4 << (j % 4 * 2),
                            _ => {}
                        }
                    }
                }
            }
        }
    }

    /// How many strips there are.
    pub fn strips(&self) -> usize {
        self.output.div_ceil(ROWS)
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        64 * (self.low.len() + self.high.len())
            + 2 * (self.units.len() + self.minima.len())
            + self.small_scales.len()
            + self.small_minima.len()
    }

    /// The code of a column of a group of a strip's row, with its offset.
    #[inline(always)]
    pub fn code(&self, strip: usize, group: usize, lane: usize, column: usize) -> u8 {
        let at = strip * self.groups + group;
        let (j, byte) = (column / 4, lane * 4 + column % 4);
        let low = || self.low[at * 4 + j % 4].0[byte] >> (j / 4 * 4) & 15;
        match self.kind.bits() {
            8 => self.low[at * 8 + j].0[byte],
            5 => low() | (self.high[at].0[byte] >> j & 1) << 4,
            6 => low() | (self.high[at * 2 + j / 4].0[byte] >> (j % 4 * 2) & 3) << 4,
            _ => low(),
        }
    }

    /// The scale of (half `half` of) a group in one row, and what is added to all its weights.
    #[inline(always)]
    pub fn scale(&self, strip: usize, group: usize, half: usize, lane: usize) -> (f32, f32) {
        let at = strip * self.groups + group;
        match self.kind {
            BlockKind::Q4K | BlockKind::Q5K | BlockKind::Q6K => {
                let unit = at / (SUPER / GROUP) * ROWS + lane;
                let small = self.small_scales[(at * self.kind.scales() + half) * ROWS + lane];
                match self.kind.has_minimum() {
                    true => (
                        widened(self.units[unit]) * f32::from(small),
                        -(widened(self.minima[unit]) * f32::from(self.small_minima[at * ROWS + lane])),
                    ),
                    false => (widened(self.units[unit]) * f32::from(small as i8), 0.0),
                }
            }
            _ => {
                let number = at * ROWS + lane;
                let minimum = if self.kind.has_minimum() { widened(self.minima[number]) } else { 0.0 };
                (widened(self.units[number]), minimum)
            }
        }
    }

    /// One row in `f32`, exactly what its blocks say.
    pub fn expand(&self, row: usize, out: &mut [f32]) {
        let (strip, lane) = (row / ROWS, row % ROWS);
        let (scales, part) = (self.kind.scales(), GROUP / self.kind.scales());
        for (i, out) in out.chunks_mut(part).enumerate() {
            let (group, half) = (i / scales, i % scales);
            let (scale, minimum) = self.scale(strip, group, half, lane);
            for (column, out) in (half * part..).zip(out) {
                let code = i32::from(self.code(strip, group, lane, column)) - self.kind.offset();
                *out = scale * code as f32 + minimum;
            }
        }
    }
}
