//! What is near to a vector.

use std::cmp::Ordering;

/// A node at a squared distance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Near {
    pub distance: f32,
    pub id: u32,
}

impl Near {
    pub fn order(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.id.cmp(&other.id))
    }
}
