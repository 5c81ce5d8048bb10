//! The transformer encoders of [`Family`], inference only.
//!
//! Texts are not padded: a batch is the rows of all its texts one after the other, and only attention looks at
//! which text a row belongs to.

use sidenote_kernels::inference::{
    Activation, Offsets, PackedLinear, RoundedLinear, Threads, attend, layer_norm,
};

use super::config::{Config, Family};
use super::folder::Weights;
use super::names::{self, Names};
use super::product::Product;
use crate::error::Result;

/// Rows that go through a feed-forward layer together: what is between its halves then stays in a core's cache.
const ROWS: usize = 112;

/// The network: embeddings, then post-norm transformer layers.
pub(super) struct Network {
    hidden: usize,
    heads: usize,
    /// `[vocab, hidden]`.
    words: Vec<f32>,
    /// Added to a word by its place in the text, from the first on, `[tokens, hidden]`: position embedding plus
    /// the first token type's, which is the type of all our text. A single row is for every place.
    places: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    rotary: Option<Rotary>,
    relative: Option<Relative>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

struct Layer {
    /// Query, key and value in one product.
    qkv: Product,
    attention_out: Product,
    attention_norm: Norm,
    /// The activation is applied to what `gate` gives where there is one, else to what `up` gives.
    gate: Option<Product>,
    up: Product,
    activation: Activation,
    down: Product,
    norm: Norm,
}

/// Buffers that are used again from batch to batch.
#[derive(Default)]
pub(super) struct Scratch {
    qkv: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    gate: Vec<f32>,
    scores: Vec<f32>,
}

impl Network {
    /// Takes the tensors that Hugging Face's models write, with or without the prefix of those that have a head.
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let names = names::of(config.family);
        let reader = Reader { weights, prefix: names::prefix(|name| weights.has(name)), config };
        Ok(Self {
            hidden: config.hidden,
            heads: config.heads,
            words: reader.values(names::WORDS, &[config.vocab_size, config.hidden])?,
            places: reader.places()?,
            norm: reader.norm(names.embedding_norm)?,
            layers: (0..config.layers).map(|i| reader.layer(names, i)).collect::<Result<_>>()?,
            rotary: (config.family == Family::NomicBert).then(|| Rotary::new(config)),
            relative: match config.buckets {
                0 => None,
                buckets => {
                    Some(Relative::new(&reader.values(names::RELATIVE, &[buckets, config.heads])?, config))
                }
            },
        })
    }

    /// The last hidden states of some texts, `[all their tokens, hidden]`, one text after the other. None may be
    /// longer than the configuration's `tokens`, nor have an id that the vocabulary has not.
    pub fn forward(&self, texts: &[&[u32]], scratch: &mut Scratch, threads: Threads) -> Vec<f32> {
        let hidden = self.hidden;
        let mut x = Vec::with_capacity(texts.iter().map(|ids| ids.len() * hidden).sum());
        for ids in texts {
            for (place, &id) in ids.iter().enumerate() {
                let word = &self.words[id as usize * hidden..][..hidden];
                let place = if self.places.len() == hidden { 0 } else { place };
                x.extend(word.iter().zip(&self.places[place * hidden..]).map(|(word, place)| word + place));
            }
        }
        self.norm.apply(&mut x);
        for layer in &self.layers {
            self.attention(layer, texts, &mut x, scratch, threads);
            layer.attention_norm.apply(&mut x);
            for x in x.chunks_mut(ROWS * hidden) {
                layer.feed_forward(x, scratch, threads);
                layer.norm.apply(x);
            }
        }
        x
    }

    /// Adds each text's attention to itself to `x`.
    fn attention(
        &self,
        layer: &Layer,
        texts: &[&[u32]],
        x: &mut [f32],
        scratch: &mut Scratch,
        threads: Threads,
    ) {
        let (hidden, dim) = (self.hidden, self.hidden / self.heads);
        let Scratch { qkv, attended, scores, .. } = scratch;
        qkv.resize(3 * x.len(), 0.0);
        attended.resize(x.len(), 0.0);
        layer.qkv.forward(x, qkv, false, threads);
        let scale = 1.0 / (dim as f32).sqrt();
        let (mut qkv, mut out) = (&mut qkv[..], &mut attended[..]);
        for ids in texts {
            let (own_qkv, own_out);
            (own_qkv, qkv) = qkv.split_at_mut(3 * ids.len() * hidden);
            (own_out, out) = out.split_at_mut(ids.len() * hidden);
            if let Some(rotary) = &self.rotary {
                rotary.turn(own_qkv, hidden);
            }
            let bias = self.relative.as_ref().map(Relative::offsets);
            attend(own_qkv, self.heads, dim, scale, bias, own_out, scores);
        }
        layer.attention_out.forward(attended, x, true, threads);
    }
}

