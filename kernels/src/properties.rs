//! What holds for all operations, over random shapes and layouts.

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use crate::testing::*;
use crate::*;

fn config() -> ProptestConfig {
    ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn row_operations_match(rows in 1usize..90, dim in 2usize..200, seed in 0u64..1000) {
        let (x, y) = (random(&[rows, dim], seed), random(&[rows, dim], seed + 1));
        let (weight, bias) = (random(&[dim], seed + 2), random(&[dim], seed + 3));
        assert_matches_f64(&[x.clone(), weight.clone()], 2e-5, |t| rms_norm(&t[0], &t[1], 1e-5));
        // Two elements that almost agree make layer normalisation ill-conditioned; eps keeps it tame.
        assert_matches_f64(&[x.clone(), weight, bias], 2e-5, |t| layer_norm(&t[0], &t[1], &t[2], 1e-2));
        assert_matches_f64(&[x.clone(), y.clone()], 1e-6, |t| swiglu(&t[0], &t[1]));
        assert_matches_f64(std::slice::from_ref(&x), 1e-6, |t| gelu(&t[0]));
        assert_matches_f64(std::slice::from_ref(&x), 1e-6, |t| dropout(&t[0], 0.25, seed));
        assert_matches_f64(&[x, y, random(&[dim], seed)], 2e-5, |t| {
            let (sum, normal) = add_rms_norm(&t[0], &t[1], &t[2], 1e-5)?;
            sum * normal
        });
    }

    #[test]
    fn projections_match(
        batch in 1usize..4,
        tokens in 1usize..60,
        heads in 1usize..5,
        half in 1usize..12,
        width in 1usize..70,
        turned: bool,
    ) {
        let dim = 2 * half;
        let angles = random(&[tokens, half], 7);
        let inputs = [random(&[batch, tokens, width], 1), random(&[heads * dim, width], 2)];
        let to = |t: &[Tensor]| {
            let angles = angles.to_dtype(t[0].dtype())?;
            linear_to_heads(&t[0], &t[1], heads, turned.then_some((&angles.cos()?, &angles.sin()?)))
        };
        assert_matches_f64(&inputs, 2e-5, to);
        assert_same_on_any_number_of_threads(&inputs, to);
        let inputs = [
            random(&[batch, heads, tokens, dim], 1),
            random(&[width, heads * dim], 2),
            random(&[batch, tokens, width], 3),
        ];
        let from = |t: &[Tensor]| linear_from_heads(&t[0], &t[1], &t[2]);
        assert_matches_f64(&inputs, 2e-5, from);
        assert_same_on_any_number_of_threads(&inputs, from);
        let x = random(&[batch, tokens, heads * dim], 4);
        assert_matches_f64(std::slice::from_ref(&x), 1e-6, |t| {
            let angles = angles.to_dtype(t[0].dtype())?;
            merge_heads(&rotary_heads(&split_heads(&t[0], heads)?.transpose(1, 2)?.reshape(x.dims())?, heads,
                &angles.cos()?, &angles.sin()?)?)
        });
    }

    #[test]
    fn feed_forward_matches(
        rows in 1usize..70,
        input in 1usize..40,
        inner in 1usize..150,
        output in 1usize..40,
    ) {
        let inputs = [
            random(&[rows, input], 1),
            random(&[inner, input], 2),
            random(&[inner, input], 3),
            random(&[output, inner], 4),
            random(&[rows, output], 5),
        ];
        let op = |t: &[Tensor]| gated_feed_forward(&t[0], &t[1], &t[2], &t[3], &t[4], Activation::Silu);
        assert_matches_f64(&inputs, 2e-5, op);
        assert_same_on_any_number_of_threads(&inputs, op);
    }

    #[test]
    fn linear_layers_match(rows in 1usize..90, input in 1usize..150, output in 1usize..150) {
        let inputs = [random(&[rows, input], 1), random(&[output, input], 2), random(&[rows, output], 3)];
        assert_matches_f64(&inputs, 2e-5, |t| linear_add(&t[0], &t[1], &t[2]));
    }

    #[test]
    fn embedding_matches(vocabulary in 1usize..60, dim in 1usize..40, tokens in 0usize..90) {
        let ids: Vec<u32> = (0..tokens).map(|i| (i * i % vocabulary) as u32).collect();
        let ids = Tensor::new(ids, &Device::Cpu).unwrap();
        assert_matches_f64(&[random(&[vocabulary, dim], 1)], 1e-5, |t| embedding(&t[0], &ids));
    }

    #[test]
    fn chunked_cross_attention_matches(
        batch in 1usize..3,
        kv_heads in 1usize..3,
        group in 1usize..3,
        m in 1usize..80,
        chunks in 1usize..4,
        more in 0usize..80,
        keys in 1usize..60,
        dim in 1usize..20,
        mask_seed in 0u64..1000,
    ) {
        let (heads, tokens, sequences) = (kv_heads * group, m * chunks + more, batch * chunks);
        let inputs = [
            random(&[batch, heads, tokens, dim], 1),
            random(&[sequences, kv_heads, keys, dim], 2),
            random(&[sequences, kv_heads, keys, dim], 3),
            random(&[heads, m + keys], 4),
            random(&[heads], 5),
        ];
        let mask = random(&[sequences, keys], mask_seed).gt(0f32).unwrap();
        let buckets: Vec<u32> = (0..m * keys).map(|i| (i / keys + keys - 1 - i % keys) as u32).collect();
        let buckets = Tensor::from_vec(buckets, (m, keys), &Device::Cpu).unwrap();
        assert_matches_f64(&inputs, 2e-5, |t| {
            let options = AttentionOptions {
                relative: Some(RelativeBias { table: &t[3], buckets: &buckets }),
                key_mask: Some(&mask),
                sink: Some(&t[4]),
                ..AttentionOptions::scaled(0.3)
            };
            chunked_cross_attention(&t[0], &t[1], &t[2], m, &options)
        });
    }

    #[test]
    fn attention_matches(
        batch in 1usize..4,
        kv_heads in 1usize..4,
        group in 1usize..4,
        queries in 1usize..150,
        keys in 1usize..150,
        dim in 1usize..40,
        causal: bool,
        mask_seed in 0u64..1000,
    ) {
        let heads = kv_heads * group;
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, kv_heads, keys, dim], 2),
            random(&[batch, kv_heads, keys, dim], 3),
            random(&[heads, queries, keys], 4),
            random(&[heads], 5),
        ];
        let mask = random(&[batch, keys], mask_seed).gt(0f32).unwrap();
        let op = |t: &[Tensor]| {
            let (bias, sink) = (Some(&t[3]), Some(&t[4]));
            let options = AttentionOptions { causal, bias, key_mask: Some(&mask), sink, ..AttentionOptions::scaled(0.3) };
            attention(&t[0], &t[1], &t[2], &options)
        };
        assert_matches_f64(&inputs, 2e-5, op);
        assert_same_on_any_number_of_threads(&inputs, op);
    }

    #[test]
    fn linear_cross_entropy_matches(
        tokens in 1usize..70,
        dim in 1usize..40,
        vocabulary in 1usize..300,
        smoothing in 0f32..1.0,
        z_loss in 0f32..0.01,
    ) {
        let inputs = [random(&[tokens, dim], 1), random(&[vocabulary, dim], 2)];
        let targets: Vec<u32> = (0..tokens).map(|i| (i * 13 % vocabulary) as u32).collect();
        let targets = Tensor::new(targets, &Device::Cpu).unwrap();
        for options in [
            CrossEntropyOptions::ignoring(0),
            CrossEntropyOptions { ignore: None, label_smoothing: smoothing, z_loss },
        ] {
            let op = |t: &[Tensor]| linear_cross_entropy(&t[0], &t[1], &targets, &options);
            assert_matches_f64(&inputs, 2e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}

/// Inputs that are transposed, narrowed or broadcast give what their contiguous copies give.
#[test]
fn any_layout_will_do() {
    let turned = |t: &Tensor| t.transpose(0, 1);
    assert_matches_f64(&[random(&[9, 5], 1), random(&[9], 2)], 1e-5, |t| {
        rms_norm(&turned(&t[0])?, &t[1], 1e-5)
    });
    assert_matches_f64(&[random(&[9, 5], 1), random(&[18], 2), random(&[9], 3)], 1e-5, |t| {
        layer_norm(&turned(&t[0])?, &t[1].narrow(0, 4, 9)?, &t[2], 1e-2)
    });
    assert_matches_f64(&[random(&[9, 5], 1), random(&[1, 9], 2)], 1e-6, |t| {
        swiglu(&turned(&t[0])?, &t[1].broadcast_as((5, 9))?)
    });
    assert_matches_f64(&[random(&[9, 5], 1)], 1e-6, |t| gelu(&turned(&t[0])?.narrow(1, 2, 3)?));
    let angles = random(&[4, 5], 7);
    assert_matches_f64(&[random(&[2, 5, 3, 8], 1)], 1e-6, |t| {
        let angles = angles.t()?.to_dtype(t[0].dtype())?;
        rotary(&t[0].transpose(1, 2)?, &angles.cos()?, &angles.sin()?)
    });
    let targets = Tensor::new(&[3u32, 0, 2, 6], &Device::Cpu).unwrap();
    assert_matches_f64(&[random(&[5, 9], 1), random(&[5, 7], 2)], 1e-5, |t| {
        linear_cross_entropy(
            &turned(&t[0])?.narrow(0, 3, 4)?,
            &turned(&t[1])?,
            &targets,
            &CrossEntropyOptions::default(),
        )
    });
    let (q, packed) = (random(&[2, 5, 4, 6], 1), random(&[2, 7, 12], 2));
    assert_matches_f64(&[q, packed, random(&[5, 4, 7], 3)], 1e-5, |t| {
        let keys = t[1].reshape((2, 7, 2, 6))?;
        let (k, v) = (keys.narrow(2, 0, 1)?.transpose(1, 2)?, keys.narrow(2, 1, 1)?.transpose(1, 2)?);
        let bias = t[2].transpose(0, 1)?;
        let options = AttentionOptions { causal: true, bias: Some(&bias), ..AttentionOptions::scaled(1.0) };
        attention(&t[0].transpose(1, 2)?, &k, &v, &options)
    });
}

/// A frozen input gets no gradient and does not keep the others from theirs.
#[test]
fn frozen_inputs_stay_frozen() {
    let gradients = |frozen: usize| -> Result<Vec<bool>> {
        let shapes: [&[usize]; 5] = [&[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 2, 3, 4], &[2, 3, 3], &[2]];
        let vars: Vec<Var> =
            shapes.iter().map(|shape| Var::from_tensor(&random(shape, 1)).unwrap()).collect();
        let t: Vec<Tensor> = vars
            .iter()
            .enumerate()
            .map(|(i, v)| if i == frozen { v.detach() } else { v.as_tensor().clone() })
            .collect();
        let options = AttentionOptions {
            causal: true,
            window: None,
            starts: None,
            scale: 1.0,
            bias: Some(&t[3]),
            relative: None,
            key_mask: None,
            sink: Some(&t[4]),
        };
        let grads = attention(&t[0], &t[1], &t[2], &options)?.sqr()?.sum_all()?.backward()?;
        Ok(t.iter().map(|t| grads.get(t).is_some()).collect())
    };
    for frozen in 0..5 {
        let expected: Vec<bool> = (0..5).map(|i| i != frozen).collect();
        assert_eq!(gradients(frozen).unwrap(), expected);
    }
}

/// A query with nothing to see gives exactly zero and leaves exact zeros in the gradients.
#[test]
fn nothing_to_see_is_exactly_zero() {
    let mask = Tensor::new(&[[0u8, 0, 0], [1, 0, 1]], &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let inputs = [random(&[2, 1, 4, 2], 1), random(&[2, 1, 3, 2], 2), random(&[2, 1, 3, 2], 3)];
        let (value, gradients) = value_and_gradients(&inputs, dtype, |t| {
            let options =
                AttentionOptions { causal: true, key_mask: Some(&mask), ..AttentionOptions::scaled(1.0) };
            attention(&t[0], &t[1], &t[2], &options)
        });
        let zero = |t: &Tensor| distance(t, &t.zeros_like().unwrap()) == 0.0;
        for tensor in std::iter::once(&value).chain(&gradients) {
            assert!(zero(&tensor.get(0).unwrap()), "the first sequence sees nothing");
            assert!(!zero(&tensor.get(1).unwrap()));
        }
        // Of four queries on three keys the first sees none.
        assert!(zero(&value.get(1).unwrap().narrow(1, 0, 1).unwrap()));
    }
}

/// A NaN must show in the result, or nobody would notice that training has diverged.
#[test]
fn nan_is_not_swallowed() {
    let nan = Tensor::full(f32::NAN, (1, 1, 2, 4), &Device::Cpu).unwrap();
    let flat = nan.reshape((2, 4)).unwrap();
    let fine = random(&[4], 1);
    let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(1.0) };
    let targets = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
    let angles = random(&[2, 2], 1);
    for value in [
        rms_norm(&nan, &fine, 1e-5),
        layer_norm(&nan, &fine, &fine, 1e-5),
        swiglu(&nan, &nan),
        gelu(&nan),
        rotary(&nan, &angles, &angles),
        attention(&nan, &nan, &nan, &options),
        linear_cross_entropy(&flat, &random(&[3, 4], 1), &targets, &CrossEntropyOptions::default()),
        dropout(&nan, 0.5, 1),
        linear(&flat, &random(&[3, 4], 1)),
        linear_to_heads(&nan.squeeze(0).unwrap(), &random(&[6, 4], 1), 3, None),
        linear_from_heads(&nan, &random(&[6, 4], 1), &random(&[1, 2, 6], 1)),
        gated_feed_forward(
            &flat,
            &random(&[3, 4], 1),
            &random(&[3, 4], 2),
            &random(&[4, 3], 1),
            &flat,
            Activation::Silu,
        ),
    ] {
        let value = value.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(value.iter().all(|x| x.is_nan()), "{value:?}");
    }
}

/// Shapes that do not fit are errors, not panics.
#[test]
fn shapes_are_checked() {
    let x = |shape: &[usize]| random(shape, 1);
    let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(1.0) };
    let (q, k, five) = (x(&[1, 4, 2, 3]), x(&[1, 2, 2, 3]), x(&[5]));
    assert!(rms_norm(&x(&[2, 3]), &x(&[4]), 1e-5).is_err());
    assert!(layer_norm(&x(&[2, 3]), &x(&[3]), &x(&[2]), 1e-5).is_err());
    assert!(swiglu(&x(&[2, 3]), &x(&[3, 2])).is_err());
    assert!(rotary(&x(&[1, 1, 2, 3]), &x(&[2, 1]), &x(&[2, 1])).is_err());
    assert!(rotary(&x(&[1, 1, 2, 4]), &x(&[3, 2]), &x(&[3, 2])).is_err());
    assert!(attention(&q, &k, &k, &options).is_ok());
    assert!(attention(&q, &x(&[1, 3, 2, 3]), &x(&[1, 3, 2, 3]), &options).is_err());
    assert!(attention(&q, &k, &x(&[1, 2, 3, 3]), &options).is_err());
    assert!(attention(&q, &k, &k, &AttentionOptions { sink: Some(&five), ..options }).is_err());
    assert!(attention(&q, &k, &k, &AttentionOptions { bias: Some(&five), ..options }).is_err());
    assert!(attention(&q, &k, &k, &AttentionOptions { key_mask: Some(&five), ..options }).is_err());
    let targets = Tensor::new(&[0u32, 7], &Device::Cpu).unwrap();
    assert!(
        linear_cross_entropy(&x(&[2, 3]), &x(&[8, 3]), &targets, &CrossEntropyOptions::default()).is_ok()
    );
    assert!(
        linear_cross_entropy(&x(&[2, 3]), &x(&[8, 4]), &targets, &CrossEntropyOptions::default()).is_err()
    );
    let error = linear_cross_entropy(&x(&[2, 3]), &x(&[7, 3]), &targets, &CrossEntropyOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("target 7 of row 1"), "{error}");
}

