//! The operations in plain Rust: what the others must equal, and what runs where there is nothing
//! better.

use super::{BLOCK, Bytes, GROUP_BYTES, LANES, PANEL, PANEL_GROUP, Scale, Set, from_bf16};

pub(super) const SET: Set = Set {
    name: "scalar",
    dot,
    squared_distance,
    dot_bf16,
    squared_distance_bf16,
    dot_bytes,
    squared_distance_bytes,
    estimates,
    masked_sum,
    byte_products,
};

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| x * y)
}

pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| (x - y) * (x - y))
}

fn dot_bf16(a: &[u16], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| from_bf16(x) * y)
}

fn squared_distance_bf16(a: &[u16], b: &[f32]) -> f32 {
    sum_of(a, b, |x, y| (from_bf16(x) - y) * (from_bf16(x) - y))
}

fn dot_bytes(a: Bytes, b: &[f32]) -> f32 {
    sum_of(a.codes, b, |x, y| a.number(x) * y)
}

fn squared_distance_bytes(a: Bytes, b: &[f32]) -> f32 {
    sum_of(a.codes, b, |x, y| (a.number(x) - y) * (a.number(x) - y))
}

#[inline(always)]
fn sum_of<T: Copy>(a: &[T], b: &[f32], term: impl Fn(T, f32) -> f32) -> f32 {
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

pub(super) fn byte_products(rows: &[&[i8]], panels: &[i8], out: &mut [i32]) {
    let Some(dim) = rows.first().map(|row| row.len()) else { return };
    let width = panels.len() / dim;
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        for (panel, out) in panels.chunks_exact(PANEL * dim).zip(out.chunks_exact_mut(PANEL)) {
            out.fill(0);
            for (group, row) in panel.chunks_exact(PANEL * PANEL_GROUP).zip(row.chunks_exact(PANEL_GROUP)) {
                for (out, other) in out.iter_mut().zip(group.chunks_exact(PANEL_GROUP)) {
                    *out += other.iter().zip(row).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum::<i32>();
                }
            }
        }
    }
}
