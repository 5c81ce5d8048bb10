//! Matrix products for processors with AVX-512.
//!
//! The usual scheme (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication"): the right operand
//! is packed into panels of [`COLUMNS`] columns, blocks of the left one into panels of [`ROWS`] rows, and one
//! tile of `ROWS x COLUMNS` sums stays in registers while `k` runs. On the shapes of training steps this reaches
//! 80 to 95 % of what the processor can multiply, where the `gemm` crate reaches 50 to 65 %.
//!
//! The operands are multiplied as they are or, packed so, rounded to `bf16`.
//!
//! An element of the output is a sum in an order that depends on `k` alone, so neither the number of
//! threads nor how the work is cut among them shows in the result.

use std::arch::x86_64::*;
use std::cell::Cell;

use half::bf16;

use super::{Matrix, Product, deal};
use crate::buffer::with_buffer;

/// Rows of a tile: 28 of the 32 vector registers hold its sums.
pub(super) const ROWS: usize = 14;

/// Columns of a tile: two vectors.
pub(super) const COLUMNS: usize = 32;

/// How far `k` runs before a tile's sums are added to the output.
const DEPTH: usize = 256;

/// How many elements of the right operand are packed at a time, at most.
const PACKED: usize = 4 << 20;

/// How many rows of the left operand are packed at a time, at most.
pub(super) const BLOCK: usize = 8 * ROWS;

thread_local! {
    pub(super) static LEFT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static RIGHT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Where the output lies.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub data: *mut f32,
    pub row: usize,
}

// SAFETY: tasks write to disjoint parts of it.
unsafe impl Sync for Output {}
// SAFETY: as above.
unsafe impl Send for Output {}

/// See [`super::multiply`]; with `ROUNDED` operands.
///
/// # Safety
/// The processor must have AVX-512F, and the output must cover `[m, n]`.
pub unsafe fn multiply<const ROUNDED: bool>(product: &Product, out: &mut [f32], out_row: usize) {
    let [m, k, n] = product.sizes;
    let out = Output { data: out.as_mut_ptr(), row: out_row };
    let threads = product.threads.count();
    // Whole depths of as many columns as fit; at least one panel of one depth.
    let width = (PACKED / k.min(DEPTH)).min(n).next_multiple_of(COLUMNS);
    let depth = (PACKED / width / DEPTH).max(1) * DEPTH;
    for column in (0..n).step_by(width) {
        let columns = width.min(n - column);
        let panels = columns.div_ceil(COLUMNS);
        for first in (0..k).step_by(depth) {
            let depth = depth.min(k - first);
            with_buffer(&RIGHT, panels * depth * COLUMNS, |packed| {
                deal::panels(threads, packed, depth * COLUMNS, |(panel, packed)| {
                    let at = column + panel * COLUMNS;
                    // SAFETY: `b` covers these rows and columns.
                    unsafe {
                        let columns = COLUMNS.min(n - at);
                        pack::<COLUMNS, ROUNDED>(product.b.t(), at, columns, first, depth, packed);
                    }
                });
                let part = Part { product, out, first, depth, column, columns, packed };
                let cut = deal::Rows { tile: ROWS, block: BLOCK, tasks: 8 };
                // SAFETY: as promised by the caller; no two tasks share a tile.
                deal::blocks(threads, m, panels, cut, |row, rows, panel, panels| unsafe {
                    part.block::<ROUNDED>(row, rows, panel, panels);
                });
            });
        }
    }
}

/// One packed part of the right operand, and what it is a part of.
struct Part<'a> {
    product: &'a Product<'a>,
    out: Output,
    /// The part of `k` that is packed.
    first: usize,
    depth: usize,
    /// The columns that are packed, in panels of `[depth, COLUMNS]`, those that are missing as zeros.
    column: usize,
    columns: usize,
    packed: &'a [f32],
}

