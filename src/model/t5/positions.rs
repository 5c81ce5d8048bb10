//! T5's relative positions: a bias for every head that depends on how far a key is from the query, in buckets
//! that grow with the distance (Raffel et al. 2020, <https://arxiv.org/abs/1910.10683>, section 2.1).

use candle_core::Tensor;
use sidenote_kernels::{AttentionOptions, RelativeBias};

use super::config::T5Config;
use crate::error::Result;
use crate::model::weights::{Start, Weights};

/// The table of one stack, which all its blocks share.
pub(super) struct Positions {
    /// `[buckets, heads]`
    table: Tensor,
    bidirectional: bool,
    longest: usize,
}

impl Positions {
    /// Takes `name.weight`. An encoder looks both ways, a decoder back.
    pub fn new(config: &T5Config, w: &mut Weights, name: &str, bidirectional: bool) -> Result<Self> {
        let shape = (config.relative_attention_num_buckets, config.num_heads);
        let start = Start::Normal((config.d_model as f32).powf(-0.5));
        let longest = config.relative_attention_max_distance;
        Ok(Self { table: w.get(&format!("{name}.weight"), shape, start)?, bidirectional, longest })
    }

    /// The bias of the last `queries` of `keys` tokens.
    pub fn bias(&self, queries: usize, keys: usize) -> Result<Bias> {
        let (buckets, heads) = self.table.dims2()?;
        let first = keys - queries;
        // One bucket for each distance, from the last query's first key to the first query's last.
        let of: Vec<u32> = (0..keys + queries)
            .map(|i| bucket(i as i64 - keys as i64 + 1, self.bidirectional, buckets, self.longest))
            .collect();
        let rows = (0..queries).flat_map(|i| &of[keys - 1 - first - i..][..keys]).copied().collect();
        let columns = Tensor::from_vec(rows, (queries, keys), self.table.device())?;
        let table = self.table.t()?.contiguous()?;
        if table.track_op() {
            return Ok(Bias::Learned { table, columns });
        }
        let spread = table.index_select(&columns.flatten_all()?, 1)?;
        Ok(Bias::Fixed(spread.reshape((heads, queries, keys))?))
    }
}

/// What is added to the scores of all blocks of a stack.
#[derive(Clone)]
pub(super) enum Bias {
    /// `[heads, buckets]` and `[queries, keys]`: the table gets a gradient.
    Learned { table: Tensor, columns: Tensor },
    /// `[heads, queries, keys]`, spread once for all blocks where nothing is trained.
    Fixed(Tensor),
}

impl Bias {
    /// T5's attention, which does not divide by the root of the width.
    pub fn attention(&self) -> AttentionOptions<'_> {
        let plain = AttentionOptions::scaled(1.0);
        match self {
            Self::Learned { table, columns } => {
                AttentionOptions { relative: Some(RelativeBias { table, buckets: columns }), ..plain }
            }
            Self::Fixed(bias) => AttentionOptions { bias: Some(bias), ..plain },
        }
    }
}

/// The bucket of a key `distance` tokens after the query (before it, where negative): one each for small
/// distances, then wider and wider ones up to `longest`; bidirectional, the upper half of them is for keys after
/// the query. In `f32`, as the reference computes it, since some distances lie on the border of two buckets.
fn bucket(distance: i64, bidirectional: bool, buckets: usize, longest: usize) -> u32 {
    let (buckets, first, distance) = match bidirectional {
        true => (buckets / 2, if distance > 0 { buckets / 2 } else { 0 }, distance.unsigned_abs() as usize),
        false => (buckets, 0, (-distance).max(0) as usize),
    };
    let exact = buckets / 2;
    if distance < exact {
        return (first + distance) as u32;
    }
    let along = (distance as f32 / exact as f32).ln() / (longest as f64 / exact as f64).ln() as f32;
    let wide = exact + (along * (buckets - exact) as f32) as usize;
    (first + wide.min(buckets - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::t5::testing;

    /// The buckets of transformers for distances from -300 to 300.
    #[test]
    fn buckets_are_those_of_transformers() {
        for name in testing::CHECKPOINTS {
            let (config, golden) = (testing::config(name), testing::golden(name));
            for (key, bidirectional) in [("bidirectional", true), ("causal", false)] {
                let right: Vec<u32> = serde_json::from_value(golden["buckets"][key].clone()).unwrap();
                let (buckets, longest) =
                    (config.relative_attention_num_buckets, config.relative_attention_max_distance);
                for (distance, right) in (-300..).zip(right) {
                    assert_eq!(bucket(distance, bidirectional, buckets, longest), right, "{name} {distance}");
                }
            }
        }
    }

    #[test]
    fn the_last_queries_have_the_last_rows() {
        let config = testing::config("t5_v1_0");
        for trainable in [true, false] {
            let mut w = Weights::from_seed(1, &candle_core::Device::Cpu);
            w.set_trainable(trainable);
            for bidirectional in [true, false] {
                let positions = Positions::new(&config, &mut w, "table", bidirectional).unwrap();
                let spread = |queries: usize, keys: usize| match positions.bias(queries, keys).unwrap() {
                    Bias::Fixed(bias) => bias,
                    Bias::Learned { table, columns } => table
                        .index_select(&columns.flatten_all().unwrap(), 1)
                        .unwrap()
                        .reshape((config.num_heads, queries, keys))
                        .unwrap(),
                };
                let whole = spread(9, 9);
                for queries in [1, 4] {
                    let last = whole.narrow(1, 9 - queries, queries).unwrap();
                    let gap = (spread(queries, 9) - last).unwrap().abs().unwrap().sum_all().unwrap();
                    assert_eq!(gap.to_scalar::<f32>().unwrap(), 0.0);
                }
                let table = positions.table.to_vec2::<f32>().unwrap();
                let at = |head: usize, i: usize, j: usize| {
                    whole.get(head).unwrap().get(i).unwrap().get(j).unwrap().to_scalar::<f32>().unwrap()
                };
                assert_eq!(at(2, 5, 3), table[2][2]);
                assert_eq!(at(1, 3, 5), table[if bidirectional { 18 } else { 0 }][1]);
            }
        }
    }
}
