//! AVX-512 (F, BW, and VNNI for bytes where there is one): 64 bytes at a time.

use std::arch::x86_64::*;

use super::{
    BLOCK, Bytes, GROUP_BYTES, GROUP_MULTIPLE, GROUPS_IN_U16, LANES, PANEL, PANEL_GROUP, Scale, Set, avx2,
    from_bf16, scalar,
};

/// This set, where the machine has it.
pub(super) fn set() -> Option<Set> {
    let there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let without_vnni = avx2::set()?;
    there.then_some(Set {
        name: "avx512",
        byte_products: match is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the machine has what it enables.
            true => |rows, panels, out| unsafe { byte_products(rows, panels, out) },
            false => without_vnni.byte_products,
        },
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
    })
}

/// Sixteen numbers from the beginning of a slice of at least so many.
#[inline(always)]
fn load(from: &[f32]) -> __m512 {
    let from: &[f32; 16] = from[..16].try_into().expect("sixteen numbers");
    // SAFETY: the reference is to sixteen readable numbers; the load needs no alignment.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

/// The first `n` numbers (at most 16) of a slice of at least so many; zero for the rest.
#[inline(always)]
fn load_some(from: &[f32], n: usize) -> __m512 {
    let from = &from[..n.min(16)];
    let mask = ((1u32 << from.len()) - 1) as __mmask16;
    // SAFETY: only the numbers inside the slice are read: the mask leaves out the others.
    unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
}

/// Folds four times sixteen lanes as [`scalar::fold`] does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fold(sums: [__m512; 4]) -> f32 {
    let low = _mm512_add_ps(sums[0], sums[2]);
    let high = _mm512_add_ps(sums[1], sums[3]);
    let sixteen = _mm512_add_ps(low, high);
    let eight = _mm256_add_ps(
        _mm512_castps512_ps256(sixteen),
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sixteen))),
    );
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Sixteen numbers of bf16 from the beginning of a slice of at least so many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bf16(from: &[u16]) -> __m512 {
    let from: &[u16; 16] = from[..16].try_into().expect("sixteen numbers");
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// What sixteen codes at the beginning of a slice of at least so many stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bytes(from: &[u8], offset: __m512, step: __m512) -> __m512 {
    let from: &[u8; 16] = from[..16].try_into().expect("sixteen codes");
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    let codes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
    let codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
    _mm512_add_ps(offset, _mm512_mul_ps(step, codes))
}

/// Sums a term over `$a`, of which `$load` takes sixteen and `$decode` one, and `$b`.
macro_rules! sum_of {
    ($a:expr, $b:ident, $load:expr, $decode:expr, $term:expr) => {{
        let n = $a.len().min($b.len());
        let (a, b) = (&$a[..n], &$b[..n]);
        let mut sums = [_mm512_setzero_ps(); 4];
        let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (x, y) in a_chunks.by_ref().zip(b_chunks.by_ref()) {
            for i in 0..4 {
                sums[i] = _mm512_add_ps(sums[i], $term($load(&x[16 * i..]), load(&y[16 * i..])));
            }
        }
        let (x, y) = (a_chunks.remainder(), b_chunks.remainder());
        for (i, (x, y)) in x.chunks(16).zip(y.chunks(16)).enumerate() {
            let mut whole = [0.0; 16];
            whole.iter_mut().zip(x).for_each(|(whole, &x)| *whole = $decode(x));
            sums[i] = _mm512_add_ps(sums[i], $term(load(&whole), load_some(y, y.len())));
        }
        fold(sums)
    }};
}

/// The term of an inner product.
macro_rules! product {
    () => {
        |x, y| _mm512_mul_ps(x, y)
    };
}

