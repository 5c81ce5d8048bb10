//! Tiles multiplied by AVX512-BF16.

use std::arch::x86_64::*;

use super::pack::{LINES, Row, TILE};

/// What [`super::amx::multiply`] does, to the same places; sums may differ in their last bits, since this one adds pairs one after
/// the other.
///
/// # Safety
/// The processor must have AVX512-BF16; `left` and `right` hold `2 * depth` tiles and `sums` 4.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn multiply(depth: usize, left: *const Row, right: *const Row, sums: *mut f32) {
    const STRIP: usize = 8;
    for strip in 0..2 * LINES / STRIP {
        let (half, line) = (strip * STRIP / LINES, strip * STRIP % LINES);
        let mut totals = [[_mm512_setzero_ps(); 2]; STRIP];
        // SAFETY: as promised by the caller.
        unsafe {
            for k in 0..depth {
                let left: *const u32 = left.add((2 * k + half) * TILE + line).cast();
                let right = right.add(2 * k * TILE);
                for pair in 0..LINES {
                    let column = |half: usize| {
                        let row = _mm512_load_si512(right.add(half * TILE + pair).cast());
                        std::mem::transmute::<__m512i, __m512bh>(row)
                    };
                    let columns = [column(0), column(1)];
                    for (i, totals) in totals.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(*left.add(i * LINES + pair) as i32);
                        let x = std::mem::transmute::<__m512i, __m512bh>(x);
                        totals[0] = _mm512_dpbf16_ps(totals[0], x, columns[0]);
                        totals[1] = _mm512_dpbf16_ps(totals[1], x, columns[1]);
                    }
                }
            }
            for (i, totals) in totals.iter().enumerate() {
                for (column, total) in totals.iter().enumerate() {
                    _mm512_storeu_ps(sums.add(((2 * half + column) * TILE + line + i) * LINES), *total);
                }
            }
        }
    }
}
