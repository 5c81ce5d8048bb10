//! Which tiles are multiplied when, and by whom.

use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::sync::OnceLock;

use super::super::avx512::Output;
use super::super::{Matrix, Product, deal};
use super::dot;
use super::pack::{ALONG, LINES, Row, TILE, pack};
use crate::buffer::with_buffer;

/// Lines of both operands that are multiplied at a time: two tiles.
const WIDE: usize = 2 * LINES;

/// How far `k` runs before sums are added to the output: a panel of the right operand then stays in the first cache.
const DEPTH: usize = 16 * ALONG;

/// How the rows of the left operand are cut.
const ROWS: deal::Rows = deal::Rows { tile: WIDE, block: 8 * WIDE, tasks: 4 };

/// How many numbers of the right operand are packed at a time, at most.
const PACKED: usize = 8 << 20;

thread_local! {
    static LEFT: Cell<Vec<Row>> = const { Cell::new(Vec::new()) };
    static RIGHT: Cell<Vec<Row>> = const { Cell::new(Vec::new()) };
}

/// What multiplies tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    #[cfg(target_os = "linux")]
    Amx,
    Avx512,
}

/// The best that this processor has, if that is faster than `f32`.
pub fn best() -> Option<Unit> {
    static BEST: OnceLock<Option<Unit>> = OnceLock::new();
    *BEST.get_or_init(|| {
        let best = *units().last()?;
        // Intel's AVX512-BF16 makes a vector of sums every other cycle, which is half as many as its products in f32;
        // AMD's is twice as fast as those.
        (best != Unit::Avx512 || !intel()).then_some(best)
    })
}

/// What this processor has, better ones last.
pub fn units() -> Vec<Unit> {
    let mut all = Vec::new();
    if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512bf16") {
        all.push(Unit::Avx512);
        #[cfg(target_os = "linux")]
        if super::amx::available() {
            all.push(Unit::Amx);
        }
    }
    all
}

fn intel() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// See [`super::multiply`].
///
/// # Safety
/// The processor must have `unit` and AVX512-BF16, and the output must cover `[m, n]`.
pub unsafe fn multiply(unit: Unit, product: &Product, out: &mut [f32], out_row: usize) {
    let [m, k, n] = product.sizes;
    let out = Output { data: out.as_mut_ptr(), row: out_row };
    let threads = product.threads.count();
    // Columns as many as fit, in whole panels.
    let width = (PACKED / k.min(DEPTH)).max(WIDE).min(n).next_multiple_of(WIDE);
    for column in (0..n).step_by(width) {
        let columns = width.min(n - column);
        let panels = columns.div_ceil(WIDE);
        for first in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - first);
            let panel_len = 2 * depth.div_ceil(ALONG) * TILE;
            with_buffer(&RIGHT, panels * panel_len, |packed| {
                deal::panels(threads, packed, panel_len, |(panel, packed)| {
                    let at = column + panel * WIDE;
                    // SAFETY: `b` covers these rows and columns.
                    unsafe { pack_panel::<true>(product.b.t(), at, WIDE.min(n - at), first, depth, packed) };
                });
                let part = Part { unit, product, out, first, depth, column, columns, packed };
                // SAFETY: as promised by the caller; no two tasks share a tile.
                deal::blocks(threads, m, panels, ROWS, |row, rows, panel, panels| unsafe {
                    part.block(row, rows, panel, panels);
                });
            });
        }
    }
}

/// Packs two tiles of lines, the tiles of a depth side by side.
///
/// # Safety
/// As [`pack`].
unsafe fn pack_panel<const TURNED: bool>(
    matrix: Matrix,
    line: usize,
    lines: usize,
    first: usize,
    depth: usize,
    packed: &mut [Row],
) {
    assert!(packed.len() >= 2 * depth.div_ceil(ALONG) * TILE && lines <= WIDE);
    for half in 0..2 {
        let to = packed[half * TILE..].as_mut_ptr();
        if half * LINES < lines {
            // SAFETY: as promised by the caller, and asserted above.
            unsafe {
                let lines = LINES.min(lines - half * LINES);
                pack::<TURNED>(matrix, line + half * LINES, lines, first, depth, to, 2 * TILE);
            }
        } else {
            packed[half * TILE..].chunks_mut(2 * TILE).for_each(|tile| tile[..TILE].fill(Row::default()));
        }
    }
}

