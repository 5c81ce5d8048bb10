//! Weights of 8 and 4 bits for generation, which waits for weights to arrive from memory.

use candle_core::{D, Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible};
use crate::composed;
use crate::matrix::{Matrix, Threads, multiply};
use crate::simd::vectorised;

/// How many weights of a row share a scale.
const GROUP: usize = 32;

/// Groups are worked on two at a time, so rows are filled up to this.
const PAIR: usize = 2 * GROUP;

/// From how many rows of input on the weights are turned back into `f32` and multiplied as such.
const MANY: usize = 16;

/// How many rows of the weight one task handles.
const ROWS: usize = 64;

/// How many bits a weight has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 4, two in a byte; 4.5 with the scale, as in llama.cpp's `Q4_0`.
    Four,
    /// 8; 8.5 with the scale, as in llama.cpp's `Q8_0`.
    Eight,
}

impl Bits {
    /// What is added to a signed weight, so that codes are not negative.
    fn offset(self) -> i32 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    fn bytes(self, weights: usize) -> usize {
        match self {
            Self::Four => weights / 2,
            Self::Eight => weights,
        }
    }
}

/// A linear layer whose weight is stored in 8 or 4 bits, each group of 32 along a row with a scale of its own.
///
/// It is for generation only and gives no gradients. With up to 15 rows of input, each group of 32 inputs is
/// rounded to 8 bits as well (as llama.cpp does), so that products are of integers; with more, the weights
/// are turned back into `f32`.
#[derive(Clone, Debug)]
pub struct QuantisedLinear {
    bits: Bits,
    output: usize,
    input: usize,
    /// Rows of pairs of groups. With 4 bits, the byte `i` of a group of 16 bytes holds weight `i` below and
    /// weight `i + 16` above.
    codes: Vec<u8>,
    /// The scale of each group as bfloat16.
    scales: Vec<u16>,
    device: Device,
}

impl QuantisedLinear {
    /// Rounds `weight`, `[out, in]`.
    ///
    /// # Errors
    /// When `weight` is not a matrix or holds a NaN or an infinity.
    pub fn new(weight: &Tensor, bits: Bits) -> Result<Self> {
        let (output, input) = weight.dims2()?;
        let device = weight.device().clone();
        let values = weight.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!("quantised linear: element {at} of the weight is {}", values[at]);
        }
        let groups = input.next_multiple_of(PAIR) / GROUP;
        let mut codes = Vec::with_capacity(output * bits.bytes(groups * GROUP));
        let mut scales = Vec::with_capacity(output * groups);
        for row in values.chunks(input.max(1)) {
            for group in 0..groups {
                let mut padded = [0f32; GROUP];
                let part = &row[(group * GROUP).min(input)..((group + 1) * GROUP).min(input)];
                padded[..part.len()].copy_from_slice(part);
                let (scale, signed) = round(&padded, bits);
                scales.push(scale);
                let code = |i: usize| (signed[i] + bits.offset()) as u8;
                match bits {
                    Bits::Eight => codes.extend((0..GROUP).map(code)),
                    Bits::Four => codes.extend((0..GROUP / 2).map(|i| code(i) | code(i + GROUP / 2) << 4)),
                }
            }
        }
        Ok(Self { bits, output, input, codes, scales, device })
    }

    /// How many bytes the weight takes.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 2 * self.scales.len()
    }

    /// The weight as it is after rounding, `[out, in]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn weight(&self) -> Result<Tensor> {
        let mut values = vec![0f32; self.output * self.input];
        if self.input > 0 {
            for (row, values) in values.chunks_mut(self.input).enumerate() {
                self.expand(row, values);
            }
        }
        Tensor::from_vec(values, (self.output, self.input), &self.device)
    }

    /// `x weight^T`; `x` is `[.., in]`, the result `[.., out]`.
    ///
    /// # Errors
    /// When the shapes do not fit together.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self { output, input, .. } = *self;
        let mut shape = x.dims().to_vec();
        if x.dim(D::Minus1)? != input {
            bail!("quantised linear: x is {:?}, the weight [{output}, {input}]", x.dims());
        }
        if !fusible(&[x]) {
            return composed::linear(x, &self.weight()?.to_dtype(x.dtype())?);
        }
        *shape.last_mut().unwrap_or(&mut 0) = output;
        let x = x.contiguous()?;
        let x = View::of(&x)?;
        let rows = shape[..shape.len() - 1].iter().product::<usize>();
        // [out, rows], so that tasks write side by side.
        let mut out = vec![0f32; rows * output];
        if rows > 0 {
            let out = out.par_chunks_mut(ROWS * rows).enumerate();
            if rows < MANY {
                let x: Vec<Input> =
                    (0..rows).map(|row| Input::new(&x[row * input..][..input], self.bits)).collect();
                out.for_each(|(task, out)| self.few(task * ROWS, &x, out));
            } else {
                let x = &x[..];
                out.for_each(|(task, out)| self.many(task * ROWS, Matrix::rows(x, input), rows, out));
            }
        }
        let out = Tensor::from_vec(out, (output, rows), &Device::Cpu)?;
        out.t()?.contiguous()?.reshape(shape)
    }

    /// The rows of the weight from `first` on by all of `x`.
    fn few(&self, first: usize, x: &[Input], out: &mut [f32]) {
        let groups = self.input.next_multiple_of(PAIR) / GROUP;
        let bytes = self.bits.bytes(groups * GROUP);
        for (row, out) in (first..).zip(out.chunks_exact_mut(x.len())) {
            let (codes, scales) =
                (&self.codes[row * bytes..][..bytes], &self.scales[row * groups..][..groups]);
            for (x, out) in x.iter().zip(out) {
                *out = product(codes, scales, x, self.bits);
            }
        }
    }

    fn many(&self, first: usize, x: Matrix, rows: usize, out: &mut [f32]) {
        let n = out.len() / rows;
        let mut weight = vec![0f32; n * self.input];
        if self.input > 0 {
            for (row, weight) in (first..).zip(weight.chunks_mut(self.input)) {
                self.expand(row, weight);
            }
        }
        let sizes = [n, self.input, rows];
        multiply(sizes, 1.0, Matrix::rows(&weight, self.input), x.t(), out, rows, false, Threads::One);
    }

    /// One row in `f32`.
    fn expand(&self, row: usize, out: &mut [f32]) {
        let groups = self.input.next_multiple_of(PAIR) / GROUP;
        let bytes = self.bits.bytes(GROUP);
        for (group, out) in out.chunks_mut(GROUP).enumerate() {
            let at = row * groups + group;
            let codes = unpacked(&self.codes[at * bytes..][..bytes], self.bits);
            let scale = widened(self.scales[at]);
            for (out, code) in out.iter_mut().zip(codes) {
                *out = (i32::from(code) - self.bits.offset()) as f32 * scale;
            }
        }
    }
}