/// The term of a squared distance.
macro_rules! square {
    () => {
        |x, y| {
            let difference = _mm512_sub_ps(x, y);
            _mm512_mul_ps(difference, difference)
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of!(a, b, load, |x| x, product!())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_of!(a, b, load, |x| x, square!())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot_bf16(a: &[u16], b: &[f32]) -> f32 {
    sum_of!(a, b, |x| load_bf16(x), from_bf16, product!())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn squared_distance_bf16(a: &[u16], b: &[f32]) -> f32 {
    sum_of!(a, b, |x| load_bf16(x), from_bf16, square!())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot_bytes(a: Bytes, b: &[f32]) -> f32 {
    let (offset, step) = (_mm512_set1_ps(a.offset), _mm512_set1_ps(a.step));
    sum_of!(a.codes, b, |x| load_bytes(x, offset, step), |x| a.number(x), product!())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn squared_distance_bytes(a: Bytes, b: &[f32]) -> f32 {
    let (offset, step) = (_mm512_set1_ps(a.offset), _mm512_set1_ps(a.step));
    sum_of!(a.codes, b, |x| load_bytes(x, offset, step), |x| a.number(x), square!())
}

#[target_feature(enable = "avx512f,avx512bw")]
fn masked_sum(bits: &[u64], numbers: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    for (&word, numbers) in bits.iter().zip(numbers.chunks(LANES)) {
        for (i, numbers) in numbers.chunks(16).enumerate() {
            let mask = (word >> (16 * i)) as __mmask16;
            let chosen = _mm512_maskz_mov_ps(mask, load_some(numbers, numbers.len()));
            sums[i] = _mm512_add_ps(sums[i], chosen);
        }
    }
    fold(sums)
}

/// Sums of the look-ups of 32 codes over at most [`GROUPS_IN_U16`] groups: codes 0 to 15, 16 to 31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn look_up(codes: &[u8], tables: &[u8]) -> [__m256i; 2] {
    let nibble = _mm512_set1_epi8(15);
    let zero = _mm512_setzero_si512();
    // Of each pair of bytes the sum of both (the upper times 256), and that of the upper alone.
    let mut both = [zero; 2];
    let mut upper = [zero; 2];
    const STEP: usize = GROUP_MULTIPLE * GROUP_BYTES;
    for (codes, table) in codes.chunks_exact(STEP).zip(tables.chunks_exact(STEP)) {
        // SAFETY: each slice is 64 bytes long; the loads need no alignment.
        let (codes, table) =
            unsafe { (_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_loadu_si512(table.as_ptr().cast())) };
        let low = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, nibble));
        let high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibble));
        for (i, found) in [low, high].into_iter().enumerate() {
            both[i] = _mm512_add_epi16(both[i], found);
            upper[i] = _mm512_add_epi16(upper[i], _mm512_srli_epi16::<8>(found));
        }
    }
    let mut sums = [_mm256_setzero_si256(); 2];
    for i in 0..2 {
        let even = quarter_sum(_mm512_sub_epi16(both[i], _mm512_slli_epi16::<8>(upper[i])));
        let odd = quarter_sum(upper[i]);
        sums[i] = _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
    }
    sums
}

/// The sum of the four 128-bit parts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn quarter_sum(x: __m512i) -> __m128i {
    let half = _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
    _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

#[target_feature(enable = "avx512f,avx512bw")]
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
    let mut sums = [_mm512_setzero_si512(); 2];
    const CHUNK: usize = GROUPS_IN_U16 * GROUP_BYTES;
    for (codes, tables) in codes.chunks(CHUNK).zip(tables.chunks(CHUNK)) {
        let part = look_up(codes, tables);
        for i in 0..2 {
            sums[i] = _mm512_add_epi32(sums[i], _mm512_cvtepu16_epi32(part[i]));
        }
    }
    let (adds, scales) = factors[..2 * BLOCK].split_at(BLOCK);
    let (base, unit, shift) =
        (_mm512_set1_ps(scale.base), _mm512_set1_ps(scale.unit), _mm512_set1_ps(scale.shift));
    let mut mask = 0;
    for i in 0..2 {
        let signs = _mm512_add_ps(_mm512_mul_ps(unit, _mm512_cvtepi32_ps(sums[i])), shift);
        let estimate = _mm512_add_ps(
            _mm512_add_ps(base, load(&adds[16 * i..])),
            _mm512_mul_ps(load(&scales[16 * i..]), signs),
        );
        // Not less than: also true for NaN.
        let passes = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(estimate, _mm512_set1_ps(least));
        mask |= u32::from(passes) << (16 * i);
        let out: &mut [f32; 16] = (&mut out[16 * i..16 * i + 16]).try_into().expect("sixteen numbers");
        // SAFETY: the reference is to sixteen writable numbers; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), estimate) };
    }
    mask
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn byte_products(rows: &[&[i8]], panels: &[i8], out: &mut [i32]) {
    const ROWS: usize = 8;
    let dim = rows.first().map_or(PANEL_GROUP, |row| row.len());
    let width = panels.len() / dim;
    for (rows, out) in rows.chunks(ROWS).zip(out.chunks_mut(ROWS * width)) {
        let Ok(rows) = <&[&[i8]; ROWS]>::try_from(rows) else {
            // Few rows have registers left for many panels, and need them: sums wait for each other.
            for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
                let many = panels.chunks(8 * PANEL * dim).zip(out.chunks_mut(8 * PANEL));
                for (panels, out) in many {
                    match panels.len() == 8 * PANEL * dim {
                        true => tile::<1, 8>(&[row], panels, out, PANEL),
                        false => {
                            let rest = panels.chunks_exact(PANEL * dim).zip(out.chunks_exact_mut(PANEL));
                            rest.for_each(|(panel, out)| tile::<1, 1>(&[row], panel, out, PANEL));
                        }
                    }
                }
            }
            continue;
        };
        for (first, panels) in panels.chunks(2 * PANEL * dim).enumerate() {
            let out = &mut out[first * 2 * PANEL..];
            match panels.len() == 2 * PANEL * dim {
                true => tile::<ROWS, 2>(rows, panels, out, width),
                false => tile::<ROWS, 1>(rows, panels, out, width),
            }
        }
    }
}

