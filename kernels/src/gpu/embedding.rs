//! The table of token embeddings.

use candle_core::{Result, Tensor};

use super::{Gpu, Number, by_dtype};
use crate::cuda;

/// See [`crate::embedding`]; `ids` are the tokens' numbers, all within the table, and `shape` is the result's.
pub fn embedding(table: &Tensor, ids: Vec<u32>, shape: Vec<usize>) -> Result<Tensor> {
    by_dtype!(table, T => gather::<T>(table, ids, shape))
}

fn gather<T: Number>(table: &Tensor, ids: Vec<u32>, shape: Vec<usize>) -> Result<Tensor> {
    let gpu = Gpu::of(table)?;
    let (vocabulary, dim) = table.dims2()?;
    let out = cuda::embedding(&gpu.kernels, &gpu.lend::<T>(table)?, &ids)?;
    let (of, table_in) = (gpu.clone(), table.clone());
    gpu.record(&[table], out, shape, move |_, grad| {
        let grad = of.lend::<T>(grad)?.reshaped(&[ids.len(), dim]);
        let dtable = cuda::embedding_backward(&of.kernels, vocabulary, &ids, &grad)?;
        Ok(vec![of.gradient(dtable, &table_in)?])
    })
}
