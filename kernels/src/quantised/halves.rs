//! Weights in `f16` or `bf16`, row by row, as files hold them. Inputs are not rounded.

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};

use super::blocks::BlockKind;
use crate::matrix::few::{self, Number};
use crate::matrix::{Matrix, Threads, multiply};
use crate::parallel::Shared;
use crate::team::for_tasks;

/// How many rows of the weight are widened at a time where there are many rows of input.
const TILE: usize = 64;

/// A weight `[output, input]`.
#[derive(Clone, Debug)]
pub struct Halves {
    pub kind: BlockKind,
    pub shape: [usize; 2],
    bits: Vec<u16>,
}

impl Halves {
    pub fn new(kind: BlockKind, shape: [usize; 2], bytes: &[u8]) -> Self {
        let bits = bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        Self { kind, shape, bits }
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        2 * self.bits.len()
    }

    /// One row in `f32`.
    pub fn expand(&self, row: usize, out: &mut [f32]) {
        let bits = &self.bits[row * out.len()..][..out.len()];
        match self.kind {
            BlockKind::F16 => f16::widen(bits.reinterpret_cast(), out),
            _ => bf16::widen(bits.reinterpret_cast(), out),
        }
    }

    /// Adds the products of rows of `x` to `out`, `[rows, output]`.
    pub fn multiply(&self, x: &[f32], out: &mut [f32]) {
        match self.kind {
            BlockKind::F16 => self.multiply_as::<f16>(self.bits.reinterpret_cast(), x, out),
            _ => self.multiply_as::<bf16>(self.bits.reinterpret_cast(), x, out),
        }
    }

    fn multiply_as<T: Number>(&self, weight: &[T], x: &[f32], out: &mut [f32]) {
        let [output, input] = self.shape;
        let rows = x.len() / input.max(1);
        if rows < few::MANY {
            let sizes = [rows, input, output];
            return few::multiply(sizes, 1.0, (x, input), (weight, input), (out, output), true, Threads::All);
        }
        let out = Shared::new(out);
        for_tasks(output.div_ceil(TILE), |task| {
            let first = task * TILE;
            let count = TILE.min(output - first);
            let mut wide = vec![0f32; count * input];
            T::widen(&weight[first * input..][..count * input], &mut wide);
            let mut products = vec![0f32; rows * count];
            let (x, weight) = (Matrix::rows(x, input), Matrix::rows(&wide, input).t());
            multiply([rows, input, count], 1.0, x, weight, &mut products, count, false, Threads::One);
            for (row, products) in products.chunks_exact(count).enumerate() {
                // SAFETY: the buffer lives as long as this call, and no two tasks have an output in common.
                let out = unsafe { out.part(row * output + first, count) };
                out.iter_mut().zip(products).for_each(|(out, product)| *out += product);
            }
        });
    }
}
