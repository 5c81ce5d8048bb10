//! Where tokens stand, as the blocks are told: angles of the rotary embedding, rows of a learned one, ALiBi.

use std::f64::consts::TAU;

use candle_core::{Device, Tensor};

use super::config::{DecoderConfig, Rotary, Scaling};
use super::taken::Taken;
use crate::error::{Error, Result};
use crate::model::cache::Cache;
use crate::model::layers::Embedding;

/// Where the next tokens stand in their sequences: what all blocks need to read them.
#[derive(Clone)]
pub struct Places {
    /// Cosines and sines, `[tokens, dim / 2]` or `[batch, tokens, dim / 2]`, in most blocks and in those with a
    /// window.
    pub(super) angles: Option<[(Tensor, Tensor); 2]>,
    /// Rows of the learned embedding, `[tokens]` or `[batch, tokens]`.
    pub(super) learned: Option<Tensor>,
    /// ALiBi's bias, `[heads, queries, keys]`.
    pub(super) bias: Option<Tensor>,
    /// 0 for padding, `[batch, keys]`.
    pub(super) key_mask: Option<Tensor>,
    /// Where the text of each token begins, `[1, tokens]`, of several in a row.
    pub(super) starts: Option<Tensor>,
    /// Where what is taken is noted.
    pub(super) taken: Option<Taken>,
}

/// What a decoder has to tell positions by.
#[derive(Clone)]
pub(super) enum Seen {
    /// Frequencies in most blocks, and in those with a window.
    Rotary(Frequencies, Frequencies),
    /// A table, which begins with `offset` rows that are no position's.
    Learned { table: Embedding, offset: usize },
    /// ALiBi's slopes, one a head.
    Alibi(Vec<f32>),
}

impl Places {
    pub(super) fn new(
        seen: &Seen,
        config: &DecoderConfig,
        cache: &Cache,
        tokens: usize,
        device: &Device,
    ) -> Result<Self> {
        let mut places = Self::at(seen, config, &cache.positions(tokens), device)?;
        places.key_mask = cache.key_mask(tokens, device)?;
        // Only differences of distances matter, so padding need not be counted out.
        if let Seen::Alibi(slopes) = seen {
            places.bias = Some(alibi(slopes, tokens, cache.tokens() + tokens, device)?);
        }
        Ok(places)
    }

    /// Those of texts of so many tokens that stand one after another in a row.
    pub(super) fn in_a_row(
        seen: &Seen,
        config: &DecoderConfig,
        lengths: &[usize],
        device: &Device,
    ) -> Result<Self> {
        if matches!(seen, Seen::Alibi(_)) {
            let why = "is not done for models with ALiBi, whose bias would be as large as all texts squared";
            return Err(Error::setting("tune.packing", why));
        }
        let positions: Vec<u32> = lengths.iter().flat_map(|length| 0..*length as u32).collect();
        let mut places = Self::at(seen, config, &[positions], device)?;
        let mut first = 0;
        let mut starts = Vec::new();
        for length in lengths {
            starts.resize(starts.len() + length, first as u32);
            first += length;
        }
        places.starts = Some(Tensor::from_vec(starts, (1, first), device)?);
        Ok(places)
    }

    /// Angles, or rows of the table, of `positions`.
    fn at(seen: &Seen, config: &DecoderConfig, positions: &[Vec<u32>], device: &Device) -> Result<Self> {
        let mut places =
            Self { angles: None, learned: None, bias: None, key_mask: None, starts: None, taken: None };
        match seen {
            Seen::Rotary(global, local) => {
                places.angles = Some([global.at(positions, device)?, local.at(positions, device)?]);
            }
            Seen::Learned { offset, .. } => {
                let longest = config.max_position_embeddings;
                let at = |position: &u32| match *position as usize {
                    position if position < longest => Ok((position + offset) as u32),
                    position => {
                        let why =
                            format!("the model has {longest} positions, from 0; there is no {position}");
                        Err(Error::setting("max_position_embeddings", why))
                    }
                };
                let rows: Vec<u32> = positions.iter().flatten().map(at).collect::<Result<_>>()?;
                places.learned = Some(Tensor::from_vec(rows, shape(positions), device)?);
            }
            Seen::Alibi(_) => {}
        }
        Ok(places)
    }
}