/// Empty batches pass through.
#[test]
fn nothing_in_nothing_out() {
    let x = |shape: &[usize]| random(shape, 1);
    let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(1.0) };
    assert_eq!(rms_norm(&x(&[0, 3]), &x(&[3]), 1e-5).unwrap().dims(), [0, 3]);
    assert_eq!(rms_norm(&x(&[3, 0]), &x(&[0]), 1e-5).unwrap().dims(), [3, 0]);
    assert_eq!(layer_norm(&x(&[3, 0]), &x(&[0]), &x(&[0]), 1e-5).unwrap().dims(), [3, 0]);
    let weights = [x(&[4, 3]), x(&[4, 3]), x(&[2, 4])];
    for rows in [0, 2] {
        let (input, residual) = (x(&[rows, 3]), x(&[rows, 2]));
        let value =
            gated_feed_forward(&input, &weights[0], &weights[1], &weights[2], &residual, Activation::Silu);
        assert_eq!(value.unwrap().dims(), [rows, 2]);
    }
    assert_eq!(linear_to_heads(&x(&[1, 0, 3]), &weights[0], 2, None).unwrap().dims(), [1, 2, 0, 2]);
    assert_eq!(rotary(&x(&[0, 2, 3, 4]), &x(&[3, 2]), &x(&[3, 2])).unwrap().dims(), [0, 2, 3, 4]);
    let (q, none) = (x(&[1, 2, 3, 4]), x(&[1, 2, 0, 4]));
    let value = attention(&q, &none, &none, &options).unwrap();
    assert_eq!(distance(&value, &q.zeros_like().unwrap()), 0.0);
    let targets = Tensor::new(&[9u32, 9], &Device::Cpu).unwrap();
    let (loss, gradients) = value_and_gradients(&[x(&[2, 3]), x(&[5, 3])], DType::F32, |t| {
        linear_cross_entropy(&t[0], &t[1], &targets, &CrossEntropyOptions::ignoring(9))
    });
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    assert!(gradients.iter().all(|g| distance(g, &g.zeros_like().unwrap()) == 0.0));
}

