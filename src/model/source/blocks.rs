//! Tensors of a few bits a number, in ggml's block formats.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::corpus::Mapped;
use crate::error::{Error, Result};

/// A block format (`Q4_0`, `Q8_0`, `Q4K`, …).
pub type BlockKind = GgmlDType;

/// A tensor in blocks along its last dimension.
#[derive(Clone)]
pub struct Blocks {
    kind: BlockKind,
    shape: Vec<usize>,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    Mapped(Arc<Mapped<u8>>, Range<usize>),
    Owned(Arc<[u8]>),
}

impl Blocks {
    /// Bytes that a tensor of `kind` and `shape` takes. `None` if its rows are no whole number of
    /// blocks, or nothing so large exists.
    pub fn byte_len(kind: BlockKind, shape: &[usize]) -> Option<usize> {
        let width = shape.last().copied().unwrap_or(1);
        if !width.is_multiple_of(kind.block_size()) {
            return None;
        }
        let numbers = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        (numbers / kind.block_size()).checked_mul(kind.type_size())
    }

    /// A tensor whose blocks are the bytes `range` of a file.
    pub(super) fn mapped(
        kind: BlockKind,
        shape: Vec<usize>,
        file: Arc<Mapped<u8>>,
        range: Range<usize>,
    ) -> Option<Self> {
        let fits = Self::byte_len(kind, &shape) == Some(range.len()) && file.get(range.clone()).is_some();
        fits.then_some(Self { kind, shape, bytes: Bytes::Mapped(file, range) })
    }

    /// A tensor whose blocks are `bytes`.
    ///
    /// # Errors
    /// Bytes that are not as many as kind and shape ask for.
    pub fn new(kind: BlockKind, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self> {
        if Self::byte_len(kind, &shape) != Some(bytes.len()) {
            let why = format!("{} bytes are not {shape:?} numbers in {kind:?}", bytes.len());
            return Err(Error::setting("blocks", why));
        }
        Ok(Self { kind, shape, bytes: Bytes::Owned(bytes.into()) })
    }

    /// The format.
    pub fn kind(&self) -> BlockKind {
        self.kind
    }

    /// The shape in numbers, in PyTorch's order.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The blocks, row after row.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            // The range was checked against the file.
            Bytes::Mapped(file, range) => &file[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The rows in another order: row `i` of the result is row `order(i)`, which must be a row.
    pub(super) fn rows(&self, order: impl Fn(usize) -> usize) -> Result<Self> {
        let rows = self.shape.iter().rev().skip(1).product::<usize>();
        let bytes = self.bytes();
        let width = bytes.len() / rows.max(1);
        let ordered = (0..rows).flat_map(|i| &bytes[order(i) * width..][..width]).copied().collect();
        Self::new(self.kind, self.shape.clone(), ordered)
    }

    /// The numbers of a format that is no packing: F32, F16 or BF16, which `dtype` must name.
    pub(super) fn dense(&self, dtype: DType) -> Result<Tensor> {
        Ok(Tensor::from_raw_buffer(self.bytes(), dtype, &self.shape, &Device::Cpu)?)
    }

    /// The numbers, as f32 on the CPU.
    pub fn dequantise(&self) -> Result<Tensor> {
        // candle wants aligned blocks, and a file may have them anywhere: a fresh copy is aligned.
        let bytes = self.bytes().to_vec();
        let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, self.kind)?;
        Ok(QTensor::new(storage, self.shape.as_slice())?.dequantize(&Device::Cpu)?)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("kind", &self.kind).field("shape", &self.shape).finish_non_exhaustive()
    }
}
