//! An encoder-decoder as the reader that learns, by fusion in the decoder: each passage is encoded by itself, and the answer is written
//! from all of them.

use candle_core::{Device, Tensor};
use sidenote_kernels::{self as kernels, CrossEntropyOptions};

use super::read::Read;
use crate::error::Result;
use crate::model::batch::IGNORE;
use crate::model::t5::{Encoded, T5};
use crate::model::{Dropout, EncoderDecoder};

/// The mean negative log-likelihood of a token of the answers.
pub fn nats(model: &EncoderDecoder, batch: &[(&Read, &[u32])], dropout: Option<Dropout>) -> Result<Tensor> {
    let network = &model.network;
    let most = batch.iter().map(|(read, _)| read.texts.len()).max().unwrap_or(0);
    // A passage that is absent has no tokens.
    let texts = |(read, _): &(&Read, &[u32])| {
        let absent = std::iter::repeat_n(Vec::new(), most - read.texts.len());
        read.texts.iter().cloned().chain(absent).collect::<Vec<_>>()
    };
    let texts: Vec<Vec<u32>> = batch.iter().flat_map(texts).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let encoded = network.encoder().read(&texts, dropout.map(|dropout| dropout.part(0)))?.joined(most)?;
    let width = batch.iter().map(|(_, target)| target.len()).max().unwrap_or(0);
    let padded = |(_, target): &(&Read, &[u32])| {
        let padding = std::iter::repeat_n(IGNORE, width - target.len());
        target.iter().copied().chain(padding).collect::<Vec<_>>()
    };
    let targets: Vec<u32> = batch.iter().flat_map(padded).collect();
    let targets = Tensor::from_vec(targets, (batch.len(), width), network.device())?;
    let hidden = network.predict(&encoded, &targets, dropout.map(|dropout| dropout.part(1)))?;
    let (hidden, targets) = (hidden.flatten(0, 1)?, targets.flatten_all()?);
    let options = CrossEntropyOptions::ignoring(IGNORE);
    let nats = kernels::linear_cross_entropy(&hidden, &network.head()?, &targets, &options)?;
    let tokens: usize = batch.iter().map(|(_, target)| target.len()).sum();
    Ok((nats / tokens.max(1) as f64)?)
}

/// Log-likelihoods of the answer's tokens given each passage alone.
pub fn given_each(reader: &T5, texts: &[Vec<u32>], target: &[u32]) -> Result<Vec<Vec<f64>>> {
    let encoded = encoded(reader, texts)?;
    reader.log_likelihoods(reader.start(&encoded)?, &repeated(target, texts.len(), reader.device())?)
}

/// Log-likelihoods of the answer's tokens given all passages but each. The passages are encoded once.
pub fn given_all_but_each(reader: &T5, texts: &[Vec<u32>], target: &[u32]) -> Result<Vec<Vec<f64>>> {
    let n = texts.len();
    let encoded = encoded(reader, texts)?.joined(n)?;
    let width = encoded.states.dim(1)? / n.max(1);
    let masks: Vec<u8> = (0..n)
        .flat_map(|out| {
            let of = move |(number, text): (usize, &Vec<u32>)| {
                let len = text.len();
                (0..width).map(move |i| u8::from(number != out && i < len)).collect::<Vec<_>>()
            };
            texts.iter().enumerate().flat_map(of).collect::<Vec<_>>()
        })
        .collect();
    let masks = Tensor::from_vec(masks, (n, n * width), reader.device())?;
    let state = reader.start(&encoded)?.with_masks(&masks)?;
    reader.log_likelihoods(state, &repeated(target, n, reader.device())?)
}

/// What the answer takes of each passage, when it is written from all of them.
pub fn taken_of_each(reader: &T5, texts: &[Vec<u32>], target: &[u32]) -> Result<Vec<f64>> {
    let encoded = encoded(reader, texts)?.joined(texts.len())?;
    let taken = reader.taken(&encoded, &repeated(target, 1, reader.device())?)?;
    let tokens = taken.into_iter().next().unwrap_or_default();
    let width = tokens.len() / texts.len().max(1);
    Ok(tokens.chunks(width.max(1)).map(|passage| passage.iter().sum()).collect())
}

fn encoded(reader: &T5, texts: &[Vec<u32>]) -> Result<Encoded> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let Encoded { states, mask } = reader.encoder().read(&texts, None)?;
    Ok(Encoded { states: states.detach(), mask })
}

