//! Products of numbers rounded to `bf16`, summed in `f32`.
//!
//! Blocked as [`super::avx512`] is, over tiles of 16 lines by 16 pairs of `bf16`, one after the other along `k`: the unit of
//! AMX, whose instruction multiplies two of them (Intel 2023, "Architecture instruction set extensions", chapter 3). AMD's
//! processors with AVX512-BF16 multiply the same tiles; any other rounds the operands and multiplies in `f32`.
//!
//! An element of the output is a sum in an order that depends on `k` alone, so neither the number of threads nor how the
//! work is cut among them shows in the result.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{Matrix, Product};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod blocked;
#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod pack;

/// From how many rows, how deep, and from how many multiplications on, rounding and packing the operands pays; a tile is
/// 32 numbers deep, and the rest of it zeros.
const ROWS: usize = 16;
const DEEP: usize = 32;
const WORTH: usize = 1 << 17;

/// Whether such a product is made here.
pub fn pays([m, k, n]: [usize; 3]) -> bool {
    m >= ROWS && n >= ROWS && k >= DEEP && m * k * n >= WORTH
}

/// To `out`, whose rows are `row` apart and do not overlap.
pub fn multiply(product: &Product, out: &mut [f32], row: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(unit) = blocked::best() {
            // SAFETY: the processor has the unit, and the sizes have been checked.
            unsafe { blocked::multiply(unit, product, out, row) };
            return;
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, and the sizes have been checked.
            unsafe { avx512::multiply::<true>(product, out, row) };
            return;
        }
    }
    rounded(product, out, row);
}

/// For any processor: rounds both operands and multiplies in `f32`.
fn rounded(product: &Product, out: &mut [f32], row: usize) {
    let round = |x: Matrix, rows: usize, columns: usize| -> Vec<f32> {
        let at = |i: usize, j: usize| bf16::from_f32(x.data[i * x.row + j * x.column]).to_f32();
        (0..rows).flat_map(|i| (0..columns).map(move |j| at(i, j))).collect()
    };
    let [m, k, n] = product.sizes;
    let (a, b) = (round(product.a, m, k), round(product.b, k, n));
    Product { a: Matrix::rows(&a, k), b: Matrix::rows(&b, n), ..*product }.in_f32(out, row);
}

#[cfg(test)]
mod tests {
    use super::super::Threads;
    use super::*;

