//! When to use more threads than the caller's own.

use rayon::prelude::*;

/// Queries that one task answers.
const QUERIES: usize = 8;

/// `work` for each query of `[queries, dim]` and its place among them, with room made by `init` for one
/// query after the other.
pub(crate) fn each_query<'q, R, T: Send>(
    queries: &'q [f32],
    dim: usize,
    init: impl Fn() -> R + Send + Sync,
    work: impl Fn(&mut R, usize, &'q [f32]) -> T + Send + Sync,
) -> Vec<T> {
    let chunk = |chunk: usize| {
        let mut room = init();
        let first = chunk * QUERIES;
        let queries = queries[first * dim..].chunks_exact(dim).take(QUERIES);
        (first..).zip(queries).map(|(place, query)| work(&mut room, place, query)).collect::<Vec<_>>()
    };
    map((queries.len() / dim).div_ceil(QUERIES), true, chunk).into_iter().flatten().collect()
}

/// `work` on each item, some tasks' worth of which are given to other threads.
pub(crate) fn each_mut<T: Send>(items: &mut [T], work: impl Fn(&mut T) + Send + Sync) {
    if items.len() > QUERIES && rayon::current_num_threads() > 1 {
        items.par_chunks_mut(QUERIES).for_each(|items| items.iter_mut().for_each(&work));
    } else {
        items.iter_mut().for_each(work);
    }
}

/// `work` for every item, in order; on all threads of the pool only where `many`. To hand work to
/// another thread and wait for it takes some ten microseconds, in which a graph has been searched.
pub(crate) fn map<T: Send>(items: usize, many: bool, work: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    match many && items > 1 && rayon::current_num_threads() > 1 {
        true => (0..items).into_par_iter().map(work).collect(),
        false => (0..items).map(work).collect(),
    }
}
