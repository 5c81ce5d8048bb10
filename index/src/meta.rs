//! What the manifest of an index says.

use serde::{Deserialize, Serialize};

use crate::hnsw::GraphMeta;
use crate::{Metric, Spec};

/// The artefact's kind.
pub(crate) const KIND: &str = "vector-index";
/// Version of what the manifest and the data files hold.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// The versions that are read. In the first, codes were laid out in another way.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = 1..=FORMAT_VERSION;
/// The rows `[rows, dim]`.
pub(crate) const VECTORS: &str = "vectors.f32";

/// The `meta` of the manifest.
#[derive(Serialize, Deserialize)]
pub(crate) struct Meta {
    pub rows: usize,
    pub dim: usize,
    pub metric: Metric,
    pub spec: Spec,
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<GraphMeta>,
}