fn repeated(target: &[u32], rows: usize, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(target.repeat(rows), (rows, target.len()), device)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TARGET: [u32; 4] = [6, 30, 44, 1];

    fn model() -> EncoderDecoder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/t5_v1_1");
        EncoderDecoder::load(folder, true, &Device::Cpu).unwrap()
    }

    fn texts() -> Vec<Vec<u32>> {
        vec![vec![5, 9, 17, 3, 1], vec![70, 8, 1], (3..40).chain([1]).collect()]
    }

    /// The mean log-likelihood by way of the loss that readers are trained with.
    fn by_training_loss(model: &EncoderDecoder, texts: &[Vec<u32>]) -> f64 {
        let network = &model.network;
        let read: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let encoded = network.encoder().read(&read, None).unwrap().joined(texts.len()).unwrap();
        let targets = Tensor::new(&TARGET[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let hidden = network.predict(&encoded, &targets, None).unwrap().flatten(0, 1).unwrap();
        let options = CrossEntropyOptions::ignoring(IGNORE);
        let head = network.head().unwrap();
        let nats =
            kernels::linear_cross_entropy(&hidden, &head, &targets.flatten_all().unwrap(), &options).unwrap();
        -f64::from(nats.to_scalar::<f32>().unwrap())
    }

    /// Fails when a passage is read that should not be, or padding, or the order is another.
    #[test]
    fn likelihoods_are_those_of_the_passages_that_are_read() {
        let (model, texts) = (model(), texts());
        let each = given_each(&model.network, &texts, &TARGET).unwrap();
        let others = given_all_but_each(&model.network, &texts, &TARGET).unwrap();
        for k in 0..3 {
            let sum = |rows: &[Vec<f64>]| rows[k].iter().sum::<f64>();
            let alone = by_training_loss(&model, &texts[k..=k]);
            assert!((sum(&each) - alone).abs() < 1e-4, "{k}: {} {alone}", sum(&each));
            let rest: Vec<Vec<u32>> =
                texts.iter().enumerate().filter(|(i, _)| *i != k).map(|(_, text)| text.clone()).collect();
            let without = by_training_loss(&model, &rest);
            assert!((sum(&others) - without).abs() < 1e-4, "{k}: {} {without}", sum(&others));
        }
        assert_ne!(each[0], each[1]);
    }

    /// Fails when padding is read, or passages are told apart wrongly.
    #[test]
    fn what_is_taken_adds_up() {
        let (model, texts) = (model(), texts());
        let taken = taken_of_each(&model.network, &texts, &TARGET).unwrap();
        assert!(taken.len() == 3 && taken.iter().all(|x| *x > 0.0), "{taken:?}");
        // With one passage all weights go to it; the order of passages does not matter, nor who else is padded.
        let turned = vec![texts[2].clone(), texts[0].clone(), texts[1].clone()];
        let again = taken_of_each(&model.network, &turned, &TARGET).unwrap();
        for (a, b) in taken.iter().zip([again[1], again[2], again[0]]) {
            assert!((a - b).abs() < 1e-5, "{taken:?} {again:?}");
        }
        // A passage twice over is taken twice as often as once, of the same whole.
        let twice = taken_of_each(&model.network, &[texts[0].clone(), texts[0].clone()], &TARGET).unwrap();
        let once = taken_of_each(&model.network, &texts[..1], &TARGET).unwrap();
        assert!(
            (twice[0] - twice[1]).abs() < 1e-5 && (twice[0] + twice[1] - once[0]).abs() < 1e-4,
            "{twice:?} {once:?}"
        );
    }

    /// Values twice as long in the last block are twice what is taken there, and the same in the block before. Fails when lengths are
    /// left out, or a block.
    #[test]
    fn the_length_of_values_counts() {
        let (model, texts) = (model(), texts());
        let name = "decoder.block.1.layer.1.EncDecAttention.v.weight";
        let (_, values) = model.variables().iter().find(|(own, _)| own == name).unwrap();
        let start = values.as_detached_tensor().copy().unwrap();
        let taken = |factor: f64| {
            values.set(&(&start * factor).unwrap()).unwrap();
            taken_of_each(&model.network, &texts, &TARGET).unwrap()
        };
        let (none, once, twice) = (taken(0.0), taken(1.0), taken(2.0));
        for k in 0..3 {
            let (first, last) = (none[k], once[k] - none[k]);
            assert!(first > 1e-3 && last > 1e-3, "{none:?} {once:?}");
            assert!(
                (twice[k] - first - 2.0 * last).abs() < 1e-4 * twice[k].max(1.0),
                "{none:?} {once:?} {twice:?}"
            );
        }
    }
}
