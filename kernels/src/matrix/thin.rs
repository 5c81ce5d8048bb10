//! Products with one thin side, as those with LoRA's matrices are, for processors with AVX-512: packing the other operand,
//! as wide as a layer, would take longer than multiplying.
//!
//! An element of the output is a sum in an order that depends on `k` alone, so neither the number of threads nor how the
//! work is cut among them shows in the result.

use std::arch::x86_64::*;

use super::avx512::mask;
use super::{Matrix, Product, few};
use crate::parallel::Shared;

/// Rows of a tile, and vectors of its columns.
const ROWS: usize = 4;
const VECTORS: usize = 4;
const COLUMNS: usize = 16 * VECTORS;

/// How many rows ahead of its work a tile fetches: they lie too far apart for the processor to guess.
const AHEAD: usize = 8;

/// About how many numbers of the wide operand one task reads, at least.
const GRAIN: usize = 1 << 14;

/// From which depth on. It does not hang on the longer side, which is often how many texts are read at once: what is made of one
/// of them must not.
const DEEP: usize = 128;

/// A product whose left operand has few rows.
pub struct Thin<'a> {
    product: Product<'a>,
    /// How far apart the output's rows and columns are.
    out_row: usize,
    out_column: usize,
}

impl<'a> Thin<'a> {
    /// `product`, or, where its right operand is the thin one, the same product turned; None if neither is thin, or
    /// `k` is small.
    pub fn of(product: &Product<'a>, out_row: usize) -> Option<Self> {
        let [m, k, n] = product.sizes;
        if m.min(n) >= few::MANY || k < DEEP {
            return None;
        }
        Some(match m <= n {
            true => Self { product: *product, out_row, out_column: 1 },
            false => Self { product: product.turned(), out_row: 1, out_column: out_row },
        })
    }

    /// Whether the product was made: not where the wide operand has gaps either way, or without AVX-512.
    pub fn multiply(&self, out: &mut [f32]) -> bool {
        if !std::arch::is_x86_feature_detected!("avx512f") {
            return false;
        }
        let out = Shared::new(out);
        let wide = self.product.b;
        if wide.row == 1 {
            self.dots(out);
        } else if wide.column == 1 {
            self.sums(out);
        } else {
            return false;
        }
        true
    }

    /// Where the numbers of a column of the wide operand lie side by side: a dot product for each element.
    fn dots(&self, out: Shared) {
        let Product { sizes: [m, k, n], a: thin, b: wide, threads, .. } = self.product;
        let copy = (thin.column != 1).then(|| copied(thin, m, k, k));
        let thin = copy.as_deref().map_or((thin.data, thin.row), |copy| (copy, k));
        few::products([m, k, n], thin, (wide.data, wide.column), threads, |row, first, values| {
            // SAFETY: each element is written once.
            unsafe { self.write(out, row, first, values) };
        });
    }

    /// Where those of a row lie side by side: row after row, times each number of the thin operand.
    fn sums(&self, out: Shared) {
        let Product { sizes: [m, k, n], a: thin, b: wide, threads, .. } = self.product;
        let height = m.next_multiple_of(ROWS);
        let thin = copied(thin.t(), k, m, height);
        let panels = GRAIN.div_ceil(k * COLUMNS);
        let task = |task: usize| {
            let end = n.min((task + 1) * panels * COLUMNS);
            for column in (task * panels * COLUMNS..end).step_by(COLUMNS) {
                let columns = COLUMNS.min(n - column);
                for row in (0..m).step_by(ROWS) {
                    // SAFETY: AVX-512 was found to be there; the copy has `ROWS` numbers for each of `k`, and the wide
                    // operand covers these columns of `k` rows.
                    let tile =
                        unsafe { tile(k, (&thin[row..], height), (&wide.data[column..], wide.row), columns) };
                    for (i, sums) in tile.iter().enumerate().take(ROWS.min(m - row)) {
                        // SAFETY: each element is written once.
                        unsafe { self.write(out, row + i, column, &sums[..columns]) };
                    }
                }
            }
        };
        threads.for_tasks(n.div_ceil(panels * COLUMNS), task);
    }

    /// Scales products and writes, or adds, them to the output.
    ///
    /// # Safety
    /// Nobody else reads or writes these elements meanwhile.
    unsafe fn write(&self, out: Shared, row: usize, first: usize, products: &[f32]) {
        let Product { scale, accumulate, .. } = self.product;
        let put = |out: &mut f32, product: f32| {
            *out = if accumulate { *out + scale * product } else { scale * product };
        };
        let at = row * self.out_row + first * self.out_column;
        // SAFETY: as promised by the caller.
        unsafe {
            if self.out_column == 1 {
                out.part(at, products.len())
                    .iter_mut()
                    .zip(products)
                    .for_each(|(out, product)| put(out, *product));
            } else {
                for (i, product) in products.iter().enumerate() {
                    put(&mut out.part(at + i * self.out_column, 1)[0], *product);
                }
            }
        }
    }
}

/// Rows of `width` numbers that hold those of `matrix`, zeros beside them.
fn copied(matrix: Matrix, rows: usize, columns: usize, width: usize) -> Vec<f32> {
    let mut copy = vec![0f32; rows * width];
    for (row, copy) in copy.chunks_exact_mut(width).enumerate() {
        for (column, copy) in copy[..columns].iter_mut().enumerate() {
            *copy = matrix.data[row * matrix.row + column * matrix.column];
        }
    }
    copy
}

/// The sums over `k` of [`ROWS`] numbers of `thin` times up to [`COLUMNS`] of `wide`, whose rows begin so far apart.
///
/// # Safety
/// The processor must have AVX-512F, and `k` rows of [`ROWS`] and of `columns` numbers lie in the slices.
#[target_feature(enable = "avx512f")]
unsafe fn tile(
    k: usize,
    (thin, thin_row): (&[f32], usize),
    (wide, wide_row): (&[f32], usize),
    columns: usize,
) -> [[f32; COLUMNS]; ROWS] {
    let masks: [u16; VECTORS] = std::array::from_fn(|i| mask(columns.saturating_sub(16 * i)));
    let mut totals = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let (mut thin, mut wide) = (thin.as_ptr(), wide.as_ptr());
    for _ in 0..k {
        // SAFETY: as promised by the caller; the masks keep to the row. To fetch what is not there does no harm.
        unsafe {
            let ahead = wide.wrapping_add(AHEAD * wide_row);
            let mut values = [_mm512_setzero_ps(); VECTORS];
            for (i, values) in values.iter_mut().enumerate() {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(16 * i).cast());
                *values = _mm512_maskz_loadu_ps(masks[i], wide.wrapping_add(16 * i));
            }
            for (row, totals) in totals.iter_mut().enumerate() {
                let number = _mm512_set1_ps(*thin.add(row));
                for (total, values) in totals.iter_mut().zip(values) {
                    *total = _mm512_fmadd_ps(number, values, *total);
                }
            }
        }
        thin = thin.wrapping_add(thin_row);
        wide = wide.wrapping_add(wide_row);
    }
    // SAFETY: vectors of numbers and arrays of them are the same bits.
    unsafe { std::mem::transmute(totals) }
}
