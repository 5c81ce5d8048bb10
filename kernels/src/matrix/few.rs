//! Products of few rows of input with the rows of a weight, as generation has them: each weight is read once, in the
//! order in which it lies, and packing would not pay.
//!
//! A result is a sum in an order that depends on the width alone, so a row does not depend on the other rows of
//! the input, nor on the number of threads.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::parallel::Shared;
use crate::simd::{sum, vectorised};

use super::{Threads, extent};

/// From how many rows of input on packing pays.
pub const MANY: usize = 16;

/// About how many weights one task reads, at least.
const GRAIN: usize = 1 << 14;

/// A weight's numbers, which products widen to `f32`.
pub trait Number: Copy + Sync {
    /// 16 of them as `f32`, or as many as `mask` has bits; zeros for the others.
    ///
    /// # Safety
    /// As many lie at `from` as `mask` has bits.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(from: *const Self, mask: u16) -> std::arch::x86_64::__m512;

    /// Widens as many as both slices have.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Number for f32 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(from: *const Self, mask: u16) -> std::arch::x86_64::__m512 {
        // SAFETY: as promised by the caller.
        unsafe { std::arch::x86_64::_mm512_maskz_loadu_ps(mask, from) }
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Number for f16 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(from: *const Self, mask: u16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: as promised by the caller.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast())) }
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Number for bf16 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load(from: *const Self, mask: u16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: as promised by the caller.
        let halves = unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// `out = scale * a weight^T`, or `out += ..` with `accumulate`: `a` has rows of `width` that begin `a_row` apart, the
/// weight rows that begin `weight_row` apart, `out` is `[rows, outputs]` with rows `out_row` apart.
///
/// # Panics
/// When one of them does not fit into its slice.
pub fn multiply<T: Number>(
    [rows, width, outputs]: [usize; 3],
    scale: f32,
    (a, a_row): (&[f32], usize),
    (weight, weight_row): (&[T], usize),
    (out, out_row): (&mut [f32], usize),
    accumulate: bool,
    threads: Threads,
) {
    if rows == 0 || outputs == 0 {
        return;
    }
    let apart = rows == 1 || outputs <= out_row;
    assert!(extent(rows, out_row, outputs, 1) <= out.len() && apart, "results fit");
    let out = Shared::new(out);
    products([rows, width, outputs], (a, a_row), (weight, weight_row), threads, |row, first, values| {
        // SAFETY: the buffer lives as long as this call, and no two tasks have an output in common.
        let out = unsafe { out.part(row * out_row + first, values.len()) };
        for (out, value) in out.iter_mut().zip(values) {
            *out = if accumulate { *out + scale * value } else { scale * value };
        }
    });
}

/// Gives `write` a row, the first of up to four outputs and their products, once for each output of each row.
///
/// # Panics
/// When an operand does not fit into its slice.
pub(super) fn products<T: Number>(
    [rows, width, outputs]: [usize; 3],
    (a, a_row): (&[f32], usize),
    (weight, weight_row): (&[T], usize),
    threads: Threads,
    write: impl Fn(usize, usize, &[f32]) + Sync,
) {
    assert!(extent(rows, a_row, width, 1) <= a.len(), "rows of input fit");
    assert!(extent(outputs, weight_row, width, 1) <= weight.len(), "rows of the weight fit");
    let some = GRAIN.div_ceil(width.max(1)).next_multiple_of(4);
    let task = |task: usize| {
        let end = outputs.min((task + 1) * some);
        for first in (task * some..end).step_by(4) {
            let count = 4.min(end - first);
            let weight = &weight[first * weight_row..];
            some_outputs(width, (a, a_row), rows, (weight, weight_row), count, |row, values| {
                write(row, first, &values[..count]);
            });
        }
    };
    threads.for_tasks(outputs.div_ceil(some), task);
}

/// All rows of input by the first `count` rows of the weight, up to four.
fn some_outputs<T: Number>(
    width: usize,
    (a, a_row): (&[f32], usize),
    rows: usize,
    (weight, weight_row): (&[T], usize),
    count: usize,
    mut write: impl FnMut(usize, [f32; 4]),
) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        // The last is read again where there are fewer than four.
        let weights = std::array::from_fn(|i| &weight[i.min(count - 1) * weight_row..][..width]);
        let mut row = 0;
        while row < rows {
            let a = |i: usize| &a[(row + i) * a_row..][..width];
            // SAFETY: the processor has AVX-512, and all rows are `width` long.
            unsafe {
                if row + 4 <= rows {
                    let results = avx512::tile::<T, 4>(width, std::array::from_fn(a), weights, weight_row);
                    (0..4).for_each(|i| write(row + i, results[i]));
                    row += 4;
                } else {
                    write(row, avx512::tile::<T, 1>(width, [a(0)], weights, weight_row)[0]);
                    row += 1;
                }
            }
        }
        return;
    }
    let mut wide = vec![0f32; width];
    let mut results = vec![[0f32; 4]; rows];
    for i in 0..count {
        T::widen(&weight[i * weight_row..][..width], &mut wide);
        for (row, results) in results.iter_mut().enumerate() {
            results[i] = dot(&a[row * a_row..][..width], &wide);
        }
    }
    results.into_iter().enumerate().for_each(|(row, results)| write(row, results));
}