    type Implementation = (&'static str, Box<dyn Fn(&Product, &mut [f32], usize) + Sync>);

    /// All that this processor can run.
    fn implementations() -> Vec<Implementation> {
        let mut all: Vec<Implementation> = vec![("any processor", Box::new(rounded))];
        #[cfg(target_arch = "x86_64")]
        {
            for unit in blocked::units() {
                let name = if unit == blocked::Unit::Avx512 { "AVX512-BF16" } else { "AMX" };
                // SAFETY: the processor has the unit, and the tests give operands of these sizes.
                let run = move |product: &Product, out: &mut [f32], row| unsafe {
                    blocked::multiply(unit, product, out, row)
                };
                all.push((name, Box::new(run)));
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has AVX-512F, and the tests give operands of these sizes.
                let run = |product: &Product, out: &mut [f32], row| unsafe {
                    avx512::multiply::<true>(product, out, row)
                };
                all.push(("AVX-512", Box::new(run)));
            }
        }
        all
    }

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    fn threads(n: usize, work: impl FnOnce(Threads) + Send) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| work(if n == 1 { Threads::One } else { Threads::All }));
    }

    /// Sizes around those of tiles, panels, blocks and depths, operands both ways round and with gaps, on any number of
    /// threads: the exact product of the rounded operands, but for the sums' rounding.
    #[test]
    fn products_are_those_of_rounded_operands() {
        for [m, k, n] in [
            [16, 32, 16],
            [1, 1, 1],
            [17, 33, 31],
            [33, 512, 65],
            [300, 513, 40],
            [65, 1100, 130],
            [40, 31, 700],
        ] {
            let (a, b) = (values(m * k * 2, 1), values(k * n * 2, 2));
            for form in 0..6 {
                let left = match form % 3 {
                    0 => Matrix::rows(&a, k),
                    1 => Matrix::rows(&a, m).t(),
                    _ => Matrix::strided(&a, 2 * k, 2),
                };
                let right = match form / 3 {
                    0 => Matrix::rows(&b, n + 1),
                    _ => Matrix::rows(&b, k).t(),
                };
                let at = |x: Matrix, i: usize, j: usize| {
                    f64::from(bf16::from_f32(x.data[i * x.row + j * x.column]).to_f32())
                };
                let row = n + 3;
                for (name, multiply) in implementations() {
                    for add in [false, true] {
                        let mut results = [1, 2, 5].map(|n_threads| {
                            let mut out = vec![0.5; m * row];
                            let product = Product {
                                sizes: [m, k, n],
                                scale: 0.25,
                                a: left,
                                b: right,
                                accumulate: add,
                                threads: Threads::All,
                            };
                            threads(n_threads, |threads| {
                                multiply(&Product { threads, ..product }, &mut out, row)
                            });
                            out
                        });
                        let out = std::mem::take(&mut results[0]);
                        assert_eq!(out, results[1], "{name} [{m}, {k}, {n}] on two threads");
                        assert_eq!(out, results[2], "{name} [{m}, {k}, {n}] on five threads");
                        for i in 0..m {
                            for j in 0..n {
                                let sum: f64 = (0..k).map(|l| at(left, i, l) * at(right, l, j)).sum();
                                let exact = 0.25 * sum + if add { 0.5 } else { 0.0 };
                                let error = (f64::from(out[i * row + j]) - exact).abs();
                                assert!(
                                    error < 1e-6 * k as f64 + 1e-6,
                                    "{name} [{m}, {k}, {n}], {form}: {error}"
                                );
                            }
                            let beside = &out[i * row + n..(i + 1) * row];
                            assert!(beside.iter().all(|&x| x == 0.5), "{name} wrote beyond a row");
                        }
                    }
                }
            }
        }
    }

    /// Operands in the midst of NaN: whatever lay between and behind their elements, if it were read, would show.
    #[test]
    fn nothing_beside_the_operands_is_read() {
        for [m, k, n] in [[16, 35, 17], [50, 33, 70]] {
            for form in 0..4 {
                let inside = |rows: usize, columns: usize| {
                    let mut values = vec![f32::NAN; rows * (columns + 5)];
                    values.chunks_exact_mut(columns + 5).for_each(|row| row[..columns].fill(0.5));
                    values
                };
                let (ta, tb) = (form & 1 != 0, form & 2 != 0);
                let a = if ta { inside(k, m) } else { inside(m, k) };
                let b = if tb { inside(n, k) } else { inside(k, n) };
                let left = if ta { Matrix::rows(&a, m + 5).t() } else { Matrix::rows(&a, k + 5) };
                let right = if tb { Matrix::rows(&b, k + 5).t() } else { Matrix::rows(&b, n + 5) };
                for (name, multiply) in implementations() {
                    let mut out = vec![f32::NAN; m * n];
                    let (sizes, threads) = ([m, k, n], Threads::One);
                    let product =
                        Product { sizes, scale: 0.25, a: left, b: right, accumulate: false, threads };
                    multiply(&product, &mut out, n);
                    assert!(out.iter().all(|&x| x == 0.0625 * k as f32), "{name} [{m}, {k}, {n}], {form}");
                }
            }
        }
    }

    /// Fails when a product that is asked for in one precision is made in the other.
    #[test]
    fn a_thread_gets_the_precision_it_asks_for() {
        use super::super::{Precision, multiply};
        let (m, k, n) = (64, 64, 64);
        let (a, b) = (vec![1.0 + 1.0 / 512.0; m * k], vec![1.0; k * n]);
        let product = |precision: Precision, n: usize| {
            let mut out = vec![0.0; m * n];
            let (a, b) = (Matrix::rows(&a, k), Matrix::rows(&b, n));
            precision.run(|| multiply([m, k, n], 1.0, a, b, &mut out, n, false, Threads::All));
            out[0]
        };
        assert_eq!(product(Precision::F32, n), 64.125);
        assert_eq!(product(Precision::Bf16, n), 64.0);
        // Too small to pay.
        assert_eq!(product(Precision::Bf16, 8), 64.125);
    }
}
