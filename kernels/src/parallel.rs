//! Work over the rows of a buffer, split the same way on any number of threads.

use rayon::prelude::*;

/// About how many elements one task handles.
const GRAIN: usize = 16 * 1024;

/// How many rows of `width` elements one task handles.
pub fn rows_per_task(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// Calls `work(first element, piece)` for pieces of `out` of whole rows of `width` elements.
pub fn for_pieces(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let piece = rows_per_task(width) * width.max(1);
    if out.len() <= piece {
        return work(0, out);
    }
    out.par_chunks_mut(piece).enumerate().for_each(|(i, out)| work(i * piece, out));
}

/// The same over two buffers of equal length.
pub fn for_pieces2(
    a: &mut [f32],
    b: &mut [f32],
    width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let piece = rows_per_task(width) * width.max(1);
    if a.len() <= piece {
        return work(0, a, b);
    }
    let pieces = a.par_chunks_mut(piece).zip(b.par_chunks_mut(piece));
    pieces.enumerate().for_each(|(i, (a, b))| work(i * piece, a, b));
}
