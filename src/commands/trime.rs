//! `--trime`.

use crate::model::LanguageModel;

/// How many memories a model trained with some (TRIME) has.
#[derive(Debug, clap::Args)]
pub struct TrimeArgs {
    /// Contexts of each document that are in the softmax of a model trained with memories (TRIME), in place of as many as
    /// it was trained with; 0 for none. Its external memory is a datastore.
    #[arg(long, value_name = "CONTEXTS")]
    trime: Option<u32>,
}

impl TrimeArgs {
    /// Contexts in the softmax of `model`, where there are some.
    pub fn contexts(&self, model: &LanguageModel) -> Option<usize> {
        let contexts = self.trime.map(|contexts| contexts as usize).or(model.trime);
        contexts.filter(|contexts| *contexts > 0)
    }
}
