//! Products with AVX-512 and its instructions for sums of products of bytes (VNNI).

use std::arch::x86_64::*;

use super::blocks::{BlockKind, GROUP, SUPER, for_kind};
use super::input::Input;
use super::packed::{Packed, ROWS};

/// How many groups ahead weights are fetched.
const AHEAD: usize = 12;

/// As [`super::product::strip`], which has checked that all sizes fit.
///
/// # Safety
/// `strip` is one of the weight's, and `x` holds `rows` rows of as many groups as it has.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn strip(
    weight: &Packed,
    strip: usize,
    x: &Input,
    rows: usize,
    write: &mut impl FnMut(usize, &[f32; ROWS]),
) {
    // SAFETY: as promised by the caller.
    unsafe { for_kind!(weight.kind, all, (weight, strip, x, rows, write)) }
}

/// # Safety
/// As [`strip`]; the constants are those of the weight's kind.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn all<const BITS: usize, const UNITS: bool, const MINIMA: bool>(
    weight: &Packed,
    strip: usize,
    x: &Input,
    rows: usize,
    write: &mut impl FnMut(usize, &[f32; ROWS]),
) {
    let mut row = 0;
    // SAFETY: as promised by the caller.
    unsafe {
        while row + 8 <= rows {
            some::<BITS, UNITS, MINIMA, 8>(weight, strip, x, row, write);
            row += 8;
        }
        if row + 4 <= rows {
            some::<BITS, UNITS, MINIMA, 4>(weight, strip, x, row, write);
            row += 4;
        }
        if row + 2 <= rows {
            some::<BITS, UNITS, MINIMA, 2>(weight, strip, x, row, write);
            row += 2;
        }
        if row < rows {
            some::<BITS, UNITS, MINIMA, 1>(weight, strip, x, row, write);
        }
    }
}

/// `N` rows of input from `row` on.
///
/// # Safety
/// As [`all`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn some<const BITS: usize, const UNITS: bool, const MINIMA: bool, const N: usize>(
    weight: &Packed,
    strip: usize,
    x: &Input,
    row: usize,
    write: &mut impl FnMut(usize, &[f32; ROWS]),
) {
    let groups = weight.groups;
    let mut totals = [_mm512_setzero_ps(); N];
    for group in 0..groups {
        let at = strip * groups + group;
        // SAFETY: `at` is a group of the weight, and each group of a row of input has its 32 values and its facts.
        unsafe {
            if N == 1 {
                // A single row of input waits for the weights: those that come next are asked for in time. (To fetch
                // what is not there does no harm.)
                let lines = if BITS == 8 { 8 } else { 4 };
                let next = weight.low.as_ptr().wrapping_add((at + AHEAD) * lines);
                for line in 0..lines {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
                }
            }
            let codes = codes::<BITS>(weight, at);
            let (first, second, minimum) = scales::<BITS, UNITS, MINIMA>(weight, at);
            for i in 0..N {
                let input = (row + i) * groups + group;
                let facts = *x.facts.as_ptr().add(input);
                let values = x.values.as_ptr().add(input * GROUP).cast::<i32>();
                let quads = |j: usize| _mm512_set1_epi32(values.add(j).read_unaligned());
                let scale = _mm512_set1_ps(facts.scale);
                // Two sums, which need not wait for each other.
                let (mut a, mut b) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                if BITS == 6 {
                    a = _mm512_set1_epi32(-32 * facts.sums[0]);
                    b = _mm512_set1_epi32(-32 * facts.sums[1]);
                } else if !MINIMA {
                    a = _mm512_set1_epi32(-(1 << (BITS - 1)) * (facts.sums[0] + facts.sums[1]));
                }
                for j in 0..4 {
                    a = _mm512_dpbusd_epi32(a, codes[j], quads(j));
                    b = _mm512_dpbusd_epi32(b, codes[4 + j], quads(4 + j));
                }
                let sum = match BITS {
                    6 => {
                        let b = _mm512_mul_ps(_mm512_cvtepi32_ps(b), second);
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), first, b)
                    }
                    _ => _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(a, b)), first),
                };
                totals[i] = _mm512_fmadd_ps(sum, scale, totals[i]);
                if MINIMA {
                    totals[i] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(facts.total), totals[i]);
                }
            }
        }
    }
    for (i, total) in totals.into_iter().enumerate() {
        let mut out = [0f32; ROWS];
        // SAFETY: 16 numbers fit into it.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
        write(row + i, &out);
    }
}

