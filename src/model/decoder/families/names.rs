//! What a family calls the weights of a decoder.

use crate::model::place::{Place, Rows};

/// Names of layers; a block's are below `block.NUMBER`. What a family does not have is empty.
pub struct Names {
    pub embedding: &'static str,
    pub embedding_norm: &'static str,
    pub positions: &'static str,
    pub block: &'static str,
    pub attention_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub after_attention_norm: &'static str,
    pub feed_forward_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub after_feed_forward_norm: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    /// Whether the blocks' matrices are `[in, out]`.
    pub transposed: bool,
    /// Whether q, k and v are one layer, which all three names give.
    pub fused: Option<Fused>,
    /// Ends of names of tensors that are no weights, which old checkpoints have.
    pub ignored: &'static [&'static str],
}

/// How a layer holds q, k and v, all of one size.
#[derive(Clone, Copy)]
pub enum Fused {
    /// One after the other.
    InTurn,
    /// Those of the first head, then of the next.
    HeadByHead,
}

impl Names {
    /// A layer outside the blocks.
    pub fn layer(&self, name: &'static str) -> Place {
        Place::from(name)
    }

    /// A layer of block `i`.
    pub fn of_block(&self, i: usize, name: &'static str) -> Place {
        let place = Place::from(&format!("{}.{i}.{name}", self.block));
        Place { transposed: self.transposed, ..place }
    }

    /// The layers that give queries, keys and values in block `i`, of a decoder with `heads` heads.
    pub fn qkv(&self, i: usize, heads: usize) -> [Place; 3] {
        let mut places = [self.q, self.k, self.v].map(|name| self.of_block(i, name));
        if let Some(fused) = self.fused {
            let groups = match fused {
                Fused::InTurn => 1,
                Fused::HeadByHead => heads,
            };
            for (index, place) in places.iter_mut().enumerate() {
                place.rows = Some(Rows { groups, of: 3, index });
            }
        }
        places
    }
}
