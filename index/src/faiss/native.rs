//! What the faiss crate does not offer: searches from several threads at once, of as many threads as
//! the caller's pool has; a metric that it does not know; and what class an index is of.

use std::ffi::CStr;

use ::faiss::MetricType;
use ::faiss::index::IndexImpl;
use faiss_sys as sys;

unsafe extern "C" {
    /// Of OpenMP, which faiss is linked with: the threads that parallel work of this thread will use.
    fn omp_set_num_threads(threads: i32);
}

/// The labels of the `k` nearest of each query `[queries, dim]`; `[queries, k]`, -1 where there is none.
/// An error is what faiss says.
pub(super) fn search(
    index: &IndexImpl,
    queries: &[f32],
    dim: usize,
    k: usize,
    threads: usize,
) -> Result<Vec<i64>, String> {
    let count = queries.len() / dim;
    assert_eq!((dim, queries.len()), (::faiss::Index::d(index) as usize, count * dim));
    let mut labels = vec![-1i64; count * k];
    let mut scores = vec![0f32; count * k];
    // SAFETY: the index is alive; `queries` holds `count` vectors of its dimension (asserted above), and
    // `scores` and `labels` have `count * k` places each, borrowed mutably. A search does not change the
    // index: faiss promises that indexes on a CPU can be searched by several threads at once (the caller
    // sets no parameter meanwhile). Errors are returned as codes, not thrown.
    let code = unsafe {
        omp_set_num_threads(threads.clamp(1, i32::MAX as usize) as i32);
        sys::faiss_Index_search(
            index.inner_ptr(),
            count as i64,
            queries.as_ptr(),
            k as i64,
            scores.as_mut_ptr(),
            labels.as_mut_ptr(),
        )
    };
    if code == 0 {
        return Ok(labels);
    }
    // SAFETY: after an error faiss has a message for this thread, ended by a zero, that stays until its
    // next call; it is copied at once.
    let message = unsafe {
        let message = sys::faiss_get_last_error();
        (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned())
    };
    Err(message.unwrap_or_else(|| format!("error {code}")))
}

/// The metric of an index, where it is one of ours.
pub(super) fn metric(index: &IndexImpl) -> Option<MetricType> {
    // SAFETY: the index is alive; this reads one of its fields.
    MetricType::from_code(unsafe { sys::faiss_Index_metric_type(index.inner_ptr()) })
}

/// Whether an index is an inverted file, with nothing around it.
pub(super) fn is_ivf(index: &IndexImpl) -> bool {
    // SAFETY: the index is alive; this asks what class it is of.
    !unsafe { sys::faiss_IndexIVF_cast(index.inner_ptr()) }.is_null()
}
