//! Rows of a table, `cuda/embedding.cu`.

use candle_core::{Result, bail};

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};

const THREADS: u32 = 128;

/// [`crate::embedding`]: rows `ids` of `table`, which is `[vocabulary, width]`; the result is `[ids, width]`.
///
/// # Errors
/// When an id is not in the table.
pub fn embedding<T: Storage>(device: &Device, table: &Tensor<T>, ids: &[u32]) -> Result<Tensor<T>> {
    let &[vocabulary, width] = table.dims() else {
        bail!("embedding: the table is [vocabulary, width], not {:?}", table.dims());
    };
    check(ids, vocabulary, width)?;
    let out = device.unwritten(&[ids.len(), width])?;
    let (on_device, columns) = (device.upload_slice(ids)?, size(width)?);
    let name = format!("embedding_forward_{}", T::NAME);
    let blocks = grid(ids.len(), 1, THREADS)?;
    // SAFETY: the arguments are the kernel's, and every id is a row of the table.
    unsafe { launch!(device, Source::Embedding, &name, blocks, table, on_device, out, columns) };
    Ok(out)
}

/// The gradient of a table of `vocabulary` rows in [`embedding`]; `grad` is `[ids, width]`. An id's rows are added up in
/// the order of the ids.
///
/// # Errors
/// When the shapes do not fit together.
pub fn embedding_backward<T: Storage>(
    device: &Device,
    vocabulary: usize,
    ids: &[u32],
    grad: &Tensor<T>,
) -> Result<Tensor<T>> {
    let &[rows, width] = grad.dims() else {
        bail!("embedding: the gradient is [ids, width], not {:?}", grad.dims())
    };
    if rows != ids.len() {
        bail!("embedding: a gradient of {rows} rows for {} ids", ids.len());
    }
    check(ids, vocabulary, width)?;
    let mut order: Vec<u32> = (0..size(rows)? as u32).collect();
    order.sort_by_key(|&place| ids[place as usize]); // stable
    let mut starts: Vec<u32> = (0..rows)
        .filter(|&n| n == 0 || ids[order[n] as usize] != ids[order[n - 1] as usize])
        .map(|n| n as u32)
        .collect();
    let segments = starts.len();
    starts.push(rows as u32);

    let out = device.zeros(&[vocabulary, width])?;
    let (ids, order, starts) =
        (device.upload_slice(ids)?, device.upload_slice(&order)?, device.upload_slice(&starts)?);
    let columns = size(width)?;
    let name = format!("embedding_backward_{}", T::NAME);
    let blocks = grid(segments, 1, THREADS)?;
    // SAFETY: the arguments are the kernel's; ids, order and segments stay within their arrays.
    unsafe { launch!(device, Source::Embedding, &name, blocks, grad, ids, order, starts, out, columns) };
    Ok(out)
}

fn check(ids: &[u32], vocabulary: usize, width: usize) -> Result<()> {
    if ids.is_empty() || width == 0 {
        bail!("embedding: no ids, or rows of no width");
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!("embedding: id {id} in a table of {vocabulary} rows");
    }
    Ok(())
}
