//! One query as a batch of one.

use crate::IndexError;

/// A filter on ids.
type Allow<'a, I> = Option<&'a (dyn Fn(I) -> bool + Sync)>;
/// A filter that is told which query it is asked for.
type BatchAllow<'a, I> = Option<&'a (dyn Fn(usize, I) -> bool + Sync)>;

/// What `batch` finds for `query`, which must have `dim` numbers.
pub(crate) fn search<I: 'static, T>(
    query: &[f32],
    dim: usize,
    allow: Allow<I>,
    batch: impl FnOnce(BatchAllow<I>) -> Result<Vec<Vec<T>>, IndexError>,
) -> Result<Vec<T>, IndexError> {
    if query.len() != dim {
        return Err(IndexError::Length { what: "query", found: query.len(), dim, many: false });
    }
    let mut found = match allow {
        None => batch(None)?,
        Some(allow) => batch(Some(&|_, id| allow(id)))?,
    };
    Ok(found.pop().unwrap_or_default())
}
