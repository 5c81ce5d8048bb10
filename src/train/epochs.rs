//! The order in which texts that are learnt one by one come, epoch after epoch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The texts of each batch, and chance for what is made of them: a function of seed and batch number alone, so that a resumed run
/// goes on exactly where it stopped.
pub struct Epochs {
    seed: u64,
    texts: usize,
    batch: usize,
    /// The epoch whose order is at hand, if any.
    epoch: Option<usize>,
    order: Vec<usize>,
}

impl Epochs {
    /// Of `texts` texts, each once an epoch, `batch` at a time; the last of an epoch that fill no batch are left out of it.
    pub fn new(seed: u64, texts: usize, batch: usize) -> Self {
        Self { seed, texts, batch, epoch: None, order: Vec::new() }
    }

    /// The texts of batch `number`, from 0, and a generator for what is made of them.
    ///
    /// # Panics
    /// If there are fewer texts than a batch has.
    pub fn batch(&mut self, number: usize) -> (Vec<usize>, ChaCha8Rng) {
        let batches = self.texts / self.batch;
        let (epoch, place) = (number / batches, number % batches);
        if self.epoch != Some(epoch) {
            let mut order: Vec<usize> = (0..self.texts).collect();
            order.shuffle(&mut self.random(2 * epoch));
            (self.epoch, self.order) = (Some(epoch), order);
        }
        (self.order[place * self.batch..][..self.batch].to_vec(), self.random(2 * number + 1))
    }

    /// A generator of its own for each purpose: one that goes on would know what was drawn before.
    fn random(&self, stream: usize) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream as u64);
        rng
    }
}

#[cfg(test)]
mod tests {
    use rand::RngCore;

    use super::*;

    /// Batch `number`, and what is drawn first for it.
    fn drawn(epochs: &mut Epochs, number: usize) -> (Vec<usize>, u64) {
        let (texts, mut rng) = epochs.batch(number);
        (texts, rng.next_u64())
    }

    #[test]
    fn an_epoch_has_every_text_once_in_an_order_of_its_own() {
        let mut epochs = Epochs::new(3, 60, 5);
        let mut epoch = |first: usize| -> Vec<usize> {
            (first..first + 12).flat_map(|number| epochs.batch(number).0).collect()
        };
        let (one, two) = (epoch(0), epoch(12));
        for order in [&one, &two] {
            let mut order = order.clone();
            order.sort_unstable();
            assert_eq!(order, (0..60).collect::<Vec<_>>());
        }
        assert_ne!(one, two);
        assert_ne!(one[..5], Epochs::new(4, 60, 5).batch(0).0);
    }

    /// Fails when a batch depends on those before it: a resumed run would go on in another way.
    #[test]
    fn a_batch_is_the_same_in_turn_and_at_once() {
        let mut epochs = Epochs::new(3, 23, 5);
        let all: Vec<_> = (0..12).map(|number| drawn(&mut epochs, number)).collect();
        for (number, batch) in all.iter().enumerate() {
            assert_eq!(&drawn(&mut Epochs::new(3, 23, 5), number), batch);
            assert_eq!(&drawn(&mut epochs, number), batch, "whatever was asked before");
        }
        assert!(all.windows(2).all(|pair| pair[0].1 != pair[1].1), "chance is another for each batch");
    }
}
