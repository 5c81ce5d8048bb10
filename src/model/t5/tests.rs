//! What an encoder-decoder must be, on small random weights and uneven shapes. Each comment says which mistakes were made
//! on purpose to see the test fail.

use candle_core::{Device, Tensor, Var};
use serde_json::json;
use sidenote_kernels::{CrossEntropyOptions, linear_cross_entropy};

use super::*;
use crate::model::normal::normal;
use crate::model::testing::assert_alike_when_recomputed;

const VOCABULARY: u32 = 29;

/// v1.0, v1.1 and mT5 with 2 encoder and 3 decoder blocks; heads do not add up to the width.
fn models() -> Vec<(T5, Vec<(String, Var)>)> {
    let kinds = [("t5", "relu", true), ("t5", "gated-gelu", false), ("mt5", "gated-silu", true)];
    let model = |(kind, feed_forward, tied)| {
        let config = T5Config::from_json(&json!({
            "model_type": kind, "vocab_size": VOCABULARY, "d_model": 18, "d_kv": 5, "d_ff": 23, "num_layers": 2,
            "num_decoder_layers": 3, "num_heads": 3, "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12, "feed_forward_proj": feed_forward, "tie_word_embeddings": tied,
            "decoder_start_token_id": 0, "pad_token_id": 0,
        }));
        let mut weights = Weights::from_seed(3, &Device::Cpu);
        let network = T5::new(&config.unwrap(), &mut weights).unwrap();
        let variables = weights.finish().1;
        // Every weight moves, as in training: norms that are all 1 would hide what is wrong around them.
        for (name, variable) in &variables {
            let noise = normal(4, name, variable.elem_count(), 0.1);
            let noise = Tensor::from_vec(noise, variable.shape(), &Device::Cpu).unwrap();
            variable.set(&(variable.as_detached_tensor() + noise).unwrap()).unwrap();
        }
        (network, variables)
    };
    kinds.into_iter().map(model).collect()
}

/// Tokens that look random and depend on `seed`.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7 + seed * 13 + i * i * 3 + seed * seed * i) % (VOCABULARY - 1) + 1).collect()
}

fn matrix(rows: &[Vec<u32>]) -> Tensor {
    Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
}

