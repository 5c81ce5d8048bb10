//! AVX2: 32 bytes at a time.

use std::arch::x86_64::*;

use super::{
    BLOCK, Bytes, GROUP_BYTES, GROUP_MULTIPLE, GROUPS_IN_U16, LANES, PANEL, PANEL_GROUP, Scale, Set,
    from_bf16, scalar,
};

/// This set, where the machine has it.
pub(super) fn set() -> Option<Set> {
    is_x86_feature_detected!("avx2").then_some(Set {
        name: "avx2",
        // SAFETY: the machine has what it enables: see above.
        dot: |a, b| unsafe { dot(a, b) },
        // SAFETY: the machine has what it enables: see above.
        squared_distance: |a, b| unsafe { squared_distance(a, b) },
        // SAFETY: the machine has what it enables: see above.
        dot_bf16: |a, b| unsafe { dot_bf16(a, b) },
        // SAFETY: the machine has what it enables: see above.
        squared_distance_bf16: |a, b| unsafe { squared_distance_bf16(a, b) },
        // SAFETY: the machine has what it enables: see above.
        dot_bytes: |a, b| unsafe { dot_bytes(a, b) },
        // SAFETY: the machine has what it enables: see above.
        squared_distance_bytes: |a, b| unsafe { squared_distance_bytes(a, b) },
        estimates: |codes, tables, factors, scale, least, out| {
            // SAFETY: the machine has what it enables: see above.
            unsafe { estimates(codes, tables, factors, scale, least, out) }
        },
        // SAFETY: the machine has what it enables: see above.
        masked_sum: |bits, numbers| unsafe { masked_sum(bits, numbers) },
        // SAFETY: the machine has what it enables: see above.
        byte_products: |rows, panels, out| unsafe { byte_products(rows, panels, out) },
    })
}

/// Eight numbers from the beginning of a slice of at least so many.
#[inline(always)]
fn load(from: &[f32]) -> __m256 {
    let from: &[f32; 8] = from[..8].try_into().expect("eight numbers");
    // SAFETY: the reference is to eight readable numbers; the load needs no alignment.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

/// Folds eight times eight lanes as [`scalar::fold`] does.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(mut sums: [__m256; 8]) -> f32 {
    for width in [4, 2, 1] {
        for i in 0..width {
            sums[i] = _mm256_add_ps(sums[i], sums[i + width]);
        }
    }
    let four = _mm_add_ps(_mm256_castps256_ps128(sums[0]), _mm256_extractf128_ps::<1>(sums[0]));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Eight numbers of bf16 from the beginning of a slice of at least so many.
#[inline]
#[target_feature(enable = "avx2")]
fn load_bf16(from: &[u16]) -> __m256 {
    let from: &[u16; 8] = from[..8].try_into().expect("eight numbers");
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    let halves = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// What eight codes at the beginning of a slice of at least so many stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(from: &[u8], offset: __m256, step: __m256) -> __m256 {
    let from: &[u8; 8] = from[..8].try_into().expect("eight codes");
    // SAFETY: the reference is to 8 readable bytes; the load needs no alignment.
    let codes = unsafe { _mm_loadl_epi64(from.as_ptr().cast()) };
    let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
    _mm256_add_ps(offset, _mm256_mul_ps(step, codes))
}

/// Sums a term over `$a`, of which `$load` takes eight and `$decode` one, and `$b`.
macro_rules! sum_of {
    ($a:expr, $b:ident, $load:expr, $decode:expr, $term:expr) => {{
        let n = $a.len().min($b.len());
        let (a, b) = (&$a[..n], &$b[..n]);
        let mut sums = [_mm256_setzero_ps(); 8];
        let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (x, y) in a_chunks.by_ref().zip(b_chunks.by_ref()) {
            for i in 0..8 {
                sums[i] = _mm256_add_ps(sums[i], $term($load(&x[8 * i..]), load(&y[8 * i..])));
            }
        }
        let (x, y) = (a_chunks.remainder(), b_chunks.remainder());
        for (i, (x, y)) in x.chunks(8).zip(y.chunks(8)).enumerate() {
            let (mut whole_x, mut whole_y) = ([0.0; 8], [0.0; 8]);
            whole_x.iter_mut().zip(x).for_each(|(whole, &x)| *whole = $decode(x));
            whole_y[..y.len()].copy_from_slice(y);
            sums[i] = _mm256_add_ps(sums[i], $term(load(&whole_x), load(&whole_y)));
        }
        fold(sums)
    }};
}

/// The term of an inner product.
macro_rules! product {
    () => {
        |x, y| _mm256_mul_ps(x, y)
    };
}

/// The term of a squared distance.
macro_rules! square {
    () => {
        |x, y| {
            let difference = _mm256_sub_ps(x, y);
            _mm256_mul_ps(difference, difference)
        }
    };
}

#[target_feature(enable = "avx2")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of!(a, b, load, |x| x, product!())
}