/// The scale of a group and its weights in units of it.
fn round(values: &[f32; GROUP], bits: Bits) -> (u16, [i32; GROUP]) {
    let furthest = values.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    // With 4 bits there is one more step below zero than above, which goes to the weight furthest from it.
    let (scale, lowest, highest) = match bits {
        Bits::Four => (furthest / -8.0, -8, 7),
        Bits::Eight => (furthest.abs() / 127.0, -127, 127),
    };
    // Rounded away from zero, so that the furthest weight stays in range.
    let scale = (scale.to_bits().saturating_add(0xffff) >> 16) as u16;
    let unit = widened(scale);
    let inverse = if unit == 0.0 { 0.0 } else { 1.0 / unit };
    (scale, values.map(|value| ((value * inverse).round() as i32).clamp(lowest, highest)))
}

fn widened(scale: u16) -> f32 {
    f32::from_bits(u32::from(scale) << 16)
}

fn unpacked(codes: &[u8], bits: Bits) -> [u8; GROUP] {
    std::array::from_fn(|i| match bits {
        Bits::Eight => codes[i],
        Bits::Four if i < GROUP / 2 => codes[i] & 15,
        Bits::Four => codes[i - GROUP / 2] >> 4,
    })
}

/// A row of inputs in 8 bits.
struct Input {
    /// For each pair of groups the order in which its codes come out of their bytes: with 4 bits the first
    /// halves of both groups, then the second ones.
    values: Vec<i8>,
    scales: Vec<f32>,
    /// What the offset of the codes adds to each group's sum of products.
    shifts: Vec<i32>,
}

impl Input {
    fn new(x: &[f32], bits: Bits) -> Self {
        let padded = x.len().next_multiple_of(PAIR);
        let groups = padded / GROUP;
        let mut input = Self {
            values: vec![0; padded],
            scales: Vec::with_capacity(groups),
            shifts: Vec::with_capacity(groups),
        };
        for group in 0..groups {
            let from = (group * GROUP).min(x.len());
            let part = &x[from..(from + GROUP).min(x.len())];
            let furthest = part.iter().fold(0f32, |a, b| if b.abs() > a || b.is_nan() { b.abs() } else { a });
            let inverse = if furthest > 0.0 { 127.0 / furthest } else { 0.0 };
            let mut total = 0;
            for (i, value) in part.iter().enumerate() {
                let rounded = (value * inverse).round() as i8;
                total += i32::from(rounded);
                input.values[group / 2 * PAIR + place(group % 2, i, bits)] = rounded;
            }
            input.scales.push(furthest / 127.0);
            input.shifts.push(bits.offset() * total);
        }
        input
    }
}

