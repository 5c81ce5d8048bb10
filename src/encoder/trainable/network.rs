//! The transformer encoders of [`Family`] as tensors, with gradients: the arithmetic of [`super::super::network`].

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, Activations, AttentionOptions, RelativeBias};

use super::super::config::{Config, Family};
use super::super::names::{self, Names};
use super::super::network::bucket;
use crate::error::Result;
use crate::model::layers::{
    Dropout, Embedding, FeedForward, Linear, Norm, NormConfig, NormKind, drop_at, split_heads,
};
use crate::model::place::{Place, Rows};
use crate::model::weights::{Start, Weights};

/// The network: embeddings, then post-norm transformer layers.
pub(super) struct Network {
    words: Embedding,
    /// Where the family has one: its rows from `first_position` on are those of tokens.
    positions: Option<Embedding>,
    /// `[types, hidden]`, of which all our text has the first.
    types: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
    /// `[buckets, heads]`
    relative: Option<Tensor>,
    config: Config,
}

#[derive(Clone)]
struct Layer {
    qkv: [Linear; 3],
    attention_out: Linear,
    attention_norm: Norm,
    feed_forward: FeedForward,
    norm: Norm,
}

impl Network {
    /// Takes the weights out of `w`, under names with this prefix.
    pub fn new(config: &Config, w: &mut Weights, prefix: &str) -> Result<Self> {
        let names = names::of(config.family);
        let (hidden, normal) = (config.hidden, Start::Normal(0.02));
        let of_rows = |name: &str| format!("{prefix}{}", name.trim_end_matches(".weight"));
        let words = Embedding::new(w, &of_rows(names::WORDS), config.vocab_size, hidden, normal.clone())?;
        let positions = match config.family {
            Family::NomicBert => None,
            _ => {
                let rows = config.first_position + config.tokens;
                Some(Embedding::new(w, &of_rows(names::POSITIONS), rows, hidden, normal.clone())?)
            }
        };
        let types = match config.types {
            0 => None,
            types => Some(w.get(&format!("{prefix}{}", names::TYPES), (types, hidden), normal.clone())?),
        };
        let layer_norm = NormConfig { kind: NormKind::Layer, eps: config.epsilon.into() };
        let norm = Norm::new(w, &format!("{prefix}{}", names.embedding_norm), hidden, layer_norm)?;
        let layers = (0..config.layers)
            .map(|i| Layer::new(config, names, w, &format!("{prefix}{}.{i}", names.layer), layer_norm))
            .collect::<Result<_>>()?;
        let relative = match config.buckets {
            0 => None,
            buckets => {
                Some(w.get(&format!("{prefix}{}", names::RELATIVE), (buckets, config.heads), normal)?)
            }
        };
        Ok(Self { words, positions, types, norm, layers, relative, config: config.clone() })
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        self.words.table().device()
    }

    /// The last hidden states `[batch, tokens, hidden]` of `tokens` `[batch, tokens]`; `mask`, of the same shape as
    /// `u8`, is 0 for padding after a text: nothing attends to it, and the states there mean nothing.
    pub fn forward(
        &self,
        tokens: &Tensor,
        mask: Option<&Tensor>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        self.forward_with(tokens, mask, dropout, |layer| {
            dropout.map(|dropout| dropout.part(1 + layer as u64))
        })
    }

    /// [`forward`](Self::forward) with a dropout for the embeddings, and one for each layer.
    fn forward_with(
        &self,
        tokens: &Tensor,
        mask: Option<&Tensor>,
        dropout: Option<Dropout>,
        of_layer: impl Fn(usize) -> Option<Dropout>,
    ) -> Result<Tensor> {
        let (_, n) = tokens.dims2()?;
        let device = tokens.device();
        let mut x = self.words.forward(tokens)?;
        if let Some(positions) = &self.positions {
            let first = self.config.first_position as u32;
            let places = Tensor::arange(first, first + n as u32, device)?;
            x = x.broadcast_add(&positions.forward(&places)?)?;
        }
        if let Some(types) = &self.types {
            x = x.broadcast_add(&types.narrow(0, 0, 1)?)?;
        }
        let angles = match self.config.family {
            Family::NomicBert => Some(self.angles(n, device)?),
            _ => None,
        };
        let relative = self.relative.as_ref().map(|table| self.columns(table, n)).transpose()?;
        let heads = self.config.heads;
        let scale = ((self.config.hidden / heads) as f32).powf(-0.5);
        let mut x = drop_at(dropout, self.norm.forward(&x)?, 0)?;
        for part in Activations::current().parts(0..self.layers.len()) {
            let dropouts: Vec<_> = part.clone().map(&of_layer).collect();
            let layers = self.layers[part].to_vec();
            let (angles, relative, mask) = (angles.clone(), relative.clone(), mask.cloned());
            x = kernels::checkpoint(&[&x], move |read| {
                let options = AttentionOptions {
                    key_mask: mask.as_ref(),
                    relative: relative.as_ref().map(|(table, buckets)| RelativeBias { table, buckets }),
                    ..AttentionOptions::scaled(scale)
                };
                layers.iter().zip(&dropouts).try_fold(read[0].clone(), |x, (layer, dropout)| {
                    layer.forward(&x, heads, angles.as_ref(), &options, *dropout)
                })
            })?;
        }
        Ok(x)
    }

