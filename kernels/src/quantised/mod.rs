//! Weights of few bits for generation, which waits for weights to arrive from memory: rounded here, or as GGUF files
//! hold them.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod blocks;
mod halves;
mod input;
mod packed;
mod product;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

use candle_core::{D, DType, Device, Result, Tensor, bail};
use half::f16;

pub use self::blocks::BlockKind;
use self::blocks::{Block, GROUP, SUPER, widened};
use self::halves::Halves;
use self::input::Input;
use self::packed::{Packed, ROWS};
use self::product::Instructions;
use crate::autograd::{View, fusible};
use crate::composed;
use crate::parallel::{Shared, for_pieces};
use crate::team::for_tasks;

/// About how many products of a weight and an input one task makes, at least.
const GRAIN: usize = 1 << 16;

/// How many bits a weight gets that is rounded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 4, two in a byte; 4.5 with the scale, as in llama.cpp's `Q4_0`.
    Four,
    /// 8; 8.5 with the scale, as in llama.cpp's `Q8_0`.
    Eight,
}

/// A linear layer whose weight is stored in few bits, each group of up to 32 along a row with a scale of its own.
///
/// It is for generation only and gives no gradients. Except for the halves of `f32` (`F16` and `BF16`), each group of 32 inputs is rounded to 8 bits as well (as
/// llama.cpp does), so that products are of integers. A row of the result does not depend on the other rows of
/// the input: a prompt read at once and token by token gives the same bits.
#[derive(Clone, Debug)]
pub struct QuantisedLinear {
    weight: Weight,
    device: Device,
}

#[derive(Clone, Debug)]
enum Weight {
    Packed(Packed),
    Halves(Halves),
    #[cfg(feature = "candle-cuda")]
    Gpu(crate::gpu::Quantised),
}

impl QuantisedLinear {
    /// Rounds `weight`, `[out, in]`.
    ///
    /// # Errors
    /// When `weight` is not a matrix or holds a NaN, an infinity, or what is beyond the scales in `f16`.
    pub fn new(weight: &Tensor, bits: Bits) -> Result<Self> {
        let (output, input) = weight.dims2()?;
        let device = weight.device().clone();
        let values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (kind, limit) = match bits {
            Bits::Four => (BlockKind::Q4_0, 7.0 * 65504.0),
            Bits::Eight => (BlockKind::Q8_0, 127.0 * 65504.0),
        };
        if let Some(at) = values.iter().position(|value| value.is_nan() || value.abs() > limit) {
            bail!("quantised linear: element {at} of the weight is {}, beyond {limit}", values[at]);
        }
        let blocks = |row: usize, i: usize| {
            let row = &values[row * input..][..input];
            round(&row[i * GROUP..((i + 1) * GROUP).min(input)], kind)
        };
        #[cfg(feature = "candle-cuda")]
        if device.is_cuda() && input % GROUP == 0 && output * input > 0 {
            let mut bytes = Vec::with_capacity(output * (input / GROUP) * kind.bytes());
            (0..output)
                .for_each(|row| (0..input / GROUP).for_each(|i| write(&blocks(row, i), kind, &mut bytes)));
            return Self::from_blocks(kind, &bytes, [output, input], &device);
        }
        Ok(Self { weight: Weight::Packed(Packed::new(kind, output, input, blocks)), device })
    }

    /// Takes rows of blocks as a GGUF file holds them; `shape` is `[out, in]`.
    ///
    /// # Errors
    /// When a row is not whole blocks or there are more or fewer bytes than the shape says.
    pub fn from_blocks(kind: BlockKind, bytes: &[u8], shape: [usize; 2], device: &Device) -> Result<Self> {
        let [output, input] = shape;
        check(kind, bytes, shape)?;
        #[cfg(feature = "candle-cuda")]
        if device.is_cuda() && !bytes.is_empty() {
            let weight = Weight::Gpu(crate::gpu::Quantised::new(kind, bytes, shape, device)?);
            return Ok(Self { weight, device: device.clone() });
        }
        let weight = match kind {
            BlockKind::F16 | BlockKind::BF16 => Weight::Halves(Halves::new(kind, shape, bytes)),
            _ => {
                let row = input / kind.weights() * kind.bytes();
                let block = |at: usize, i: usize| Block::read(kind, &bytes[at * row + i * kind.bytes()..]);
                Weight::Packed(Packed::new(kind, output, input, block))
            }
        };
        Ok(Self { weight, device: device.clone() })
    }

