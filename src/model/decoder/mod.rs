//! Decoder-only transformers of many families: one network, which [`DecoderConfig`] describes, and for each family
//! a file that reads and writes its checkpoints.

use std::ops::Range;

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, Activations};

use super::cache::Cache;
use super::generate::{Autoregressive, left_padded};
use super::layers::{Embedding, Linear, Norm};
use super::weights::{Start, Weights};
use crate::error::{Error, Result};
use places::{Frequencies, Seen};

mod block;
mod config;
mod families;
mod family;
mod places;
mod taken;
#[cfg(test)]
mod tests;

pub use block::Block;
pub use config::{DecoderConfig, NormConfig, NormKind, Positions, Rotary, Scaling, Window};
pub use family::Family;
pub use places::Places;

/// What an adapter puts before every text.
#[derive(Clone)]
enum Lead {
    /// Embeddings, `[tokens, d]`.
    Prompt(Tensor),
    /// Keys and values of every block, `[tokens, blocks * 2 * kv_heads * head_dim]`.
    Prefix(Tensor),
}

impl Lead {
    fn take(config: &DecoderConfig, w: &mut Weights) -> Result<Option<Self>> {
        let Some(attached) = w.attached() else { return Ok(None) };
        let width = config.num_key_value_heads * config.head_dim;
        let lead = match attached.prompt(config.hidden_size)? {
            Some(prompt) => Some(Self::Prompt(prompt)),
            None => attached.prefix(config.num_hidden_layers * 2 * width)?.map(Self::Prefix),
        };
        let by_distance = matches!(config.positions, Positions::Alibi)
            || (0..config.num_hidden_layers).any(|i| config.window_of(i).is_some());
        if lead.is_some() && by_distance {
            let why = "prompt and prefix tuning are not done for models with ALiBi or a window";
            return Err(Error::setting("adapter.method", why));
        }
        Ok(lead)
    }

    fn tokens(&self) -> usize {
        match self {
            Self::Prompt(tokens) | Self::Prefix(tokens) => tokens.dims()[0],
        }
    }
}

/// A decoder: embeddings, blocks, a last norm and an output head.
#[derive(Clone)]
pub struct Decoder {
    config: DecoderConfig,
    embedding: Embedding,
    embedding_norm: Option<Norm>,
    positions: Seen,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    lead: Option<Lead>,
}

impl Decoder {
    /// Takes the weights out of `w`, under the names that the family gives them.
    pub fn new(config: &DecoderConfig, w: &mut Weights) -> Result<Self> {
        config.check()?;
        let names = config.family.names();
        let (d, vocabulary) = (config.hidden_size, config.vocab_size);
        w.ignore(names.ignored);
        // With a tied head, this scale makes the first logits about as wide as a normal variable.
        let start = Start::Normal((d as f32).powf(-0.5));
        let embedding = Embedding::new(w, names.layer(names.embedding), vocabulary, d, start.clone())?;
        let embedding_norm = match config.embedding_norm {
            true => Some(Norm::new(w, names.layer(names.embedding_norm), d, config.norm)?),
            false => None,
        };
        let positions = match &config.positions {
            Positions::Rotary(rotary) => Seen::Rotary(Frequencies::new(rotary), Frequencies::local(rotary)),
            Positions::Learned { offset } => {
                let rows = config.max_position_embeddings + offset;
                let table = Embedding::new(w, names.layer(names.positions), rows, d, start.clone())?;
                Seen::Learned { table, offset: *offset }
            }
            Positions::Alibi => Seen::Alibi(places::alibi_slopes(config.num_attention_heads)),
        };
        let blocks =
            (0..config.num_hidden_layers).map(|i| Block::new(config, w, i)).collect::<Result<_>>()?;
        let norm = Norm::new(w, names.layer(names.norm), d, config.norm)?;
        let head = match config.tie_word_embeddings {
            true => {
                // Some files hold the table a second time.
                w.ignore(&["lm_head.weight"]);
                Linear::of(embedding.table().clone())
            }
            false => Linear::new(w, names.layer(names.head), d, vocabulary, start)?,
        };
        let lead = Lead::take(config, w)?;
        Ok(Self { config: config.clone(), embedding, embedding_norm, positions, blocks, norm, head, lead })
    }