impl Part<'_> {
    /// Rows `row..row + rows` times the panels `panel..panel + panels`.
    ///
    /// # Safety
    /// As [`multiply`]; nobody else may touch this part of the output meanwhile.
    unsafe fn block<const ROUNDED: bool>(&self, row: usize, rows: usize, panel: usize, panels: usize) {
        let strips = rows.div_ceil(ROWS);
        for from in (0..self.depth).step_by(DEPTH) {
            let depth = DEPTH.min(self.depth - from);
            let accumulate = self.product.accumulate || self.first + from > 0;
            with_buffer(&LEFT, strips * depth * ROWS, |left| {
                for (strip, left) in left.chunks_exact_mut(depth * ROWS).enumerate() {
                    let at = row + strip * ROWS;
                    // SAFETY: `a` covers these rows and columns.
                    unsafe {
                        pack::<ROWS, ROUNDED>(
                            self.product.a,
                            at,
                            ROWS.min(row + rows - at),
                            self.first + from,
                            depth,
                            left,
                        )
                    };
                }
                for panel in panel..panel + panels {
                    let right = &self.packed[(panel * self.depth + from) * COLUMNS..][..depth * COLUMNS];
                    let columns = COLUMNS.min(self.columns - panel * COLUMNS);
                    let mask = ((1u64 << columns) - 1) as u32;
                    for (strip, left) in left.chunks_exact(depth * ROWS).enumerate() {
                        let at = row + strip * ROWS;
                        let column = self.column + panel * COLUMNS;
                        // SAFETY: the tile lies within the output, of which `mask` says how many columns,
                        // and the packed operands are `depth` long.
                        unsafe {
                            let out = self.out.data.add(at * self.out.row + column);
                            let tile = TILES[ROWS.min(row + rows - at) - 1];
                            tile(
                                depth,
                                left.as_ptr(),
                                right.as_ptr(),
                                self.product.scale,
                                accumulate,
                                out,
                                self.out.row,
                                mask,
                            );
                        }
                    }
                }
            });
        }
    }
}

/// Packs `depth` columns, from `first` on, of rows `row..row + rows` of `matrix`: `WIDE` elements, one a
/// row, for each column; rows that are missing as zeros. `ROUNDED` to `bf16` or as they are.
///
/// # Safety
/// The processor must have AVX-512F, and the matrix must cover these rows and columns.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack<const WIDE: usize, const ROUNDED: bool>(
    matrix: Matrix,
    row: usize,
    rows: usize,
    first: usize,
    depth: usize,
    packed: &mut [f32],
) {
    assert!(rows <= WIDE && packed.len() >= depth * WIDE);
    let Matrix { data, row: down, column: along } = matrix;
    let from = data[row * down + first * along..].as_ptr();
    let to = packed.as_mut_ptr();
    // SAFETY: as promised by the caller, and asserted above.
    unsafe {
        if down == 1 && rows == WIDE {
            for k in 0..depth {
                let (from, to) = (from.add(k * along), to.add(k * WIDE));
                if ROUNDED {
                    for i in (0..WIDE).step_by(16) {
                        let mask = mask(WIDE - i);
                        let x = rounded(_mm512_maskz_loadu_ps(mask, from.add(i)));
                        _mm512_mask_storeu_ps(to.add(i), mask, x);
                    }
                } else {
                    to.copy_from_nonoverlapping(from, WIDE);
                }
            }
            return;
        }
        let whole = if along == 1 { depth - depth % 16 } else { 0 };
        for i in (0..WIDE).step_by(16) {
            let (rows, wide) = (rows.saturating_sub(i).min(16), (WIDE - i).min(16));
            for k in (0..whole).step_by(16) {
                let (from, to) = (from.wrapping_add(i * down + k), to.add(k * WIDE + i));
                transpose::<ROUNDED>(from, down, rows, to, WIDE, wide);
            }
        }
        for k in whole..depth {
            for i in 0..WIDE {
                let x = if i < rows { *from.add(i * down + k * along) } else { 0.0 };
                *to.add(k * WIDE + i) = if ROUNDED { bf16::from_f32(x).to_f32() } else { x };
            }
        }
    }
}

/// Writes 16 columns of `rows` rows, `down` apart, as 16 rows, `across` apart, of `wide` elements, those
/// of missing rows as zeros.
///
/// # Safety
/// The processor must have AVX-512F, and both sides must lie within their slices.
#[target_feature(enable = "avx512f")]
unsafe fn transpose<const ROUNDED: bool>(
    from: *const f32,
    down: usize,
    rows: usize,
    to: *mut f32,
    across: usize,
    wide: usize,
) {
    let mut x = [_mm512_setzero_ps(); 16];
    for (i, x) in x.iter_mut().enumerate().take(rows) {
        // SAFETY: as promised by the caller.
        *x = unsafe { _mm512_loadu_ps(from.add(i * down)) };
        if ROUNDED {
            *x = rounded(*x);
        }
    }
    let mask = mask(wide);
    for (i, x) in transpose_lanes(x).into_iter().enumerate() {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_mask_storeu_ps(to.add(i * across), mask, x) };
    }
}

/// The nearest `bf16` of each number, ties to even: [`bf16::from_f32`].
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(x: __m512) -> __m512 {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let nearest = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    // Adding to what is no number could make it infinite.
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let bits = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000u32 as i32)))
}

/// The first `lanes` of 16.
pub(super) fn mask(lanes: usize) -> u16 {
    if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
}

