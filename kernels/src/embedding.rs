//! The table of token embeddings.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible, on_gpu, record};
use crate::backward::accumulate;
use crate::composed;
use crate::parallel::for_pieces;
use crate::simd::add;

/// Into how many parts the table is cut where gradients are added up.
const PARTS: usize = 16;

/// The rows of `table` that `tokens` name.
///
/// `table` is `[vocabulary, dim]` and gets a gradient, in which the gradients of equal tokens are added up in
/// the order of the tokens; `tokens` is `[..]` as `u32`, the result `[.., dim]`.
///
/// # Errors
/// When the shapes do not fit together or a token lies outside the vocabulary.
pub fn embedding(table: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let (vocabulary, dim) = table.dims2()?;
    if tokens.dtype() != DType::U32 {
        bail!("embedding: tokens are {:?}, expected u32", tokens.dtype());
    }
    let ids = || -> Result<Vec<u32>> {
        let ids = tokens.flatten_all()?.to_vec1::<u32>()?;
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocabulary) {
            bail!("embedding: token {} at {at} is outside the vocabulary of {vocabulary}", ids[at]);
        }
        Ok(ids)
    };
    let mut shape = tokens.dims().to_vec();
    shape.push(dim);
    on_gpu!(crate::gpu::takes(&[table]) && tokens.elem_count() > 0 => crate::gpu::embedding(table, ids()?, shape));
    if !fusible(&[table]) {
        return composed::embedding(table, tokens);
    }
    let ids = ids()?;
    let table = table.contiguous()?;
    let mut out = vec![0f32; ids.len() * dim];
    if dim > 0 {
        let table = View::of(&table)?;
        let table = &table[..];
        for_pieces(&mut out, dim, |at, out| {
            for (out, &id) in out.chunks_exact_mut(dim).zip(&ids[at / dim..]) {
                out.copy_from_slice(&table[id as usize * dim..][..dim]);
            }
        });
    }
    let table_in = table.clone();
    record(&[&table], out, shape, move |_, grad| {
        let grad = View::of(grad)?;
        let grad = &grad[..];
        let gradient = accumulate(&table_in, |there| {
            let mut dtable = there.unwrap_or_else(|| vec![0f32; vocabulary * dim]);
            if dtable.is_empty() {
                return dtable;
            }
            // Every part of the table looks for its own tokens.
            let part = vocabulary.div_ceil(PARTS);
            dtable.par_chunks_mut(part * dim).enumerate().for_each(|(i, dtable)| {
                for (row, &id) in ids.iter().enumerate() {
                    let at = (id as usize).wrapping_sub(i * part);
                    if at < part {
                        add(&mut dtable[at * dim..][..dim], &grad[row * dim..][..dim]);
                    }
                }
            });
            dtable
        });
        Ok(vec![gradient?])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    #[test]
    fn embedding_is_right() {
        for (vocabulary, dim, shape) in
            [(1usize, 1usize, &[1usize][..]), (7, 3, &[2, 5]), (129, 33, &[3, 71]), (40, 5, &[0, 3])]
        {
            let n: usize = shape.iter().product();
            let ids: Vec<u32> = (0..n).map(|i| (i * i % vocabulary) as u32).collect();
            let tokens = Tensor::from_vec(ids, shape, &Device::Cpu).unwrap();
            let op = |t: &[Tensor]| embedding(&t[0], &tokens);
            let inputs = [random(&[vocabulary, dim], 1)];
            if vocabulary < 10 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-6, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
        let tokens = Tensor::new(&[0u32, 5], &Device::Cpu).unwrap();
        let error = embedding(&random(&[5, 2], 1), &tokens).unwrap_err().to_string();
        assert!(error.contains("token 5 at 1"), "{error}");
    }
}
