use super::*;
use crate::testing::*;
use candle_core::Device;

/// Batch, heads, key heads, queries, keys, dim.
const SHAPES: [[usize; 6]; 6] = [
    [1, 1, 1, 1, 1, 1],
    [2, 4, 2, 3, 5, 3],
    [2, 2, 1, 5, 2, 4],
    [3, 2, 2, 1, 7, 8],
    [2, 4, 4, 67, 67, 16],
    [2, 6, 3, 33, 130, 20],
];

fn check_shape([batch, heads, kv_heads, queries, keys, dim]: [usize; 6]) {
    let inputs = [
        random(&[batch, heads, queries, dim], 1),
        random(&[batch, kv_heads, keys, dim], 2),
        random(&[batch, kv_heads, keys, dim], 3),
        random(&[heads, queries, keys], 4),
        random(&[heads], 5),
    ];
    // The first sequence may attend to nothing.
    let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i >= keys && i % 3 != 1)).collect();
    let mask = Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap();
    for variant in 0..16 {
        let [causal, biased, masked, sunk] = [1, 2, 4, 8].map(|bit| variant & bit != 0);
        // The bias is the fourth input if there is one, the sink the last.
        let mut inputs = inputs.to_vec();
        if !sunk {
            inputs.pop();
        }
        if !biased {
            inputs.remove(3);
        }
        let op = |t: &[Tensor]| {
            let options = AttentionOptions {
                causal,
                window: None,
                starts: None,
                scale: 0.7,
                bias: biased.then(|| &t[3]),
                relative: None,
                key_mask: masked.then_some(&mask),
                sink: if sunk { t.last() } else { None },
            };
            attention(&t[0], &t[1], &t[2], &options)
        };
        if queries * keys < 20 {
            assert_gradients_are_slopes(&inputs, op);
        }
        assert_matches_f64(&inputs, 1e-5, op);
        assert_same_on_any_number_of_threads(&inputs, op);
    }
}

#[test]
fn a_sliding_window_is_right() {
    for [batch, heads, kv_heads, queries, keys, dim] in SHAPES {
        for window in [1, 3, 40, 500] {
            let inputs = [
                random(&[batch, heads, queries, dim], 1),
                random(&[batch, kv_heads, keys, dim], 2),
                random(&[batch, kv_heads, keys, dim], 3),
                random(&[heads, queries, keys], 4),
            ];
            for mask in masks(batch, keys) {
                let op = |t: &[Tensor]| {
                    let options = AttentionOptions {
                        causal: true,
                        window: Some(window),
                        bias: Some(&t[3]),
                        key_mask: mask.as_ref(),
                        ..AttentionOptions::scaled(0.7)
                    };
                    attention(&t[0], &t[1], &t[2], &options)
                };
                if queries * keys < 20 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
    }
}

/// What the window does not reach changes nothing; what it just reaches does.
#[test]
fn a_window_ends_where_it_says() {
    let (q, k) = (random(&[1, 1, 9, 4], 1), random(&[1, 1, 9, 4], 2));
    let options = AttentionOptions { causal: true, window: Some(3), ..AttentionOptions::scaled(0.7) };
    let before = attention(&q, &k, &k, &options).unwrap();
    let (ones, rest) = (random(&[1, 1, 1, 4], 9), k.narrow(2, 1, 8).unwrap());
    let changed = Tensor::cat(&[&ones, &rest], 2).unwrap();
    let after = attention(&q, &changed, &changed, &options).unwrap();
    let moved = |query: usize| {
        distance(&before.narrow(2, query, 1).unwrap(), &after.narrow(2, query, 1).unwrap()) > 0.0
    };
    assert_eq!((0..9).filter(|query| moved(*query)).collect::<Vec<_>>(), [0, 1, 2]);
    let without = AttentionOptions { causal: false, ..options };
    assert!(attention(&q, &k, &k, &without).is_err());
    assert!(attention(&q, &k, &k, &AttentionOptions { window: Some(0), ..options }).is_err());
}

#[test]
fn texts_in_a_row_are_right() {
    for [batch, heads, kv_heads, queries, keys, dim] in SHAPES {
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, kv_heads, keys, dim], 2),
            random(&[batch, kv_heads, keys, dim], 3),
            random(&[heads, queries, keys], 4),
        ];
        // Texts of 1, 2, 3, ... tokens, or of 30 more in other sequences; the last queries are those of the last keys.
        let start = |i: usize| -> u32 {
            let (mut start, mut length) = (0, 1 + 30 * (i / queries % 2));
            let at = (i % queries + keys).saturating_sub(queries);
            while start + length <= at {
                (start, length) = (start + length, length + 1);
            }
            start as u32
        };
        let starts: Vec<u32> = (0..batch * queries).map(start).collect();
        let starts = Tensor::from_vec(starts, (batch, queries), &Device::Cpu).unwrap();
        for (mask, window) in masks(batch, keys).into_iter().zip([None, Some(5)]) {
            let op = |t: &[Tensor]| {
                let options = AttentionOptions {
                    causal: true,
                    window,
                    starts: Some(&starts),
                    bias: Some(&t[3]),
                    key_mask: mask.as_ref(),
                    ..AttentionOptions::scaled(0.7)
                };
                attention(&t[0], &t[1], &t[2], &options)
            };
            if queries * keys < 20 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}

/// Texts one after another are read as each is by itself.
#[test]
fn texts_in_a_row_do_not_see_each_other() {
    let lengths = [3usize, 70, 1, 40];
    let total: usize = lengths.iter().sum();
    let [q, k, v] = [1, 2, 3].map(|seed| random(&[1, 2, total, 4], seed));
    let mut from = 0;
    let (mut starts, mut apart) = (Vec::new(), Vec::new());
    let options = AttentionOptions { causal: true, ..AttentionOptions::scaled(0.7) };
    for length in lengths {
        starts.extend(vec![from as u32; length]);
        let own = |x: &Tensor| x.narrow(2, from, length).unwrap().contiguous().unwrap();
        apart.push(attention(&own(&q), &own(&k), &own(&v), &options).unwrap());
        from += length;
    }
    let starts = Tensor::from_vec(starts, (1, total), &Device::Cpu).unwrap();
    let together = attention(&q, &k, &v, &AttentionOptions { starts: Some(&starts), ..options }).unwrap();
    assert!(distance(&together, &Tensor::cat(&apart, 2).unwrap()) < 1e-6);
    let falling = Tensor::arange(0u32, total as u32, &Device::Cpu).unwrap();
    let falling =
        (falling.ones_like().unwrap() * total as f64).unwrap().sub(&falling).unwrap().unsqueeze(0).unwrap();
    assert!(attention(&q, &k, &v, &AttentionOptions { starts: Some(&falling), ..options }).is_err());
    let without = AttentionOptions { causal: false, starts: Some(&starts), ..options };
    assert!(attention(&q, &k, &v, &without).is_err());
}

/// Without a mask, and with one that leaves the first sequence nothing.
fn masks(batch: usize, keys: usize) -> [Option<Tensor>; 2] {
    let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i >= keys && i % 3 != 1)).collect();
    [None, Some(Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap())]
}

