//! Operands as tiles of `bf16`.

use std::arch::x86_64::*;

use super::super::Matrix;
use super::super::avx512::{mask, transpose_lanes};

/// Lines and pairs of a tile, and numbers along `k` that it holds.
pub const LINES: usize = 16;
pub const ALONG: usize = 32;

/// 16 pairs of `bf16`: a row of a tile, and a line of the cache. Loading a tile whose rows lie across two lines takes nearly
/// three times as long.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct Row([u32; LINES]);

/// Rows of a tile.
pub const TILE: usize = 16;

/// Packs `lines` (1 to 16) rows of `matrix`, from `line` on, into tiles 32 columns deep, from column `first` on, `apart` from
/// each other: element `(i, j)` of a tile is the pair of columns `2j` and `2j + 1` of line `i`, or, `TURNED`, that of line
/// `j` at the pair `i`. What is missing is zero.
///
/// # Safety
/// The processor must have AVX512-BF16, the matrix must cover these rows and columns, and `to` have room for
/// `depth.div_ceil(32)` tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn pack<const TURNED: bool>(
    matrix: Matrix,
    line: usize,
    lines: usize,
    first: usize,
    depth: usize,
    to: *mut Row,
    apart: usize,
) {
    let Matrix { data, row: down, column: along } = matrix;
    let from = data[line * down + first * along..].as_ptr();
    for (tile, k) in (0..depth).step_by(ALONG).enumerate() {
        let depth = ALONG.min(depth - k);
        // SAFETY: as promised by the caller.
        unsafe {
            let from = from.add(k * along);
            let (pairs, turned) = if along == 1 {
                (pairs_of_lines(from, down, lines, depth), false)
            } else if down == 1 {
                (pairs_across(from, along, lines, depth), true)
            } else {
                let mut gathered = [0f32; LINES * ALONG];
                for i in 0..lines {
                    for j in 0..depth {
                        gathered[i * ALONG + j] = *from.add(i * down + j * along);
                    }
                }
                (pairs_of_lines(gathered.as_ptr(), ALONG, lines, depth), false)
            };
            let pairs = if turned == TURNED { pairs } else { transpose_pairs(pairs) };
            for (i, pairs) in pairs.into_iter().enumerate() {
                _mm512_store_si512(to.add(tile * apart + i).cast(), pairs);
            }
        }
    }
}

/// Lines whose numbers lie side by side: a vector of 16 pairs each.
///
/// # Safety
/// `depth` numbers lie at each of `lines` places, `down` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pairs_of_lines(from: *const f32, down: usize, lines: usize, depth: usize) -> [__m512i; LINES] {
    let (low, high) = (mask(depth), mask(depth.saturating_sub(16)));
    let mut pairs = [_mm512_setzero_si512(); LINES];
    for (i, pairs) in pairs.iter_mut().enumerate().take(lines) {
        // SAFETY: as promised by the caller.
        unsafe {
            let at = from.add(i * down);
            let low = _mm512_maskz_loadu_ps(low, at);
            let high = _mm512_maskz_loadu_ps(high, at.wrapping_add(16));
            *pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        }
    }
    pairs
}

/// Lines that lie side by side: the vector `i` holds the pair of columns `2i` and `2i + 1` of all lines.
///
/// # Safety
/// `lines` numbers lie at each of `depth` places, `along` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pairs_across(from: *const f32, along: usize, lines: usize, depth: usize) -> [__m512i; LINES] {
    let lines = mask(lines);
    let mut order = [0u16; 32];
    for i in 0..16 {
        order[2 * i] = i as u16;
        order[2 * i + 1] = 16 + i as u16;
    }
    let mut pairs = [_mm512_setzero_si512(); LINES];
    // SAFETY: as promised by the caller.
    unsafe {
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        for (i, pairs) in pairs.iter_mut().enumerate().take(depth.div_ceil(2)) {
            let even = _mm512_maskz_loadu_ps(lines, from.add(2 * i * along));
            let odd = match 2 * i + 1 < depth {
                true => _mm512_maskz_loadu_ps(lines, from.add((2 * i + 1) * along)),
                false => _mm512_setzero_ps(),
            };
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
            *pairs = _mm512_permutexvar_epi16(order, both);
        }
    }
    pairs
}

#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_pairs(pairs: [__m512i; LINES]) -> [__m512i; LINES] {
    // SAFETY: vectors of integers and of numbers are the same bits.
    unsafe {
        std::mem::transmute(transpose_lanes(std::mem::transmute::<[__m512i; LINES], [__m512; LINES]>(pairs)))
    }
}
