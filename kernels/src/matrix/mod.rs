//! Matrix products over slices.

use gemm::Parallelism;

use crate::team;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
#[cfg(target_arch = "x86_64")]
mod deal;
pub mod few;
mod packed;
mod precision;
#[cfg(target_arch = "x86_64")]
mod thin;

pub use packed::PackedLinear;
pub use precision::Precision;

/// From how many multiplications on, and how many rows, packing the operands pays.
#[cfg(target_arch = "x86_64")]
const OWN: usize = 1 << 15;
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 8;

/// A matrix in a slice: element `(i, j)` lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` elements, one after the other.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// Any strides.
    pub fn strided(data: &'a [f32], row: usize, column: usize) -> Self {
        Self { data, row, column }
    }

    /// The same elements with rows and columns exchanged.
    pub fn t(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }

    fn covers(&self, rows: usize, columns: usize) -> bool {
        extent(rows, self.row, columns, self.column) <= self.data.len()
    }
}

/// How many elements a matrix `[rows, columns]` with these strides takes, gaps included. Where that is beyond counting it
/// is [`usize::MAX`], which no slice has: a number that had wrapped around would seem to fit.
pub(crate) fn extent(rows: usize, row: usize, columns: usize, column: usize) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    let last = (rows - 1).saturating_mul(row).saturating_add((columns - 1).saturating_mul(column));
    last.saturating_add(1)
}

/// On which threads a product runs.
#[derive(Clone, Copy)]
pub enum Threads {
    /// The calling one.
    One,
    /// Those of the current rayon pool.
    All,
}

impl Threads {
    pub(crate) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::All => rayon::current_num_threads(),
        }
    }

    /// Calls `work` for every number below `tasks`.
    fn for_tasks(self, tasks: usize, work: impl Fn(usize) + Sync) {
        match self {
            Self::One => (0..tasks).for_each(work),
            Self::All => team::for_tasks(tasks, work),
        }
    }
}

/// A product of `a` `[m, k]` and `b` `[k, n]`, none of whose `sizes` `[m, k, n]` is zero and which lie within their slices.
#[derive(Clone, Copy)]
struct Product<'a> {
    sizes: [usize; 3],
    scale: f32,
    a: Matrix<'a>,
    b: Matrix<'a>,
    /// Whether it is added to the output.
    accumulate: bool,
    threads: Threads,
}

/// `out = scale * a b`, or `out += scale * a b` with `accumulate`.
///
/// `a` is `[m, k]`, `b` is `[k, n]`, `out` is `[m, n]` whose rows are `out_row` apart. Products of many rows are made in the
/// thread's [`Precision`].
pub fn multiply(
    [m, k, n]: [usize; 3],
    scale: f32,
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    out_row: usize,
    accumulate: bool,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(extent(m, out_row, n, 1) <= out.len(), "product does not fit its output");
    assert!(m == 1 || out_row >= n, "rows of the output overlap");
    if k == 0 {
        if !accumulate {
            (0..m).for_each(|i| out[i * out_row..][..n].fill(0.0));
        }
        return;
    }
    assert!(a.covers(m, k) && b.covers(k, n), "product reads beyond its operands");
    let product = Product { sizes: [m, k, n], scale, a, b, accumulate, threads };
    match Precision::current() {
        Precision::Bf16 if bf16::pays(product.sizes) => bf16::multiply(&product, out, out_row),
        _ => product.in_f32(out, out_row),
    }
}

