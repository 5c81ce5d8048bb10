//! Weights that are laid out once for many products.

use super::{Matrix, Threads, extent, multiply};

/// A linear layer for inference: weight `[out, in]` and bias `[out]`, laid out once as [`multiply`] would lay the
/// weight out in every product.
///
/// A row of a result depends on that row of the input alone, to the last bit where the processor has AVX-512:
/// neither how many rows there are nor the number of threads shows in it.
pub struct PackedLinear {
    input: usize,
    output: usize,
    weight: Weight,
}

enum Weight {
    /// Panels of 32 outputs, each `[in + 1, 32]` with the bias as its last row: a column of ones in the left
    /// operand multiplies it. The first begins at `start`, where a line of the cache does.
    #[cfg(target_arch = "x86_64")]
    Panels { panels: Vec<f32>, start: usize },
    /// As given.
    Rows { weight: Vec<f32>, bias: Vec<f32> },
}

impl PackedLinear {
    /// Lays out `weight` `[output, input]`, row by row, and `bias` `[output]`; no bias is a zero one.
    ///
    /// # Panics
    /// When the slices do not have these sizes.
    pub fn new(weight: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Self {
        assert_eq!(weight.len(), extent(output, input, input, 1), "the weight is not [{output}, {input}]");
        assert!(bias.is_none_or(|bias| bias.len() == output), "the bias is not [{output}]");
        Self { input, output, weight: Weight::of(weight, bias, input, output) }
    }

    /// Width of what it reads.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Width of what it gives.
    pub fn output(&self) -> usize {
        self.output
    }

    /// `out = x weight^T + bias`, or `out += x weight^T + bias` with `accumulate`, for `x` `[rows, in]` and `out`
    /// `[rows, out]`.
    ///
    /// # Panics
    /// When the slices do not have these sizes.
    pub fn forward(&self, x: &[f32], out: &mut [f32], accumulate: bool, threads: Threads) {
        let (input, output) = (self.input, self.output);
        if output == 0 {
            return;
        }
        let rows = out.len() / output;
        let sizes = [extent(rows, input, input, 1), rows * output];
        assert_eq!([x.len(), out.len()], sizes, "the input is not [{rows}, {input}]");
        match &self.weight {
            #[cfg(target_arch = "x86_64")]
            Weight::Panels { panels, start } => {
                let packed = &panels[*start..];
                // SAFETY: panels are made only where the processor has AVX-512F; the sizes are asserted above.
                unsafe { panels::multiply(x, packed, [rows, input, output], out, accumulate, threads) };
            }
            Weight::Rows { weight, bias } => {
                for row in out.chunks_exact_mut(output) {
                    match accumulate {
                        true => row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias),
                        false => row.copy_from_slice(bias),
                    }
                }
                let (x, weight) = (Matrix::rows(x, input), Matrix::rows(weight, input).t());
                multiply([rows, input, output], 1.0, x, weight, out, output, true, threads);
            }
        }
    }
}

impl Weight {
    fn of(weight: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") && input > 0 {
            return panels::of(weight, bias, input, output);
        }
        Self::Rows { weight: weight.to_vec(), bias: bias.map_or_else(|| vec![0.0; output], <[f32]>::to_vec) }
    }
}

#[cfg(target_arch = "x86_64")]
mod panels {
    use rayon::prelude::*;

    use super::super::avx512::{BLOCK, COLUMNS, LEFT, Output, ROWS, TILES, pack};
    use super::{Matrix, Threads, Weight};
    use crate::buffer::with_buffer;

    /// Bytes and numbers of a line of the cache.
    const LINE: usize = 64;