/// Half precision takes the composed way, and every input still gets its gradient.
#[test]
fn half_precision_works() {
    let inputs = [
        random(&[1, 2, 3, 4], 1),
        random(&[1, 2, 5, 4], 2),
        random(&[1, 2, 5, 4], 3),
        random(&[2, 3, 5], 4),
        random(&[2], 5),
    ];
    let (value, _) = value_and_gradients(&inputs, DType::BF16, |t| {
        let options = AttentionOptions {
            causal: true,
            window: None,
            starts: None,
            scale: 0.5,
            bias: Some(&t[3]),
            relative: None,
            key_mask: None,
            sink: Some(&t[4]),
        };
        attention(&t[0], &t[1], &t[2], &options)
    });
    assert_eq!(value.dtype(), DType::BF16);
    let (value, _) = value_and_gradients(&[random(&[3, 8], 1), random(&[8], 2)], DType::BF16, |t| {
        rms_norm(&t[0], &t[1], 1e-5)
    });
    assert_eq!(value.dtype(), DType::BF16);
}

/// Two backward passes over one graph at a time do not mix up their gradients.
#[test]
fn concurrent_backward_passes_keep_apart() {
    let vars: Vec<Var> = (0..5)
        .map(|i| {
            Var::from_tensor(&random(
                [&[2, 2, 9, 4], &[2, 2, 9, 4], &[2, 2, 9, 4], &[2, 9, 9][..], &[2]][i],
                i as u64,
            ))
            .unwrap()
        })
        .collect();
    let options = AttentionOptions {
        causal: true,
        window: None,
        starts: None,
        scale: 1.0,
        bias: Some(&vars[3]),
        relative: None,
        key_mask: None,
        sink: Some(&vars[4]),
    };
    let value = attention(&vars[0], &vars[1], &vars[2], &options).unwrap();
    std::thread::scope(|scope| {
        let passes: Vec<_> = (1..5)
            .map(|factor| {
                let value = &value;
                scope.spawn(move || {
                    (0..20)
                        .map(|_| (value * f64::from(factor)).unwrap().sum_all().unwrap().backward().unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let expected = value.sum_all().unwrap().backward().unwrap();
        for (pass, factor) in passes.into_iter().zip(1..5) {
            for grads in pass.join().unwrap() {
                let expected = (expected.get(&vars[3]).unwrap() * f64::from(factor)).unwrap();
                assert!(distance(grads.get(&vars[3]).unwrap(), &expected) < 1e-5);
            }
        }
    });
}