    /// What the decoder looks like.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.embedding.table().device()
    }

    /// Embeds tokens of any shape `[..]` to `[.., d]`, wherever they are.
    pub fn embed(&self, tokens: &Tensor) -> Result<Tensor> {
        let mut h = self.embedding.forward(tokens)?;
        if let Some(scale) = self.config.embedding_scale {
            h = (h * scale)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(&h),
            None => Ok(h),
        }
    }

    /// Where the next `tokens` tokens stand after what the cache holds.
    ///
    /// # Errors
    /// When a learned position is beyond the last.
    pub fn places(&self, cache: &Cache, tokens: usize) -> Result<Places> {
        Places::new(&self.positions, &self.config, cache, tokens, self.device())
    }

    /// Embeds `tokens` `[batch, tokens]` at their places: what the first block reads.
    pub fn begin(&self, tokens: &Tensor, places: &Places) -> Result<Tensor> {
        let h = self.embed(tokens)?;
        match (&self.positions, &places.learned) {
            (Seen::Learned { table, .. }, Some(rows)) => Ok(h.broadcast_add(&table.forward(rows)?)?),
            _ => Ok(h),
        }
    }

    /// The blocks, first to last.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Reads `tokens` `[batch, tokens]` after what the cache holds, and gives the hidden states
    /// before the output head, `[batch, tokens, d]`.
    pub fn forward(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        Ok(self.run(tokens, cache)?.0)
    }

    /// Places of texts of so many tokens that stand one after another in a row, and do not see each other: each is read as it would
    /// be by itself.
    ///
    /// # Errors
    /// A decoder with ALiBi, whose bias would be as large as all texts squared, or with an adapter that puts tokens before each text.
    pub fn places_in_a_row(&self, lengths: &[usize]) -> Result<Places> {
        self.check_bare("tune.packing")?;
        Places::in_a_row(&self.positions, &self.config, lengths, self.device())
    }

    /// Refuses an adapter that puts tokens before each text, under the name of the `setting` that cannot have it.
    ///
    /// # Errors
    /// There is one.
    pub fn check_bare(&self, setting: &str) -> Result<()> {
        match self.lead {
            None => Ok(()),
            Some(_) => Err(Error::setting(setting, "is not done with prompt and prefix tuning")),
        }
    }

    /// [`forward`](Self::forward), and what the last block's feed-forward layer read, `[batch, tokens, d]`: the contexts
    /// that token-level memories are keyed by.
    pub fn forward_with_contexts(&self, tokens: &Tensor, cache: &mut Cache) -> Result<(Tensor, Tensor)> {
        let (hidden, last) = self.run(tokens, cache)?;
        Ok((hidden, self.context_of(&last)?))
    }

    /// What the last block's feed-forward layer reads of the states `[batch, tokens, d]` before it.
    pub(in crate::model) fn context_of(&self, before: &Tensor) -> Result<Tensor> {
        match self.blocks.last() {
            Some(block) => block.feed_forward_input(before),
            None => Ok(before.clone()),
        }
    }

    /// The hidden states, and those before the last block's feed-forward half.
    fn run(&self, tokens: &Tensor, cache: &mut Cache) -> Result<(Tensor, Tensor)> {
        if let (Some(lead), 0) = (&self.lead, cache.tokens()) {
            self.lead(lead, tokens.dim(0)?, cache)?;
        }
        let places = self.places(cache, tokens.dim(1)?)?;
        let mut h = self.begin(tokens, &places)?;
        let mut before = h.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            before = self.attend(i, &h, &places, cache)?;
            h = block.feed_forward(&before)?;
        }
        cache.advance(tokens.dim(1)?);
        Ok((self.finish(&h)?, before))
    }

    /// Reads what an adapter puts before each of `rows` texts.
    fn lead(&self, lead: &Lead, rows: usize, cache: &mut Cache) -> Result<()> {
        let tokens = lead.tokens();
        cache.begin_with(tokens);
        match lead {
            Lead::Prompt(prompt) => {
                let places = self.places(cache, tokens)?;
                let mut h = prompt.unsqueeze(0)?.repeat((rows, 1, 1))?;
                if let Some(norm) = &self.embedding_norm {
                    h = norm.forward(&h)?;
                }
                if let (Seen::Learned { table, .. }, Some(at)) = (&self.positions, &places.learned) {
                    h = h.broadcast_add(&table.forward(at)?)?;
                }
                for (i, block) in self.blocks.iter().enumerate() {
                    h = block.feed_forward(&self.attend(i, &h, &places, cache)?)?;
                }
            }
            Lead::Prefix(prefix) => {
                let (heads, dim) = (self.config.num_key_value_heads, self.config.head_dim);
                // As PEFT lays them out: block by block keys, then values.
                let all = prefix.reshape((tokens, 2 * self.blocks.len(), heads, dim))?;
                for i in 0..self.blocks.len() {
                    let part = |number: usize| {
                        let one = all.narrow(1, number, 1)?.squeeze(1)?.transpose(0, 1)?;
                        one.contiguous()?.unsqueeze(0)?.repeat((rows, 1, 1, 1))
                    };
                    cache.layer(i, None).extend(&part(2 * i)?, &part(2 * i + 1)?)?;
                }
            }
        }
        cache.advance(tokens);
        Ok(())
    }

    /// What some of the blocks make of `h` `[batch, tokens, d]`, whole sequences at `places`: the same shape.
    pub fn run_blocks(&self, blocks: Range<usize>, h: &Tensor, places: &Places) -> Result<Tensor> {
        Activations::current().parts(blocks).try_fold(h.clone(), |h, part| {
            let (blocks, places) = (self.blocks[part].to_vec(), places.clone());
            kernels::checkpoint(&[&h], move |read| {
                blocks.iter().try_fold(read[0].clone(), |h, block| block.forward(&h, &places))
            })
        })
    }

    /// Reads `tokens` `[batch, tokens]` at `places`, by themselves, and gives the hidden states before the output head.
    pub fn forward_at(&self, tokens: &Tensor, places: &Places) -> Result<Tensor> {
        let h = self.begin(tokens, places)?;
        self.finish(&self.run_blocks(0..self.blocks.len(), &h, places)?)
    }

    /// Reads whole sequences `tokens` `[batch, tokens]`, and gives the hidden states before the output head, `[batch, tokens, d]`.
    /// For a backward pass it keeps what [`Activations`] says, where no adapter puts tokens before each text.
    pub fn forward_whole(&self, tokens: &Tensor) -> Result<Tensor> {
        match self.lead {
            None => self.forward_at(tokens, &self.places(&Cache::default(), tokens.dim(1)?)?),
            Some(_) => self.forward(tokens, &mut Cache::default()),
        }
    }

    /// [`forward_whole`](Self::forward_whole) with the contexts of [`forward_with_contexts`](Self::forward_with_contexts). What the
    /// last block computes is kept.
    pub fn forward_whole_with_contexts(&self, tokens: &Tensor) -> Result<(Tensor, Tensor)> {
        let (None, Some(last)) = (&self.lead, self.blocks.last()) else {
            return self.forward_with_contexts(tokens, &mut Cache::default());
        };
        let places = self.places(&Cache::default(), tokens.dim(1)?)?;
        let h = self.run_blocks(0..self.blocks.len() - 1, &self.begin(tokens, &places)?, &places)?;
        let before = last.attend_alone(&h, &places)?;
        Ok((self.finish(&last.feed_forward(&before)?)?, self.context_of(&before)?))
    }

    /// The attention half of block `i`, with its residual connection, at the places that [`places`](Self::places)
    /// gave for the tokens of `h`.
    pub fn attend(&self, i: usize, h: &Tensor, places: &Places, cache: &mut Cache) -> Result<Tensor> {
        self.blocks[i].attend(h, places, cache.layer(i, self.config.window_of(i)))
    }

    /// The last norm.
    pub fn finish(&self, h: &Tensor) -> Result<Tensor> {
        self.norm.forward(h)
    }

    /// The output head, `[vocabulary, d]`, in f32: a new tensor where the weights are in blocks.
    pub fn head(&self) -> Result<Tensor> {
        self.head.weight().dense()
    }

    /// Reads prompts side by side, as [`Autoregressive::start`] does, by `read`, which gives what it makes of each token,
    /// `[prompts, tokens, n]`; with the cache, what it made of each prompt's last, `[prompts, n]`.
    ///
    /// # Errors
    /// What `read` brings.
    pub fn start_with(
        &self,
        prompts: &[&[u32]],
        read: impl FnOnce(&Tensor, &mut Cache) -> Result<Tensor>,
    ) -> Result<(Cache, Tensor)> {
        let (tokens, padding) = left_padded(prompts, self.device())?;
        let mut cache = Cache::padded(&padding);
        let states = read(&tokens, &mut cache)?;
        let last = states.narrow(1, states.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok((cache, last))
    }

    /// Hidden states `[.., d]` to logits `[.., vocabulary]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }
}

impl Autoregressive for Decoder {
    type State = Cache;

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn longest(&self) -> usize {
        self.config.max_position_embeddings - self.lead.as_ref().map_or(0, Lead::tokens)
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(Cache, Tensor)> {
        self.start_with(prompts, |tokens, cache| self.forward(tokens, cache))
    }

    fn read(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        self.forward(tokens, cache)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    fn pick(&self, cache: &Cache, rows: &[usize]) -> Result<Cache> {
        cache.pick(rows)
    }
}