fn read(model: &T5, texts: &[Vec<u32>]) -> Encoded {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    model.encoder().read(&texts, None).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// With numbers dropped, and texts of uneven lengths joined by two.
#[test]
fn activations_can_be_computed_again() {
    let texts = [tokens(5, 1), tokens(9, 2), tokens(1, 3), tokens(4, 4)];
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let targets = matrix(&[tokens(6, 7), tokens(6, 8)]);
    for (model, variables) in models() {
        assert_alike_when_recomputed(&model.config().model_type, &variables, || {
            let dropout = Dropout::new(0.1, 5);
            let encoded = model.encoder().read(&texts, Some(dropout.part(0))).unwrap().joined(2).unwrap();
            let hidden = model.predict(&encoded, &targets, Some(dropout.part(1))).unwrap();
            hidden.sqr().unwrap().sum_all().unwrap()
        });
        let encoded = read(&model, &[tokens(3, 1)]);
        let said = model.predict(&encoded, &targets, None).unwrap_err().to_string();
        assert!(said.contains("2 rows, but 1 texts"), "{said}");
    }
}

/// Fails with: masking nothing in the encoder, or masking nothing in the cross-attention.
#[test]
fn a_text_reads_the_same_alone_and_padded_on_either_side() {
    let texts = [tokens(5, 1), tokens(19, 2), tokens(1, 3)];
    for (model, _) in models() {
        let batch = read(&model, &texts);
        let written = matrix(&[tokens(4, 5), tokens(4, 6), tokens(4, 7)]);
        let hidden = model.predict(&batch, &written, None).unwrap();
        for (i, text) in texts.iter().enumerate() {
            let alone = read(&model, std::slice::from_ref(text));
            let states = batch.states.narrow(0, i, 1).unwrap().narrow(1, 0, text.len()).unwrap();
            assert!(distance(&states, &alone.states) < 1e-5);
            let one = model.predict(&alone, &written.narrow(0, i, 1).unwrap(), None).unwrap();
            assert!(distance(&one, &hidden.narrow(0, i, 1).unwrap()) < 1e-5);
            // Only differences of positions count, so padding may as well come first.
            let shifted = matrix(&[[vec![9; 3], text.clone()].concat()]);
            let mask: Vec<u8> = (0..text.len() + 3).map(|j| u8::from(j >= 3)).collect();
            let mask = Tensor::from_vec(mask, shifted.shape(), &Device::Cpu).unwrap();
            let shifted = model.encoder().forward(&shifted, Some(&mask), None).unwrap();
            let states = shifted.states.narrow(1, 3, text.len()).unwrap();
            assert!(distance(&states, &alone.states) < 1e-5);
            let one = model.predict(&shifted, &written.narrow(0, i, 1).unwrap(), None).unwrap();
            assert!(distance(&one, &hidden.narrow(0, i, 1).unwrap()) < 1e-5);
        }
    }
}

/// Fails with: counting positions from 0 at each step, or leaving out `causal`.
#[test]
fn token_by_token_is_the_whole_forward_pass() {
    let texts = [tokens(5, 1), tokens(19, 2)];
    for (model, _) in models() {
        let encoded = read(&model, &texts);
        let written = matrix(&[tokens(15, 5), tokens(15, 6)]);
        let whole = model.decode(&written, &mut model.start(&encoded).unwrap()).unwrap();
        let mut state = model.start(&encoded).unwrap();
        let mut at = 0;
        for n in [1, 1, 4, 1, 3, 5] {
            let hidden = model.decode(&written.narrow(1, at, n).unwrap(), &mut state).unwrap();
            assert!(distance(&hidden, &whole.narrow(1, at, n).unwrap()) < 1e-5);
            at += n;
            assert_eq!(state.tokens(), at);
        }
        // Cut back, it goes on from there.
        state.truncate(6).unwrap();
        let hidden = model.decode(&written.narrow(1, 6, 2).unwrap(), &mut state).unwrap();
        assert!(distance(&hidden, &whole.narrow(1, 6, 2).unwrap()) < 1e-5);
    }
}

/// Fails with: leaving the keys and values of the texts as they were, or giving every row the first text.
#[test]
fn picked_rows_go_on_as_if_alone() {
    let texts = [tokens(5, 1), tokens(9, 2), tokens(7, 3)];
    let (model, _) = models().swap_remove(1);
    let encoded = read(&model, &texts);
    let begun = [tokens(3, 5), tokens(3, 6), tokens(3, 7)];
    let mut state = model.start(&encoded).unwrap();
    model.decode(&matrix(&begun), &mut state).unwrap();
    // Beams of each text, a reordering among them, an uneven choice, one text left, and back to two of it.
    let mut rows: Vec<(usize, Vec<u32>)> = begun.into_iter().enumerate().collect();
    for (step, picked) in
        [&[0, 0, 1, 1, 2, 2][..], &[1, 0, 2, 2, 5, 4], &[0, 1, 3, 5, 4], &[4, 2, 2], &[2, 2, 1, 1], &[3, 2]]
            .into_iter()
            .enumerate()
    {
        state = state.pick(picked).unwrap();
        rows = picked.iter().map(|row| rows[*row].clone()).collect();
        let new: Vec<Vec<u32>> = (0..rows.len()).map(|i| tokens(2, (10 * step + i) as u32)).collect();
        let hidden = model.decode(&matrix(&new), &mut state).unwrap();
        for (i, ((text, written), new)) in rows.iter_mut().zip(&new).enumerate() {
            written.extend(new);
            let alone = read(&model, std::slice::from_ref(&texts[*text]));
            let written = matrix(std::slice::from_ref(written));
            let alone = model.decode(&written, &mut model.start(&alone).unwrap()).unwrap();
            let last = alone.narrow(1, written.dims()[1] - 2, 2).unwrap();
            let distance = distance(&hidden.narrow(0, i, 1).unwrap(), &last);
            assert!(distance < 1e-5, "step {step} row {i}: {distance:e}");
        }
    }
    assert!(state.pick(&[2]).is_err());
    assert!(model.decode(&matrix(&[tokens(1, 1)]), &mut state).is_err());
}

/// Fails with: joining passages without their mask.
#[test]
fn joined_passages_are_read_as_one_and_absent_ones_not_at_all() {
    let (model, _) = models().swap_remove(0);
    let passages = [tokens(5, 1), tokens(9, 2), tokens(3, 3), tokens(4, 4)];
    let joined = read(&model, &passages).joined(2).unwrap();
    assert_eq!(joined.states.dims(), [2, 18, 18]);
    let written = matrix(&[tokens(4, 5), tokens(4, 6)]);
    let both = model.predict(&joined, &written, None).unwrap();
    for (i, pair) in passages.chunks(2).enumerate() {
        let one = |text: &Vec<u32>| read(&model, std::slice::from_ref(text)).states;
        let states = Tensor::cat(&[one(&pair[0]), one(&pair[1])], 1).unwrap();
        let alone = Encoded { states, mask: None };
        let alone = model.predict(&alone, &written.narrow(0, i, 1).unwrap(), None).unwrap();
        assert!(distance(&alone, &both.narrow(0, i, 1).unwrap()) < 1e-5);
    }
    // A passage without a token counts for nothing.
    let with_absent = read(&model, &[passages[0].clone(), Vec::new()]).joined(2).unwrap();
    let first = written.narrow(0, 0, 1).unwrap();
    let right = model.predict(&read(&model, &passages[..1]), &first, None).unwrap();
    assert!(distance(&model.predict(&with_absent, &first, None).unwrap(), &right) < 1e-5);
    assert!(joined.joined(3).is_err());
}

/// Fails with: detaching the encoder's states, or candle_nn's norm.
#[test]
fn every_weight_gets_a_gradient_and_it_is_the_slope() {
    for (model, variables) in models() {
        let texts = [tokens(5, 1), tokens(17, 2)];
        let mut targets = matrix(&[tokens(6, 5), tokens(6, 6)]).to_vec2::<u32>().unwrap();
        targets[1][4..].fill(IGNORE);
        let targets = matrix(&targets);
        let loss = || {
            let hidden = model.predict(&read(&model, &texts), &targets, None).unwrap();
            let hidden = hidden.flatten(0, 1).unwrap();
            let options = CrossEntropyOptions::ignoring(IGNORE);
            linear_cross_entropy(&hidden, &model.head().unwrap(), &targets.flatten_all().unwrap(), &options)
                .unwrap()
        };
        let gradients = loss().backward().unwrap();
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
            let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(length > 1e-4, "{name}: {length}");
            // Along its gradient the loss grows by the gradient's length.
            let (start, step) = (variable.as_detached_tensor().copy().unwrap(), 5e-4 / f64::from(length));
            let at = |sign: f64| {
                variable.set(&(&start + (gradient * (sign * step)).unwrap()).unwrap()).unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let slope = (at(1.0) - at(-1.0)) / 1e-3;
            variable.set(&start).unwrap();
            assert!(
                (slope - length).abs() < 0.05 * length + 0.03,
                "{name}: slope {slope}, gradient {length}"
            );
        }
    }
}

/// Fails with: one of the halves that passes no dropout on.
#[test]
fn dropout_depends_on_its_seed_in_both_halves() {
    for (model, _) in models() {
        let texts = [tokens(5, 1), tokens(9, 2)];
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let targets = matrix(&[tokens(6, 5), tokens(6, 6)]);
        let run = |encoder: Option<Dropout>, decoder: Option<Dropout>| {
            let encoded = model.encoder().read(&texts, encoder).unwrap();
            model.predict(&encoded, &targets, decoder).unwrap()
        };
        let (plain, dropout) = (run(None, None), |rate, seed| Some(Dropout::new(rate, seed)));
        assert!(distance(&run(dropout(0.0, 1), dropout(0.0, 2)), &plain) < 1e-5);
        for (encoder, decoder) in [(dropout(0.2, 1), None), (None, dropout(0.2, 1))] {
            let other = |d: Option<Dropout>| d.map(|_| Dropout::new(0.2, 2));
            assert_eq!(distance(&run(encoder, decoder), &run(encoder, decoder)), 0.0);
            assert!(distance(&run(encoder, decoder), &plain) > 1e-3);
            assert!(distance(&run(encoder, decoder), &run(other(encoder), other(decoder))) > 1e-3);
        }
    }
}