/// One packed part of the right operand, and what it is a part of.
struct Part<'a> {
    unit: Unit,
    product: &'a Product<'a>,
    out: Output,
    /// The part of `k` that is packed.
    first: usize,
    depth: usize,
    /// The columns that are packed, in panels of two tiles, those that are missing as zeros.
    column: usize,
    columns: usize,
    packed: &'a [Row],
}

/// Four tiles of sums, `[2][2][16][16]`.
#[repr(align(64))]
struct Sums([f32; 4 * TILE * LINES]);

impl Part<'_> {
    /// Rows `row..row + rows` times the panels `panel..panel + panels`.
    ///
    /// # Safety
    /// As [`multiply`]; nobody else may touch this part of the output meanwhile.
    unsafe fn block(&self, row: usize, rows: usize, panel: usize, panels: usize) {
        let deep = self.depth.div_ceil(ALONG);
        let len = 2 * deep * TILE;
        // SAFETY: the unit was found to be there.
        #[cfg(target_os = "linux")]
        let _tiles = (self.unit == Unit::Amx).then(|| unsafe { super::amx::Tiles::begin() });
        with_buffer(&LEFT, rows.div_ceil(WIDE) * len, |left| {
            for (strip, left) in left.chunks_exact_mut(len).enumerate() {
                let at = strip * WIDE;
                // SAFETY: `a` covers these rows and columns.
                unsafe {
                    let rows = WIDE.min(rows - at);
                    pack_panel::<false>(self.product.a, row + at, rows, self.first, self.depth, left);
                }
            }
            let mut sums = Sums([0.0; 4 * TILE * LINES]);
            for panel in panel..panel + panels {
                let right = &self.packed[panel * len..][..len];
                let columns = WIDE.min(self.columns - panel * WIDE);
                for (strip, left) in left.chunks_exact(len).enumerate() {
                    let (left, right, into) = (left.as_ptr(), right.as_ptr(), sums.0.as_mut_ptr());
                    // SAFETY: both operands are `2 * deep` tiles, which is not zero, and the tiles have begun.
                    unsafe {
                        match self.unit {
                            #[cfg(target_os = "linux")]
                            Unit::Amx => super::amx::multiply(deep, left, right, into),
                            Unit::Avx512 => dot::multiply(deep, left, right, into),
                        }
                    }
                    let (row, rows) = (row + strip * WIDE, WIDE.min(rows - strip * WIDE));
                    // SAFETY: these rows and columns lie within the output, and are this task's.
                    unsafe { self.write(&sums, row, rows, self.column + panel * WIDE, columns) };
                }
            }
        });
    }

    /// Scales sums and writes, or adds, them to the output.
    ///
    /// # Safety
    /// The output has these rows and columns, and they are nobody else's.
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, sums: &Sums, row: usize, rows: usize, column: usize, columns: usize) {
        let scale = _mm512_set1_ps(self.product.scale);
        let accumulate = self.product.accumulate || self.first > 0;
        for i in 0..rows {
            for half in 0..columns.div_ceil(LINES) {
                let wide = LINES.min(columns - half * LINES);
                let mask = ((1u32 << wide) - 1) as u16;
                let from = ((2 * (i / LINES) + half) * TILE + i % LINES) * LINES;
                // SAFETY: as promised by the caller; `mask` keeps to the row.
                unsafe {
                    let sum = _mm512_load_ps(sums.0[from..].as_ptr());
                    let at = self.out.data.add((row + i) * self.out.row + column + half * LINES);
                    let old = match accumulate {
                        true => _mm512_maskz_loadu_ps(mask, at),
                        false => _mm512_setzero_ps(),
                    };
                    _mm512_mask_storeu_ps(at, mask, _mm512_fmadd_ps(sum, scale, old));
                }
            }
        }
    }
}
