//! Linear layers with weights and inputs of 8 bits.

use std::cell::Cell;

use crate::buffer::with_buffer;
use crate::matrix::{PackedLinear, Threads, extent};
use crate::simd::vectorised;

#[cfg(target_arch = "x86_64")]
mod vnni;

/// What the furthest number of a row of weights, and of inputs, is in codes. Of inputs it is half a step beyond the last code, which
/// it then gets, as in compressed-tensors.
const WEIGHTS: f32 = 127.0;
const INPUTS: f32 = 127.5;

thread_local! {
    static SCALES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static NUMBERS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static ROW: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A linear layer for inference: weight `[out, in]` in 8 bits, each row with a scale of its own, and bias `[out]`. Each row of
/// the input is rounded likewise, so that products are of integers ("dynamic quantisation"; Dettmers et al. 2022,
/// <https://arxiv.org/abs/2208.07339>, section 2.1, "vector-wise").
///
/// Integers are multiplied by AVX-512's instructions for bytes (VNNI), four times as many at a time as numbers. Other processors
/// multiply the same rounded values in `f32`.
///
/// A row of a result depends on that row of the input alone, to the last bit where the processor has AVX-512: neither
/// how many rows there are nor the number of threads shows in it.
pub struct RoundedLinear {
    input: usize,
    output: usize,
    weight: Weight,
}

enum Weight {
    #[cfg(target_arch = "x86_64")]
    Codes(vnni::Panels),
    Numbers(PackedLinear),
}

/// Rounds rows of `width` values to integers from -127 to 127: these, and what each row's are multiplied by.
///
/// # Errors
/// Says which value is not finite.
pub fn round_rows(values: &[f32], width: usize) -> Result<(Vec<i8>, Vec<f32>), String> {
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(format!("value {at} is {}", values[at]));
    }
    let (mut codes, mut scales) = (vec![0u8; values.len()], Vec::new());
    for (row, codes) in values.chunks_exact(width.max(1)).zip(codes.chunks_exact_mut(width.max(1))) {
        scales.push(round(row, WEIGHTS, codes, 0));
    }
    Ok((codes.into_iter().map(|code| code as i8).collect(), scales))
}

vectorised! {
    /// Rounds a row to integers, to which `offset` is added, and gives what they are to be multiplied by: NaN where a value is
    /// not finite, so that it shows.
    fn round(row: &[f32], furthest_code: f32, codes: &mut [u8], offset: i32) -> f32 {
        // As integers, the bits of numbers without their sign are in the order of the numbers, and NaN above all.
        let furthest = f32::from_bits(row.iter().fold(0u32, |a, b| a.max(b.to_bits() & 0x7fff_ffff)));
        // Numbers so small that the inverse of their scale would be infinite count as zero.
        let inverse = if furthest > WEIGHTS * f32::MIN_POSITIVE { furthest_code / furthest } else { 0.0 };
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        const ROUNDING: f32 = 12_582_912.0;
        for (code, value) in codes.iter_mut().zip(row) {
            let integer = (value * inverse + ROUNDING).to_bits() as i32 - ROUNDING.to_bits() as i32;
            *code = (integer.min(127) + offset) as u8;
        }
        if furthest.is_finite() { furthest / furthest_code } else { f32::NAN }
    }
}

impl RoundedLinear {
    /// Takes what [`round_rows`] gives for a weight `[output, input]`, and `bias` `[output]`; no bias is a zero one.
    ///
    /// # Panics
    /// When the slices do not have these sizes.
    pub fn new(codes: &[i8], scales: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Self {
        assert_eq!(
            [codes.len(), scales.len()],
            [extent(output, input, input, 1), output],
            "the weight is not [{output}, {input}]"
        );
        assert!(bias.is_none_or(|bias| bias.len() == output), "the bias is not [{output}]");
        Self { input, output, weight: Weight::of(codes, scales, bias, input, output) }
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
        if out.is_empty() {
            return;
        }
        let rows = out.len() / self.output;
        let sizes = [extent(rows, self.input, self.input, 1), rows * self.output];
        assert_eq!([x.len(), out.len()], sizes, "the input is not [{rows}, {}]", self.input);
        match &self.weight {
            #[cfg(target_arch = "x86_64")]
            Weight::Codes(panels) => with_buffer(&SCALES, rows, |scales| {
                // SAFETY: panels are made only where the processor has these instructions; the sizes are asserted above.
                unsafe { panels.multiply(x, scales, out, accumulate, threads) };
            }),
            Weight::Numbers(weight) => with_buffer(&NUMBERS, x.len(), |rounded| {
                let rows = x.chunks_exact(self.input.max(1)).zip(rounded.chunks_exact_mut(self.input.max(1)));
                with_buffer(&ROW, self.input, |codes| {
                    for (x, rounded) in rows {
                        let scale = round(x, INPUTS, codes, 0);
                        rounded
                            .iter_mut()
                            .zip(&*codes)
                            .for_each(|(x, &code)| *x = f32::from(code as i8) * scale);
                    }
                });
                weight.forward(rounded, out, accumulate, threads);
            }),
        }
    }
}

impl Weight {
    fn of(codes: &[i8], scales: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if vnni::available() && input > 0 {
            return Self::Codes(vnni::Panels::new(codes, scales, bias, input, output));
        }
        Self::numbers(codes, scales, bias, input, output)
    }