impl Layer {
    /// Adds to `x` what the feed-forward layer makes of it.
    fn feed_forward(&self, x: &mut [f32], scratch: &mut Scratch, threads: Threads) {
        let Scratch { inner, gate, .. } = scratch;
        let size = x.len() / self.up.input() * self.up.output();
        inner.resize(size, 0.0);
        self.up.forward(x, inner, false, threads);
        match &self.gate {
            None => self.activation.apply(inner),
            Some(layer) => {
                gate.resize(size, 0.0);
                layer.forward(x, gate, false, threads);
                self.activation.apply(gate);
                inner.iter_mut().zip(gate).for_each(|(x, gate)| *x *= *gate);
            }
        }
        self.down.forward(inner, x, true, threads);
    }
}

impl Norm {
    fn apply(&self, x: &mut [f32]) {
        layer_norm(x, &self.weight, &self.bias, self.epsilon);
    }
}

/// Takes tensors out of a file by the names after the prefix.
struct Reader<'a> {
    weights: &'a Weights<'a>,
    prefix: &'a str,
    config: &'a Config,
}

impl Reader<'_> {
    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weights.values(&self.full(name), shape)
    }

    /// Tensors of one shape, one after the other.
    fn all_values(&self, names: &[String], shape: &[usize]) -> Result<Vec<f32>> {
        Ok(names.iter().map(|name| self.values(name, shape)).collect::<Result<Vec<_>>>()?.concat())
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let values = |part: &str| self.values(&format!("{name}.{part}"), &[self.config.hidden]);
        Ok(Norm { weight: values("weight")?, bias: values("bias")?, epsilon: self.config.epsilon })
    }

    /// Layers that read the same, side by side as one.
    fn linear(&self, names: &[String], biased: bool, input: usize, output: usize) -> Result<Product> {
        let part = output / names.len();
        let each = |end: &str| names.iter().map(|name| format!("{name}.{end}")).collect::<Vec<_>>();
        let weights = each("weight");
        let rounded = weights.iter().map(|name| self.weights.rounded(&self.full(name), [part, input]));
        let rounded = rounded.collect::<Result<Vec<_>>>()?;
        let is_rounded = rounded.iter().all(Option::is_some);
        let (codes, scales): (Vec<_>, Vec<_>) = rounded.into_iter().flatten().unzip();
        let weight = if is_rounded { Vec::new() } else { self.all_values(&weights, &[part, input])? };
        let bias = if biased { Some(self.all_values(&each("bias"), &[part])?) } else { None };
        let bias = bias.as_deref();
        Ok(match is_rounded {
            true => {
                Product::Rounded(RoundedLinear::new(&codes.concat(), &scales.concat(), bias, input, output))
            }
            false => Product::Numbers(PackedLinear::new(&weight, bias, input, output)),
        })
    }

    fn layer(&self, names: &Names, i: usize) -> Result<Layer> {
        let (hidden, inner) = (self.config.hidden, self.config.inner);
        let full = |name: &str| format!("{}.{i}.{name}", names.layer);
        let linear = |name: &str, input, output| self.linear(&[full(name)], names.biased, input, output);
        let qkv: Vec<String> = names.qkv.iter().map(|name| full(name)).collect();
        Ok(Layer {
            qkv: self.linear(&qkv, names.biased, hidden, 3 * hidden)?,
            attention_out: linear(names.attention_out, hidden, hidden)?,
            attention_norm: self.norm(&full(names.attention_norm))?,
            gate: names.gate.map(|name| linear(name, hidden, inner)).transpose()?,
            up: linear(names.up, hidden, inner)?,
            activation: self.config.activation,
            down: linear(names.down, inner, hidden)?,
            norm: self.norm(&full(names.norm))?,
        })
    }

    /// What is added to a word by its place; see [`Network`].
    fn places(&self) -> Result<Vec<f32>> {
        let Config { family, hidden, tokens, first_position, types, .. } = *self.config;
        let mut places = vec![0.0; hidden];
        if family != Family::NomicBert {
            let rows = first_position + tokens;
            places = self.values(names::POSITIONS, &[rows, hidden])?;
            places.drain(..first_position * hidden);
        }
        if types > 0 {
            let types = self.values(names::TYPES, &[types, hidden])?;
            for row in places.chunks_exact_mut(hidden) {
                row.iter_mut().zip(&types).for_each(|(x, of_type)| *x += of_type);
            }
        }
        Ok(places)
    }
}

