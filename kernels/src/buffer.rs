//! Buffers that a thread uses again.

use std::cell::Cell;
use std::thread::LocalKey;

/// Takes this thread's buffer, at least `len` long, for the duration of `work`. Taken, not borrowed: a
/// thread that waits for others may begin another product meanwhile, which then finds none and makes one.
pub fn with_buffer<N: Clone + Default, T>(
    buffer: &'static LocalKey<Cell<Vec<N>>>,
    len: usize,
    work: impl FnOnce(&mut [N]) -> T,
) -> T {
    let mut taken = buffer.take();
    if taken.len() < len {
        taken.resize(len, N::default());
    }
    let result = work(&mut taken[..len]);
    buffer.set(taken);
    result
}