/// The codes of a group, four columns a vector.
///
/// # Safety
/// `at` is a group of the weight, and `BITS` is what its codes have.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn codes<const BITS: usize>(weight: &Packed, at: usize) -> [__m512i; 8] {
    let mut codes = [_mm512_setzero_si512(); 8];
    // SAFETY: there are so many lines for each group (see `Packed`).
    let low = |i: usize| unsafe { _mm512_load_si512(weight.low.as_ptr().add(i).cast()) };
    // SAFETY: as above.
    let high = |i: usize| unsafe { _mm512_load_si512(weight.high.as_ptr().add(i).cast()) };
    if BITS == 8 {
        (0..8).for_each(|j| codes[j] = low(at * 8 + j));
        return codes;
    }
    let nibble = _mm512_set1_epi8(15);
    for j in 0..4 {
        let line = low(at * 4 + j);
        codes[j] = _mm512_and_si512(line, nibble);
        codes[4 + j] = _mm512_and_si512(_mm512_srli_epi16::<4>(line), nibble);
    }
    // `codes | bits & mask` in one instruction.
    macro_rules! add {
        ($j:literal, $bits:expr, $mask:literal) => {
            codes[$j] = _mm512_ternarylogic_epi32::<0xf8>(codes[$j], $bits, _mm512_set1_epi8($mask));
        };
    }
    if BITS == 5 {
        let bits = high(at);
        add!(0, _mm512_slli_epi16::<4>(bits), 16);
        add!(1, _mm512_slli_epi16::<3>(bits), 16);
        add!(2, _mm512_slli_epi16::<2>(bits), 16);
        add!(3, _mm512_slli_epi16::<1>(bits), 16);
        add!(4, bits, 16);
        add!(5, _mm512_srli_epi16::<1>(bits), 16);
        add!(6, _mm512_srli_epi16::<2>(bits), 16);
        add!(7, _mm512_srli_epi16::<3>(bits), 16);
    }
    if BITS == 6 {
        let (first, second) = (high(at * 2), high(at * 2 + 1));
        add!(0, _mm512_slli_epi16::<4>(first), 48);
        add!(1, _mm512_slli_epi16::<2>(first), 48);
        add!(2, first, 48);
        add!(3, _mm512_srli_epi16::<2>(first), 48);
        add!(4, _mm512_slli_epi16::<4>(second), 48);
        add!(5, _mm512_slli_epi16::<2>(second), 48);
        add!(6, second, 48);
        add!(7, _mm512_srli_epi16::<2>(second), 48);
    }
    codes
}

/// The scales of both halves of a group (of all of it twice, where they have one) and its minimum.
///
/// # Safety
/// `at` is a group of the weight, and the constants are those of its kind.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn scales<const BITS: usize, const UNITS: bool, const MINIMA: bool>(
    weight: &Packed,
    at: usize,
) -> (__m512, __m512, __m512) {
    debug_assert!(UNITS == (weight.kind.weights() == SUPER) && MINIMA == weight.kind.has_minimum());
    debug_assert!(matches!(weight.kind, BlockKind::Q6K) == (BITS == 6));
    let unit = if UNITS { at / (SUPER / GROUP) } else { at };
    // SAFETY: there are 16 of each for every group, or for every block of groups (see `Packed`).
    unsafe {
        let halves =
            |of: &Vec<u16>, i: usize| _mm512_cvtph_ps(_mm256_loadu_si256(of.as_ptr().add(i * ROWS).cast()));
        let small = |of: &Vec<u8>, i: usize| _mm_loadu_si128(of.as_ptr().add(i * ROWS).cast());
        let scale = halves(&weight.units, unit);
        let minimum = if MINIMA { halves(&weight.minima, unit) } else { _mm512_setzero_ps() };
        if BITS == 6 {
            let times = |i: usize| {
                let small = _mm512_cvtepi8_epi32(small(&weight.small_scales, i));
                _mm512_mul_ps(scale, _mm512_cvtepi32_ps(small))
            };
            return (times(2 * at), times(2 * at + 1), minimum);
        }
        if UNITS {
            let widened = |of: &Vec<u8>| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(small(of, at)));
            let scale = _mm512_mul_ps(scale, widened(&weight.small_scales));
            let minimum = _mm512_mul_ps(minimum, widened(&weight.small_minima));
            return (scale, scale, _mm512_sub_ps(_mm512_setzero_ps(), minimum));
        }
        (scale, scale, minimum)
    }
}
