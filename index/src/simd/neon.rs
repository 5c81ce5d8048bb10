//! NEON: 16 bytes at a time.

use std::arch::aarch64::*;

use super::{
    BLOCK, Bytes, GROUP_BYTES, GROUPS_IN_U16, LANES, PANEL, PANEL_GROUP, Scale, Set, from_bf16, scalar,
};

/// This set, where the machine has it.
pub(super) fn set() -> Option<Set> {
    std::arch::is_aarch64_feature_detected!("neon").then_some(Set {
        name: "neon",
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
        // The compiler makes of it what there is to make.
        masked_sum: scalar::masked_sum,
        // SAFETY: the machine has what it enables: see above.
        byte_products: |rows, panels, out| unsafe { byte_products(rows, panels, out) },
    })
}

/// Four numbers from the beginning of a slice of at least so many.
#[inline(always)]
fn load(from: &[f32]) -> float32x4_t {
    let from: &[f32; 4] = from[..4].try_into().expect("four numbers");
    // SAFETY: the reference is to four readable numbers.
    unsafe { vld1q_f32(from.as_ptr()) }
}

/// Four numbers of bf16 from the beginning of a slice of at least so many.
#[inline]
#[target_feature(enable = "neon")]
fn load_bf16(from: &[u16]) -> float32x4_t {
    let from: &[u16; 4] = from[..4].try_into().expect("four numbers");
    // SAFETY: the reference is to four readable numbers.
    let halves = unsafe { vld1_u16(from.as_ptr()) };
    vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
}

/// What four codes at the beginning of a slice of at least so many stand for.
#[inline]
#[target_feature(enable = "neon")]
fn load_bytes(from: &[u8], offset: float32x4_t, step: float32x4_t) -> float32x4_t {
    let from: [u8; 4] = from[..4].try_into().expect("four codes");
    let codes = vcreate_u8(u64::from(u32::from_le_bytes(from)));
    let codes = vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(codes))));
    vaddq_f32(offset, vmulq_f32(step, codes))
}

/// Sums a term over `$a`, of which `$load` takes four and `$decode` one, and `$b`.
macro_rules! sum_of {
    ($a:expr, $b:ident, $load:expr, $decode:expr, $scalar:expr, $term:expr) => {{
        let n = $a.len().min($b.len());
        let (a, b) = (&$a[..n], &$b[..n]);
        let mut lanes = [0.0f32; LANES];
        let mut sums = [vdupq_n_f32(0.0); LANES / 4];
        let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (x, y) in a_chunks.by_ref().zip(b_chunks.by_ref()) {
            for i in 0..LANES / 4 {
                sums[i] = vaddq_f32(sums[i], $term($load(&x[4 * i..]), load(&y[4 * i..])));
            }
        }
        for (sum, lanes) in sums.iter().zip(lanes.chunks_exact_mut(4)) {
            // SAFETY: the chunk holds four writable numbers.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), *sum) };
        }
        let (x, y) = (a_chunks.remainder(), b_chunks.remainder());
        for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += $scalar($decode(x), y);
        }
        scalar::fold(lanes)
    }};
}

/// [`sum_of`] for an inner product.
macro_rules! product_of {
    ($a:expr, $b:ident, $load:expr, $decode:expr) => {
        sum_of!($a, $b, $load, $decode, |x: f32, y: f32| x * y, |x, y| vmulq_f32(x, y))
    };
}

/// [`sum_of`] for a squared distance.
macro_rules! distance_of {
    ($a:expr, $b:ident, $load:expr, $decode:expr) => {
        sum_of!($a, $b, $load, $decode, |x: f32, y: f32| (x - y) * (x - y), |x, y| {
            let difference = vsubq_f32(x, y);
            vmulq_f32(difference, difference)
        })
    };
}

#[target_feature(enable = "neon")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    product_of!(a, b, load, |x| x)
}

#[target_feature(enable = "neon")]
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    distance_of!(a, b, load, |x| x)
}

#[target_feature(enable = "neon")]
fn dot_bf16(a: &[u16], b: &[f32]) -> f32 {
    product_of!(a, b, |x| load_bf16(x), from_bf16)
}

#[target_feature(enable = "neon")]
fn squared_distance_bf16(a: &[u16], b: &[f32]) -> f32 {
    distance_of!(a, b, |x| load_bf16(x), from_bf16)
}

#[target_feature(enable = "neon")]
fn dot_bytes(a: Bytes, b: &[f32]) -> f32 {
    let (offset, step) = (vdupq_n_f32(a.offset), vdupq_n_f32(a.step));
    product_of!(a.codes, b, |x| load_bytes(x, offset, step), |x| a.number(x))
}

#[target_feature(enable = "neon")]
fn squared_distance_bytes(a: Bytes, b: &[f32]) -> f32 {
    let (offset, step) = (vdupq_n_f32(a.offset), vdupq_n_f32(a.step));
    distance_of!(a.codes, b, |x| load_bytes(x, offset, step), |x| a.number(x))
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

#[target_feature(enable = "neon")]
fn byte_products(rows: &[&[i8]], panels: &[i8], out: &mut [i32]) {
    let dim = rows.first().map_or(PANEL_GROUP, |row| row.len());
    let width = panels.len() / dim;
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        for (panel, out) in panels.chunks_exact(PANEL * dim).zip(out.chunks_exact_mut(PANEL)) {
            let mut sums = [vdupq_n_s32(0); 4];
            let groups = panel.chunks_exact(PANEL * PANEL_GROUP).zip(row.chunks_exact(PANEL_GROUP));
            for (bytes, row) in groups {
                let four = i32::from_le_bytes([row[0] as u8, row[1] as u8, row[2] as u8, row[3] as u8]);
                let four = vreinterpretq_s8_s32(vdupq_n_s32(four));
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the slice is 64 bytes long, of which sixteen from 16 i are read.
                    let others = unsafe { vld1q_s8(bytes.as_ptr().add(16 * i)) };
                    let low = vpaddlq_s16(vmull_s8(vget_low_s8(others), vget_low_s8(four)));
                    let high = vpaddlq_s16(vmull_high_s8(others, four));
                    *sum = vaddq_s32(*sum, vpaddq_s32(low, high));
                }
            }
            for (sum, out) in sums.iter().zip(out.chunks_exact_mut(4)) {
                // SAFETY: the chunk holds four writable numbers.
                unsafe { vst1q_s32(out.as_mut_ptr(), *sum) };
            }
        }
    }
}