#[test]
fn relative_bias_is_right() {
    for [batch, heads, kv_heads, queries, keys, dim] in SHAPES {
        let buckets: Vec<u32> = (0..queries * keys).map(|i| (i * 7 % 5) as u32).collect();
        let buckets = Tensor::from_vec(buckets, (queries, keys), &Device::Cpu).unwrap();
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, kv_heads, keys, dim], 2),
            random(&[batch, kv_heads, keys, dim], 3),
            random(&[heads, 5], 4),
        ];
        for mask in masks(batch, keys) {
            let op = |t: &[Tensor]| {
                let relative = Some(RelativeBias { table: &t[3], buckets: &buckets });
                let options =
                    AttentionOptions { relative, key_mask: mask.as_ref(), ..AttentionOptions::scaled(0.7) };
                attention(&t[0], &t[1], &t[2], &options)
            };
            if queries * keys < 20 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}

#[test]
fn chunked_cross_attention_is_right() {
    // Batch, heads, key heads, tokens, chunks, chunk size, keys, dim: whole and partial last chunks, fewer
    // chunks than there could be, a chunk of one token, and of more than a block of queries.
    for [batch, heads, kv_heads, tokens, chunks, m, keys, dim] in [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [2, 2, 1, 7, 2, 3, 4, 2],
        [2, 2, 2, 8, 1, 3, 5, 2],
        [1, 2, 2, 4, 4, 1, 3, 4],
        [2, 2, 2, 150, 2, 70, 33, 8],
        [2, 4, 2, 64, 4, 16, 32, 16],
    ] {
        let buckets: Vec<u32> = (0..m * keys).map(|i| (i * 3 % 4) as u32).collect();
        let buckets = Tensor::from_vec(buckets, (m, keys), &Device::Cpu).unwrap();
        let inputs = [
            random(&[batch, heads, tokens, dim], 1),
            random(&[batch * chunks, kv_heads, keys, dim], 2),
            random(&[batch * chunks, kv_heads, keys, dim], 3),
            random(&[heads, 4], 4),
            random(&[heads], 5),
        ];
        for mask in masks(batch * chunks, keys) {
            let op = |t: &[Tensor]| {
                let options = AttentionOptions {
                    relative: Some(RelativeBias { table: &t[3], buckets: &buckets }),
                    key_mask: mask.as_ref(),
                    sink: Some(&t[4]),
                    ..AttentionOptions::scaled(0.7)
                };
                chunked_cross_attention(&t[0], &t[1], &t[2], m, &options)
            };
            if tokens * keys < 40 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
    let q = random(&[2, 2, 7, 4], 1);
    let kv = random(&[6, 2, 5, 4], 2);
    assert!(chunked_cross_attention(&q, &kv, &kv, 3, &AttentionOptions::scaled(1.0)).is_err());
    assert!(chunked_cross_attention(&q, &kv, &kv, 0, &AttentionOptions::scaled(1.0)).is_err());
}

#[test]
fn fusion_in_decoder_attention_is_right() {
    for [batch, passages, tokens, kv_heads, heads, queries, dim] in
        [[1, 1, 1, 1, 1, 1, 1], [2, 2, 3, 1, 2, 2, 2], [2, 3, 17, 2, 2, 70, 8]]
    {
        let width = kv_heads * dim;
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, passages, tokens, width], 2),
            random(&[batch, passages, tokens, width], 3),
        ];
        for mask in masks(batch, passages * tokens) {
            let mask = mask.map(|mask| mask.reshape((batch, passages, tokens)).unwrap());
            let op = |t: &[Tensor]| fusion_in_decoder_attention(&t[0], &t[1], &t[2], mask.as_ref(), 0.5);
            if queries * tokens < 20 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }
}

#[test]
fn attention_is_right() {
    SHAPES.into_iter().for_each(check_shape);
}