    /// The format of the weight.
    pub fn kind(&self) -> BlockKind {
        match &self.weight {
            Weight::Packed(weight) => weight.kind,
            Weight::Halves(weight) => weight.kind,
            #[cfg(feature = "candle-cuda")]
            Weight::Gpu(weight) => weight.kind,
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match &self.weight {
            Weight::Packed(weight) => [weight.output, weight.input],
            Weight::Halves(weight) => weight.shape,
            #[cfg(feature = "candle-cuda")]
            Weight::Gpu(weight) => weight.shape,
        }
    }

    /// The device that the results are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many bytes the weight takes.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) => weight.bytes(),
            Weight::Halves(weight) => weight.bytes(),
            #[cfg(feature = "candle-cuda")]
            Weight::Gpu(weight) => weight.bytes(),
        }
    }

    /// The weight as it is after rounding, in `f32`, `[out, in]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn weight(&self) -> Result<Tensor> {
        let rows: Vec<u32> = (0..self.shape()[0] as u32).collect();
        self.rows(&Tensor::new(rows, &self.device)?)
    }

    /// The rows that `tokens` name, where the weight is a table of embeddings: `[..]` as `u32` to `[.., in]`.
    ///
    /// # Errors
    /// When a token lies outside the table.
    pub fn rows(&self, tokens: &Tensor) -> Result<Tensor> {
        let [output, input] = self.shape();
        let ids = tokens.flatten_all()?.to_vec1::<u32>()?;
        if let Some(at) = ids.iter().position(|&id| id as usize >= output) {
            bail!("embedding: token {} at {at} is outside the vocabulary of {output}", ids[at]);
        }
        let mut shape = tokens.dims().to_vec();
        shape.push(input);
        #[cfg(feature = "candle-cuda")]
        if let (Weight::Gpu(weight), false) = (&self.weight, ids.is_empty()) {
            return weight.rows(&ids)?.reshape(shape);
        }
        let mut values = vec![0f32; ids.len() * input];
        if input > 0 {
            for_pieces(&mut values, input, |at, values| {
                for (id, values) in ids[at / input..].iter().zip(values.chunks_exact_mut(input)) {
                    match &self.weight {
                        Weight::Packed(weight) => weight.expand(*id as usize, values),
                        Weight::Halves(weight) => weight.expand(*id as usize, values),
                        // Answered above.
                        #[cfg(feature = "candle-cuda")]
                        Weight::Gpu(_) => {}
                    }
                }
            });
        }
        Tensor::from_vec(values, shape, &self.device)
    }

    /// `x weight^T`; `x` is `[.., in]`, the result `[.., out]`.
    ///
    /// # Errors
    /// When the shapes do not fit together.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(Self::forward_each([self], x)?.remove(0))
    }

    /// `residual + x weight^T`; `x` is `[.., in]`, `residual` and the result `[.., out]`.
    ///
    /// # Errors
    /// When the shapes do not fit together.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let [output, input] = self.shape();
        let fits = x.dims().split_last().is_some_and(|(last, others)| {
            *last == input && residual.dims().split_last() == Some((&output, others))
        });
        if !fits || !fusible(&[x, residual]) {
            return residual + self.forward(x)?;
        }
        let mut out = View::of(&residual.contiguous()?)?.to_vec();
        multiply(&[&self.weight], x, std::slice::from_mut(&mut out))?;
        Tensor::from_vec(out, residual.shape(), &Device::Cpu)
    }

    /// The products of one input with several weights, such as those of queries, keys and values: what
    /// [`forward`](Self::forward) gives for each, but the input is rounded once and the threads meet once.
    ///
    /// # Errors
    /// When the shapes do not fit together.
    pub fn forward_each<'a>(layers: impl IntoIterator<Item = &'a Self>, x: &Tensor) -> Result<Vec<Tensor>> {
        let layers: Vec<&Self> = layers.into_iter().collect();
        let input = x.dim(D::Minus1)?;
        if let Some(layer) = layers.iter().find(|layer| layer.shape()[1] != input) {
            bail!("quantised linear: x is {:?}, the weight {:?}", x.dims(), layer.shape());
        }
        #[cfg(feature = "candle-cuda")]
        if layers.iter().any(|layer| matches!(layer.weight, Weight::Gpu(_))) {
            let product = |layer: &&Self| match &layer.weight {
                Weight::Gpu(weight) => weight.forward(x),
                _ => composed::linear(x, &layer.weight()?.to_dtype(x.dtype())?),
            };
            return layers.iter().map(product).collect();
        }
        if !fusible(&[x]) {
            let each = layers.iter().map(|layer| composed::linear(x, &layer.weight()?.to_dtype(x.dtype())?));
            return each.collect();
        }
        let rows = x.elem_count() / input.max(1);
        let mut out: Vec<Vec<f32>> = layers.iter().map(|layer| vec![0f32; rows * layer.shape()[0]]).collect();
        let weights: Vec<&Weight> = layers.iter().map(|layer| &layer.weight).collect();
        multiply(&weights, x, &mut out)?;
        let shaped = |(out, layer): (Vec<f32>, &&Self)| {
            let mut shape = x.dims().to_vec();
            *shape.last_mut().unwrap_or(&mut 0) = layer.shape()[0];
            Tensor::from_vec(out, shape, &Device::Cpu)
        };
        out.into_iter().zip(&layers).map(shaped).collect()
    }
}

