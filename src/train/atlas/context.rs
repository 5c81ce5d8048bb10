//! A decoder as the reader that learns: the passages and the question stand before the answer in its context, as
//! [`Generative`](crate::reader::Generative) asks a model without a chat template. (What is trained here is saved without one.)

use candle_core::Tensor;
use sidenote_kernels::{self as kernels, CrossEntropyOptions};

use super::read::Read;
use crate::error::{Error, Result};
use crate::model::LanguageModel;
use crate::model::batch::{IGNORE, side_by_side};
use crate::reader::{Source, Templates, context_texts};

/// Tokens that a question's texts are read in at a time: what a pass keeps of each is many times its size.
const TOGETHER: usize = 4096;

/// As many of the sources, nearest first, as the budget and the model have room for before an answer of `room` tokens.
///
/// # Errors
/// A question that is too long by itself.
pub fn read(
    model: &LanguageModel,
    templates: &Templates,
    question: &str,
    sources: &[Source<'_>],
    room: usize,
) -> Result<Read> {
    let (mut texts, asked) = context_texts(model, templates, question, sources)?;
    let longest = model.network.decoder().config().max_position_embeddings;
    let budget = longest.min(templates.context_tokens.saturating_add(room));
    let mut left = budget.checked_sub(model.start_tokens().len() + asked.len() + room).ok_or_else(|| {
        Error::setting(
            "question",
            format!("{question:?} is too long for a model that reads {longest} tokens"),
        )
    })?;
    let fits = |text: &Vec<u32>| {
        left = left.checked_sub(text.len())?;
        Some(())
    };
    let count = texts.iter().map_while(fits).count();
    texts.truncate(count);
    Ok(Read { texts, asked })
}

/// The mean negative log-likelihood of a token of the answers.
pub fn nats(model: &LanguageModel, batch: &[(&Read, &[u32])]) -> Result<Tensor> {
    let rows: Vec<(Vec<u32>, usize)> =
        batch.iter().map(|(read, target)| row(model, &read.texts, &read.asked, target)).collect();
    let width = rows.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(1) - 1;
    let (mut tokens, mut targets) = (vec![0u32; rows.len() * width], vec![IGNORE; rows.len() * width]);
    for (i, (row, from)) in rows.iter().enumerate() {
        // The last token is predicted, not read; after a shorter row nothing is.
        tokens[i * width..][..row.len() - 1].copy_from_slice(&row[..row.len() - 1]);
        targets[i * width + from - 1..i * width + row.len() - 1].copy_from_slice(&row[*from..]);
    }
    let decoder = model.network.decoder();
    let shape = (rows.len(), width);
    let tokens = Tensor::from_vec(tokens, shape, decoder.device())?;
    let hidden = model.network.forward(&tokens, None)?.flatten(0, 1)?;
    let targets = Tensor::from_vec(targets, rows.len() * width, decoder.device())?;
    let options = CrossEntropyOptions::ignoring(IGNORE);
    let nats = kernels::linear_cross_entropy(&hidden, &decoder.head()?, &targets, &options)?;
    let count: usize = batch.iter().map(|(_, target)| target.len()).sum();
    Ok((nats / count.max(1) as f64)?)
}

/// Log-likelihoods of the answer's tokens, given each passage alone.
pub fn given_each(model: &LanguageModel, read: &Read, target: &[u32]) -> Result<Vec<Vec<f64>>> {
    let of = |text| row(model, std::slice::from_ref(text), &read.asked, target);
    likelihoods(model, &read.texts.iter().map(of).collect::<Vec<_>>(), target)
}

/// Log-likelihoods of the answer's tokens, given all passages but each.
pub fn given_all_but_each(model: &LanguageModel, read: &Read, target: &[u32]) -> Result<Vec<Vec<f64>>> {
    let without = |out: usize| {
        let others = read.texts.iter().enumerate().filter(|(number, _)| *number != out);
        let others: Vec<_> = others.map(|(_, text)| text.clone()).collect();
        row(model, &others, &read.asked, target)
    };
    likelihoods(model, &(0..read.texts.len()).map(without).collect::<Vec<_>>(), target)
}

/// What the answer takes of each passage, when it is written from all of them.
pub fn taken_of_each(model: &LanguageModel, read: &Read, target: &[u32]) -> Result<Vec<f64>> {
    let (tokens, _) = row(model, &read.texts, &read.asked, target);
    // The last token is predicted, not read; what predicts the first stands before it.
    let taken = model.network.decoder().taken(&tokens[..tokens.len() - 1], target.len())?;
    let mut from = model.start_tokens().len();
    let mut of = |text: &Vec<u32>| {
        let sum = taken[from..from + text.len()].iter().sum();
        from += text.len();
        sum
    };
    Ok(read.texts.iter().map(&mut of).collect())
}

/// A whole text, and where its answer begins.
fn row(model: &LanguageModel, texts: &[Vec<u32>], asked: &[u32], target: &[u32]) -> (Vec<u32>, usize) {
    let mut tokens = model.start_tokens().to_vec();
    texts.iter().for_each(|text| tokens.extend(text));
    tokens.extend(asked);
    let from = tokens.len();
    tokens.extend(target);
    (tokens, from)
}

/// Log-likelihoods of the tokens of `target` in each of the texts, at whose ends it stands; as many side by side as are [`TOGETHER`].
fn likelihoods(model: &LanguageModel, rows: &[(Vec<u32>, usize)], target: &[u32]) -> Result<Vec<Vec<f64>>> {
    let longest = rows.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(1);
    let parts = rows.chunks((TOGETHER / longest).max(1)).map(|rows| likelihoods_of(model, rows, target));
    Ok(parts.collect::<Result<Vec<_>>>()?.concat())
}

fn likelihoods_of(
    model: &LanguageModel,
    rows: &[(Vec<u32>, usize)],
    target: &[u32],
) -> Result<Vec<Vec<f64>>> {
    let decoder = model.network.decoder();
    // The last token is predicted, not read. Filled up at the end, where nothing that counts can see it.
    let texts: Vec<&[u32]> = rows.iter().map(|(tokens, _)| &tokens[..tokens.len() - 1]).collect();
    let (tokens, _) = side_by_side(&texts, decoder.device())?;
    let hidden = model.network.forward(&tokens, None)?.detach();
    let of_answers = rows.iter().enumerate().map(|(number, (_, from))| {
        Ok(hidden.narrow(0, number, 1)?.narrow(1, from - 1, target.len())?.squeeze(0)?)
    });
    let hidden = Tensor::cat(&of_answers.collect::<Result<Vec<_>>>()?, 0)?;
    let logits = decoder.logits(&hidden)?.detach();
    let of_target = Tensor::new(target.repeat(rows.len()), decoder.device())?.unsqueeze(1)?;
    let highest = logits.max_keepdim(1)?;
    let total = (logits.broadcast_sub(&highest)?.exp()?.sum_keepdim(1)?.log()? + &highest)?;
    let found = (logits.gather(&of_target, 1)? - total)?.reshape((rows.len(), target.len()))?;
    let row = |row: Vec<f32>| row.into_iter().map(f64::from).collect();
    Ok(found.to_vec2::<f32>()?.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::model::Trainable;

    fn model() -> LanguageModel {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama2c/stories260K.bin");
        LanguageModel::load(file, Trainable::Everything, &Device::Cpu).unwrap()
    }

    const SOURCES: [Source<'static>; 3] = [
        Source { title: "Moon", text: "The moon moves around the Earth.", score: 0.9 },
        Source { title: "Cat", text: "Once upon a time there was a cat named Tom.", score: 0.5 },
        Source { title: "", text: "She was happy.", score: 0.1 },
    ];

    fn question(model: &LanguageModel) -> (Read, Vec<u32>) {
        let read = read(model, &Templates::default(), "What is the cat's name?", &SOURCES, 8).unwrap();
        assert_eq!(read.texts.len(), 3);
        (read, model.tokenizer.encode(" Tom").unwrap().ids)
    }

    /// Fails when a passage is read that should not be, or the answer is looked for one token off.
    #[test]
    fn likelihoods_are_those_of_the_text_written_out() {
        let model = model();
        let (read, target) = question(&model);
        let by_score = |texts: &[Vec<u32>]| {
            let prompt = [model.start_tokens(), &texts.concat(), &read.asked].concat();
            model.generator(None).score(&prompt, std::slice::from_ref(&target), 1).unwrap()[0].sum()
        };
        let each = given_each(&model, &read, &target).unwrap();
        let others = given_all_but_each(&model, &read, &target).unwrap();
        for k in 0..3 {
            let rest: Vec<_> = (0..3).filter(|i| *i != k).map(|i| read.texts[i].clone()).collect();
            let sum = |row: &Vec<f64>| row.iter().sum::<f64>();
            assert!((sum(&each[k]) - by_score(&read.texts[k..=k])).abs() < 1e-3, "{k}");
            assert!((sum(&others[k]) - by_score(&rest)).abs() < 1e-3, "{k}");
        }
        // The same however many there are, in parts where they are too many for one.
        let rows: Vec<_> = (0..40)
            .map(|k| row(&model, &vec![read.texts[k % 3].clone(); 1 + k % 4], &read.asked, &target))
            .collect();
        assert!(rows.len() * rows.iter().map(|(tokens, _)| tokens.len()).max().unwrap() > TOGETHER);
        for (own, found) in rows.chunks(1).zip(likelihoods(&model, &rows, &target).unwrap()) {
            let alone = likelihoods_of(&model, own, &target).unwrap().remove(0);
            assert!(alone.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-4), "{alone:?} {found:?}");
        }
        // The training loss is that of all passages, whatever is beside it in the batch.
        let all = -by_score(&read.texts) / target.len() as f64;
        let alone = nats(&model, &[(&read, &target)]).unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(alone) - all).abs() < 1e-3, "{alone} {all}");
        let short = Read { texts: Vec::new(), asked: read.asked.clone() };
        let beside =
            nats(&model, &[(&read, &target), (&short, &target)]).unwrap().to_scalar::<f32>().unwrap();
        let own = nats(&model, &[(&short, &target)]).unwrap().to_scalar::<f32>().unwrap();
        assert!((beside - (alone + own) / 2.0).abs() < 1e-3, "{beside} {alone} {own}");
    }

    /// Fails when a query takes of what comes after it, or other queries than the last are looked at.
    #[test]
    fn what_is_taken_adds_up() {
        let model = model();
        let (read, target) = question(&model);
        let taken = taken_of_each(&model, &read, &target).unwrap();
        assert!(taken.len() == 3 && taken.iter().all(|x| *x > 0.0 && x.is_finite()), "{taken:?}");
        let (tokens, _) = row(&model, &read.texts, &read.asked, &target);
        let decoder = model.network.decoder();
        let whole: f64 = decoder.taken(&tokens[..tokens.len() - 1], target.len()).unwrap().iter().sum();
        assert!(taken.iter().sum::<f64>() < whole);
        let (one, all) = (decoder.taken(&tokens[..5], 1).unwrap(), decoder.taken(&tokens[..5], 5).unwrap());
        assert_eq!((one.len(), all.len()), (5, 5));
        // Of five queries only the last one sees the last token, and all see the first.
        assert!((5.0 * all[4] - one[4]).abs() < 1e-5 && 5.0 * all[0] > 1.5 * one[0], "{one:?} {all:?}");
    }

    #[test]
    fn passages_beyond_the_budget_are_left_out() {
        let model = model();
        let (all, _) = question(&model);
        let two = all.texts[..2].concat().len() + model.start_tokens().len() + all.asked.len();
        let templates = Templates { context_tokens: two, ..Templates::default() };
        let read = read(&model, &templates, "What is the cat's name?", &SOURCES, 8).unwrap();
        assert_eq!(read.texts, all.texts[..2]);
        let templates = Templates { context_tokens: 3, ..templates };
        assert!(super::read(&model, &templates, "What is the cat's name?", &SOURCES, 8).is_err());
    }
}