/// Products of `R` rows with `P` panels, of which those of a row begin `stride` after the last row's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const R: usize, const P: usize>(rows: &[&[i8]; R], panels: &[i8], out: &mut [i32], stride: usize) {
    let dim = rows[0].len();
    let panel = PANEL * dim;
    assert!(panels.len() == P * panel && rows.iter().all(|row| row.len() == dim));
    let mut sums = [[_mm512_setzero_si512(); P]; R];
    let flip = _mm512_set1_epi8(i8::MIN);
    for group in 0..dim / PANEL_GROUP {
        let mut others = [_mm512_setzero_si512(); P];
        for (p, other) in others.iter_mut().enumerate() {
            let bytes = &panels[p * panel + group * 64..][..64];
            // SAFETY: the slice is 64 bytes long; the load needs no alignment.
            let bytes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
            // Plus 128: the instruction takes one side without signs.
            *other = _mm512_xor_si512(bytes, flip);
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            let row = &row[group * PANEL_GROUP..][..PANEL_GROUP];
            let four = _mm512_set1_epi32(i32::from_le_bytes([
                row[0] as u8,
                row[1] as u8,
                row[2] as u8,
                row[3] as u8,
            ]));
            for p in 0..P {
                sums[p] = _mm512_dpbusd_epi32(sums[p], others[p], four);
            }
        }
    }
    for (r, (sums, row)) in sums.iter().zip(rows).enumerate() {
        let too_much = 128 * row.iter().map(|&b| i32::from(b)).sum::<i32>();
        for (p, &sum) in sums.iter().enumerate() {
            let out = &mut out[r * stride + p * PANEL..][..PANEL];
            let sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(too_much));
            // SAFETY: the slice holds sixteen writable numbers; the store needs no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
        }
    }
}