/// Adds the products of `x` with each weight to `out`.
fn multiply(weights: &[&Weight], x: &Tensor, out: &mut [Vec<f32>]) -> Result<()> {
    if x.elem_count() == 0 {
        return Ok(());
    }
    let x = x.contiguous()?;
    let x = View::of(&x)?;
    let mut packed: Vec<(&Packed, &mut Vec<f32>)> = Vec::new();
    for (weight, out) in weights.iter().zip(out) {
        match weight {
            Weight::Packed(weight) => packed.push((weight, out)),
            Weight::Halves(weight) => weight.multiply(&x, out),
            #[cfg(feature = "candle-cuda")]
            Weight::Gpu(_) => bail!("quantised linear: the weight is on a GPU, the input is not"),
        }
    }
    multiply_packed(Instructions::best(), packed, &x);
    Ok(())
}

/// Adds the products of rows of `x` with each weight, `[rows, in]` by `[out, in]`; all have the same `in`.
fn multiply_packed(instructions: Instructions, weights: Vec<(&Packed, &mut Vec<f32>)>, x: &[f32]) {
    let Some((Packed { input: width, groups, .. }, _)) = weights.first() else { return };
    let x = Input::new(x, *width, *groups);
    let rows = x.facts.len() / groups.max(&1);
    // A task takes some strips of one of the weights.
    let some = GRAIN.div_ceil(ROWS * rows * width.max(&1));
    let mut tasks = 0;
    let weights = weights.into_iter().map(|(weight, out)| {
        let first = tasks;
        tasks += weight.strips().div_ceil(some);
        (first, weight, Shared::new(out))
    });
    let weights: Vec<_> = weights.collect();
    for_tasks(tasks, |task| {
        let which = weights.partition_point(|(first, ..)| *first <= task) - 1;
        let (first, weight, out) = weights[which];
        let first = (task - first) * some;
        for strip in first..(first + some).min(weight.strips()) {
            let (at, count) = (strip * ROWS, ROWS.min(weight.output - strip * ROWS));
            product::strip(instructions, weight, strip, &x, |row, values| {
                // SAFETY: the buffer lives as long as this call, and no two tasks have a strip in common.
                let out = unsafe { out.part(row * weight.output + at, count) };
                out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
            });
        }
    });
}

/// Whether `bytes` are `output` rows of whole blocks, of `input` weights each.
pub(crate) fn check(kind: BlockKind, bytes: &[u8], [output, input]: [usize; 2]) -> Result<()> {
    let expected = (input / kind.weights()).checked_mul(kind.bytes()).and_then(|row| row.checked_mul(output));
    if !input.is_multiple_of(kind.weights()) {
        bail!("{kind:?}: rows of {input} weights are not whole blocks of {}", kind.weights());
    }
    if expected != Some(bytes.len()) {
        bail!("{kind:?}: {} bytes are not [{output}, {input}] weights", bytes.len());
    }
    Ok(())
}

/// Appends a block of `Q4_0` or `Q8_0` as a GGUF file holds it.
#[cfg(feature = "candle-cuda")]
fn write(block: &Block, kind: BlockKind, bytes: &mut Vec<u8>) {
    bytes.extend(block.unit.to_le_bytes());
    let codes = &block.codes[..GROUP];
    match kind {
        BlockKind::Q4_0 => bytes.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4)),
        _ => bytes.extend(codes.iter().map(|code| code ^ 0x80)),
    }
}

/// Rounds up to 32 weights to a block of `Q4_0` or `Q8_0`.
fn round(values: &[f32], kind: BlockKind) -> Block {
    let furthest = values.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    // With 4 bits there is one more step below zero than above, which goes to the weight furthest from it.
    let (scale, lowest, highest) = match kind {
        BlockKind::Q4_0 => (furthest / -8.0, -8, 7),
        _ => (furthest.abs() / 127.0, -127, 127),
    };
    // Rounded away from zero, so that the furthest weight stays in range.
    let mut unit = f16::from_f32(scale);
    if unit.to_f32().abs() < scale.abs() {
        unit = f16::from_bits(unit.to_bits() + 1);
    }
    let unit = unit.to_bits();
    let inverse = if widened(unit) == 0.0 { 0.0 } else { 1.0 / widened(unit) };
    // What is missing up to 32 is zero, whose code is the offset.
    let mut codes = [kind.offset() as u8; SUPER];
    for (code, value) in codes.iter_mut().zip(values) {
        let signed = ((value * inverse).round() as i32).clamp(lowest, highest);
        *code = (signed + kind.offset()) as u8;
    }
    Block { codes, unit, minimum: 0, scales: [0; 16], minima: [0; 8] }
}