    fn numbers(codes: &[i8], scales: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Self {
        let rows = codes.chunks_exact(input.max(1)).zip(scales);
        let numbers = rows.flat_map(|(row, scale)| row.iter().map(move |&code| f32::from(code) * scale));
        Self::Numbers(PackedLinear::new(&numbers.collect::<Vec<_>>(), bias, input, output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    fn numbers(codes: &[i8], scales: &[f32], width: usize) -> Vec<f64> {
        codes.iter().enumerate().map(|(i, &code)| f64::from(code) * f64::from(scales[i / width])).collect()
    }

    fn rounded_input(row: &[f32]) -> Vec<f64> {
        let furthest = row.iter().fold(0f32, |a, b| a.max(b.abs()));
        let step = f64::from(furthest / 127.5);
        let code = |x: f32| f64::from(x * (127.5 / furthest)).round_ties_even().min(127.0);
        row.iter().map(|&x| code(x) * step).collect()
    }

    #[test]
    fn rounding_loses_half_a_step_at_most() {
        let (weight, width) = (values(400, 5), 40);
        let (codes, scales) = round_rows(&weight, width).unwrap();
        for (i, (rounded, value)) in numbers(&codes, &scales, width).into_iter().zip(&weight).enumerate() {
            let error = (rounded - f64::from(*value)).abs();
            assert!(error <= f64::from(scales[i / width]) * 0.5001, "value {i} is off by {error}");
        }
        assert_eq!(round_rows(&[0.0, -0.0, 1e-40, 0.0], 2).unwrap().0, [0; 4]);
        assert!(round_rows(&[0.0, f32::NAN], 2).unwrap_err().contains("value 1"));
        assert!(round_rows(&[f32::INFINITY, 0.0], 2).unwrap_err().contains("value 0"));
    }

    /// Twice half of all numbers wraps around to none.
    #[test]
    #[should_panic(expected = "the weight is not [2, ")]
    fn a_weight_beyond_counting_is_refused() {
        RoundedLinear::new(&[], &[1.0; 2], None, 1 << (usize::BITS - 1), 2);
    }

    /// Sizes around those of tiles and panels, with and without bias, in both ways, on any number of threads.
    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        for [rows, input, output] in [
            [1, 32, 16],
            [3, 41, 17],
            [12, 64, 32],
            [13, 7, 33],
            [27, 384, 100],
            [0, 32, 4],
            [9, 1, 1],
            [300, 20, 65],
        ] {
            let (x, weight, bias) = (values(rows * input, 1), values(input * output, 2), values(output, 3));
            let (codes, scales) = round_rows(&weight, input).unwrap();
            let rounded = numbers(&codes, &scales, input);
            let x_rounded: Vec<f64> = x.chunks_exact(input).flat_map(rounded_input).collect();
            for (bias, accumulate) in [(None, false), (Some(&bias[..]), true), (Some(&bias[..]), false)] {
                let layer = RoundedLinear::new(&codes, &scales, bias, input, output);
                let plain = RoundedLinear {
                    input,
                    output,
                    weight: Weight::numbers(&codes, &scales, bias, input, output),
                };
                let product = |layer: &RoundedLinear, x: &[f32], threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut out = vec![0.5; x.len() / input * output];
                    let threads = if threads == 1 { Threads::One } else { Threads::All };
                    pool.install(|| layer.forward(x, &mut out, accumulate, threads));
                    out
                };
                let out = product(&layer, &x, 1);
                assert_eq!(out, product(&layer, &x, 5), "[{rows}, {input}, {output}] on five threads");
                for (i, out) in out.chunks_exact(output).enumerate() {
                    #[cfg(target_arch = "x86_64")]
                    if matches!(layer.weight, Weight::Codes(_)) {
                        assert_eq!(product(&layer, &x[i * input..][..input], 1), out, "row {i} alone");
                    }
                    for (j, &found) in out.iter().enumerate() {
                        let (x, weight) = (&x_rounded[i * input..], &rounded[j * input..]);
                        let sum: f64 = x.iter().zip(&weight[..input]).map(|(a, b)| a * b).sum();
                        let exact = sum
                            + bias.map_or(0.0, |bias| f64::from(bias[j]))
                            + if accumulate { 0.5 } else { 0.0 };
                        let error = (f64::from(found) - exact).abs();
                        assert!(
                            error < 1e-5 * (1.0 + sum.abs()),
                            "[{rows}, {input}, {output}] at {i}, {j}: off by {error}"
                        );
                    }
                }
                let plain = product(&plain, &x, 1);
                assert!(plain.iter().zip(&out).all(|(a, b)| (a - b).abs() < 1e-5 * (input + 1) as f32));
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        let (codes, scales) = round_rows(&values(64 * 40, 2), 64).unwrap();
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut x = values(3 * 64, 1);
            x[64 + 9] = wrong;
            let mut out = vec![0.0; 3 * 40];
            RoundedLinear::new(&codes, &scales, None, 64, 40).forward(&x, &mut out, false, Threads::One);
            for (i, out) in out.chunks_exact(40).enumerate() {
                assert!(out.iter().all(|value| value.is_nan() == (i == 1)), "row {i}");
            }
        }
    }
}