#[cfg(target_arch = "x86_64")]
fn available() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512vl")
}

vectorised! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i] * b[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::Number;

    /// `N` rows of input by four of the weight, whose rows begin `row_distance` apart.
    ///
    /// # Safety
    /// All rows are `width` long.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn tile<T: Number, const N: usize>(
        width: usize,
        a: [&[f32]; N],
        weights: [&[T]; 4],
        row_distance: usize,
    ) -> [[f32; 4]; N] {
        let mut totals = [[_mm512_setzero_ps(); 4]; N];
        let mut at = 0;
        while at < width {
            let left = width - at;
            let mask = if left >= 16 { 0xffff } else { (1u16 << left) - 1 };
            // SAFETY: `mask` has no more bits than there are numbers left.
            unsafe {
                // The four rows after these, which the processor would begin to fetch only when their turn comes.
                // (To fetch what is not there does no harm.)
                for row in weights {
                    let next = row.as_ptr().wrapping_add(4 * row_distance + at);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
                let weights: [__m512; 4] = [
                    T::load(weights[0].as_ptr().add(at), mask),
                    T::load(weights[1].as_ptr().add(at), mask),
                    T::load(weights[2].as_ptr().add(at), mask),
                    T::load(weights[3].as_ptr().add(at), mask),
                ];
                for i in 0..N {
                    let a = _mm512_maskz_loadu_ps(mask, a[i].as_ptr().add(at));
                    for j in 0..4 {
                        totals[i][j] = _mm512_fmadd_ps(a, weights[j], totals[i][j]);
                    }
                }
            }
            at += 16;
        }
        let mut results = [[0f32; 4]; N];
        for i in 0..N {
            for j in 0..4 {
                results[i][j] = _mm512_reduce_add_ps(totals[i][j]);
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths around a vector, outputs around four and a task, and rows that do not lie side by side.
    #[test]
    fn products_match_those_in_f64() {
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0).collect()
        };
        for [rows, width, outputs] in
            [[1, 1, 1], [1, 15, 5], [2, 17, 4], [5, 64, 3], [8, 100, 700], [15, 33, 2]]
        {
            let (a, w) = (values(rows * (width + 3), 1), values(outputs * (width + 5), 2));
            let halves: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
            let quarters: Vec<f16> = w.iter().map(|x| f16::from_f32(*x)).collect();
            let check = |kind: &str, out: Vec<f32>, weight: &dyn Fn(usize) -> f64| {
                for row in 0..rows {
                    for j in 0..outputs {
                        let of = |l: usize| f64::from(a[row * (width + 3) + l]) * weight(j * (width + 5) + l);
                        let exact = 1.0 + 0.5 * (0..width).map(of).sum::<f64>();
                        let error = (f64::from(out[row * (outputs + 2) + j]) - exact).abs();
                        assert!(error < 1e-5 * width as f64, "{kind} [{rows}, {width}, {outputs}]: {error}");
                    }
                    assert!(row + 1 == rows || out[row * (outputs + 2) + outputs] == 1.0, "beyond a row");
                }
            };
            check("f32", product(&a, &w, [rows, width, outputs], 1), &|i| f64::from(w[i]));
            check("bf16", product(&a, &halves, [rows, width, outputs], 1), &|i| f64::from(halves[i]));
            check("f16", product(&a, &quarters, [rows, width, outputs], 1), &|i| f64::from(quarters[i]));
            let alone = product(&a, &w, [rows, width, outputs], 1);
            assert_eq!(alone, product(&a, &w, [rows, width, outputs], 3));
            assert_eq!(alone[..outputs], product(&a, &w, [1, width, outputs], 1)[..outputs]);
        }
    }

    fn product<T: Number>(a: &[f32], w: &[T], sizes: [usize; 3], threads: usize) -> Vec<f32> {
        let [rows, width, outputs] = sizes;
        let mut out = vec![1f32; rows * (outputs + 2)];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let into = (&mut out[..], outputs + 2);
        pool.install(|| multiply(sizes, 0.5, (a, width + 3), (w, width + 5), into, true, Threads::All));
        out
    }
}
