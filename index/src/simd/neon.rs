//! NEON: 16 bytes at a time.

use std::arch::aarch64::*;

use super::{BLOCK, GROUP_BYTES, GROUPS_IN_U16, LANES, Scale, Set, scalar};

/// This set, where the machine has it.
pub(super) fn set() -> Option<Set> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(Set {
        name: "neon",
        // SAFETY: the machine has what it enables: see above.
        dot: |a, b| unsafe { dot(a, b) },
        // SAFETY: the machine has what it enables: see above.
        squared_distance: |a, b| unsafe { squared_distance(a, b) },
        estimates: |codes, tables, factors, scale, least, out| {
            // SAFETY: the machine has what it enables: see above.
            unsafe { estimates(codes, tables, factors, scale, least, out) }
        },
        // The compiler makes of it what there is to make.
        masked_sum: scalar::masked_sum,
    })
}

macro_rules! sum_of {
    ($a:ident, $b:ident, $scalar:expr, $term:expr) => {{
        let n = $a.len().min($b.len());
        let (a, b) = (&$a[..n], &$b[..n]);
        let mut lanes = [0.0f32; LANES];
        let mut sums = [vdupq_n_f32(0.0); LANES / 4];
        let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (x, y) in a_chunks.by_ref().zip(b_chunks.by_ref()) {
            for i in 0..LANES / 4 {
                // SAFETY: both chunks hold 64 numbers, of which four from 4 i are read.
                let (x, y) = unsafe { (vld1q_f32(x.as_ptr().add(4 * i)), vld1q_f32(y.as_ptr().add(4 * i))) };
                sums[i] = vaddq_f32(sums[i], $term(x, y));
            }
        }
        for (sum, lanes) in sums.iter().zip(lanes.chunks_exact_mut(4)) {
            // SAFETY: the chunk holds four writable numbers.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), *sum) };
        }
        let (x, y) = (a_chunks.remainder(), b_chunks.remainder());
        for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += $scalar(x, y);
        }
        scalar::fold(lanes)
    }};
}

#[target_feature(enable = "neon")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of!(a, b, |x: f32, y: f32| x * y, |x, y| vmulq_f32(x, y))
}

#[target_feature(enable = "neon")]
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_of!(a, b, |x: f32, y: f32| (x - y) * (x - y), |x, y| {
        let difference = vsubq_f32(x, y);
        vmulq_f32(difference, difference)
    })
}

#[target_feature(enable = "neon")]
fn estimates(
    codes: &[u8],
    tables: &[u8],
    factors: &[f32],
    scale: Scale,
    least: f32,
    out: &mut [f32; BLOCK],
) -> u32 {
    let mut sums = [0u32; BLOCK];
    const CHUNK: usize = GROUPS_IN_U16 * GROUP_BYTES;
    for (codes, tables) in codes.chunks(CHUNK).zip(tables.chunks(CHUNK)) {
        // Of 8 codes each: 0 to 7, 8 to 15, 16 to 23, 24 to 31.
        let mut parts = [vdupq_n_u16(0); 4];
        for (codes, table) in codes.chunks_exact(GROUP_BYTES).zip(tables.chunks_exact(GROUP_BYTES)) {
            // SAFETY: both slices are 16 bytes long.
            let (codes, table) = unsafe { (vld1q_u8(codes.as_ptr()), vld1q_u8(table.as_ptr())) };
            let low = vqtbl1q_u8(table, vandq_u8(codes, vdupq_n_u8(15)));
            let high = vqtbl1q_u8(table, vshrq_n_u8::<4>(codes));
            parts[0] = vaddw_u8(parts[0], vget_low_u8(low));
            parts[1] = vaddw_high_u8(parts[1], low);
            parts[2] = vaddw_u8(parts[2], vget_low_u8(high));
            parts[3] = vaddw_high_u8(parts[3], high);
        }
        for (part, sums) in parts.iter().zip(sums.chunks_exact_mut(8)) {
            let mut eight = [0u16; 8];
            // SAFETY: the array holds eight writable numbers.
            unsafe { vst1q_u16(eight.as_mut_ptr(), *part) };
            sums.iter_mut().zip(eight).for_each(|(sum, part)| *sum += u32::from(part));
        }
    }
    scalar::finish(&sums, factors, scale, least, out)
}