#[target_feature(enable = "avx2")]
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_of!(a, b, load, |x| x, square!())
}

#[target_feature(enable = "avx2")]
fn dot_bf16(a: &[u16], b: &[f32]) -> f32 {
    sum_of!(a, b, |x| load_bf16(x), from_bf16, product!())
}

#[target_feature(enable = "avx2")]
fn squared_distance_bf16(a: &[u16], b: &[f32]) -> f32 {
    sum_of!(a, b, |x| load_bf16(x), from_bf16, square!())
}

#[target_feature(enable = "avx2")]
fn dot_bytes(a: Bytes, b: &[f32]) -> f32 {
    let (offset, step) = (_mm256_set1_ps(a.offset), _mm256_set1_ps(a.step));
    sum_of!(a.codes, b, |x| load_bytes(x, offset, step), |x| a.number(x), product!())
}

#[target_feature(enable = "avx2")]
fn squared_distance_bytes(a: Bytes, b: &[f32]) -> f32 {
    let (offset, step) = (_mm256_set1_ps(a.offset), _mm256_set1_ps(a.step));
    sum_of!(a.codes, b, |x| load_bytes(x, offset, step), |x| a.number(x), square!())
}

#[target_feature(enable = "avx2")]
fn masked_sum(bits: &[u64], numbers: &[f32]) -> f32 {
    let each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    let mut sums = [_mm256_setzero_ps(); 8];
    for (&word, numbers) in bits.iter().zip(numbers.chunks(LANES)) {
        for (i, numbers) in numbers.chunks(8).enumerate() {
            let byte = _mm256_set1_epi32((word >> (8 * i)) as i32 & 255);
            let set = _mm256_cmpeq_epi32(_mm256_and_si256(byte, each), each);
            let mut whole = [0.0; 8];
            whole[..numbers.len()].copy_from_slice(numbers);
            let chosen = _mm256_and_ps(load(&whole), _mm256_castsi256_ps(set));
            sums[i] = _mm256_add_ps(sums[i], chosen);
        }
    }
    fold(sums)
}

/// Sums of the look-ups of 32 codes over at most [`GROUPS_IN_U16`] groups: codes 0 to 15, 16 to 31.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(codes: &[u8], tables: &[u8]) -> [__m256i; 2] {
    let nibble = _mm256_set1_epi8(15);
    let zero = _mm256_setzero_si256();
    // Of each pair of bytes the sum of both (the upper times 256), and that of the upper alone.
    let mut both = [zero; 2];
    let mut upper = [zero; 2];
    const STEP: usize = 2 * GROUP_BYTES;
    for (codes, table) in codes.chunks_exact(STEP).zip(tables.chunks_exact(STEP)) {
        // SAFETY: each slice is 32 bytes long; the loads need no alignment.
        let (codes, table) =
            unsafe { (_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(table.as_ptr().cast())) };
        let low = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
        let high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble));
        for (i, found) in [low, high].into_iter().enumerate() {
            both[i] = _mm256_add_epi16(both[i], found);
            upper[i] = _mm256_add_epi16(upper[i], _mm256_srli_epi16::<8>(found));
        }
    }
    let mut sums = [zero; 2];
    for i in 0..2 {
        let even = half_sum(_mm256_sub_epi16(both[i], _mm256_slli_epi16::<8>(upper[i])));
        let odd = half_sum(upper[i]);
        sums[i] = _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
    }
    sums
}

