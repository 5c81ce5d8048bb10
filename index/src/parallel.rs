//! When to use more threads than the caller's own.

use rayon::prelude::*;

/// `work` for every item, in order; on all threads of the pool only where `many`. To hand work to
/// another thread and wait for it takes some ten microseconds, in which a graph has been searched.
pub(crate) fn map<T: Send>(items: usize, many: bool, work: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    match many && items > 1 && rayon::current_num_threads() > 1 {
        true => (0..items).into_par_iter().map(work).collect(),
        false => (0..items).map(work).collect(),
    }
}