    /// Lays out the panels; the processor must have AVX-512F.
    pub fn of(weight: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Weight {
        let panel = (input + 1) * COLUMNS;
        let len = output.div_ceil(COLUMNS) * panel;
        let mut panels = vec![0f32; len + LINE / size_of::<f32>()];
        let start = panels.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
        for (i, panel) in panels[start..][..len].chunks_exact_mut(panel).enumerate() {
            let (first, columns) = (i * COLUMNS, COLUMNS.min(output - i * COLUMNS));
            // SAFETY: the processor has AVX-512F, and the weight covers these rows.
            unsafe { pack::<COLUMNS, false>(Matrix::rows(weight, input), first, columns, 0, input, panel) };
            if let Some(bias) = bias {
                panel[input * COLUMNS..][..columns].copy_from_slice(&bias[first..][..columns]);
            }
        }
        Weight::Panels { panels, start }
    }

    /// `x` `[rows, input]` by what [`of`] laid out.
    ///
    /// # Safety
    /// The processor must have AVX-512F, and the slices have these sizes.
    pub unsafe fn multiply(
        x: &[f32],
        packed: &[f32],
        [rows, input, output]: [usize; 3],
        out: &mut [f32],
        accumulate: bool,
        threads: Threads,
    ) {
        let panels = output.div_ceil(COLUMNS);
        let threads = threads.count().min(panels);
        let out = Output { data: out.as_mut_ptr(), row: output };
        let blocks = rows.div_ceil(BLOCK);
        // Blocks of rows are dealt out first; where there are few, each is cut by columns.
        let parts = if threads > 1 { (2 * threads).div_ceil(blocks.max(1)).min(panels) } else { 1 };
        let task = |task: usize| {
            let (row, part) = (task / parts * BLOCK, task % parts);
            let (from, to) = (part * panels / parts, (part + 1) * panels / parts);
            // SAFETY: as promised by the caller; no two tasks share a tile.
            unsafe {
                block(x, packed, row, BLOCK.min(rows - row), [input, output], from..to, out, accumulate)
            };
        };
        match threads {
            1 => (0..blocks).for_each(task),
            _ => (0..blocks * parts).into_par_iter().for_each(task),
        }
    }

    /// Rows `row..row + rows` of `x` by some panels.
    ///
    /// # Safety
    /// As [`multiply`]; nobody else may touch this part of the output meanwhile.
    unsafe fn block(
        x: &[f32],
        packed: &[f32],
        row: usize,
        rows: usize,
        [input, output]: [usize; 2],
        panels: std::ops::Range<usize>,
        out: Output,
        accumulate: bool,
    ) {
        let depth = input + 1;
        with_buffer(&LEFT, rows.div_ceil(ROWS) * depth * ROWS, |left| {
            for (strip, left) in left.chunks_exact_mut(depth * ROWS).enumerate() {
                let at = row + strip * ROWS;
                // SAFETY: `x` covers these rows.
                unsafe {
                    pack::<ROWS, false>(Matrix::rows(x, input), at, ROWS.min(row + rows - at), 0, input, left)
                };
                left[input * ROWS..].fill(1.0);
            }
            for panel in panels {
                let right = &packed[panel * depth * COLUMNS..][..depth * COLUMNS];
                let column = panel * COLUMNS;
                let mask = ((1u64 << COLUMNS.min(output - column)) - 1) as u32;
                for (strip, left) in left.chunks_exact(depth * ROWS).enumerate() {
                    let at = row + strip * ROWS;
                    // SAFETY: the tile lies within the output, of which `mask` says how many columns, and the
                    // packed operands are `depth` long.
                    unsafe {
                        let out_at = out.data.add(at * out.row + column);
                        let tile = TILES[ROWS.min(row + rows - at) - 1];
                        tile(depth, left.as_ptr(), right.as_ptr(), 1.0, accumulate, out_at, out.row, mask);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes around those of tiles and panels, with and without bias, on any number of threads.
    #[test]
    fn packed_products_match_those_in_f64() {
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0).collect()
        };
        for [rows, input, output] in [
            [1, 1, 1],
            [13, 257, 31],
            [14, 16, 160],
            [15, 255, 32],
            [113, 31, 97],
            [250, 300, 130],
            [0, 3, 4],
        ] {
            let (x, weight, bias) = (values(rows * input, 1), values(input * output, 2), values(output, 3));
            for bias in [None, Some(&bias[..])] {
                let packed = PackedLinear::new(&weight, bias, input, output);
                let plain = PackedLinear {
                    weight: Weight::Rows {
                        weight: weight.clone(),
                        bias: bias.map_or(vec![0.0; output], <[f32]>::to_vec),
                    },
                    ..PackedLinear::new(&weight, bias, input, output)
                };
                for accumulate in [false, true] {
                    let product = |layer: &PackedLinear, x: &[f32], threads: usize| {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        let mut out = vec![0.5; x.len() / input * output];
                        let threads = if threads == 1 { Threads::One } else { Threads::All };
                        pool.install(|| layer.forward(x, &mut out, accumulate, threads));
                        out
                    };
                    let out = product(&packed, &x, 1);
                    assert_eq!(out, product(&packed, &x, 5), "[{rows}, {input}, {output}] on five threads");
                    for (i, (row, out)) in x.chunks_exact(input).zip(out.chunks_exact(output)).enumerate() {
                        #[cfg(target_arch = "x86_64")]
                        if matches!(packed.weight, Weight::Panels { .. }) {
                            assert_eq!(product(&packed, row, 1), out, "row {i} alone");
                        }
                        for (j, &y) in out.iter().enumerate() {
                            let sum: f64 = (0..input)
                                .map(|k| f64::from(row[k]) * f64::from(weight[j * input + k]))
                                .sum();
                            let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
                            let exact = sum + bias + if accumulate { 0.5 } else { 0.0 };
                            let error = (f64::from(y) - exact).abs();
                            assert!(
                                error < 1e-5 * (input + 1) as f64,
                                "[{rows}, {input}, {output}] at {i}, {j}: off by {error}"
                            );
                        }
                    }
                    let plain = product(&plain, &x, 1);
                    assert!(plain.iter().zip(&out).all(|(a, b)| (a - b).abs() < 1e-5 * (input + 1) as f32));
                }
            }
        }
    }
}