/// Where element `i` of one of a pair's groups is kept.
fn place(group: usize, i: usize, bits: Bits) -> usize {
    match bits {
        Bits::Eight => group * GROUP + i,
        Bits::Four => i / 16 * GROUP + group * 16 + i % 16,
    }
}

/// The product of a row of the weight and a row of input.
fn product(codes: &[u8], scales: &[u16], x: &Input, bits: Bits) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512vnni")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512f")
    {
        // SAFETY: the processor has just been found to have these instructions.
        return unsafe {
            match bits {
                Bits::Four => vnni::product::<true>(codes, scales, x),
                Bits::Eight => vnni::product::<false>(codes, scales, x),
            }
        };
    }
    match bits {
        Bits::Four => product4(codes, scales, x),
        Bits::Eight => product8(codes, scales, x),
    }
}

vectorised! {
    fn product8(codes: &[u8], scales: &[u16], x: &Input) -> f32 {
        let groups = codes.as_chunks::<GROUP>().0.iter().zip(x.values.as_chunks::<GROUP>().0);
        let factors = scales.iter().zip(&x.scales).zip(&x.shifts);
        let mut total = 0.0;
        for ((codes, values), ((scale, x_scale), shift)) in groups.zip(factors) {
            let mut dot = -shift;
            for i in 0..GROUP {
                dot += i32::from(codes[i]) * i32::from(values[i]);
            }
            total += dot as f32 * (widened(*scale) * x_scale);
        }
        total
    }

    fn product4(codes: &[u8], scales: &[u16], x: &Input) -> f32 {
        let groups = codes.as_chunks::<16>().0.iter().enumerate();
        let factors = scales.iter().zip(&x.scales).zip(&x.shifts);
        let mut total = 0.0;
        for ((group, codes), ((scale, x_scale), shift)) in groups.zip(factors) {
            let at = group / 2 * PAIR + group % 2 * 16;
            let (low, high) = (&x.values[at..at + 16], &x.values[at + GROUP..at + GROUP + 16]);
            let mut dot = -shift;
            for i in 0..16 {
                dot += i32::from(codes[i] & 15) * i32::from(low[i]) + i32::from(codes[i] >> 4) * i32::from(high[i]);
            }
            total += dot as f32 * (widened(*scale) * x_scale);
        }
        total
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;

    use super::{Input, PAIR, widened};

    /// The same with AVX-512 VNNI, a pair of groups at a time. `FOUR` says of 4 bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn product<const FOUR: bool>(codes: &[u8], scales: &[u16], x: &Input) -> f32 {
        let bytes = if FOUR { PAIR / 2 } else { PAIR };
        let pairs = codes.len() / bytes;
        assert!(scales.len() == 2 * pairs && x.values.len() == pairs * PAIR);
        assert!(x.scales.len() == 2 * pairs && x.shifts.len() == 2 * pairs);
        // The lanes of four products each that belong to the second group, and one lane of each for its shift.
        let (second, first_lane, second_lane) =
            if FOUR { (0xf0f0, 0x0001, 0x0010) } else { (0xff00, 0x0001, 0x0100) };
        let low = _mm256_set1_epi8(15);
        let mut total = _mm512_setzero_ps();
        for pair in 0..pairs {
            let (a, b) = (2 * pair, 2 * pair + 1);
            // SAFETY: the slices are as long as asserted above.
            let (codes, values) = unsafe {
                let codes = codes.as_ptr().add(pair * bytes);
                let codes = if FOUR {
                    let packed = _mm256_loadu_si256(codes.cast());
                    let above = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low);
                    let below = _mm512_castsi256_si512(_mm256_and_si256(packed, low));
                    _mm512_inserti64x4::<1>(below, above)
                } else {
                    _mm512_loadu_si512(codes.cast())
                };
                (codes, _mm512_loadu_si512(x.values.as_ptr().add(pair * PAIR).cast()))
            };
            let start = _mm512_maskz_set1_epi32(first_lane, -x.shifts[a]);
            let start = _mm512_mask_set1_epi32(start, second_lane, -x.shifts[b]);
            let dots = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, codes, values));
            let factors = _mm512_mask_blend_ps(
                second,
                _mm512_set1_ps(widened(scales[a]) * x.scales[a]),
                _mm512_set1_ps(widened(scales[b]) * x.scales[b]),
            );
            total = _mm512_fmadd_ps(dots, factors, total);
        }
        _mm512_reduce_add_ps(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use proptest::prelude::*;

    /// `x` with every group rounded to 8 bits.
    fn rounded(x: &Tensor) -> Tensor {
        let round = |group: &[f32]| -> Vec<f32> {
            let step = group.iter().fold(0f32, |a, b| a.max(b.abs())) / 127.0;
            group.iter().map(|value| (value / step).round() * step).collect()
        };
        let rows = x.to_vec2::<f32>().unwrap();
        let rows: Vec<f32> = rows.iter().flat_map(|row| row.chunks(GROUP).flat_map(round)).collect();
        Tensor::from_vec(rows, x.shape(), &Device::Cpu).unwrap()
    }

    /// The largest difference to the product with the rounded weight in f64, in parts of the largest value.
    fn error(rows: usize, input: usize, output: usize, bits: Bits) -> f64 {
        let x = random(&[rows, input], 1);
        let layer = QuantisedLinear::new(&random(&[output, input], 2), bits).unwrap();
        let out = layer.forward(&x).unwrap();
        let x = if rows < MANY { rounded(&x) } else { x };
        let f64 = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap();
        let exact = f64(&x).matmul(&f64(&layer.weight().unwrap()).t().unwrap()).unwrap();
        distance(&out, &exact) / (input as f64).sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn products_are_those_of_the_rounded_weight(
            rows in 1usize..MANY, input in 1usize..300, output in 1usize..150
        ) {
            for bits in [Bits::Four, Bits::Eight] {
                // A value that lies between two steps may be rounded either way.
                let error = error(rows, input, output, bits);
                prop_assert!(error < 1e-4, "few rows: off by {error}");
            }
        }

        #[test]
        fn many_rows_are_not_rounded(rows in MANY..60, input in 1usize..300, output in 1usize..150) {
            for bits in [Bits::Four, Bits::Eight] {
                let error = error(rows, input, output, bits);
                prop_assert!(error < 1e-5, "many rows: off by {error}");
            }
        }
    }

    #[test]
    fn vector_instructions_give_what_plain_code_gives() {
        let weight = random(&[70, 200], 3);
        let x = random(&[200], 4).to_vec1::<f32>().unwrap();
        for bits in [Bits::Four, Bits::Eight] {
            let layer = QuantisedLinear::new(&weight, bits).unwrap();
            let x = Input::new(&x, bits);
            let (groups, bytes) = (8, bits.bytes(256));
            for row in 0..70 {
                let (codes, scales) =
                    (&layer.codes[row * bytes..][..bytes], &layer.scales[row * groups..][..groups]);
                let plain = match bits {
                    Bits::Four => product4(codes, scales, &x),
                    Bits::Eight => product8(codes, scales, &x),
                };
                let best = product(codes, scales, &x, bits);
                assert!((plain - best).abs() < 1e-4, "{plain} {best}");
            }
        }
    }

    #[test]
    fn weights_keep_their_places_and_lose_half_a_step_at_most() {
        let weight = random(&[5, 77], 1);
        for (bits, steps) in [(Bits::Four, 8.0), (Bits::Eight, 127.0)] {
            let layer = QuantisedLinear::new(&weight, bits).unwrap();
            // One step, if the furthest of a group is 1; bfloat16 makes it a hundredth longer. At the upper end
            // of 4 bits a whole step may be missing.
            let worst = if bits == Bits::Four { 1.0 } else { 0.5 };
            assert!(distance(&layer.weight().unwrap(), &weight) < worst * 1.02 / steps);
            assert_eq!(layer.bytes(), 5 * (bits.bytes(128) + 8));
        }
        let zeros = QuantisedLinear::new(&weight.zeros_like().unwrap(), Bits::Four).unwrap();
        assert_eq!(
            distance(
                &zeros.forward(&random(&[2, 77], 1)).unwrap(),
                &Tensor::zeros((2, 5), candle_core::DType::F32, &Device::Cpu).unwrap()
            ),
            0.0
        );
        assert!(zeros.forward(&random(&[2, 76], 1)).is_err());
        let bad = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu).unwrap();
        assert!(QuantisedLinear::new(&bad, Bits::Four).unwrap_err().to_string().contains("element 1"));
    }

    #[test]
    fn a_nan_shows() {
        let layer = QuantisedLinear::new(&random(&[3, 64], 1), Bits::Eight).unwrap();
        let mut x = vec![0.5f32; 64];
        x[40] = f32::NAN;
        let out = layer.forward(&Tensor::new(x, &Device::Cpu).unwrap()).unwrap().to_vec1::<f32>().unwrap();
        assert!(out.iter().all(|value| value.is_nan()));
    }
}
