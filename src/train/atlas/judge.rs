//! What a retriever learns from a reader: how much each passage helps with the answer.

use candle_core::Tensor;

use super::loss::{self, Temperatures};
use super::read::Read;
use super::reader::TrainedReader;
use crate::error::Result;
use crate::train::config::RetrieverLoss;

/// The loss of a retriever's `scores` `[K]` on one question, whose K passages the reader reads, and whose answer is `target`. Nothing
/// of it flows back to the reader.
///
/// # Errors
/// When the device refuses.
pub fn retriever_loss(
    kind: RetrieverLoss,
    reader: &TrainedReader,
    read: &Read,
    target: &[u32],
    scores: &Tensor,
    t: Temperatures,
) -> Result<Tensor> {
    match kind {
        RetrieverLoss::Pdist => loss::perplexity_distillation(&reader.given_each(read, target)?, scores, t),
        RetrieverLoss::Emdr2 => loss::expectation(&reader.given_each(read, target)?, scores, t),
        RetrieverLoss::Emdr2Token => {
            loss::expectation_per_token(&reader.given_each(read, target)?, scores, t)
        }
        RetrieverLoss::Loop => loss::leave_one_out(&reader.given_all_but_each(read, target)?, scores, t),
        RetrieverLoss::Adist => loss::attention_distillation(&reader.taken_of_each(read, target)?, scores, t),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Var};
    use sidenote_kernels as kernels;

    use super::*;

    #[test]
    fn nothing_flows_back_to_the_reader() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
        let t = Temperatures { target: 0.1, scores: 0.1 };
        for name in ["t5_v1_1", "llama2c/stories260K.bin"] {
            let reader = TrainedReader::load(&models.join(name), &Device::Cpu).unwrap();
            let texts = vec![vec![5, 9, 17, 3, 1], vec![70, 8, 1], (3..40).chain([1]).collect()];
            let read = Read { texts, asked: vec![9, 8] };
            let scores = Var::new(&[0.3f32, 0.1, -0.2], &Device::Cpu).unwrap();
            for kind in [
                RetrieverLoss::Pdist,
                RetrieverLoss::Emdr2,
                RetrieverLoss::Emdr2Token,
                RetrieverLoss::Adist,
                RetrieverLoss::Loop,
            ] {
                let loss = retriever_loss(kind, &reader, &read, &[6, 30, 44, 1], &scores, t).unwrap();
                let gradients = kernels::backward(&loss).unwrap();
                let flown = reader.variables().iter().any(|(_, weight)| gradients.get(weight).is_some());
                assert!(!flown, "{kind:?}");
                let own = gradients.get(&scores).unwrap().to_vec1::<f32>().unwrap();
                assert!(own.iter().any(|x| x.abs() > 1e-6), "{kind:?}: {own:?}");
                assert!(own.iter().sum::<f32>().abs() < 1e-4, "a softmax moves nothing as a whole: {own:?}");
            }
        }
    }
}