/// 16 vectors of 16 lanes as a square, rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose_lanes(mut x: [__m512; 16]) -> [__m512; 16] {
    // Pairs of rows, fours of rows within quarters of vectors, then the quarters.
    let mut y = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    for i in 0..4 {
        x[4 * i] = _mm512_shuffle_ps::<0x44>(y[4 * i], y[4 * i + 2]);
        x[4 * i + 1] = _mm512_shuffle_ps::<0xee>(y[4 * i], y[4 * i + 2]);
        x[4 * i + 2] = _mm512_shuffle_ps::<0x44>(y[4 * i + 1], y[4 * i + 3]);
        x[4 * i + 3] = _mm512_shuffle_ps::<0xee>(y[4 * i + 1], y[4 * i + 3]);
    }
    for i in 0..4 {
        let (low, high) = (x[i], x[i + 4]);
        y[i] = _mm512_shuffle_f32x4::<0x88>(low, high);
        y[i + 4] = _mm512_shuffle_f32x4::<0xdd>(low, high);
        let (low, high) = (x[i + 8], x[i + 12]);
        y[i + 8] = _mm512_shuffle_f32x4::<0x88>(low, high);
        y[i + 12] = _mm512_shuffle_f32x4::<0xdd>(low, high);
    }
    for i in 0..8 {
        x[i] = _mm512_shuffle_f32x4::<0x88>(y[i], y[i + 8]);
        x[i + 8] = _mm512_shuffle_f32x4::<0xdd>(y[i], y[i + 8]);
    }
    x
}

pub(super) type Tile = unsafe fn(usize, *const f32, *const f32, f32, bool, *mut f32, usize, u32);

/// [`tile`] for 1 to [`ROWS`] rows.
pub(super) const TILES: [Tile; ROWS] = [
    tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>, tile::<7>, tile::<8>, tile::<9>,
    tile::<10>, tile::<11>, tile::<12>, tile::<13>, tile::<14>,
];

/// The products of `N` packed rows and one panel, added to the output with `accumulate`.
///
/// # Safety
/// `left` holds `depth * ROWS` elements, `right` `depth * COLUMNS`, and the rows of `out`, `row` apart, the
/// columns that `mask` names.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const N: usize>(
    depth: usize,
    left: *const f32,
    right: *const f32,
    scale: f32,
    accumulate: bool,
    out: *mut f32,
    row: usize,
    mask: u32,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    let (mut left, mut right) = (left, right);
    // SAFETY: as promised by the caller.
    unsafe {
        for _ in 0..depth {
            let columns = [_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(16))];
            for i in 0..N {
                let x = _mm512_set1_ps(*left.add(i));
                sums[i][0] = _mm512_fmadd_ps(x, columns[0], sums[i][0]);
                sums[i][1] = _mm512_fmadd_ps(x, columns[1], sums[i][1]);
            }
            left = left.add(ROWS);
            right = right.add(COLUMNS);
        }
        let scale = _mm512_set1_ps(scale);
        for i in 0..N {
            for half in 0..2 {
                let mask = (mask >> (16 * half)) as u16;
                let at = out.add(i * row).wrapping_add(16 * half);
                let old = if accumulate { _mm512_maskz_loadu_ps(mask, at) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(at, mask, _mm512_fmadd_ps(sums[i][half], scale, old));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is no number, infinite, exactly between two neighbours, or rounded up to infinity.
    #[test]
    fn numbers_are_rounded_as_half_does_it() {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return;
        }
        let mut bits = vec![0, 0x7f80_0000, 0x7fff_ffff, 0x7f80_0001, 0x7f7f_ffff, 0x3f80_8000, 0x3f81_8000];
        bits.extend([1, 0x8000, 0x18000, 0x3f80_7fff, 0x3f80_8001]);
        bits.extend((0..4000u32).map(|i| i.wrapping_mul(2_654_435_761)));
        bits.resize(bits.len().next_multiple_of(16), 0);
        for bits in bits.chunks(16) {
            for sign in [0, 1 << 31] {
                let x: Vec<f32> = bits.iter().map(|bits| f32::from_bits(bits ^ sign)).collect();
                let mut found = [0f32; 16];
                // SAFETY: the processor has AVX-512F; both are 16 numbers.
                unsafe { _mm512_storeu_ps(found.as_mut_ptr(), rounded(_mm512_loadu_ps(x.as_ptr()))) };
                for (x, found) in x.iter().zip(found) {
                    assert_eq!(found.to_bits(), bf16::from_f32(*x).to_f32().to_bits(), "{:x}", x.to_bits());
                }
            }
        }
    }
}