/// Angles of the rotary embedding for a position of 1, `[dim / 2]`.
#[derive(Clone)]
pub struct Frequencies(Vec<f32>);

impl Frequencies {
    /// Those of most blocks.
    pub fn new(rotary: &Rotary) -> Self {
        Self::stretched(rotary.dim, rotary.theta, rotary.scaling)
    }

    /// Those of the blocks with a window.
    pub fn local(rotary: &Rotary) -> Self {
        match rotary.local_theta {
            Some(theta) => Self::stretched(rotary.dim, theta, Scaling::None),
            None => Self::new(rotary),
        }
    }

    fn stretched(dim: usize, theta: f64, scaling: Scaling) -> Self {
        let plain = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64));
        Self(plain.map(|frequency| stretch(frequency, scaling) as f32).collect())
    }

    /// Cosines and sines of positions, `[tokens, dim / 2]` for one list, `[rows, tokens, dim / 2]` for more.
    fn at(&self, positions: &[Vec<u32>], device: &Device) -> Result<(Tensor, Tensor)> {
        let positions_in_turn = || positions.iter().flatten();
        let angles = || positions_in_turn().flat_map(|p| self.0.iter().map(move |f| *p as f32 * f));
        let shape = [&shape(positions)[..], &[self.0.len()]].concat();
        let cos = Tensor::from_vec(angles().map(f32::cos).collect::<Vec<_>>(), shape.clone(), device)?;
        Ok((cos, Tensor::from_vec(angles().map(f32::sin).collect::<Vec<_>>(), shape, device)?))
    }
}

/// `[tokens]` for one list of positions, `[rows, tokens]` for more.
fn shape(positions: &[Vec<u32>]) -> Vec<usize> {
    let tokens = positions.first().map_or(0, Vec::len);
    if positions.len() == 1 { vec![tokens] } else { vec![positions.len(), tokens] }
}

fn stretch(frequency: f64, scaling: Scaling) -> f64 {
    match scaling {
        Scaling::None => frequency,
        Scaling::Linear { factor } => frequency / factor,
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            // How often it turns within the length of old, between the two factors 0 to 1.
            let turns = original_max_position_embeddings * frequency / TAU;
            let share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let share = share.clamp(0.0, 1.0);
            (1.0 - share) * frequency / factor + share * frequency
        }
    }
}

/// ALiBi's slopes, one a head: a geometric sequence from `2^(-8 / heads)` on, filled up from that of twice as many
/// heads where their number is no power of 2 (as in BLOOM).
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let sequence = |heads: usize| (1..=heads).map(move |i| (-8.0 * i as f64 / heads as f64).exp2() as f32);
    let whole = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    sequence(whole).chain(sequence(2 * whole).step_by(2)).take(heads).collect()
}

/// ALiBi's bias `[heads, queries, keys]` for the last `queries` of `keys` tokens.
fn alibi(slopes: &[f32], queries: usize, keys: usize, device: &Device) -> Result<Tensor> {
    let distance = |i: usize, j: usize| j as f32 - (keys - queries + i) as f32;
    let bias: Vec<f32> = slopes
        .iter()
        .flat_map(|slope| (0..queries).flat_map(move |i| (0..keys).map(move |j| slope * distance(i, j))))
        .collect();
    Ok(Tensor::from_vec(bias, (slopes.len(), queries, keys), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_alibi() {
        assert_eq!(alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        // Of the sequence of 8 heads every second.
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        let bias = alibi(&[0.5], 1, 3, &Device::Cpu).unwrap().flatten_all().unwrap();
        assert_eq!(bias.to_vec1::<f32>().unwrap(), [-1.0, -0.5, 0.0]);
    }

    #[test]
    fn llama3_leaves_high_frequencies_and_divides_low_ones() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let high = 0.1;
        assert_eq!(stretch(high, scaling), high);
        let low = 1e-5;
        assert_eq!(stretch(low, scaling), low / 8.0);
        let between = stretch(2.0 * TAU / 8192.0, scaling);
        assert!(between > 2.0 * TAU / 8192.0 / 8.0 && between < 2.0 * TAU / 8192.0);
    }
}
