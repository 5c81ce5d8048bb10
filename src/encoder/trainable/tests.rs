//! The trained form is the form that is searched with, and its gradients are slopes.
//!
//! Each of these was broken once to see a test fail: the mask of padding, the first position, the direction of relative
//! distances, the rotary turn, the gradient of positions, the count that a mean is over, the unit length, tensors that
//! are only kept, and the weights of a Dense module.

use std::path::Path;

use super::*;
use crate::encoder;
use crate::model::normal::normal;
use crate::model::testing::assert_alike_when_recomputed;

/// The small checkpoints of tests/data/encoder, which scripts/golden_encoder.py makes.
const FOLDERS: [&str; 8] =
    ["bert_mean", "bert_cls", "bge", "contriever", "xlm_roberta", "mpnet", "nomic", "t5_dense"];

const TEXTS: [&str; 4] = [
    "April",
    "the moon moves around the Earth in about 27 days, and always shows it the same side",
    "a b c",
    "The king lives in a castle.",
];

fn open(name: &str) -> (String, TrainableEncoder) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder").join(name);
    let name = folder.to_str().unwrap().to_string();
    let encoder = TrainableEncoder::load(&name, &Device::Cpu).unwrap();
    (name, encoder)
}

fn forward(encoder: &TrainableEncoder, ids: &[Vec<u32>], dropout: Option<Dropout>) -> Tensor {
    let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    encoder.forward(&ids, dropout).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Padded to the longest, which nothing may attend to.
#[test]
fn vectors_are_those_of_the_form_for_inference() {
    for name in FOLDERS {
        let (folder, encoder) = open(name);
        let fast = encoder::load(&folder).unwrap();
        for queries in [false, true] {
            let (ids, expected) = match queries {
                false => (encoder.tokenize(&TEXTS), fast.encode(&TEXTS)),
                true => (encoder.tokenize_queries(&TEXTS), fast.encode_queries(&TEXTS)),
            };
            let found = values(&forward(&encoder, &ids.unwrap(), None));
            let difference = difference(&found, &expected.unwrap());
            assert!(difference < 1e-5, "{name}: off by {difference:e}");
        }
        assert_eq!((encoder.dim(), encoder.metric()), (fast.dim(), fast.metric()), "{name}");
        assert!(encoder.forward(&[&[]], None).is_err());
    }
}

/// A number that depends on all that the vectors of the texts hold.
fn loss_of(encoder: &TrainableEncoder, dropout: Option<Dropout>) -> Tensor {
    let ids = encoder.tokenize(&TEXTS).unwrap();
    let weights = normal(1, "weights", TEXTS.len() * encoder.dim(), 1.0);
    let weights = Tensor::from_vec(weights, (TEXTS.len(), encoder.dim()), &Device::Cpu).unwrap();
    (forward(encoder, &ids, dropout) * weights).unwrap().sum_all().unwrap()
}

#[test]
fn activations_can_be_computed_again() {
    for name in FOLDERS {
        let (_, encoder) = open(name);
        let dropout = Some(Dropout::new(0.1, 3));
        assert_alike_when_recomputed(name, &encoder.variables, || loss_of(&encoder, dropout));
    }
}

#[test]
fn every_weight_gets_a_gradient_and_it_is_the_slope() {
    for name in FOLDERS {
        let (_, encoder) = open(name);
        let loss = || loss_of(&encoder, None);
        let gradients = loss().backward().unwrap();
        let mut moved = 0;
        for (weight, variable) in encoder.variables() {
            let gradient =
                gradients.get(variable).unwrap_or_else(|| panic!("{name}: {weight} has no gradient"));
            let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            // Adding the same to all keys changes nothing.
            if length < 1e-3 {
                assert!(
                    weight.contains("key.bias") || weight.contains("attn.k.bias"),
                    "{name}: {weight}: {length}"
                );
                continue;
            }
            moved += 1;
            // Along its gradient the loss grows by the gradient's length.
            let (start, step) = (variable.as_detached_tensor().copy().unwrap(), 2e-3 / f64::from(length));
            let at = |sign: f64| {
                variable.set(&(&start + (gradient * (sign * step)).unwrap()).unwrap()).unwrap();
                f64::from(loss().to_scalar::<f32>().unwrap())
            };
            let slope = ((at(1.0) - at(-1.0)) / 4e-3) as f32;
            variable.set(&start).unwrap();
            assert!(
                (slope - length).abs() < 0.05 * length + 0.01,
                "{name}: {weight}: slope {slope}, gradient {length}"
            );
        }
        assert!(moved > 10, "{name}");
    }
}

#[test]
fn dropout_depends_on_its_seed() {
    for name in FOLDERS {
        let (_, encoder) = open(name);
        let ids = encoder.tokenize(&TEXTS).unwrap();
        let with = |rate, seed| values(&forward(&encoder, &ids, Some(Dropout::new(rate, seed))));
        let without = values(&forward(&encoder, &ids, None));
        assert!(difference(&with(0.0, 1), &without) < 1e-5, "{name}");
        assert_eq!(with(0.2, 1), with(0.2, 1), "{name}");
        assert!(difference(&with(0.2, 1), &with(0.2, 2)) > 1e-3, "{name}");
        assert!(difference(&with(0.2, 1), &without) > 1e-3, "{name}");
    }
}

/// Weights that moved, and moved ones only: everything else is as it was.
#[test]
fn a_saved_encoder_gives_the_same_vectors_and_is_never_written_over() {
    for name in FOLDERS {
        let (folder, encoder) = open(name);
        for (weight, variable) in encoder.variables() {
            let noise = normal(4, weight, variable.elem_count(), 0.02);
            let noise = Tensor::from_vec(noise, variable.shape(), &Device::Cpu).unwrap();
            variable.set(&(variable.as_detached_tensor() + noise).unwrap()).unwrap();
        }
        let ids = encoder.tokenize(&TEXTS).unwrap();
        let expected = values(&forward(&encoder, &ids, None));
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("saved");
        encoder.save(&saved).unwrap();
        let fast = encoder::load(saved.to_str().unwrap()).unwrap();
        assert!(difference(&fast.encode(&TEXTS).unwrap(), &expected) < 1e-5, "{name}");
        let again = TrainableEncoder::load(saved.to_str().unwrap(), &Device::Cpu).unwrap();
        assert_eq!(values(&forward(&again, &ids, None)), expected, "{name}");
        assert!(encoder.save(&saved).unwrap_err().to_string().contains("already exists"));
        // Every tensor and every other file is still there.
        let names = |path: &Path| Source::open(path).unwrap().names();
        assert_eq!(names(&saved), names(Path::new(&folder)), "{name}");
        for file in ["tokenizer.json", "config.json"] {
            assert!(saved.join(file).exists(), "{name}");
        }
    }
}