/// The sum of the two 128-bit parts.
#[inline]
#[target_feature(enable = "avx2")]
fn half_sum(x: __m256i) -> __m128i {
    _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

#[target_feature(enable = "avx2")]
fn estimates(
    codes: &[u8],
    tables: &[u8],
    factors: &[f32],
    scale: Scale,
    least: f32,
    out: &mut [f32; BLOCK],
) -> u32 {
    if !codes.len().is_multiple_of(GROUP_MULTIPLE * GROUP_BYTES) || codes.len() != tables.len() {
        return scalar::estimates(codes, tables, factors, scale, least, out);
    }
    let mut sums = [_mm256_setzero_si256(); 4];
    const CHUNK: usize = GROUPS_IN_U16 * GROUP_BYTES;
    for (codes, tables) in codes.chunks(CHUNK).zip(tables.chunks(CHUNK)) {
        for (i, part) in look_up(codes, tables).into_iter().enumerate() {
            let halves = [_mm256_castsi256_si128(part), _mm256_extracti128_si256::<1>(part)];
            for (j, half) in halves.into_iter().enumerate() {
                sums[2 * i + j] = _mm256_add_epi32(sums[2 * i + j], _mm256_cvtepu16_epi32(half));
            }
        }
    }
    let (adds, scales) = factors[..2 * BLOCK].split_at(BLOCK);
    let (base, unit, shift) =
        (_mm256_set1_ps(scale.base), _mm256_set1_ps(scale.unit), _mm256_set1_ps(scale.shift));
    let mut mask = 0;
    for i in 0..4 {
        let signs = _mm256_add_ps(_mm256_mul_ps(unit, _mm256_cvtepi32_ps(sums[i])), shift);
        let estimate = _mm256_add_ps(
            _mm256_add_ps(base, load(&adds[8 * i..])),
            _mm256_mul_ps(load(&scales[8 * i..]), signs),
        );
        // Not less than: also true for NaN.
        let passes = _mm256_cmp_ps::<_CMP_NLT_UQ>(estimate, _mm256_set1_ps(least));
        mask |= (_mm256_movemask_ps(passes) as u32) << (8 * i);
        let out: &mut [f32; 8] = (&mut out[8 * i..8 * i + 8]).try_into().expect("eight numbers");
        // SAFETY: the reference is to eight writable numbers; the store needs no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), estimate) };
    }
    mask
}

#[target_feature(enable = "avx2")]
fn byte_products(rows: &[&[i8]], panels: &[i8], out: &mut [i32]) {
    const ROWS: usize = 4;
    let dim = rows.first().map_or(PANEL_GROUP, |row| row.len());
    let width = panels.len() / dim;
    for (rows, out) in rows.chunks(ROWS).zip(out.chunks_mut(ROWS * width)) {
        for (number, panel) in panels.chunks_exact(PANEL * dim).enumerate() {
            let out = &mut out[number * PANEL..];
            match <&[&[i8]; ROWS]>::try_from(rows) {
                Ok(rows) => tile(rows, panel, out, width),
                Err(_) => {
                    let rest = rows.iter().zip(out.chunks_mut(width));
                    rest.for_each(|(row, out)| tile(&[row], panel, out, width));
                }
            }
        }
    }
}

/// Products of `R` rows with a panel, of which those of a row begin `stride` after the last row's.
#[inline]
#[target_feature(enable = "avx2")]
fn tile<const R: usize>(rows: &[&[i8]; R], panel: &[i8], out: &mut [i32], stride: usize) {
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    let ones = _mm256_set1_epi16(1);
    for (group, bytes) in panel.chunks_exact(PANEL * PANEL_GROUP).enumerate() {
        // SAFETY: the slice is 64 bytes long; the loads need no alignment.
        let others = unsafe {
            [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes[32..].as_ptr().cast())]
        };
        let sizes = others.map(|other| _mm256_abs_epi8(other));
        for (sums, row) in sums.iter_mut().zip(rows) {
            let row = &row[group * PANEL_GROUP..][..PANEL_GROUP];
            let four = _mm256_set1_epi32(i32::from_le_bytes([
                row[0] as u8,
                row[1] as u8,
                row[2] as u8,
                row[3] as u8,
            ]));
            for i in 0..2 {
                // At most 2 * 127 * 127, which fits 16 bits; -128 would not.
                let pairs = _mm256_maddubs_epi16(sizes[i], _mm256_sign_epi8(four, others[i]));
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (i, &sum) in sums.iter().enumerate() {
            let out = &mut out[r * stride + 8 * i..][..8];
            // SAFETY: the slice holds eight writable numbers; the store needs no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
        }
    }
}