    /// Cosines and sines `[tokens, dim / 2]`, in f32 as transformers has them.
    fn angles(&self, tokens: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let pairs = self.config.hidden / self.config.heads / 2;
        let angle = |i: usize| {
            let frequency = 1.0 / self.config.rotary_base.powf((i % pairs) as f32 / pairs as f32);
            (i / pairs) as f32 * frequency
        };
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = (0..tokens * pairs).map(|i| f(angle(i))).collect();
            Tensor::from_vec(values, (tokens, pairs), device)
        };
        Ok((table(f32::cos)?, table(f32::sin)?))
    }

    /// The relative bias of a text of `tokens`: the table `[heads, buckets]` and which column is whose.
    fn columns(&self, table: &Tensor, tokens: usize) -> Result<(Tensor, Tensor)> {
        let column = |i: usize| {
            let (query, key) = ((i / tokens) as i64, (i % tokens) as i64);
            bucket(key - query, self.config.buckets) as u32
        };
        let columns = (0..tokens * tokens).map(column).collect::<Vec<_>>();
        Ok((table.t()?.contiguous()?, Tensor::from_vec(columns, (tokens, tokens), table.device())?))
    }
}

impl Layer {
    fn new(config: &Config, names: &Names, w: &mut Weights, name: &str, norm: NormConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden, config.inner);
        let mut linear = |place: Place, input, output| {
            Linear::with_bias(w, place, input, output, Start::Normal(0.02), names.biased)
        };
        let whole = |part: &str| Place::from(&format!("{name}.{part}"));
        // Apart, or as thirds of one.
        let places: [Place; 3] = std::array::from_fn(|index| match names.qkv {
            [one] => Place { rows: Some(Rows { groups: 1, of: 3, index }), ..whole(one) },
            apart => whole(apart[index]),
        });
        let [q, k, v] = places;
        Ok(Self {
            qkv: [linear(q, hidden, hidden)?, linear(k, hidden, hidden)?, linear(v, hidden, hidden)?],
            attention_out: linear(whole(names.attention_out), hidden, hidden)?,
            feed_forward: FeedForward {
                gate: names.gate.map(|gate| linear(whole(gate), hidden, inner)).transpose()?,
                up: linear(whole(names.up), hidden, inner)?,
                down: linear(whole(names.down), inner, hidden)?,
                activation: config.activation,
            },
            attention_norm: Norm::new(w, whole(names.attention_norm), hidden, norm)?,
            norm: Norm::new(w, whole(names.norm), hidden, norm)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        heads: usize,
        angles: Option<&(Tensor, Tensor)>,
        options: &AttentionOptions,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let [q, k, v] = &self.qkv;
        let turned = |linear: &Linear| split_heads(&linear.forward(x)?, heads, angles);
        let attended = kernels::attention(
            &turned(q)?,
            &turned(k)?,
            &split_heads(&v.forward(x)?, heads, None)?,
            options,
        )?;
        let attended = kernels::merge_heads(&attended)?;
        let x = self.attention_norm.forward(&match dropout {
            None => self.attention_out.forward_add(&attended, x)?,
            Some(dropout) => (x + dropout.apply(&self.attention_out.forward(&attended)?, 0)?)?,
        })?;
        self.norm.forward(&match dropout {
            None => self.feed_forward.forward_add(&x, &x)?,
            Some(dropout) => (&x + dropout.apply(&self.feed_forward.forward(&x)?, 1)?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::folder::Files;
    use crate::encoder::settings::Settings;
    use crate::model::source::Source;

    #[test]
    fn dropout_reaches_every_layer() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder/bert_mean");
        let mut files = Files::open(folder.to_str().unwrap()).unwrap();
        let (config, _) = Settings::of_bert(&mut files, Family::Bert).unwrap();
        let mut weights = Weights::from_source(Source::open(&folder).unwrap(), &Device::Cpu);
        let network = Network::new(&config, &mut weights, "").unwrap();
        let tokens = Tensor::new(&[[5u32, 9, 13, 4, 30]], &Device::Cpu).unwrap();
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let dropout = Some(Dropout::new(0.3, 7));
        let all = values(network.forward(&tokens, None, dropout).unwrap());
        for spared in 0..config.layers {
            let of_layer =
                |layer: usize| dropout.filter(|_| layer != spared).map(|d| d.part(1 + layer as u64));
            let other = values(network.forward_with(&tokens, None, dropout, of_layer).unwrap());
            assert_ne!(all, other, "layer {spared}");
        }
    }
}
