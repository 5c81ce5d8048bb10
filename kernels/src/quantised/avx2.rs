//! Products with AVX2: eight rows of a strip at a time.

use std::arch::x86_64::*;

use super::blocks::{BlockKind, GROUP, SUPER, for_kind};
use super::input::Input;
use super::packed::{Packed, ROWS};

/// As [`super::product::strip`], which has checked that all sizes fit.
///
/// # Safety
/// `strip` is one of the weight's, and `x` holds `rows` rows of as many groups as it has.
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
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
        while row + 4 <= rows {
            some::<BITS, UNITS, MINIMA, 4>(weight, strip, x, row, write);
            row += 4;
        }
        while row < rows {
            some::<BITS, UNITS, MINIMA, 1>(weight, strip, x, row, write);
            row += 1;
        }
    }
}

/// `N` rows of input from `row` on.
///
/// # Safety
/// As [`all`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn some<const BITS: usize, const UNITS: bool, const MINIMA: bool, const N: usize>(
    weight: &Packed,
    strip: usize,
    x: &Input,
    row: usize,
    write: &mut impl FnMut(usize, &[f32; ROWS]),
) {
    let groups = weight.groups;
    let mut out = [[0f32; ROWS]; N];
    for eight in 0..2 {
        let mut totals = [_mm256_setzero_ps(); N];
        for group in 0..groups {
            let at = strip * groups + group;
            // SAFETY: `at` is a group of the weight, and each group of a row of input has its 32 values and its facts.
            unsafe {
                let codes = codes::<BITS>(weight, at, eight);
                let (first, second, minimum) = scales::<BITS, UNITS, MINIMA>(weight, at, eight);
                for i in 0..N {
                    let input = (row + i) * groups + group;
                    let facts = *x.facts.as_ptr().add(input);
                    let values = x.values.as_ptr().add(input * GROUP).cast::<i32>();
                    let quads = |j: usize| _mm256_set1_epi32(values.add(j).read_unaligned());
                    let (mut a, mut b) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                    if BITS == 6 {
                        a = _mm256_set1_epi32(-32 * facts.sums[0]);
                        b = _mm256_set1_epi32(-32 * facts.sums[1]);
                    } else if !MINIMA && BITS < 8 {
                        a = _mm256_set1_epi32(-(1 << (BITS - 1)) * (facts.sums[0] + facts.sums[1]));
                    }
                    for j in 0..4 {
                        a = _mm256_add_epi32(a, dots::<BITS>(codes[j], quads(j)));
                        b = _mm256_add_epi32(b, dots::<BITS>(codes[4 + j], quads(4 + j)));
                    }
                    let sum = match BITS {
                        6 => {
                            let b = _mm256_mul_ps(_mm256_cvtepi32_ps(b), second);
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), first, b)
                        }
                        _ => _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(a, b)), first),
                    };
                    totals[i] = _mm256_fmadd_ps(sum, _mm256_set1_ps(facts.scale), totals[i]);
                    if MINIMA {
                        totals[i] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(facts.total), totals[i]);
                    }
                }
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            // SAFETY: eight numbers fit into each half of it.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * eight), total) };
        }
    }
    for (i, out) in out.iter().enumerate() {
        write(row + i, out);
    }
}

