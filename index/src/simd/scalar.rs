//! The operations in plain Rust: what the others must equal, and what runs where there is nothing
//! better.

use super::{BLOCK, GROUP_BYTES, LANES, Scale, Set};

pub(super) const SET: Set = Set { name: "scalar", dot, squared_distance, estimates, masked_sum };

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| x * y)
}

pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| (x - y) * (x - y))
}

#[inline(always)]
fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (x, y) in a_chunks.by_ref().zip(b_chunks.by_ref()) {
        for lane in 0..LANES {
            sums[lane] += term(x[lane], y[lane]);
        }
    }
    for (lane, (&x, &y)) in a_chunks.remainder().iter().zip(b_chunks.remainder()).enumerate() {
        sums[lane] += term(x, y);
    }
    fold(sums)
}

/// The upper half is added to the lower until one is left.
#[inline(always)]
pub(super) fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

pub(super) fn masked_sum(bits: &[u64], numbers: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (&word, numbers) in bits.iter().zip(numbers.chunks(LANES)) {
        for (lane, &x) in numbers.iter().enumerate() {
            sums[lane] += if word >> lane & 1 == 1 { x } else { 0.0 };
        }
    }
    fold(sums)
}

pub(super) fn estimates(
    codes: &[u8],
    tables: &[u8],
    factors: &[f32],
    scale: Scale,
    least: f32,
    out: &mut [f32; BLOCK],
) -> u32 {
    let mut sums = [0u32; BLOCK];
    for (codes, table) in codes.chunks_exact(GROUP_BYTES).zip(tables.chunks_exact(GROUP_BYTES)) {
        for (j, &byte) in codes.iter().enumerate() {
            sums[j] += u32::from(table[usize::from(byte & 15)]);
            sums[j + 16] += u32::from(table[usize::from(byte >> 4)]);
        }
    }
    finish(&sums, factors, scale, least, out)
}

/// From sums to estimates.
#[inline(always)]
pub(super) fn finish(
    sums: &[u32; BLOCK],
    factors: &[f32],
    scale: Scale,
    least: f32,
    out: &mut [f32; BLOCK],
) -> u32 {
    let (adds, scales) = factors[..2 * BLOCK].split_at(BLOCK);
    let mut mask = 0;
    for i in 0..BLOCK {
        out[i] = scale.base + adds[i] + scales[i] * (scale.unit * sums[i] as f32 + scale.shift);
        // Not `out >= least`: NaN, which damage can make, has to be let through.
        let falls_short = out[i] < least;
        mask |= u32::from(!falls_short) << i;
    }
    mask
}
