//! Keys of earlier batches, which a query's own is told from, and the encoder that makes them: momentum contrast (He et al. 2020,
//! <https://arxiv.org/abs/1911.05722>, section 3.2), as Contriever learns (Izacard et al. 2022,
//! <https://arxiv.org/abs/2112.09118>, section 3.1).

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};

use crate::encoder::TrainableEncoder;
use crate::error::{Error, Result};

/// What the keys are called in a checkpoint; the encoder's weights are called as they are, after [`ENCODER`].
const KEYS: &str = "queue";
const ENCODER: &str = "momentum.";

/// See [the module](self).
pub struct Queue {
    /// Keys that are kept, at most.
    size: usize,
    /// What the encoder keeps of itself at every step.
    momentum: f64,
    encoder: TrainableEncoder,
    /// `[keys, d]`, the oldest first.
    keys: Option<Tensor>,
}

impl Queue {
    /// An empty one, whose encoder is the folder `name`'s; or that of a checkpoint with this `state`.
    ///
    /// # Errors
    /// A folder that holds no encoder, and a state of another one.
    pub fn open(
        name: &str,
        size: usize,
        momentum: f64,
        state: &HashMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        let encoder = TrainableEncoder::load(name, device)?;
        if state.keys().any(|name| name.starts_with(ENCODER)) {
            for (name, weight) in encoder.variables() {
                let missing = || Error::setting("retriever.queue", format!("the checkpoint lacks {name}"));
                let saved = state.get(&format!("{ENCODER}{name}")).ok_or_else(missing)?;
                weight.set(&saved.to_device(device)?)?;
            }
        }
        let keys = state.get(KEYS).map(|keys| keys.to_device(device)).transpose()?;
        Ok(Self { size, momentum, encoder, keys })
    }

    /// Keys `[n + earlier, d]` of `passages`: their own by the encoder that follows, and those that the queue holds. Their own join the
    /// queue after that. Without gradients.
    ///
    /// # Errors
    /// A passage without a token; when the device refuses.
    pub fn keys(&mut self, passages: &[Vec<u32>]) -> Result<Tensor> {
        let passages: Vec<&[u32]> = passages.iter().map(Vec::as_slice).collect();
        let own = self.encoder.forward(&passages, None)?.detach();
        let (all, queue) = match &self.keys {
            None => (own.clone(), own),
            Some(earlier) => (Tensor::cat(&[&own, earlier], 0)?, Tensor::cat(&[earlier, &own], 0)?),
        };
        let rows = queue.dim(0)?;
        let kept = rows.min(self.size);
        self.keys = Some(queue.narrow(0, rows - kept, kept)?.contiguous()?);
        Ok(all)
    }

    /// Moves the encoder towards `weights`, those of the one that learns, in the order of its own.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn follow(&self, weights: &[(String, Var)]) -> Result<()> {
        for ((_, own), (_, learnt)) in self.encoder.variables().iter().zip(weights) {
            let kept = (own.as_tensor() * self.momentum)?;
            own.set(&(kept + (learnt.as_tensor() * (1.0 - self.momentum))?)?)?;
        }
        Ok(())
    }

    /// What [`open`](Self::open) goes on from.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let weight =
            |(name, weight): &(String, Var)| Ok((format!("{ENCODER}{name}"), weight.as_tensor().copy()?));
        let mut state: HashMap<String, Tensor> =
            self.encoder.variables().iter().map(weight).collect::<Result<_>>()?;
        if let Some(keys) = &self.keys {
            state.insert(KEYS.into(), keys.clone());
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn values(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.to_vec2().unwrap()
    }

    /// Fails when a batch is told from itself, keys are lost before there are too many, or the newest are.
    #[test]
    fn a_batch_is_told_from_those_before_it() {
        let bert =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder/bert_mean").display().to_string();
        let open =
            |state: &HashMap<String, Tensor>| Queue::open(&bert, 5, 0.75, state, &Device::Cpu).unwrap();
        let mut queue = open(&HashMap::new());
        let batches: Vec<Vec<Vec<u32>>> = (0..3u32).map(|i| vec![vec![5 + i, 9], vec![20 + i]]).collect();
        let own = |batch: &[Vec<u32>]| {
            let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            values(&queue_encoder(&bert).forward(&batch, None).unwrap())
        };
        let of: Vec<Vec<Vec<f32>>> = batches.iter().map(|batch| own(batch)).collect();
        assert_eq!(values(&queue.keys(&batches[0]).unwrap()), of[0]);
        assert_eq!(values(&queue.keys(&batches[1]).unwrap()), [&of[1][..], &of[0]].concat());
        assert_eq!(values(&queue.keys(&batches[2]).unwrap()), [&of[2][..], &of[0], &of[1]].concat());
        // Six have been there, of which the oldest is gone; and it goes on from what it says.
        let state = queue.state().unwrap();
        let after = [&of[0][..], &of[0][1..], &of[1], &of[2]].concat();
        assert_eq!(values(&queue.keys(&batches[0]).unwrap()), after);
        assert_eq!(values(&open(&state).keys(&batches[0]).unwrap()), after);
    }

    #[test]
    fn the_encoder_follows_a_part_of_the_way() {
        let bert =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder/bert_mean").display().to_string();
        let queue = Queue::open(&bert, 5, 0.75, &HashMap::new(), &Device::Cpu).unwrap();
        let learnt = queue_encoder(&bert);
        for (_, weight) in learnt.variables() {
            weight.set(&(weight.as_tensor() + 1.0).unwrap()).unwrap();
        }
        queue.follow(learnt.variables()).unwrap();
        queue.follow(learnt.variables()).unwrap();
        let start = queue_encoder(&bert);
        for ((name, own), (_, start)) in queue.encoder.variables().iter().zip(start.variables()) {
            let moved = (own.as_tensor() - start.as_tensor())
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert!(moved.iter().all(|moved| (moved - 0.4375).abs() < 1e-5), "{name}: {moved:?}");
        }
    }

    fn queue_encoder(name: &str) -> TrainableEncoder {
        TrainableEncoder::load(name, &Device::Cpu).unwrap()
    }
}