/// Sums of four products each. Pairs of products are added in 16 bits, where those of codes up to 6 bits fit; codes of
/// 8 bits lose their offset and give their sign to the input, and then fit too.
#[inline]
#[target_feature(enable = "avx2")]
fn dots<const BITS: usize>(codes: __m256i, values: __m256i) -> __m256i {
    let pairs = match BITS {
        8 => {
            let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(values, signed))
        }
        _ => _mm256_maddubs_epi16(codes, values),
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// The codes of a group of eight rows, four columns a vector.
///
/// # Safety
/// `at` is a group of the weight, and `BITS` is what its codes have.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes<const BITS: usize>(weight: &Packed, at: usize, eight: usize) -> [__m256i; 8] {
    let mut codes = [_mm256_setzero_si256(); 8];
    // SAFETY: there are so many lines of two vectors for each group (see `Packed`).
    let low =
        |i: usize| unsafe { _mm256_load_si256(weight.low.as_ptr().add(i).cast::<__m256i>().add(eight)) };
    // SAFETY: as above.
    let high =
        |i: usize| unsafe { _mm256_load_si256(weight.high.as_ptr().add(i).cast::<__m256i>().add(eight)) };
    if BITS == 8 {
        (0..8).for_each(|j| codes[j] = low(at * 8 + j));
        return codes;
    }
    let nibble = _mm256_set1_epi8(15);
    for j in 0..4 {
        let line = low(at * 4 + j);
        codes[j] = _mm256_and_si256(line, nibble);
        codes[4 + j] = _mm256_and_si256(_mm256_srli_epi16::<4>(line), nibble);
    }
    macro_rules! add {
        ($j:literal, $bits:expr, $mask:literal) => {
            codes[$j] = _mm256_or_si256(codes[$j], _mm256_and_si256($bits, _mm256_set1_epi8($mask)));
        };
    }
    if BITS == 5 {
        let bits = high(at);
        add!(0, _mm256_slli_epi16::<4>(bits), 16);
        add!(1, _mm256_slli_epi16::<3>(bits), 16);
        add!(2, _mm256_slli_epi16::<2>(bits), 16);
        add!(3, _mm256_slli_epi16::<1>(bits), 16);
        add!(4, bits, 16);
        add!(5, _mm256_srli_epi16::<1>(bits), 16);
        add!(6, _mm256_srli_epi16::<2>(bits), 16);
        add!(7, _mm256_srli_epi16::<3>(bits), 16);
    }
    if BITS == 6 {
        let (first, second) = (high(at * 2), high(at * 2 + 1));
        add!(0, _mm256_slli_epi16::<4>(first), 48);
        add!(1, _mm256_slli_epi16::<2>(first), 48);
        add!(2, first, 48);
        add!(3, _mm256_srli_epi16::<2>(first), 48);
        add!(4, _mm256_slli_epi16::<4>(second), 48);
        add!(5, _mm256_slli_epi16::<2>(second), 48);
        add!(6, second, 48);
        add!(7, _mm256_srli_epi16::<2>(second), 48);
    }
    codes
}

/// The scales of both halves of a group (of all of it twice, where they have one) and its minimum.
///
/// # Safety
/// `at` is a group of the weight, and the constants are those of its kind.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales<const BITS: usize, const UNITS: bool, const MINIMA: bool>(
    weight: &Packed,
    at: usize,
    eight: usize,
) -> (__m256, __m256, __m256) {
    debug_assert!(UNITS == (weight.kind.weights() == SUPER) && MINIMA == weight.kind.has_minimum());
    debug_assert!(matches!(weight.kind, BlockKind::Q6K) == (BITS == 6));
    let unit = if UNITS { at / (SUPER / GROUP) } else { at };
    // SAFETY: there are 16 of each for every group, or for every block of groups (see `Packed`).
    unsafe {
        let halves = |of: &Vec<u16>, i: usize| {
            _mm256_cvtph_ps(_mm_loadu_si128(of.as_ptr().add(i * ROWS + 8 * eight).cast()))
        };
        let small = |of: &Vec<u8>, i: usize| _mm_loadl_epi64(of.as_ptr().add(i * ROWS + 8 * eight).cast());
        let scale = halves(&weight.units, unit);
        let minimum = if MINIMA { halves(&weight.minima, unit) } else { _mm256_setzero_ps() };
        if BITS == 6 {
            let times = |i: usize| {
                let small = _mm256_cvtepi8_epi32(small(&weight.small_scales, i));
                _mm256_mul_ps(scale, _mm256_cvtepi32_ps(small))
            };
            return (times(2 * at), times(2 * at + 1), minimum);
        }
        if UNITS {
            let widened = |of: &Vec<u8>| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(small(of, at)));
            let scale = _mm256_mul_ps(scale, widened(&weight.small_scales));
            let minimum = _mm256_mul_ps(minimum, widened(&weight.small_minima));
            return (scale, scale, _mm256_sub_ps(_mm256_setzero_ps(), minimum));
        }
        (scale, scale, minimum)
    }
}