/// Rotary positions (Su et al. 2021, <https://arxiv.org/abs/2104.09864>, equation 34), the halves of a head as pairs.
struct Rotary {
    /// Cosine and sine of each place and pair, `[tokens, dim / 2]`.
    turns: Vec<(f32, f32)>,
    pairs: usize,
}

impl Rotary {
    fn new(config: &Config) -> Self {
        let pairs = config.hidden / config.heads / 2;
        let turn = |place: usize, pair: usize| {
            // In f32, as transformers has it.
            let frequency = 1.0 / config.rotary_base.powf(pair as f32 / pairs as f32);
            let (sin, cos) = (place as f32 * frequency).sin_cos();
            (cos, sin)
        };
        let turns = (0..config.tokens).flat_map(|place| (0..pairs).map(move |pair| turn(place, pair)));
        Self { turns: turns.collect(), pairs }
    }

    /// Turns the queries and keys in `[tokens, 3 * hidden]` by their places.
    fn turn(&self, qkv: &mut [f32], hidden: usize) {
        for (row, turns) in qkv.chunks_exact_mut(3 * hidden).zip(self.turns.chunks_exact(self.pairs)) {
            for head in row[..2 * hidden].chunks_exact_mut(2 * self.pairs) {
                let (first, second) = head.split_at_mut(self.pairs);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// A bias for each head and distance, spread out from buckets of distances (Raffel et al. 2020,
/// <https://arxiv.org/abs/1910.10683>, section 2.1).
struct Relative {
    /// `[heads, width]`.
    values: Vec<f32>,
    width: usize,
    centre: usize,
}

impl Relative {
    /// `table` is `[buckets, heads]`.
    fn new(table: &[f32], config: &Config) -> Self {
        let (centre, width) = (config.tokens - 1, 2 * config.tokens - 1);
        let bucket = |at: usize| bucket(at as i64 - centre as i64, config.buckets);
        let head = |head: usize| (0..width).map(move |at| table[bucket(at) * config.heads + head]);
        Self { values: (0..config.heads).flat_map(head).collect(), width, centre }
    }

    fn offsets(&self) -> Offsets<'_> {
        Offsets { values: &self.values, width: self.width, centre: self.centre }
    }
}

/// The bucket of the distance from query to key: half of them for keys before, half for those after; of each half
/// half for one distance each, the others for distances that grow as powers up to 128, the last for all beyond.
pub(super) fn bucket(distance: i64, buckets: usize) -> usize {
    const FARTHEST: f32 = 128.0;
    let half = buckets / 2;
    let (side, far) = (if distance > 0 { half } else { 0 }, distance.unsigned_abs() as usize);
    let exact = half / 2;
    if far < exact {
        return side + far;
    }
    let steps = (far as f32 / exact as f32).ln() / (FARTHEST / exact as f32).ln() * (half - exact) as f32;
    side + (exact + steps as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_transformers() {
        // MPNetEncoder.relative_position_bucket at these distances.
        for (distance, expected) in [
            (0, 0),
            (1, 17),
            (-1, 1),
            (7, 23),
            (-8, 8),
            (12, 25),
            (-16, 10),
            (40, 28),
            (-100, 15),
            (127, 31),
            (128, 31),
            (-500, 15),
        ] {
            assert_eq!(bucket(distance, 32), expected, "distance {distance}");
        }
    }
}
