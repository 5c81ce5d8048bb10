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

/// A buffer that tasks fill side by side.
#[derive(Clone, Copy)]
pub struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: who writes promises to write where nobody else does (see `write`).
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// The buffer may be read again when nobody writes any more.
    pub fn new(buffer: &mut [f32]) -> Self {
        Self { data: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// The `len` elements from `at` on.
    ///
    /// # Safety
    /// The buffer still exists, and nobody else reads or writes these elements meanwhile.
    ///
    /// # Panics
    /// When they are not within the buffer.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that it is the only one")]
    pub unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at, "tasks write within the buffer");
        // SAFETY: within the buffer, and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }
}
