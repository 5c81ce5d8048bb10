//! Checkpoints of many versions of transformers, put in order before they are read.

use candle_core::Tensor;

use super::T5Config;
use crate::error::Result;
use crate::model::source::Source;

/// The embedding table, and the output head.
const EMBEDDING: &str = "shared.weight";
const HEAD: &str = "lm_head.weight";
/// What else the embedding table is called; a checkpoint may hold it under several names.
const COPIES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
/// A table in older checkpoints that nothing reads.
const UNUSED: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

/// Leaves one embedding table in `source`, under its own name, and an output head only where that is another
/// matrix; gives the configuration that says so.
///
/// # Errors
/// When encoder and decoder have tables of their own, or the configuration is not one of T5.
pub(crate) fn settle(source: &mut Source) -> Result<T5Config> {
    let config = T5Config::from_json(source.config())?;
    if let Some(name) = COPIES.iter().find(|name| !source.has(EMBEDDING) && source.has(name)) {
        source.rename(name, EMBEDDING);
    }
    source.take(UNUSED)?;
    for name in COPIES {
        if source.has(name) && !same(source, name)? {
            let why =
                format!("{name}: differs from {EMBEDDING}, but encoder and decoder read one table here");
            return Err(source.fault(why));
        }
        source.take(name)?;
    }
    // transformers 5 calls every head tied, and keeps those apart that differ from the table.
    let own = source.has(HEAD) && (!config.tie_word_embeddings || !same(source, HEAD)?);
    if !own {
        source.take(HEAD)?;
    }
    // Said so that both transformers 4 and 5 understand it when it is written.
    let scaled = config.head_scale().is_some();
    Ok(T5Config { scale_decoder_outputs: Some(scaled), tie_word_embeddings: !own, ..config })
}

/// Whether the tensor `name` equals the embedding table.
fn same(source: &Source, name: &str) -> Result<bool> {
    let read = |name: &str| source.peek(name)?.map(|stored| stored.to_f32()).transpose();
    Ok(match (read(EMBEDDING)?, read(name)?) {
        (Some(a), Some(b)) => equal(&a, &b)?,
        _ => false,
    })
}

fn equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dims() == b.dims() && a.ne(b)?.flatten_all()?.max(0)?.to_scalar::<u8>()? == 0)
}