impl Product<'_> {
    /// The same with its sides exchanged, whose output is this one's turned.
    #[cfg(target_arch = "x86_64")]
    fn turned(self) -> Self {
        let [m, k, n] = self.sizes;
        Self { sizes: [n, k, m], a: self.b.t(), b: self.a.t(), ..self }
    }

    /// To `out`, whose rows are `row` apart and do not overlap.
    fn in_f32(&self, out: &mut [f32], row: usize) {
        let Self { sizes: [m, k, n], scale, a, b, accumulate, threads } = *self;
        if m < few::MANY && a.column == 1 && b.row == 1 {
            let (a, b) = ((a.data, a.row), (b.data, b.column));
            return few::multiply([m, k, n], scale, a, b, (out, row), accumulate, threads);
        }
        #[cfg(target_arch = "x86_64")]
        if m * k * n >= OWN && thin::Thin::of(self, row).is_some_and(|thin| thin.multiply(out)) {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if m >= ROWS && m * k * n >= OWN && std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has just been found to have AVX-512F, and the sizes have been checked.
            unsafe { avx512::multiply::<false>(self, out, row) };
            return;
        }
        let parallelism = match threads {
            Threads::One => Parallelism::None,
            Threads::All => Parallelism::Rayon(0),
        };
        // SAFETY: every element that is read or written lies in its slice (checked before), the rows of
        // the output do not overlap, and it cannot alias the operands (it is borrowed mutably).
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                row as isize,
                accumulate,
                a.data.as_ptr(),
                a.column as isize,
                a.row as isize,
                b.data.as_ptr(),
                b.column as isize,
                b.row as isize,
                1.0,
                scale,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Where the place of the last element wraps around to that of the first.
    #[test]
    fn what_is_beyond_counting_does_not_fit() {
        const HALF: usize = 1 << (usize::BITS - 1);
        assert_eq!([extent(3, 5, 2, 1), extent(3, 1, 2, 5), extent(0, 5, 2, 1)], [12, 8, 0]);
        assert_eq!([extent(3, HALF, 2, 1), extent(2, HALF, 2, HALF)], [usize::MAX; 2]);
        let (one, five) = ([1f32], [1f32; 5]);
        let fits = Matrix::strided(&five, 2, 2);
        let product = |a: Matrix, b: Matrix, out_row: usize| {
            multiply([3, 1, 3], 1.0, a, b, &mut [0.0; 9], out_row, false, Threads::One);
        };
        product(fits, fits, 3);
        let refused = |work: &dyn Fn()| catch_unwind(AssertUnwindSafe(work)).is_err();
        assert!(refused(&|| product(Matrix::strided(&one, HALF, 2), fits, 3)), "the left operand");
        assert!(refused(&|| product(fits, Matrix::strided(&one, 2, HALF), 3)), "the right operand");
        assert!(refused(&|| product(fits, fits, HALF)), "the output");
        assert!(refused(&|| drop(PackedLinear::new(&[], None, HALF, 2))), "the weight");
    }

    #[test]
    fn products_of_transposed_and_strided_operands() {
        let a: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..40).map(|i| (i % 7) as f32).collect();
        let [m, k, n] = [3, 4, 2];
        for (left, right) in [
            (Matrix::rows(&a, 4), Matrix::rows(&b, 2)),
            (Matrix::rows(&a, 3).t(), Matrix::rows(&b, 4).t()),
            (Matrix::strided(&a, 9, 2), Matrix::strided(&b, 5, 3)),
        ] {
            let mut out = vec![1.0; 3 * 5];
            multiply([m, k, n], 0.5, left, right, &mut out, 5, true, Threads::One);
            for i in 0..m {
                for j in 0..5 {
                    let product: f32 = (0..k)
                        .map(|l| {
                            left.data[i * left.row + l * left.column]
                                * right.data[l * right.row + j.min(1) * right.column]
                        })
                        .sum();
                    assert_eq!(out[i * 5 + j], if j < n { 1.0 + 0.5 * product } else { 1.0 });
                }
            }
        }
    }
    /// Sizes around those of tiles, panels and depths, operands both ways round, on any number of threads.
    #[test]
    fn large_products_match_those_in_f64() {
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0).collect()
        };
        for [m, k, n] in [
            [1, 4096, 33],
            [13, 257, 31],
            [14, 16, 160],
            [15, 255, 32],
            [113, 31, 97],
            [300, 513, 1],
            [300, 513, 6],
            [7, 300, 131],
            [129, 300, 130],
            [2, 20, 5000],
        ] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            for flipped in 0..4 {
                let left = if flipped & 1 == 0 { Matrix::rows(&a, k) } else { Matrix::rows(&a, m).t() };
                let right = if flipped & 2 == 0 { Matrix::rows(&b, n) } else { Matrix::rows(&b, k).t() };
                let row = n + 3;
                let product = |threads: usize, accumulate: bool| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut out = vec![0.5; m * row];
                    let threads = if threads == 1 { Threads::One } else { Threads::All };
                    pool.install(|| {
                        multiply([m, k, n], 0.25, left, right, &mut out, row, accumulate, threads)
                    });
                    out
                };
                for accumulate in [false, true] {
                    let out = product(1, accumulate);
                    assert_eq!(out, product(2, accumulate), "[{m}, {k}, {n}] on two threads");
                    assert_eq!(out, product(5, accumulate), "[{m}, {k}, {n}] on five threads");
                    for i in 0..m {
                        for j in 0..n {
                            let at =
                                |x: Matrix, i: usize, j: usize| f64::from(x.data[i * x.row + j * x.column]);
                            let sum: f64 = (0..k).map(|l| at(left, i, l) * at(right, l, j)).sum();
                            let exact = 0.25 * sum + if accumulate { 0.5 } else { 0.0 };
                            let error = (f64::from(out[i * row + j]) - exact).abs();
                            assert!(error < 1e-5 * k as f64, "[{m}, {k}, {n}] at {i}, {j}: off by {error}");
                        }
                        assert!(
                            out[i * row + n..(i + 1) * row].iter().all(|&x| x == 0.5),
                            "wrote beyond a row"
                        );
                    }
                }
            }
        }
    }

    /// Operands in the midst of NaN: whatever lay before, between and behind their elements, if it were read, would
    /// show in the output. (valgrind, which knows no AVX-512, cannot look into the tiles.)
    #[test]
    fn nothing_beside_the_operands_is_read() {
        const MARGIN: usize = 64;
        for [m, k, n] in [
            [8, 128, 33],
            [13, 257, 31],
            [29, 17, 97],
            [113, 31, 64],
            [14, 300, 1],
            [130, 300, 3],
            [9, 170, 200],
        ] {
            for flipped in 0..4 {
                let inside = |rows: usize, columns: usize, gap: usize| {
                    let mut values = vec![f32::NAN; MARGIN + rows * (columns + gap) + MARGIN];
                    for row in values[MARGIN..][..rows * (columns + gap)].chunks_exact_mut(columns + gap) {
                        row[..columns].fill(0.5);
                    }
                    values
                };
                let (ta, tb) = (flipped & 1 != 0, flipped & 2 != 0);
                let a = if ta { inside(k, m, 5) } else { inside(m, k, 5) };
                let b = if tb { inside(n, k, 3) } else { inside(k, n, 3) };
                let left = match ta {
                    false => Matrix::rows(&a[MARGIN..], k + 5),
                    true => Matrix::rows(&a[MARGIN..], m + 5).t(),
                };
                let right = match tb {
                    false => Matrix::rows(&b[MARGIN..], n + 3),
                    true => Matrix::rows(&b[MARGIN..], k + 3).t(),
                };
                for threads in [Threads::One, Threads::All] {
                    let mut out = vec![f32::NAN; m * n];
                    multiply([m, k, n], 1.0, left, right, &mut out, n, false, threads);
                    assert!(out.iter().all(|&x| x == 0.25 * k as f32), "[{m}, {k}, {n}], flipped {flipped}");
                }
            }
        }
    }
}
