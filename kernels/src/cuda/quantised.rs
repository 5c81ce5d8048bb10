//! Products with weights in ggml's blocks, `cuda/quantised.cu`.

use candle_core::{Result, bail};
use cudarc::driver::CudaSlice;

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};
use super::matmul::{THREADS, TILE};
use crate::BlockKind;
use crate::quantised::check;

/// Rows of the input that the kernel for few rows takes at a time.
const FEW: usize = 4;
/// So many rows, in `bf16`, are worth the tensor cores.
const MANY: usize = 17;
/// Rows of the weight that a block of that kernel takes.
const WARPS: usize = 8;

/// A linear layer whose weight stays in the blocks of a GGUF file: [`crate::QuantisedLinear`] on a GPU, in every kind but
/// the halves of `f32`. Inputs are not rounded to 8 bits.
pub struct QuantisedLinear {
    blocks: CudaSlice<u8>,
    /// As kernels' names have it.
    name: &'static str,
    shape: [usize; 2],
}

/// As kernels' names have a kind; none for the halves.
fn name(kind: BlockKind) -> Option<&'static str> {
    Some(match kind {
        BlockKind::F16 | BlockKind::BF16 => return None,
        BlockKind::Q4_0 => "q4_0",
        BlockKind::Q4_1 => "q4_1",
        BlockKind::Q5_0 => "q5_0",
        BlockKind::Q5_1 => "q5_1",
        BlockKind::Q8_0 => "q8_0",
        BlockKind::Q4K => "q4_k",
        BlockKind::Q5K => "q5_k",
        BlockKind::Q6K => "q6_k",
    })
}

impl QuantisedLinear {
    /// Takes rows of blocks as a GGUF file holds them; `shape` is `[out, in]`.
    ///
    /// # Errors
    /// When a row is not whole blocks, there are more or fewer bytes than the shape says, or none, or the kind is another.
    pub fn from_blocks(device: &Device, kind: BlockKind, bytes: &[u8], shape: [usize; 2]) -> Result<Self> {
        let Some(name) = name(kind) else { bail!("quantised linear: {kind:?}, which has no blocks") };
        check(kind, bytes, shape)?;
        if bytes.is_empty() {
            bail!("quantised linear: {shape:?}, which is empty");
        }
        Ok(Self { blocks: device.upload_slice(bytes)?, name, shape })
    }

    /// `x`, `[rows, in]`, to `[rows, out]`. Few rows read each weight once; from 17 rows on products in `bf16` run on the
    /// tensor cores, for which weights are rounded to it.
    ///
    /// # Errors
    /// When the shapes do not fit together.
    pub fn forward<T: Storage>(&self, device: &Device, x: &Tensor<T>) -> Result<Tensor<T>> {
        let [output, input] = self.shape;
        let &[rows, width] = x.dims() else {
            bail!("quantised linear: the input is {:?}, expected [rows, in]", x.dims());
        };
        if width != input || rows == 0 {
            bail!("quantised linear: an input of {:?} for a weight of {:?}", x.dims(), self.shape);
        }
        let out = device.unwritten(&[rows, output])?;
        let (name, blocks) = if rows >= MANY && T::WIDE == 8 {
            let name = format!("quantised_many_{}", self.name);
            (name, grid(rows.div_ceil(TILE), output.div_ceil(TILE), THREADS)?)
        } else {
            let name = format!("quantised_few_{}_{}", self.name, T::NAME);
            (name, grid(output.div_ceil(WARPS), rows.div_ceil(FEW), THREADS)?)
        };
        let (rows, columns, inner) = (size(rows)?, size(output)?, size(input)?);
        let weight = &self.blocks;
        // SAFETY: the arguments are the kernel's, of the sizes checked above.
        unsafe { launch!(device, Source::Quantised, &name, blocks, x, weight, out, rows, columns, inner) };
        Ok(out)
    }

    /// The rows that `ids` name, where the weight is a table of embeddings: `[ids, in]`.
    ///
    /// # Errors
    /// When an id is not in the table.
    pub fn rows<T: Storage>(&self, device: &Device, ids: &[u32]) -> Result<Tensor<T>> {
        let [output, input] = self.shape;
        if ids.is_empty() || ids.iter().any(|&id| id as usize >= output) {
            bail!("quantised linear: no ids, or one beyond a table of {output} rows");
        }
        let out = device.unwritten(&[ids.len(), input])?;
        let (blocks, inner) = (grid(ids.len(), 1, THREADS)?, size(input)?);
        let (ids, weight) = (device.upload_slice(ids)?, &self.blocks);
        let name = format!("quantised_rows_{}_{}", self.name, T::NAME);
        // SAFETY: the arguments are the kernel's, and every id is a row of the table.
        unsafe { launch!(device, Source::Quantised, &name, blocks, weight, ids, out, inner) };
        Ok(out)
    }
}
