use std::path::Path;

use candle_core::{Device, Tensor, Var};
use sidenote_kernels::Activations;

use super::{Decoder, DecoderConfig};
use crate::model::testing::assert_alike_when_recomputed;
use crate::model::weights::Weights;
use crate::model::{Cache, Source};

fn decoder(name: &str) -> Decoder {
    with_weights(name).0
}

fn with_weights(name: &str) -> (Decoder, Vec<(String, Var)>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
    let source = Source::open(&folder).unwrap();
    let config = DecoderConfig::from_json(source.config()).unwrap();
    let mut weights = Weights::from_source(source, &Device::Cpu);
    weights.set_trainable(true);
    let decoder = Decoder::new(&config, &mut weights).unwrap();
    (decoder, weights.finish().1)
}

/// Of every way to tell positions: rotary, learned, with a window and without. Fails when a text sees another, or begins elsewhere than
/// at its first place.
#[test]
fn texts_in_a_row_are_read_as_each_by_itself() {
    let texts: Vec<Vec<u32>> =
        [3usize, 17, 1, 9].map(|n| (0..n as u32).map(|i| (i * i * 7 + n as u32) % 97).collect()).into();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for name in ["llama", "gpt2", "mistral", "gemma3_text", "opt", "qwen3", "stablelm"] {
        let decoder = decoder(name);
        let apart: Vec<Tensor> = texts
            .iter()
            .map(|text| {
                let tokens = Tensor::new(*text, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
                decoder.forward(&tokens, &mut Cache::default()).unwrap().squeeze(0).unwrap()
            })
            .collect();
        let apart = Tensor::cat(&apart, 0).unwrap();
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let places = decoder.places_in_a_row(&lengths).unwrap();
        let tokens = Tensor::new(texts.concat(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let together = decoder.forward_at(&tokens, &places).unwrap().squeeze(0).unwrap();
        let gap = (apart - together).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-5, "{name}: {gap}");
    }
    let refused = decoder("bloom").places_in_a_row(&[3, 1]).err().map(|why| why.to_string());
    assert!(
        refused.as_ref().is_some_and(|why| why.contains("tune.packing") && why.contains("ALiBi")),
        "{refused:?}"
    );
}

#[test]
fn activations_can_be_computed_again() {
    for name in ["llama", "gpt2", "bloom", "gemma3_text", "opt", "qwen3"] {
        let (decoder, variables) = with_weights(name);
        let tokens = Tensor::new(&[[3u32, 9, 27, 81, 5], [2, 4, 8, 16, 32]], &Device::Cpu).unwrap();
        let sum = |x: Tensor| x.sqr().unwrap().sum_all().unwrap();
        assert_alike_when_recomputed(name, &variables, || sum(decoder.forward_whole(&tokens).unwrap()));
        // With the states that memories are keyed by; what the last block computes is kept here.
        let whole = decoder.forward_with_contexts(&tokens, &mut Cache::default()).unwrap();
        Activations::Recomputed(1).run(|| {
            let again = decoder.forward_whole_with_contexts(&tokens).unwrap();
            for (a, b) in [(&whole.0, &again.0), (&whole.1, &again.1)] {
                let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(a), values(b), "{name}");
            }
        });
    }
}

/// What kNN-LM's keys are (Khandelwal et al. 2020, <https://arxiv.org/abs/1911.00172>, section 2): the input of the last feed-forward
/// layer, after its norm. So it does not depend on that layer, and is as large as the norm makes it. Fails where a family has it
/// elsewhere.
#[test]
fn contexts_are_what_the_last_feed_forward_layer_reads() {
    for (name, norm, out) in [
        ("gpt2", "ln_2.weight", "mlp.c_proj.weight"),
        ("bloom", "post_attention_layernorm.weight", "mlp.dense_4h_to_h.weight"),
        ("opt", "final_layer_norm.weight", "fc2.weight"),
        ("llama", "post_attention_layernorm.weight", "mlp.down_proj.weight"),
        ("gemma3_text", "pre_feedforward_layernorm.weight", "mlp.down_proj.weight"),
    ] {
        let (decoder, weights) = with_weights(name);
        let last = decoder.blocks().len() - 1;
        let of_block = |number: usize, end: &str| {
            let middle = format!(".{number}.");
            let is = |(full, _): &&(String, Var)| full.contains(&middle) && full.ends_with(end);
            &weights.iter().find(is).unwrap_or_else(|| panic!("{name}: no {end} of block {number}")).1
        };
        let read = || {
            let tokens = Tensor::new(&[[3u32, 9, 27, 81]], &Device::Cpu).unwrap();
            let (hidden, contexts) = decoder.forward_with_contexts(&tokens, &mut Cache::default()).unwrap();
            let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (values(hidden), values(contexts))
        };
        let changed = |weight: &Var, factor: f64| {
            let before = weight.as_tensor().copy().unwrap();
            weight.set(&(&before * factor).unwrap()).unwrap();
            let after = read();
            weight.set(&before).unwrap();
            after
        };
        let (hidden, contexts) = read();
        let (other_hidden, same) = changed(of_block(last, out), 0.5);
        assert!(same == contexts && other_hidden != hidden, "{name}: what the last layer writes");
        assert_ne!(changed(of_block(last - 1, out), 0.5).1, contexts, "{name}: what the one before writes");
        let (_, larger) = changed(of_block(last, norm), 2.0);
        assert_ne!(larger, contexts, "{name}: the norm before it");
    }
}
