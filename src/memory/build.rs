//! Making a datastore: a model reads a corpus, and every context is kept with the token that came after it.

use std::path::{Path, PathBuf};

use serde_json::json;
use sidenote_index::{Builder, Bytes, Index, Metric, Spec};

use super::datastore::{CONTEXTS, Interpolation, KIND, MemoryMeta, TOKENS, VERSION};
use crate::artefact::{MANIFEST, Writer};
use crate::corpus::{Store, bytes_of};
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::model::reading::{Neighbourhood, read};
use crate::progress::Progress;

/// Contexts whose nearest neighbours give the typical distance.
const SAMPLE: usize = 1000;

/// What to make a memory of.
pub struct BuildOptions<'a> {
    /// The model whose contexts are kept.
    pub model: &'a LanguageModel,
    /// Where it was, to be named.
    pub name: PathBuf,
    /// The text, cut with the model's tokenizer.
    pub text: &'a Store,
    /// What a RETRO model reads beside the text; without it, retrieval is off.
    pub neighbours: Option<&'a Neighbourhood<'a>>,
    /// Folder to write.
    pub out: &'a Path,
    /// Kind of the index of contexts; by their number where `None`.
    pub index: Option<Spec>,
    /// Bound on the memory that building the index may take.
    pub memory: Option<Bytes>,
    /// Seed of the kinds of index that use chance.
    pub seed: u64,
}

/// Makes the memory. It appears whole or not at all.
///
/// # Errors
/// A folder that holds a memory already; text without a token to predict; a full disk; an interruption.
pub fn build(options: &BuildOptions, progress: Progress) -> Result<MemoryMeta> {
    let BuildOptions { model, text, out, .. } = options;
    if out.join(MANIFEST).exists() {
        return Err(Error::file(out, "holds something already; choose another folder, or remove it"));
    }
    model.check_fits(text)?;
    let dim = model.network.decoder().config().hidden_size;
    // A document's first token is not predicted; an estimate is enough to choose the kind.
    let index = options.index.unwrap_or_else(|| kind_for(text.tokens(), dim));
    let mut writer = Writer::create(out, KIND, VERSION)?;
    let contexts = out.join(CONTEXTS);
    let mut builder = Builder::create(&contexts, dim, Metric::L2, &index, options.seed)?;
    if let Some(bound) = options.memory {
        builder = builder.memory(bound)?;
    }
    let mut tokens: Vec<u32> = Vec::new();
    read(model, text, 0..text.documents(), options.neighbours, progress, |reading| {
        builder.add(&reading.contexts()?)?;
        tokens.extend(reading.tokens()?);
        Ok(())
    })?;
    if tokens.is_empty() {
        return Err(Error::setting("corpus", "has no text to remember"));
    }
    progress.note(format!("building the {index} index of {} contexts", tokens.len()));
    let built = builder.finish()?.identity();
    writer.write(TOKENS, bytes_of(&tokens))?;
    let meta = MemoryMeta {
        entries: tokens.len(),
        dim,
        model: options.name.clone(),
        model_identity: model.identity()?,
        retrieval: options.neighbours.is_some(),
        tokenizer: model.tokenizer.identity().into(),
        contexts: built,
        distance: typical_distance(&Index::open(&contexts)?)?,
        interpolation: Interpolation::default(),
    };
    writer.commit(json!(meta))?;
    Ok(meta)
}

/// The kind of index of so many contexts. Where vectors of passages would get a graph, contexts, which are as many as a text
/// has tokens, get an inverted file: it is built in minutes where a graph takes most of an hour.
fn kind_for(contexts: usize, dim: usize) -> Spec {
    match Spec::default_for(contexts, dim) {
        Spec::Graph { .. } => Spec::inverted_for(contexts),
        kind => kind,
    }
}

/// The median squared distance of a row to the nearest one that is not the same; 1 where there is none.
fn typical_distance(index: &Index) -> Result<f64> {
    let step = index.len().div_ceil(SAMPLE).max(1);
    let rows: Vec<f32> = (0..index.len())
        .step_by(step)
        .flat_map(|id| index.vector(id as u32).unwrap_or_default().into_owned())
        .collect();
    let found = index.search_batch(&rows, 16, None)?;
    let nearest_other =
        |hits: &Vec<sidenote_index::Hit>| hits.iter().map(|hit| -hit.score).find(|d| *d > 0.0);
    let mut distances: Vec<f32> = found.iter().filter_map(nearest_other).collect();
    distances.sort_by(f32::total_cmp);
    Ok(distances.get(distances.len() / 2).map_or(1.0, |d| f64::from(*d)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_contexts_as_a_text_has_tokens_get_no_graph() {
        assert_eq!(kind_for(1000, 128), Spec::Flat);
        assert_eq!(kind_for(400_000, 128).to_string(), "RaBitQ");
        assert_eq!(kind_for(3_000_000, 128).to_string(), "IVF8192,RaBitQ");
    }
}
